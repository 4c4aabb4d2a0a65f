//! "cuda" and "cuda:0" can be one device, and "cuda" twice need not be.
use moe_core::DeviceSpec;

fn same(a: DeviceSpec, b: DeviceSpec) -> bool {
    a == b
}

fn main() {}
