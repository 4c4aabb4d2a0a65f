//! The suite that a backend runs to show that it keeps the contracts of this crate.
//!
//! Every case is computed again by the plain functions of [`naive`] and compared, mostly bit for bit. Outputs are
//! poisoned first and surrounded by canary words; a failure names its case, and the seed repeats it.
//!
//! A backend's tests take the whole suite, one `#[test]` per group:
//!
//! ```
//! moe_core::conformance_suite!(moe_cpu::Cpu, "cpu");
//! # fn main() {}
//! ```
//!
//! or, with a tolerance, skips and limits, `conformance_suite!(Gpu, "gpu", options())`, where `options()` gives
//! [`Options`]. A program that carries the suite to another machine calls [`run`] and prints the [`Report`].
//!
//! What has a backend trait of its own has a suite of its own: [`router`], [`quant`], [`matmul`].
//!
//! Quick runs cover every combination of two axes (dtypes, layouts, expert maps, sizes, distributions of ids, …); full
//! ones (`MOE_FULL=1`, or `--full` for a program) every combination of three. Groups named `bug_NN_…` protect from a
//! bug that users of other libraries really hit.

mod axes;
mod backward;
mod bugs;
mod bugs_large;
mod choices;
mod chunks;
mod combine;
mod combine_grad;
mod compare;
mod cover;
mod errors;
mod errors_device;
mod errors_routes;
mod fused;
mod gather;
mod guarded;
mod harness;
mod mask;
pub mod matmul;
pub mod naive;
mod options;
pub mod quant;
mod recorded;
mod report;
mod rng;
mod route;
pub mod router;
mod suite;
mod tables;
mod values;

#[doc(hidden)]
pub use matmul::expect_pass as expect_matmul_pass;
pub use options::{Options, Tolerance};
#[doc(hidden)]
pub use quant::expect_pass as expect_quant_pass;
pub use recorded::{recorded_te, recorded_trace, recorded_vllm};
pub use report::{Failure, GroupReport, Report};
#[doc(hidden)]
pub use router::expect_pass as expect_router_pass;

suite::suite! { $ conformance_suite by expect_pass for PermuteBackend:
    route::plan_arrays,
    choices::copies_of_experts,
    choices::capacity_by_weight,
    mask::mask_maps,
    mask::mask_maps_drop_by_probability,
    chunks::chunk_sorts,
    tables::block_tables,
    tables::split_sizes_by_rank,
    tables::values_by_route,
    gather::gather_copies_bits,
    gather::gather_with_weights,
    gather::zero_tail_touches_the_tail_alone,
    combine::combine_floats,
    combine::combine_8_bit_floats,
    combine::combine_onto_scaled_residuals,
    combine_grad::combine_grad_both_outputs,
    backward::gradients_of_primitives,
    backward::gradients_of_routes,
    fused::permute_equals_build_then_gather,
    fused::allocating_forms_equal_into_forms,
    bugs_large::bug_01_row_offsets_past_32_bits,
    bugs_large::bug_02_scale_offsets_past_32_bits,
    bugs::bug_03_masked_ids_are_not_sorted_first,
    bugs::bug_04_masked_ids_read_no_expert_map,
    bugs::bug_05_all_ids_masked,
    bugs::bug_08_unwritten_rows_are_not_summed,
    bugs::bug_09_no_local_routes_still_give_all_tokens,
    bugs::bug_10_no_tokens,
    bugs::bug_11_sizes_that_are_no_multiple_of_a_block,
    bugs::bug_12_expert_counts,
    bugs_large::bug_13_more_rows_than_a_grid_dimension,
    bugs_large::bug_14_repeats_are_bitwise_equal,
    errors_device::bug_15_a_spec_without_index_is_its_device,
    bugs_large::bug_17_one_workspace_serves_all_layers,
    errors::bug_18_too_small_a_workspace_is_a_typed_error,
    errors::bug_19_scales_shorter_than_the_rows,
    bugs::bug_20_odd_widths_and_offsets,
    bugs::bug_21_id_types,
    combine_grad::bug_24_gradients_against_float64,
    bugs_large::bug_25_all_routes_to_one_expert,
    bugs_large::bug_26_a_million_routes,
    errors::errors_of_plan_arguments,
    errors_routes::errors_of_mask_and_chunk_arguments,
    errors_routes::errors_of_table_arguments,
    errors::errors_of_gather_arguments,
    errors::errors_of_combine_arguments,
    errors::errors_of_combine_grad_arguments,
    errors::errors_of_views_and_queues,
    errors_device::errors_of_a_second_device,
    errors_device::errors_of_a_second_stream,
}
