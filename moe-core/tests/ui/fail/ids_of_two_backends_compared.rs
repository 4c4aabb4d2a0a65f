//! cpu:0 and toy:0 are not even unequal: the question is a type error.
#[path = "../../support/toy.rs"]
mod toy;

use moe_core::DeviceId;
use moe_cpu::Cpu;

fn same(a: DeviceId<Cpu>, b: DeviceId<toy::Toy>) -> bool {
    a == b
}

fn main() {}
