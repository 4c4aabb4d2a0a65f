//! The conformance suite with everything the adapter has.

mod common;
#[path = "common/suite.rs"]
mod suite;

use moe_wgpu::WgpuOptions;

#[test]
fn conformance_suite_passes() {
    suite::run(WgpuOptions::default(), &[], &[], 1 << 18);
}
