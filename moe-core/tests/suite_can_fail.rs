//! The conformance suite is worth something only if a backend that computes nothing fails it.

#[path = "support/toy.rs"]
mod toy;

use moe_core::conformance::{GROUPS, GroupReport, Options, matmul, quant, router, run_group};
use moe_core::raw::{RouteArgs, RouterGradArgs, RouterLossArgs};
use moe_core::{Result, RouterBackend};
use toy::{Toy, ToyQueue};

/// What a backend passes that has no memory: refused arguments, and what this run leaves out.
const NEEDS_NO_RESULTS: &[&str] = &["bug_01", "bug_02", "errors_of_a_second", "errors_of_views"];

// SAFETY: nothing is written, and there is nothing that could be.
unsafe impl RouterBackend for Toy {
    unsafe fn route(_: &mut ToyQueue, _: RouteArgs<'_, Self>) -> Result<()> {
        Ok(())
    }

    unsafe fn router_losses(_: &mut ToyQueue, _: RouterLossArgs<'_, Self>) -> Result<()> {
        Ok(())
    }

    unsafe fn router_grad(_: &mut ToyQueue, _: RouterGradArgs<'_, Self>) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_backend_that_computes_nothing_fails_every_group_that_looks_at_results() {
    fails(GROUPS, NEEDS_NO_RESULTS, run_group::<Toy>);
}

#[test]
fn a_backend_that_routes_nothing_fails_every_group_of_the_router_that_looks_at_results() {
    fails(router::GROUPS, &["no_tokens"], router::run_group::<Toy>);
}

#[test]
fn a_backend_that_quantises_nothing_fails_every_group_of_quantisation_that_looks_at_results() {
    fails(quant::GROUPS, &["errors_of"], quant::run_group::<Toy>);
}

#[test]
fn a_backend_that_multiplies_nothing_fails_every_group_of_products_that_looks_at_results() {
    fails(matmul::GROUPS, &["errors_of"], matmul::run_group::<Toy>);
}

fn fails(groups: &[&str], exempt: &[&str], run: fn(&str, &str, &Options) -> GroupReport) {
    for group in groups {
        let report = run("toy", group, &Options::default());
        let exempt = exempt.iter().any(|name| group.starts_with(name));
        assert_eq!(report.failed == 0, exempt, "{report}");
        assert!(exempt || report.failures.iter().all(|f| !f.case.is_empty() && !f.message.is_empty()), "{report}");
    }
}
