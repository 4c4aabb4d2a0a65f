//! The groups that compute, with every optional feature of the adapter switched off.

mod common;
#[path = "common/suite.rs"]
mod suite;

use moe_wgpu::WgpuOptions;

#[test]
fn conformance_suite_passes_without_optional_features() {
    let options = WgpuOptions { native_f16: false, ..WgpuOptions::default() };
    suite::run(options, &["combine", "gather", "bug_08", "bug_20", "bug_24"], &[], 1 << 17);
}
