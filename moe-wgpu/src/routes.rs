//! What turns masks and chunks into ids, and what derives further index arrays from a plan.

use crate::dispatch::Dispatch;
use crate::gather::{THREADS, word, zero_all};
use crate::kernels::{
    ADD_LOAD, BLOCK_TABLE, CHUNK_ENDS, CHUNK_IDS, Constants, EXPAND_MASK, MASK_PROBS, SCATTER_MASK, SPLIT_SIZES,
};
use crate::window::{Bound, Matrix};
use crate::{Wgpu, WgpuBuffer, WgpuQueue};
use moe_core::raw::{
    BlockTableArgs, ChunkArgs, MaskArgs, PlanRef, RawRows, RawViewMut, ScatterMaskArgs, Section, SplitSizesArgs,
};
use moe_core::{Buffer, Region, Result};

/// Threads that look at a token's mask together.
const MASK_THREADS: u32 = 64;

pub(crate) fn expand_mask(queue: &mut WgpuQueue<'_>, args: MaskArgs<'_, Wgpu>) -> Result<()> {
    let op = "expand_mask";
    let device = queue.device().clone();
    let MaskArgs { mask, probs, valid_tokens, max_routes, ids, probs_out, over_max_routes } = args;
    let over = Bound::new(&device, op, "over_max_routes", &over_max_routes.region.0)?;
    queue.copy_bytes(op, None, &over_max_routes.region.0, 0)?;
    if mask.rows == 0 {
        return Ok(());
    }
    let ids = Bound::new(&device, op, "ids", &ids.region.0)?;
    let valid = valid_tokens.as_ref().map(|v| &v.region);
    let constants = Constants::default()
        .number("THREADS", MASK_THREADS)
        .flag("VALID", valid.is_some())
        .number("SIZE", mask.dtype.size() as u32);
    let valid = Bound::region_or(&device, op, "valid_tokens", valid, ids)?;
    let mut dispatches = Vec::new();
    for rows in Matrix::new(&mask).windows(&device, op, "mask", usize::MAX)? {
        let params = [mask.cols as u32, max_routes as u32, rows.first, rows.count, rows.bound.base, rows.stride];
        let bases = [valid, ids, over].map(|bound| bound.base / 4);
        dispatches.push(Dispatch {
            kernel: &EXPAND_MASK,
            constants: constants.clone(),
            buffers: vec![rows.bound, valid, ids, over],
            params: params.into_iter().chain(bases).collect(),
            groups: u64::from(rows.count),
        });
    }
    queue.record(op, &dispatches)?;
    match (probs, probs_out) {
        (Some(probs), Some(out)) => mask_probs(queue, op, ids, max_routes, &probs, &out),
        _ => Ok(()),
    }
}

fn mask_probs<'a>(
    queue: &mut WgpuQueue<'_>,
    op: &'static str,
    ids: Bound<'a>,
    max_routes: usize,
    probs: &RawRows<'a, Wgpu>,
    out: &RawViewMut<'a, Wgpu>,
) -> Result<()> {
    let device = queue.device().clone();
    let size = out.dtype.size();
    let constants = Constants::default().number("SIZE", size as u32);
    let out = &out.region.0;
    // A window of tokens has probabilities and results that a binding holds.
    let row = (max_routes * size) as u64;
    let most = ((device.max_binding() - device.offset_alignment() - 8) / row).max(1) as usize;
    let mut dispatches = Vec::new();
    for rows in Matrix::new(probs).windows(&device, op, "probs", most)? {
        let start = out.start + u64::from(rows.first) * row;
        let part = out.elsewhere(start..start + u64::from(rows.count) * row);
        let to = Bound::new(&device, op, "probs_out", &part)?;
        let words = (u64::from(to.base % 4) + part.len).div_ceil(4);
        let params = [probs.cols as u32, max_routes as u32, rows.first, rows.count, ids.base / 4];
        let places = [rows.bound.base, rows.stride, to.base, words as u32];
        dispatches.push(Dispatch {
            kernel: &MASK_PROBS,
            constants: constants.clone(),
            buffers: vec![ids, rows.bound, to],
            params: params.into_iter().chain(places).collect(),
            groups: words.div_ceil(THREADS),
        });
    }
    queue.record(op, &dispatches)
}

pub(crate) fn scatter_mask(queue: &mut WgpuQueue<'_>, args: ScatterMaskArgs<'_, Wgpu>) -> Result<()> {
    let op = "scatter_mask";
    let device = queue.device().clone();
    let ScatterMaskArgs { ids, max_routes, values, out } = args;
    let rows = Matrix::new_mut(&out);
    if rows.rows == 0 {
        return Ok(());
    }
    let ids = Bound::new(&device, op, "ids", &ids.region)?;
    let values = Bound::new(&device, op, "values", &values.region)?;
    let constants = Constants::default().number("SIZE", out.dtype.size() as u32);
    let mut dispatches = Vec::new();
    for to in rows.windows(&device, op, "out", usize::MAX)? {
        dispatches.push(zero_all(&to, &rows));
        let params = [out.cols as u32, max_routes as u32, to.first, to.count, ids.base / 4, values.base];
        dispatches.push(Dispatch {
            kernel: &SCATTER_MASK,
            constants: constants.clone(),
            buffers: vec![ids, values, to.bound],
            params: params.into_iter().chain([to.bound.base, to.stride]).collect(),
            groups: (u64::from(to.count) * max_routes as u64).div_ceil(THREADS),
        });
    }
    queue.record(op, &dispatches)
}

pub(crate) fn expand_chunks(queue: &mut WgpuQueue<'_>, args: ChunkArgs<'_, Wgpu>) -> Result<()> {
    let op = "expand_chunks";
    let device = queue.device().clone();
    let ChunkArgs { sizes, order, ids: out, work } = args;
    let (chunks, tokens) = (sizes.len as u32, out.len as u32);
    if tokens == 0 {
        return Ok(());
    }
    let sizes = Bound::new(&device, op, "sizes", &sizes.region)?;
    let (ids, work) =
        (Bound::new(&device, op, "ids", &out.region.0)?, Bound::new(&device, op, "work", &work.region.0)?);
    let constants = Constants::default().number("THREADS", THREADS as u32).flag("ORDERED", order.is_some());
    let order = Bound::region_or(&device, op, "order", order.as_ref().map(|o| &o.region), sizes)?;
    let bases = [sizes, order, ids, work].map(|bound| bound.base / 4);
    let dispatch = |kernel, groups| Dispatch {
        kernel,
        constants: constants.clone(),
        buffers: vec![sizes, order, ids, work],
        params: [chunks, tokens].into_iter().chain(bases).collect(),
        groups,
    };
    queue.record(op, &[dispatch(&CHUNK_ENDS, 1), dispatch(&CHUNK_IDS, u64::from(tokens).div_ceil(THREADS))])
}

pub(crate) fn block_table(queue: &mut WgpuQueue<'_>, args: BlockTableArgs<'_, Wgpu>) -> Result<()> {
    let op = "block_table";
    let device = queue.device().clone();
    let arrays = args.plan.arrays;
    let shape = &arrays.shape;
    let plan = Bound::plan(&device, op, args.plan)?;
    let used = Bound::new(&device, op, "num_tokens_post_padded", &args.num_tokens_post_padded.region.0)?;
    // Of empty arrays nothing is written.
    let sorted = Some(&args.sorted_token_ids.region.0);
    let sorted = Bound::region_or(&device, op, "sorted_token_ids", sorted, used)?;
    let experts = Bound::region_or(&device, op, "expert_ids", Some(&args.expert_ids.region.0), used)?;
    let sizes = [shape.num_routes(), shape.num_local_experts, shape.rows, args.block, args.sorted_token_ids.len];
    let sections = [arrays.expert_offsets, arrays.tokens_per_expert, arrays.source].map(word);
    let params = sizes.into_iter().map(|n| n as u32).chain(sections);
    let params = params.chain([sorted, experts, used].map(|bound| bound.base / 4)).collect();
    // The part past the end is shared by all.
    let groups = (args.sorted_token_ids.len as u64).div_ceil(8 * THREADS).min(1024);
    queue.record(
        op,
        &[Dispatch {
            kernel: &BLOCK_TABLE,
            constants: Constants::default().number("THREADS", THREADS as u32),
            buffers: vec![plan, sorted, experts, used],
            params,
            groups: groups.max(shape.num_local_experts as u64),
        }],
    )
}

pub(crate) fn split_sizes(queue: &mut WgpuQueue<'_>, args: SplitSizesArgs<'_, Wgpu>) -> Result<()> {
    let op = "split_sizes";
    let device = queue.device().clone();
    let arrays = args.plan.arrays;
    let plan = Bound::plan(&device, op, args.plan)?;
    let out = Bound::new(&device, op, "out", &args.out.region.0)?;
    let experts = (arrays.shape.num_local_experts / args.ranks) as u32;
    queue.record(
        op,
        &[Dispatch {
            kernel: &SPLIT_SIZES,
            constants: Constants::default(),
            buffers: vec![plan, out],
            params: vec![args.ranks as u32, experts, word(arrays.expert_offsets), out.base / 4],
            groups: (args.ranks as u64).div_ceil(THREADS),
        }],
    )
}

pub(crate) fn add_load(
    queue: &mut WgpuQueue<'_>,
    plan: PlanRef<'_, Wgpu>,
    sums: &mut WgpuBuffer,
    at: Section,
) -> Result<()> {
    let op = "add_load";
    let device = queue.device().clone();
    let Some(load) = plan.arrays.logical_load else { return Ok(()) };
    let load = Bound::new(&device, op, "logical_load", &plan.region(load))?;
    let sums = Bound::new(&device, op, "sums", &sums.region().slice(at.bytes()))?;
    queue.record(
        op,
        &[Dispatch {
            kernel: &ADD_LOAD,
            constants: Constants::default(),
            buffers: vec![load, sums],
            params: vec![at.len as u32, load.base / 4, sums.base / 4],
            groups: (at.len as u64).div_ceil(THREADS),
        }],
    )
}
