//! Building a plan, and reading one.

use crate::buffer::{typed, typed_mut};
use crate::kernels::{self, Copies, Ids, Placement, PlanArgs, PlanOut, Rows, RowsMut, Weights};
use crate::{Cpu, CpuQueue};
use moe_core::raw::{BuildArgs, PlanMut, PlanRef, RawRows, RawRowsMut, RawView, Section};
use moe_core::{Capacity, DType, Layout, Limits};

pub(crate) fn scratch_bytes(queue: &CpuQueue, limits: &Limits) -> usize {
    let Limits { max_routes, max_experts, .. } = *limits;
    let threads = queue.device().num_threads();
    kernels::plan_scratch_bytes(max_routes, max_experts, max_experts, max_experts, threads, true)
}

pub(crate) fn build(queue: &CpuQueue, plan: PlanMut<'_, Cpu>, args: BuildArgs<'_, Cpu>) {
    let arrays = plan.arrays;
    let shape = &arrays.shape;
    let ids = match args.ids.dtype {
        DType::U32 => Ids::U32(typed(args.ids.region.0)),
        DType::I64 => Ids::I64(typed(args.ids.region.0)),
        _ => Ids::I32(typed(args.ids.region.0)),
    };
    let kernel_args = PlanArgs {
        ids,
        top_k: shape.top_k,
        experts: shape.num_experts,
        copies: args.replicas.as_ref().map(|replicas| Copies {
            log2phy: typed(replicas.log2phy.region.0),
            logcnt: typed(replicas.logcnt.region.0),
            width: replicas.width,
            physical_experts: shape.num_physical_experts,
        }),
        expert_map: args.expert_map.as_ref().map(|map| typed(map.region.0)),
        local_experts: shape.num_local_experts,
        layout: match shape.layout {
            Layout::Aligned(n) => kernels::Layout::Aligned(n),
            Layout::Padded(c) => kernels::Layout::Padded(c),
            _ => kernels::Layout::Packed,
        },
        capacity: match shape.capacity {
            Some(Capacity::ByRoute(c)) => Some(kernels::Capacity::ByRoute(c)),
            // moe-core made sure that the weights are there.
            Some(Capacity::ByWeight(c)) => {
                args.capacity_weights.as_ref().map(|w| kernels::Capacity::ByWeight(c, weights(w)))
            }
            _ => None,
        },
        valid_tokens: args.valid_tokens.as_ref().map(|count| typed::<i32>(count.region.0)[0]),
        over_max_routes: args.mask_overflow.as_ref().map(|count| typed::<u32>(count.region.0)[0]),
    };
    let mut rest = (0, plan.buffer.bytes_mut());
    let mut out = PlanOut {
        status: typed_mut(cut(&mut rest, arrays.status)),
        expert_offsets: typed_mut(cut(&mut rest, arrays.expert_offsets)),
        tokens_per_expert: typed_mut(cut(&mut rest, arrays.tokens_per_expert)),
        logical_load: arrays.logical_load.map(|section| typed_mut(cut(&mut rest, section))),
        slot: typed_mut(cut(&mut rest, arrays.slot)),
        source: typed_mut(cut(&mut rest, arrays.source)),
        m_indices: arrays.m_indices.map(|section| typed_mut(cut(&mut rest, section))),
    };
    // Ids and four arrays of at most 8 bytes an element.
    let serial = kernels::plan_is_serial(shape.num_routes(), shape.rows);
    let bytes = if serial { 0 } else { (shape.num_routes() + shape.rows) * 16 };
    queue.run(bytes, |_| kernels::plan(&kernel_args, &mut out, args.scratch.0));
}

/// Cuts a section off the front of the plan's memory, of which `rest` knows where it begins. Sections are cut in the
/// order in which they lie.
fn cut<'a>(rest: &mut (usize, &'a mut [u8]), section: Section) -> &'a mut [u8] {
    let (start, memory) = std::mem::take(rest);
    let bytes = section.bytes();
    let (front, back) = memory.split_at_mut(bytes.end - start);
    *rest = (bytes.end, back);
    &mut front[bytes.start - start..]
}

/// A built plan, as the kernels read it.
pub(crate) fn placement(plan: PlanRef<'_, Cpu>) -> Placement<'_> {
    let array = |section: Section| typed::<i32>(&plan.buffer.bytes()[section.bytes()]);
    Placement {
        source: array(plan.arrays.source),
        slot: array(plan.arrays.slot),
        expert_offsets: array(plan.arrays.expert_offsets),
        top_k: plan.arrays.shape.top_k,
    }
}

pub(crate) fn rows<'a>(rows: &RawRows<'a, Cpu>) -> Rows<'a> {
    Rows { bytes: rows.region.0, stride: rows.stride * rows.dtype.size() }
}

pub(crate) fn rows_mut(rows: RawRowsMut<'_, Cpu>) -> RowsMut<'_> {
    RowsMut { stride: rows.stride * rows.dtype.size(), bytes: rows.region.0 }
}

pub(crate) fn weights<'a>(view: &RawView<'a, Cpu>) -> Weights<'a> {
    match view.dtype {
        DType::F16 => Weights::F16(typed(view.region.0)),
        DType::BF16 => Weights::Bf16(typed(view.region.0)),
        _ => Weights::F32(typed(view.region.0)),
    }
}

/// The element type of rows that are computed with. moe-core lets no other come here.
pub(crate) fn elem(dtype: DType) -> kernels::Elem {
    match dtype {
        DType::F16 => kernels::Elem::F16,
        DType::BF16 => kernels::Elem::Bf16,
        DType::F8E4M3 => kernels::Elem::E4m3,
        DType::F8E5M2 => kernels::Elem::E5m2,
        _ => kernels::Elem::F32,
    }
}
