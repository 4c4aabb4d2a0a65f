//! Building a plan, alone or together with its gather.

use crate::abi::{self, PermuteParams, PlanParams, RowsParams};
use crate::buffer::CudaRegion;
use crate::launch::Launch;
use crate::thresholds::{self, PlanCut, PlanSize, Way};
use crate::{Cuda, CudaQueue, gather, keep};
use moe_core::raw::{BuildArgs, GatherArgs, PlanArrays, PlanMut, PlanRef, RawRows, RawRowsMut, RawView, Section};
use moe_core::{Buffer, Capacity, DType, Error, Layout, Limits, Region, Result};
use std::ops::Range;

pub(crate) fn scratch_bytes(queue: &CudaQueue, limits: &Limits) -> usize {
    thresholds::scratch_bytes(limits.max_routes, limits.max_experts, queue.kernels().multiprocessors)
}

/// Where the arrays of a plan are.
#[derive(Clone, Copy)]
pub(crate) struct PlanAddress<'a> {
    base: u64,
    pub(crate) arrays: &'a PlanArrays,
}

impl<'a> PlanAddress<'a> {
    pub(crate) fn of(plan: &PlanRef<'a, Cuda>, base: u64) -> Self {
        Self { base, arrays: plan.arrays }
    }

    pub(crate) fn at(&self, section: Section) -> u64 {
        self.base + section.offset as u64
    }

    pub(crate) fn slot(&self) -> u64 {
        self.at(self.arrays.slot)
    }

    pub(crate) fn expert_offsets(&self) -> u64 {
        self.at(self.arrays.expert_offsets)
    }

    pub(crate) fn tokens_per_expert(&self) -> u64 {
        self.at(self.arrays.tokens_per_expert)
    }

    /// Whether there can be rows between experts, which a gather zeroes.
    pub(crate) fn has_padding(&self) -> bool {
        !matches!(self.arrays.shape.layout, Layout::Packed)
    }
}

/// The address of a view that may be absent.
pub(crate) fn optional<'r>(launch: &mut Launch<'r>, view: Option<&'r RawView<'_, Cuda>>) -> Result<u64> {
    view.map_or(Ok(0), |view| launch.read(&view.region))
}

/// What a plan kernel finds or leaves in scratch, besides what it works with.
#[derive(Clone, Debug, Default)]
pub(crate) struct InScratch {
    /// A byte for each route, which says whether it stays: read.
    pub(crate) keep: Option<Range<usize>>,
    /// The list of the plan's rows, 8 bytes for each route: written.
    pub(crate) list: Option<Range<usize>>,
}

pub(crate) fn params<'r>(
    launch: &mut Launch<'r>,
    op: &'static str,
    arrays: &PlanArrays,
    buffer: &'r mut crate::CudaRegionMut<'_>,
    args: &'r mut BuildArgs<'_, Cuda>,
    cut: &PlanCut,
    ranges: &InScratch,
) -> Result<PlanParams> {
    let shape = &arrays.shape;
    let (layout, align) = match shape.layout {
        Layout::Packed => (abi::PACKED, 1),
        Layout::Aligned(n) => (abi::ALIGNED, n),
        Layout::Padded(c) => (abi::PADDED, c),
        other => return Err(unsupported(op, format!("the layout {other:?}"))),
    };
    let capacity = match shape.capacity {
        None => abi::NO_CAPACITY,
        Some(Capacity::ByRoute(c) | Capacity::ByWeight(c)) => c as u32,
        Some(other) => return Err(unsupported(op, format!("the capacity {other:?}"))),
    };
    let id_dtype = match args.ids.dtype {
        DType::U32 => abi::ID_U32,
        DType::I64 => abi::ID_I64,
        _ => abi::ID_I32,
    };
    let base = launch.write(buffer)?;
    let at = |section: Section| base + section.offset as u64;
    let scratch = launch.write(&mut args.scratch)?;
    let in_scratch = |range: &Option<Range<usize>>| range.as_ref().map_or(0, |range| scratch + range.start as u64);
    let (log2phy, logcnt, copies) = match &args.replicas {
        Some(r) => (launch.read(&r.log2phy.region)?, launch.read(&r.logcnt.region)?, r.width as u32),
        None => (0, 0, 0),
    };
    Ok(PlanParams {
        ids: launch.read(&args.ids.region)?,
        expert_map: optional(launch, args.expert_map.as_ref())?,
        valid_tokens: optional(launch, args.valid_tokens.as_ref())?,
        keep: in_scratch(&ranges.keep),
        over_max_routes: optional(launch, args.mask_overflow.as_ref())?,
        source: at(arrays.source),
        slot: at(arrays.slot),
        expert_offsets: at(arrays.expert_offsets),
        tokens_per_expert: at(arrays.tokens_per_expert),
        m_indices: arrays.m_indices.map_or(0, at),
        status: at(arrays.status),
        logical_load: arrays.logical_load.map_or(0, at),
        scratch,
        tokens: shape.num_tokens as u32,
        k: shape.top_k as u32,
        experts: shape.num_experts as u32,
        local_experts: shape.num_local_experts as u32,
        rows: shape.rows as u32,
        id_dtype,
        layout,
        align: align as u32,
        capacity,
        chunk_tokens: cut.chunk_tokens,
        rank_warps: cut.rank_warps,
        share: cut.share,
        order: in_scratch(&ranges.list),
        log2phy,
        logcnt,
        copies,
        physical_experts: shape.num_physical_experts as u32,
    })
}

fn unsupported(op: &'static str, what: String) -> Error {
    Error::Unsupported { op, backend: "cuda", reason: format!("there is no kernel for {what}") }
}

pub(crate) fn size(arrays: &PlanArrays, args: &BuildArgs<'_, Cuda>) -> PlanSize {
    let shape = &arrays.shape;
    PlanSize {
        tokens: shape.num_tokens,
        top_k: shape.top_k,
        experts: shape.num_experts,
        local_experts: shape.num_local_experts,
        plain: matches!(shape.layout, Layout::Packed) && shape.capacity.is_none(),
        mapped: args.expert_map.is_some(),
    }
}

/// The kernels keep a counter for each expert in shared memory.
pub(crate) fn check_experts(op: &'static str, queue: &CudaQueue, cut: &PlanCut, arrays: &PlanArrays) -> Result<()> {
    let most = queue.kernels().shared_memory;
    if cut.shape.shared as usize <= most {
        return Ok(());
    }
    let experts = arrays.shape.num_experts;
    let reason = format!("{experts} experts take {} bytes of shared memory, a block has {most}", cut.shape.shared);
    Err(Error::Unsupported { op, backend: "cuda", reason })
}

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn build(
    queue: &CudaQueue,
    mut plan: PlanMut<'_, Cuda>,
    mut args: BuildArgs<'_, Cuda>,
) -> Result<()> {
    let op = "build";
    let cut = size(plan.arrays, &args).plan(&queue.thresholds(), queue.kernels().multiprocessors);
    // SAFETY: the caller's promises are passed on.
    let keep = unsafe { keep::mark(queue, op, &mut plan, &mut args) }?;
    // SAFETY: likewise; the cut is of this plan, and the marks lie in its scratch.
    unsafe { build_cut(queue, op, plan, &mut args, &cut, &InScratch { keep, list: None }) }
}

/// Builds a plan.
///
/// # Safety
/// The promises of `PermuteBackend`. The cut is that of this plan; the ranges are inside of scratch, apart from what the
/// kernel works with.
unsafe fn build_cut(
    queue: &CudaQueue,
    op: &'static str,
    plan: PlanMut<'_, Cuda>,
    args: &mut BuildArgs<'_, Cuda>,
    cut: &PlanCut,
    ranges: &InScratch,
) -> Result<()> {
    check_experts(op, queue, cut, plan.arrays)?;
    let mut region = plan.buffer.region_mut();
    let mut launch = Launch::new(queue, op)?;
    let params = params(&mut launch, op, plan.arrays, &mut region, args, cut, ranges)?;
    // SAFETY: a plan kernel takes `PlanParams`; addresses are from this launch; sizes are those that moe-core checked.
    unsafe { launch.launch(cut.kernel, cut.shape, params) }
}

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn permute(
    queue: &CudaQueue,
    mut plan: PlanMut<'_, Cuda>,
    mut args: BuildArgs<'_, Cuda>,
    rows: RawRows<'_, Cuda>,
    mut out: RawRowsMut<'_, Cuda>,
) -> Result<()> {
    let (op, arrays) = ("permute", plan.arrays);
    let (tuned, multiprocessors) = (queue.thresholds(), queue.kernels().multiprocessors);
    let (input, output) = (rows.region.span().start, out.region.span().start);
    let mut moved = gather::rows_params(&rows, &out, input, output);
    let size = size(arrays, &args);
    let way = match moved.vec {
        16 => size.permute(&tuned, multiprocessors, moved.row_bytes as usize),
        _ => Way::Apart,
    };
    // SAFETY: the caller's promises are passed on.
    let keep = unsafe { keep::mark(queue, op, &mut plan, &mut args) }?;
    let (cut, list) = match way {
        Way::Together { cut, splits } => {
            check_experts(op, queue, &cut, arrays)?;
            let mut region = plan.buffer.region_mut();
            let mut launch = Launch::new(queue, op)?;
            let ranges = InScratch { keep, list: None };
            let plan = params(&mut launch, op, arrays, &mut region, &mut args, &cut, &ranges)?;
            moved.input = launch.read(&rows.region)?;
            moved.output = launch.write(&mut out.region)?;
            moved.splits = splits;
            let params = PermuteParams { plan, rows: [moved, RowsParams::UNUSED] };
            // SAFETY: a permute kernel takes `PermuteParams`; addresses are from this launch; sizes are those that
            // moe-core checked, and `vec` divides addresses and strides.
            return unsafe { launch.launch(cut.kernel, cut.shape, params) };
        }
        Way::Listed(cut) => (cut, Some(thresholds::list_in_scratch(args.scratch.len, arrays.shape.num_routes()))),
        Way::Apart => (size.plan(&tuned, multiprocessors), None),
    };
    let ranges = InScratch { keep, list };
    // SAFETY: the caller's promises are passed on; the cut is of this plan, and scratch for such limits has the marks
    // and the list.
    unsafe { build_cut(queue, op, plan.reborrow(), &mut args, &cut, &ranges) }?;
    let list = ranges.list.map(|list| args.scratch.slice(list));
    let args = GatherArgs { plan: plan.as_ref(), rows: rows.shorten(), weights: None, out: out.shorten() };
    // SAFETY: likewise; the plan is the one that was just built, and the list, if any, its own. There is one only with
    // rows whose addresses and strides are multiples of 16.
    unsafe { gather::gather_listed(queue, op, args, list) }
}

/// The region of a plan that is read.
pub(crate) fn plan_region<'a>(plan: &PlanRef<'a, Cuda>) -> CudaRegion<'a> {
    plan.buffer.region()
}
