//! The suite of the router, for backends that have [`RouterBackend`](crate::RouterBackend).
//!
//! ```
//! moe_core::router_suite!(moe_cpu::Cpu, "cpu");
//! # fn main() {}
//! ```

mod cases;
mod errors;
mod finite;
pub mod naive;
mod route;
mod train;

super::suite::suite! { $ router_suite by expect_router_pass for RouterBackend:
    route::ids_and_weights,
    route::bug_06_nan_and_infinite_logits_give_ids_in_range,
    route::bug_07_nan_and_infinite_logits_give_distinct_ids,
    route::ties_go_to_the_lower_id,
    route::no_tokens_to_route,
    train::router_losses,
    train::router_gradients,
    train::ids_that_are_no_experts_get_no_gradient,
    finite::gradients_against_finite_differences,
    errors::errors_of_router_arguments,
}
