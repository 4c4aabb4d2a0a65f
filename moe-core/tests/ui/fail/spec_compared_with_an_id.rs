//! "cuda" against "cuda:0": the answer would be wrong on correct input.
use moe_core::{DeviceId, DeviceSpec};
use moe_cpu::Cpu;

fn same(asked: DeviceSpec, found: DeviceId<Cpu>) -> bool {
    asked == found
}

fn main() {}
