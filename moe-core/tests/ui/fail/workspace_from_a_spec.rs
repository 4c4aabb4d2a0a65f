//! The origin bug has nowhere to live: a workspace is made from a queue of an open device.
use moe_core::{DeviceSpec, Limits, Result, Workspace};
use moe_cpu::Cpu;

fn workspace(spec: &mut DeviceSpec) -> Result<Workspace<Cpu>> {
    Workspace::new(spec, Limits::new(8, 2, 4))
}

fn main() {}
