//! Ids from masks and chunks, and further index arrays of a plan.

use crate::buffer::{typed, typed_mut};
use crate::kernels::{self, Expand, MaskBits};
use crate::plan::{placement, rows, rows_mut};
use crate::{Cpu, CpuQueue};
use moe_core::DType;
use moe_core::raw::{BlockTableArgs, ChunkArgs, MaskArgs, ScatterMaskArgs, SplitSizesArgs};

pub(crate) fn expand_mask(queue: &CpuQueue, args: MaskArgs<'_, Cpu>) {
    let mask = &args.mask;
    let kernel_args = Expand {
        mask: match mask.dtype {
            DType::U8 => MaskBits::U8(mask.region.0, mask.stride),
            _ => MaskBits::I32(typed(mask.region.0), mask.stride),
        },
        experts: mask.cols,
        tokens: mask.rows,
        max_routes: args.max_routes,
        probs: args.probs.as_ref().map(|probs| (rows(probs), probs.dtype.size())),
        valid_tokens: args.valid_tokens.as_ref().map(|count| typed::<i32>(count.region.0)[0]),
    };
    let ids = typed_mut(args.ids.region.0);
    let probs = args.probs_out.map_or(&mut [][..], |probs| probs.region.0);
    let over = typed_mut::<u32>(args.over_max_routes.region.0);
    let bytes = mask.rows * mask.cols;
    queue.run(bytes, |_| over[0] = kernels::expand_mask(&kernel_args, ids, probs));
}

pub(crate) fn scatter_mask(queue: &CpuQueue, args: ScatterMaskArgs<'_, Cpu>) {
    let ids = typed::<i32>(args.ids.region.0);
    let (values, size, experts) = (args.values.region.0, args.values.dtype.size(), args.out.cols);
    let bytes = args.out.rows * experts;
    let out = rows_mut(args.out);
    queue.run(bytes, |_| kernels::scatter_mask(ids, values, args.max_routes, size, out, experts));
}

pub(crate) fn expand_chunks(_: &CpuQueue, args: ChunkArgs<'_, Cpu>) {
    let order = args.order.as_ref().map(|order| typed(order.region.0));
    let (ids, work) = (typed_mut(args.ids.region.0), typed_mut(args.work.region.0));
    kernels::expand_chunks(typed(args.sizes.region.0), order, ids, work);
}

pub(crate) fn block_table(_: &CpuQueue, args: BlockTableArgs<'_, Cpu>) {
    let plan = placement(args.plan);
    let counts = args.plan.region(args.plan.arrays.tokens_per_expert);
    let used = kernels::block_table(
        plan.source,
        plan.expert_offsets,
        typed(counts.0),
        args.plan.arrays.shape.num_routes(),
        args.block,
        typed_mut(args.sorted_token_ids.region.0),
        typed_mut(args.expert_ids.region.0),
    );
    typed_mut(args.num_tokens_post_padded.region.0)[0] = used as i32;
}

pub(crate) fn split_sizes(_: &CpuQueue, args: SplitSizesArgs<'_, Cpu>) {
    kernels::split_sizes(placement(args.plan).expert_offsets, typed_mut(args.out.region.0));
}
