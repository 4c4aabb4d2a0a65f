//! The conformance suite is worth something only if a backend that computes nothing fails it.

#[path = "support/toy.rs"]
mod toy;

use moe_core::conformance::{GROUPS, Options, run_group};

/// What a backend passes that has no memory: refused arguments, and what this run leaves out.
const NEEDS_NO_RESULTS: &[&str] = &["bug_01", "bug_02", "errors_of_a_second", "errors_of_views"];

#[test]
fn a_backend_that_computes_nothing_fails_every_group_that_looks_at_results() {
    for group in GROUPS {
        let report = run_group::<toy::Toy>("toy", group, &Options::default());
        let exempt = NEEDS_NO_RESULTS.iter().any(|name| group.starts_with(name));
        assert_eq!(report.failed == 0, exempt, "{report}");
        assert!(exempt || report.failures.iter().all(|f| !f.case.is_empty() && !f.message.is_empty()), "{report}");
    }
}
