//! The other way round is no better.
use moe_core::{DeviceId, DeviceSpec};
use moe_cpu::Cpu;

fn same(asked: DeviceSpec, found: DeviceId<Cpu>) -> bool {
    found == asked
}

fn main() {}
