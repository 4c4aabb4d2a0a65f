//! The conformance suite of moe-core, on the CPU backend.

use moe_core::conformance::Options;
use moe_cpu::Cpu;

fn options() -> Options {
    Options { second_device: Some("cpu:1".into()), ..Options::from_env() }
}

moe_core::conformance_suite!(Cpu, "cpu", options());
moe_core::quant_suite!(Cpu, "cpu", options());
#[cfg(feature = "gemm")]
mod products {
    moe_core::matmul_suite!(moe_cpu::Cpu, "cpu", super::options());
}

#[test]
fn a_group_that_is_skipped_says_why() {
    let skips = vec![("plan_arrays", "shown by another run")];
    let report = moe_core::conformance::run_group::<Cpu>("cpu", "plan_arrays", &Options { skips, ..options() });
    assert_eq!((report.cases, report.skipped), (0, vec!["shown by another run".to_owned()]));
}

#[test]
fn a_report_is_json_and_names_every_group() {
    use moe_core::conformance::{Failure, GROUPS, GroupReport, Report};
    let failure = Failure { case: "a \"quoted\" name\n".into(), message: "back\\slash".into() };
    let groups = GROUPS.iter().map(|name| GroupReport {
        name,
        cases: 1,
        failed: 1,
        failures: vec![failure.clone()],
        ..GroupReport::default()
    });
    let report = Report { device: "cpu:0".into(), seed: 7, full: false, groups: groups.collect() };
    let json = report.to_json();
    assert!(json.contains(r#""case":"a \"quoted\" name\u000a","message":"back\\slash""#), "{json}");
    assert!(GROUPS.iter().all(|name| json.contains(name) && report.to_string().contains(name)));
    assert!(!report.passed());
}
