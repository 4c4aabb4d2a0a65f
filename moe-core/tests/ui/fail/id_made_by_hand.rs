//! An identity comes from a device that was opened.
use moe_core::DeviceId;
use moe_cpu::Cpu;
use std::marker::PhantomData;

fn forge(opened: DeviceId<Cpu>) -> DeviceId<Cpu> {
    DeviceId { any: opened.erase(), backend: PhantomData }
}

fn main() {}
