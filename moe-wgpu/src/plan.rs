//! Building a plan.

use crate::buffer::WgpuRegion;
use crate::dispatch::{Constants, Dispatch};
use crate::kernels::{PLAN_COUNT, PLAN_SCAN, PLAN_SCATTER};
use crate::window::Bound;
use crate::{Wgpu, WgpuQueue};
use moe_core::raw::{BuildArgs, PlanArrays, PlanMut, PlanShape};
use moe_core::{Capacity, DType, Layout, Limits, Result};

/// Routes that a workgroup ranks at once.
const TILE: usize = 256;
/// Chunks that routes are cut into: enough to fill a GPU, few enough for one workgroup to scan.
const MAX_CHUNKS: usize = 256;
/// Drop counters of a chunk: masked, invalid, non_local.
const COUNTERS: usize = 3;
/// Rows of `source` that a workgroup fills.
const FILL: u64 = 2048;

/// Bytes of scratch for any number of routes and experts within the limits.
pub(crate) fn scratch_bytes(limits: &Limits) -> usize {
    let chunks = limits.max_routes.div_ceil(TILE).min(MAX_CHUNKS);
    chunks.saturating_mul(limits.max_experts.saturating_add(COUNTERS)).saturating_mul(4).min(isize::MAX as usize)
}

/// How many chunks `routes` are cut into, and tiles of a chunk.
fn chunks(routes: usize) -> (usize, usize) {
    let tiles = routes.div_ceil(TILE);
    let per_chunk = tiles.div_ceil(MAX_CHUNKS).max(1);
    (tiles.div_ceil(per_chunk), per_chunk)
}

pub(crate) fn build(queue: &mut WgpuQueue<'_>, plan: PlanMut<'_, Wgpu>, args: BuildArgs<'_, Wgpu>) -> Result<()> {
    let op = "build";
    let device = queue.device().clone();
    let arrays = plan.arrays;
    let shape = &arrays.shape;
    let buffer = plan.buffer.wgpu_buffer();
    let bytes = 0..arrays.byte_len as u64;
    let out = Bound::new(&device, op, "the plan", &WgpuRegion::new(buffer, bytes))?;
    // Without routes there is no scratch to speak of, and no kernel touches it; anything may be bound. The same goes
    // for views that are not there.
    let (num_chunks, tiles) = chunks(shape.num_routes());
    let scratch = match num_chunks {
        0 => out,
        _ => Bound::new(&device, op, "the workspace", &args.scratch.0)?,
    };
    let ids = Bound::region_or(&device, op, "ids", Some(&args.ids.region), out)?;
    let map = Bound::region_or(&device, op, "expert_map", args.expert_map.as_ref().map(|v| &v.region), ids)?;
    let valid = Bound::region_or(&device, op, "valid_tokens", args.valid_tokens.as_ref().map(|v| &v.region), ids)?;
    let load = match arrays.logical_load {
        Some(section) => {
            let bytes = section.bytes();
            let region = WgpuRegion::new(buffer, bytes.start as u64..bytes.end as u64);
            queue.with(op, |encoder, _| encoder.clear_buffer(buffer, region.start, Some(region.len)));
            Bound::new(&device, op, "logical_load", &region)?
        }
        None => scratch,
    };
    let constants = Constants::default()
        .flag("WIDE", args.ids.dtype == DType::I64)
        .flag("MAPPED", args.expert_map.is_some())
        .flag("VALID", args.valid_tokens.is_some())
        .flag("LOAD", arrays.logical_load.is_some())
        .flag("M_INDICES", arrays.m_indices.is_some())
        .done();
    let mut params = sizes(shape, num_chunks, tiles);
    params.extend([ids.base, map.base, valid.base, scratch.base].map(|bytes| bytes / 4));
    params.extend(sections(arrays));

    let dispatch = |kernel, groups| Dispatch {
        kernel,
        constants: constants.clone(),
        buffers: vec![ids, map, valid, scratch, out, load],
        params: params.clone(),
        groups,
    };
    let fill = (shape.rows as u64).div_ceil(FILL);
    let mut dispatches = Vec::with_capacity(3);
    if num_chunks > 0 || fill > 0 {
        dispatches.push(dispatch(&PLAN_COUNT, fill.max(num_chunks as u64)));
    }
    dispatches.push(dispatch(&PLAN_SCAN, 1));
    if num_chunks > 0 {
        dispatches.push(dispatch(&PLAN_SCATTER, num_chunks as u64));
    }
    queue.record(op, &dispatches)
}

/// The first part of the kernels' `Params`: every number is at most `i32::MAX`.
fn sizes(shape: &PlanShape, chunks: usize, tiles: usize) -> Vec<u32> {
    let capacity = match shape.capacity {
        Some(Capacity::ByRoute(c)) => c as u32,
        _ => u32::MAX,
    };
    let (layout, unit) = match shape.layout {
        Layout::Aligned(n) => (1, n as u32),
        Layout::Padded(c) => (2, c as u32),
        _ => (0, 1),
    };
    let PlanShape { top_k, num_experts, num_local_experts, rows, .. } = *shape;
    let counters = chunks * num_local_experts;
    let sizes = [shape.num_routes(), top_k, num_experts, num_local_experts, rows, chunks, tiles, counters];
    sizes.map(|n| n as u32).into_iter().chain([capacity, layout, unit]).collect()
}

/// Where the plan's arrays begin, in words; the plan is bound from its first byte.
fn sections(arrays: &PlanArrays) -> [u32; 6] {
    let PlanArrays { status, expert_offsets, tokens_per_expert, slot, source, m_indices, .. } = *arrays;
    [status, expert_offsets, tokens_per_expert, slot, source, m_indices.unwrap_or(source)]
        .map(|section| (section.offset / 4) as u32)
}
