//! A wish does not turn into an identity.
use moe_core::{DeviceId, DeviceSpec};
use moe_cpu::Cpu;

fn id(spec: DeviceSpec) -> DeviceId<Cpu> {
    spec.into()
}

fn main() {}
