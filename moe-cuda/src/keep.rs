//! Capacity by weight: which routes stay is marked before the plan is built.

use crate::abi::{self, KeepParams};
use crate::launch::{Launch, Shape};
use crate::plan::{InScratch, check_experts, optional, params, size};
use crate::ptx::Kernel;
use crate::thresholds::{keep_in_scratch, sorted_in_scratch};
use crate::{Cuda, CudaQueue};
use moe_core::raw::{BuildArgs, PlanMut};
use moe_core::{Buffer, Capacity, Layout, Result};
use std::ops::Range;

/// Threads that choose among the routes of an expert.
const BLOCK: u32 = 512;

/// Marks the routes that stay, if the plan has a capacity by weight. Gives where in scratch the marks are.
///
/// First the routes of each expert are listed: by a plan without capacity, in the memory of the plan that is to be
/// built, but with its rows in scratch. Then each expert's list is gone through by a block.
///
/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn mark(
    queue: &CudaQueue,
    op: &'static str,
    plan: &mut PlanMut<'_, Cuda>,
    args: &mut BuildArgs<'_, Cuda>,
) -> Result<Option<Range<usize>>> {
    let (arrays, routes) = (*plan.arrays, plan.arrays.shape.num_routes());
    let Some(Capacity::ByWeight(capacity)) = arrays.shape.capacity else { return Ok(None) };
    if routes == 0 {
        return Ok(None);
    }
    let (keep, sorted) = (keep_in_scratch(args.scratch.len, routes), sorted_in_scratch(args.scratch.len, routes));
    let mut all = arrays;
    (all.shape.layout, all.shape.capacity, all.shape.rows) = (Layout::Packed, None, routes);
    (all.m_indices, all.logical_load) = (None, None);
    let cut = size(&all, args).plan(&queue.thresholds(), queue.kernels().multiprocessors);
    check_experts(op, queue, &cut, &all)?;
    let weight_dtype = args.capacity_weights.as_ref().map_or(abi::NONE, |weights| abi::dtype(weights.dtype));

    let weights = args.capacity_weights.take();
    let mut region = plan.buffer.region_mut();
    let mut launch = Launch::new(queue, op)?;
    let weights_at = optional(&mut launch, weights.as_ref())?;
    let mut listing = params(&mut launch, op, &all, &mut region, args, &cut, &InScratch::default())?;
    let in_scratch = |range: &Range<usize>| listing.scratch + range.start as u64;
    let (keep_at, sorted_at) = (in_scratch(&keep), in_scratch(&sorted));
    listing.source = sorted_at;
    // SAFETY: a plan kernel takes `PlanParams`; addresses are from this launch; sizes are those that moe-core checked,
    // and scratch for such limits has room for a list of all routes.
    unsafe { launch.launch(cut.kernel, cut.shape, listing) }?;
    let choice = KeepParams {
        weights: weights_at,
        source: sorted_at,
        expert_offsets: listing.expert_offsets,
        tokens_per_expert: listing.tokens_per_expert,
        keys: listing.slot, // written again when the plan is built
        keep: keep_at,
        routes: routes as u32,
        local_experts: listing.local_experts,
        capacity: capacity as u32,
        weight_dtype,
    };
    let shape = Shape { grid: listing.local_experts, block: BLOCK, shared: 0, cooperative: false };
    // SAFETY: the kernel takes `KeepParams`; the lists are those of the plan above, weights, keys and marks have an
    // element for each route.
    unsafe { launch.launch(Kernel::KeepByWeight, shape, choice) }?;
    Ok(Some(keep))
}
