//! Building a plan.

use crate::buffer::WgpuRegion;
use crate::dispatch::Dispatch;
use crate::error::unsupported;
use crate::gather::{code, word};
use crate::kernels::{
    Constants, Kernel, PLAN_CAPACITY_SCAN, PLAN_CAPACITY_SELECT, PLAN_COUNT, PLAN_HISTOGRAM, PLAN_OVERFLOW, PLAN_PLACE,
    PLAN_PLACE_SUBGROUPS, PLAN_SCAN, PLAN_SCATTER, PLAN_SMALL, PLAN_SMALL_SUBGROUPS,
};
use crate::window::Bound;
use crate::{Wgpu, WgpuDevice, WgpuQueue};
use moe_core::raw::{BuildArgs, PlanArrays, PlanMut, PlanShape};
use moe_core::{Buffer, Capacity, DType, Layout, Limits, Region, Result};

/// The fewest routes of a chunk.
const TILE: usize = 256;
/// The most chunks that routes are cut into.
const MAX_CHUNKS: usize = 256;
/// Drop counters of a chunk: masked, invalid, non_local.
const COUNTERS: usize = 3;
/// Rows of `source` that a workgroup fills.
const FILL: u64 = 2048;
/// The most rows that one workgroup fills beside its routes.
const SMALL_ROWS: usize = 1 << 15;

/// Bytes of scratch for any number of routes and experts within the limits, whatever the tuning.
pub(crate) fn scratch_bytes(limits: &Limits) -> usize {
    let Limits { max_routes, max_experts } = *limits;
    counts_bytes(max_routes, max_experts).saturating_add(packed_bytes(max_routes, max_experts)).min(isize::MAX as usize)
}

/// Bytes of the counts, rounded up for what follows them.
fn counts_bytes(routes: usize, local_experts: usize) -> usize {
    let chunks = routes.div_ceil(TILE).min(MAX_CHUNKS);
    let words = chunks.saturating_mul(local_experts.saturating_add(COUNTERS));
    words.saturating_mul(4).checked_next_multiple_of(PlanArrays::ALIGN).unwrap_or(usize::MAX)
}

/// Bytes of the packed plan that a capacity by weight chooses from.
fn packed_bytes(routes: usize, local_experts: usize) -> usize {
    // Status, offsets and counts, slots and sources, each rounded up.
    let words = local_experts.saturating_add(routes).saturating_mul(2);
    words.saturating_mul(4).saturating_add(6 * PlanArrays::ALIGN)
}

/// How a plan is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By one workgroup, whose threads have `tiles` routes each.
    Small { threads: u32, tiles: u32, subgroups: bool },
    /// By a workgroup for each chunk, which counts, then places.
    Chunks { threads: u32, subgroups: bool },
    /// The same with counts in the scratch, and one workgroup between that adds them up.
    Wide,
}

impl Way {
    pub(crate) fn new(device: &WgpuDevice, routes: usize, local_experts: usize, rows: usize) -> Self {
        let (tuning, workgroup) = (device.tuning(), device.workgroup());
        let subgroups = device.subgroups().is_some_and(|lanes| tuning.by_subgroups(lanes));
        // Comparing takes as many steps as a tile has routes.
        let threads = tuning.plan_threads(routes);
        let threads = if subgroups { threads } else { threads.min(TILE as u32) };
        let experts = u64::from(elements_of_experts(local_experts));
        // Three words for each expert, two for each thread, and a few.
        if experts * 12 + u64::from(threads) * 8 + 64 > u64::from(workgroup.memory) || (threads as usize) < TILE {
            return Way::Wide;
        }
        let tiles = routes.div_ceil(threads as usize).max(1);
        if tiles <= tuning.plan_tiles as usize && rows <= SMALL_ROWS {
            return Way::Small { threads, tiles: tiles.next_power_of_two() as u32, subgroups };
        }
        Way::Chunks { threads, subgroups }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Small { subgroups: true, .. } => "one workgroup, by subgroups",
            Way::Small { .. } => "one workgroup, by comparisons",
            Way::Chunks { subgroups: true, .. } => "two dispatches, by subgroups",
            Way::Chunks { .. } => "two dispatches, by comparisons",
            Way::Wide => "three dispatches",
        }
    }

    fn threads(self) -> usize {
        match self {
            Way::Small { threads, .. } | Way::Chunks { threads, .. } => threads as usize,
            Way::Wide => TILE,
        }
    }
}

/// Elements that kernels have for experts in workgroup memory: few different numbers, as each is a kernel of its own.
fn elements_of_experts(local_experts: usize) -> u32 {
    match local_experts {
        ..=64 => 64,
        65..=256 => 256,
        n => n.next_power_of_two().min(1 << 31) as u32,
    }
}

/// How many chunks `routes` are cut into, and tiles of a chunk.
fn chunks(routes: usize, tile: usize, most: usize) -> (usize, usize) {
    let tiles = routes.div_ceil(tile);
    let per_chunk = tiles.div_ceil(most).max(1);
    (tiles.div_ceil(per_chunk), per_chunk)
}

pub(crate) fn build(queue: &mut WgpuQueue<'_>, plan: PlanMut<'_, Wgpu>, args: BuildArgs<'_, Wgpu>) -> Result<()> {
    let arrays = plan.arrays;
    let out = plan.buffer.region().elsewhere(0..arrays.byte_len as u64);
    let Some(Capacity::ByWeight(_)) = arrays.shape.capacity else { return sort(queue, arrays, &out, &args) };
    // All routes first, packed into the scratch; then each expert chooses among its own.
    let shape = PlanShape { layout: Layout::Packed, capacity: None, rows: arrays.shape.num_routes(), ..arrays.shape };
    let packed = PlanArrays::new(shape, false, false);
    let start = args.scratch.0.start + counts_bytes(shape.num_routes(), shape.num_local_experts) as u64;
    let between = args.scratch.0.elsewhere(start..start + packed.byte_len as u64);
    // The load is counted where it belongs.
    let load = arrays.logical_load.map(|section| out.clone().slice(section.bytes()));
    sort_into(queue, &packed, &between, load, &args)?;
    choose(queue, arrays, &out, &packed, &between, &args)
}

/// Builds a plan whose capacity, if any, goes by route.
fn sort(
    queue: &mut WgpuQueue<'_>,
    arrays: &PlanArrays,
    out: &WgpuRegion<'_>,
    args: &BuildArgs<'_, Wgpu>,
) -> Result<()> {
    let load = arrays.logical_load.map(|section| out.clone().slice(section.bytes()));
    sort_into(queue, arrays, out, load, args)
}

fn sort_into(
    queue: &mut WgpuQueue<'_>,
    arrays: &PlanArrays,
    out: &WgpuRegion<'_>,
    load: Option<WgpuRegion<'_>>,
    args: &BuildArgs<'_, Wgpu>,
) -> Result<()> {
    let op = "build";
    let device = queue.device().clone();
    let shape = &arrays.shape;
    let out = Bound::new(&device, op, "the plan", out)?;
    let way = Way::new(&device, shape.num_routes(), shape.num_local_experts, shape.rows);
    let most = if way == Way::Wide { MAX_CHUNKS } else { device.tuning().plan_chunks };
    let (num_chunks, tiles) = chunks(shape.num_routes(), way.threads(), most);
    // Without routes there is no scratch to speak of, and no kernel touches it; anything may be bound. The same goes
    // for views that are not there.
    let counts = counts_bytes(shape.num_routes(), shape.num_local_experts) as u64;
    let scratch = match num_chunks {
        0 => out,
        _ => {
            let start = args.scratch.0.start;
            Bound::new(&device, op, "the workspace", &args.scratch.0.elsewhere(start..start + counts))?
        }
    };
    let ids = Bound::region_or(&device, op, "ids", Some(&args.ids.region), out)?;
    let map = Bound::region_or(&device, op, "expert_map", args.expert_map.as_ref().map(|v| &v.region), ids)?;
    let valid = Bound::region_or(&device, op, "valid_tokens", args.valid_tokens.as_ref().map(|v| &v.region), ids)?;
    let log2phy = Bound::region_or(&device, op, "log2phy", args.replicas.as_ref().map(|r| &r.log2phy.region), ids)?;
    let logcnt = Bound::region_or(&device, op, "logcnt", args.replicas.as_ref().map(|r| &r.logcnt.region), ids)?;
    let counts_load = load.is_some();
    let load = Bound::region_or(&device, op, "logical_load", load.as_ref(), scratch)?;
    let constants = Constants::default().number("THREADS", way.threads() as u32);
    let per_expert = constants.clone().number("EXPERTS", elements_of_experts(shape.num_local_experts));
    // In the order of the kernels' flags.
    let flags = [
        args.ids.dtype == DType::I64,
        args.mask_overflow.is_some(),
        args.replicas.is_some(),
        args.expert_map.is_some(),
        args.valid_tokens.is_some(),
        counts_load,
        arrays.m_indices.is_some(),
    ];
    let flags = flags.into_iter().rev().fold(0, |bits, flag| bits << 1 | u32::from(flag));
    let width = args.replicas.as_ref().map_or(0, |r| r.width as u32);
    let mut params = sizes(shape, num_chunks, tiles, width)?;
    params.push(flags);
    params.extend([ids, map, valid, log2phy, logcnt, scratch].map(|bound| bound.base / 4));
    params.extend(sections(arrays).map(|section| out.base / 4 + section));

    let dispatch = |kernel: &'static Kernel, constants: &Constants, groups| Dispatch {
        kernel,
        constants: constants.clone(),
        buffers: vec![ids, map, valid, log2phy, logcnt, scratch, out, load],
        params: params.clone(),
        groups,
    };
    let chunks = num_chunks as u64;
    let count_groups = (shape.rows as u64).div_ceil(FILL).max(chunks);
    let mut dispatches: Vec<_> = match way {
        Way::Small { tiles, subgroups, .. } => {
            let kernel = if subgroups { &PLAN_SMALL_SUBGROUPS } else { &PLAN_SMALL };
            vec![dispatch(kernel, &per_expert.number("TILES", tiles), 1)]
        }
        Way::Chunks { subgroups, .. } => {
            let place = if subgroups { &PLAN_PLACE_SUBGROUPS } else { &PLAN_PLACE };
            let count = dispatch(&PLAN_HISTOGRAM, &per_expert, count_groups);
            [count, dispatch(place, &per_expert, chunks.max(1))].into_iter().filter(|d| d.groups > 0).collect()
        }
        Way::Wide => {
            let count = dispatch(&PLAN_COUNT, &constants, count_groups);
            let (scan, scatter) = (dispatch(&PLAN_SCAN, &constants, 1), dispatch(&PLAN_SCATTER, &constants, chunks));
            [count, scan, scatter].into_iter().filter(|d| d.groups > 0).collect()
        }
    };
    if let Some(overflow) = &args.mask_overflow {
        let over = Bound::new(&device, op, "mask_overflow", &overflow.region)?;
        dispatches.push(Dispatch {
            kernel: &PLAN_OVERFLOW,
            constants: Constants::default(),
            buffers: vec![over, out],
            params: vec![over.base / 4, out.base / 4 + word(arrays.status)],
            groups: 1,
        });
    }
    queue.record(op, &dispatches)
}

/// Leaves each expert the routes with the largest weights.
fn choose(
    queue: &mut WgpuQueue<'_>,
    arrays: &PlanArrays,
    out: &WgpuRegion<'_>,
    packed: &PlanArrays,
    between: &WgpuRegion<'_>,
    args: &BuildArgs<'_, Wgpu>,
) -> Result<()> {
    let (op, device) = ("build", queue.device().clone());
    let Some(weights) = &args.capacity_weights else {
        return Err(unsupported(op, "a capacity by weight without weights".into()));
    };
    let shape = &arrays.shape;
    let out = Bound::new(&device, op, "the plan", out)?;
    let from = Bound::new(&device, op, "the workspace", between)?;
    let bound = Bound::region_or(&device, op, "capacity_weights", Some(&weights.region), from)?;
    let constants = Constants::default()
        .number("THREADS", TILE as u32)
        .number("WEIGHTS", code(op, "capacity_weights", weights.dtype)?)
        .number("SIZE_OF_WEIGHT", weights.dtype.size() as u32)
        .flag("M_INDICES", arrays.m_indices.is_some());
    let (capacity, [layout, unit]) = (capacity_of(shape)?, layout_of(shape)?);
    let sizes = [shape.num_routes(), shape.num_local_experts, shape.rows].map(|n| n as u32);
    let mut params: Vec<u32> = sizes.into_iter().chain([capacity, layout, unit, bound.base]).collect();
    let first = from.base / 4;
    let PlanArrays { status, expert_offsets, tokens_per_expert, slot, source, .. } = *packed;
    params.extend([status, expert_offsets, tokens_per_expert, slot, source].map(|section| first + word(section)));
    params.extend(sections(arrays).map(|section| out.base / 4 + section));
    let dispatch = |kernel, groups| Dispatch {
        kernel,
        constants: constants.clone(),
        buffers: vec![bound, from, out],
        params: params.clone(),
        groups,
    };
    let experts = shape.num_local_experts as u64;
    queue.record(op, &[dispatch(&PLAN_CAPACITY_SCAN, 1), dispatch(&PLAN_CAPACITY_SELECT, experts)])
}

fn capacity_of(shape: &PlanShape) -> Result<u32> {
    match shape.capacity {
        None => Ok(u32::MAX),
        Some(Capacity::ByRoute(c) | Capacity::ByWeight(c)) => Ok(c as u32),
        Some(other) => Err(unsupported("build", format!("{other:?} is not known"))),
    }
}

/// The spacing of the experts' rows, and its unit.
fn layout_of(shape: &PlanShape) -> Result<[u32; 2]> {
    match shape.layout {
        Layout::Packed => Ok([0, 1]),
        Layout::Aligned(n) => Ok([1, n as u32]),
        Layout::Padded(c) => Ok([2, c as u32]),
        other => Err(unsupported("build", format!("{other:?} is not known"))),
    }
}

/// The first part of the kernels' `Params`: every number is at most `i32::MAX`.
fn sizes(shape: &PlanShape, chunks: usize, tiles: usize, width: u32) -> Result<Vec<u32>> {
    let (capacity, [layout, unit]) = (capacity_of(shape)?, layout_of(shape)?);
    let PlanShape { top_k, num_experts, num_physical_experts, num_local_experts, rows, .. } = *shape;
    let drops = chunks * num_local_experts;
    let experts = [num_experts, num_physical_experts, num_local_experts];
    let sizes = [shape.num_routes(), top_k].into_iter().chain(experts).chain([rows, chunks, tiles, drops]);
    Ok(sizes.map(|n| n as u32).chain([capacity, layout, unit, width]).collect())
}

/// Where the plan's arrays begin, in words from its first byte.
fn sections(arrays: &PlanArrays) -> [u32; 6] {
    let PlanArrays { status, expert_offsets, tokens_per_expert, slot, source, m_indices, .. } = *arrays;
    [status, expert_offsets, tokens_per_expert, slot, source, m_indices.unwrap_or(source)].map(word)
}
