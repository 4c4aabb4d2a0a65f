//! The groups that plan, by subgroups even where they are too small to be the faster way.

mod common;
#[path = "common/suite.rs"]
mod suite;

use moe_core::Device;
use moe_core::oracle::TuningTable;
use moe_wgpu::{WgpuDevice, WgpuOptions};

#[test]
fn conformance_suite_passes_by_subgroups() {
    let Some(spec) = common::spec() else { return };
    WgpuOptions::default().set_default();
    let device = WgpuDevice::open(&spec).unwrap();
    let table = format!("[wgpu: {}]\nplan_ranks subgroups\n", device.info().name);
    match device.tune(&table.parse::<TuningTable>().unwrap()) {
        Ok(()) => suite::run(WgpuOptions::default(), &["plan_arrays", "copies", "bug_12"], &[], 1 << 16),
        // llvmpipe has subgroups.
        Err(error) => assert!(std::env::var("MOE_REQUIRE_WGPU").is_err(), "{error}"),
    }
}
