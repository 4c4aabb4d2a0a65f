//! The groups that plan and compute, with every optional feature of the adapter switched off: no native f16, no
//! subgroups, no immediate data.

mod common;
#[path = "common/suite.rs"]
mod suite;

use moe_wgpu::WgpuOptions;

#[test]
fn conformance_suite_passes_without_optional_features() {
    let groups =
        ["plan_arrays", "capacity", "copies", "mask", "combine", "gather", "bug_08", "bug_12", "bug_20", "bug_24"];
    suite::run(WgpuOptions::PLAIN, &groups, &[], 1 << 16);
}
