//! The conformance suite on the adapter to test.

mod common;

use moe_core::conformance::{GROUPS, Options, Tolerance, expect_pass};
use moe_wgpu::Wgpu;

/// Every group on its own device would be one test each; they share the adapter, so one test runs them in order and
/// says which failed.
#[test]
fn conformance_suite_passes() {
    let Some(spec) = common::spec() else { return };
    let options = Options { tolerance: Tolerance::Ulp, max_elements: Some(1 << 18), ..Options::from_env() };
    let mut failed = Vec::new();
    for group in GROUPS {
        let begin = std::time::Instant::now();
        let run = || expect_pass::<Wgpu>(&spec.to_string(), group, &options);
        if std::panic::catch_unwind(run).is_err() {
            failed.push(group);
        }
        println!("{group}: {:.1} s", begin.elapsed().as_secs_f64());
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}
