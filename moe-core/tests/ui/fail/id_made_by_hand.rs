//! An identity comes from a device that was opened.
use moe_core::DeviceId;
use moe_cpu::Cpu;
use std::marker::PhantomData;

fn main() {
    let opened: DeviceId<Cpu> = unreachable!();
    let _made: DeviceId<Cpu> = DeviceId { any: opened.erase(), backend: PhantomData };
}
