//! The CPU kernels: plan, gather, combine and combine_grad over slices, in rayon's current pool.
//!
//! Nothing here allocates, and no result depends on the number of threads or on the instruction set: each output
//! element is computed by one task, in f32, in a fixed order, with fused multiply-add and one rounding.
//!
//! | entry point | does |
//! |---|---|
//! | [`plan`], [`plan_scratch_bytes`] | ids to index arrays, by a parallel stable counting sort |
//! | [`gather`] | rows of tokens to rows of routes, as bits or scaled by a weight |
//! | [`combine`] | rows of routes back to rows of tokens, weighted and summed |
//! | [`combine_grad`] | the gradients of `combine` for its rows and its weights |
//! | [`expand_mask`], [`expand_chunks`] | mask maps and chunk sizes to ids; [`scatter_mask`] is the former's way back |
//! | [`block_table`], [`split_sizes`] | further index arrays of a plan |
//! | [`route`], [`router_losses`], [`router_grad`] | logits to ids and weights, and the way back |
//! | [`gather_quant`] | [`gather`] that quantises |
//! | [`swiglu`], [`swiglu_quant`] | the activation between an expert's products, as it is or quantised |
//! | [`zero_rows`] | zeroes a range of rows |
//! | [`copy_memcpy`], [`copy_streaming`] | parallel copies, the floor that a benchmark measures beside the others |
//!
//! Row data are bytes with a stride, so that any element type and any alignment is served; index arrays are `i32`.
//! Lengths are asserted. The contents of index arrays are never trusted: a slot or source out of range is skipped.

mod blocks;
mod combine;
mod copy;
mod count;
mod elem;
mod expand;
mod gather;
mod grad;
mod parallel;
mod place;
mod quant;
mod route;
mod router;
mod rows;
mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_x86;
mod sort;
mod stores;
mod thresholds;
mod tier;
mod weights_order;

#[cfg(test)]
mod tests;

pub(crate) use blocks::{block_table, split_sizes};
pub(crate) use combine::{Combine, Scales, combine};
pub(crate) use copy::{copy_memcpy, copy_streaming};
pub(crate) use elem::Elem;
#[cfg(feature = "gemm")]
pub(crate) use elem::{bf16_bits, e4m3_value, f16_bits, f16_value};
pub(crate) use expand::{Expand, MaskBits, expand_chunks, expand_mask, scatter_mask};
pub(crate) use gather::{Gather, gather, zero_rows};
pub(crate) use grad::{CombineGrad, combine_grad};
#[cfg(feature = "gemm")]
pub(crate) use parallel::Shared;
pub(crate) use quant::{Activation, GatherQuant, QuantOut, gather_quant, swiglu, swiglu_quant};
pub(crate) use router::{
    LossGrads, Losses, Route, RouteOut, RouterGrad, RouterLosses, route, router_grad, router_losses,
};
pub(crate) use rows::{Placement, Rows, RowsMut, Weights, WeightsMut};
pub(crate) use sort::{Capacity, Copies, Ids, Layout, PlanArgs, PlanOut, plan, plan_is_serial, plan_scratch_bytes};
pub(crate) use thresholds::{INSTRUCTIONS, KNOBS, STREAM_BYTES, STREAM_ROW, TASK_BYTES, Thresholds};
pub(crate) use tier::Tier;
