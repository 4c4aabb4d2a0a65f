//! The conformance suite, in order, on the adapter to test.

use moe_core::conformance::{GROUPS, Options, Tolerance, run_group};
use moe_wgpu::{Wgpu, WgpuOptions};

/// Runs the groups that `wanted` names a part of, all if it is empty. The groups share one adapter, so they run one
/// after the other, and all of them run before this fails.
pub(crate) fn run(device: WgpuOptions, wanted: &[&str], skips: &[(&'static str, &'static str)], most: usize) {
    let Some(spec) = super::common::spec() else { return };
    device.set_default();
    let options = Options { tolerance: Tolerance::Ulp, max_elements: Some(most), ..Options::from_env() };
    let options = Options { skips: skips.to_vec(), ..options };
    let (mut failed, mut cases) = (Vec::new(), 0);
    for group in GROUPS.iter().filter(|group| wanted.is_empty() || wanted.iter().any(|part| group.contains(part))) {
        let begin = std::time::Instant::now();
        let report = run_group::<Wgpu>(&spec.to_string(), group, &options);
        println!("{report} (seed {}, {:.1} s)", options.seed, begin.elapsed().as_secs_f64());
        cases += report.cases;
        if report.failed > 0 {
            failed.push(group);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
    assert!(cases > 0, "no case ran");
}
