//! The groups that move rows, with bindings so small that every matrix is worked on in several windows. Where four
//! windows do not hold the rows of a combine, it says so with a typed error, so sizes are kept below that.

mod common;
#[path = "common/suite.rs"]
mod suite;

use moe_wgpu::WgpuOptions;

#[test]
fn conformance_suite_passes_in_windows() {
    let options = WgpuOptions { max_binding_bytes: Some(1 << 18), ..WgpuOptions::default() };
    suite::run(options, &["gather", "zero_tail", "combine", "permute"], &[], 1 << 16);
}
