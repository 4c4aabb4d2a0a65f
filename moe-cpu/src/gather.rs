//! Gather, and zeroing what it leaves alone.

use crate::kernels::{self, Gather};
use crate::plan::{self, elem, placement, rows, rows_mut, weights};
use crate::{Cpu, CpuQueue};
use moe_core::raw::{BuildArgs, GatherArgs, PlanMut, RawRows, RawRowsMut, ZeroTailArgs};

pub(crate) fn gather(queue: &CpuQueue, args: GatherArgs<'_, Cpu>) {
    let dtype = args.rows.dtype;
    let kernel_args = Gather {
        plan: placement(args.plan),
        rows: rows(&args.rows),
        row_bytes: args.rows.cols * dtype.size(),
        weights: args.weights.as_ref().map(|w| (weights(w), elem(dtype))),
    };
    let out = rows_mut(args.out);
    let bytes = (args.plan.arrays.shape.num_tokens + args.plan.arrays.shape.rows) * kernel_args.row_bytes;
    queue.run(bytes, |tier| kernels::gather(tier, &kernel_args, out));
}

/// Plan and gather, for which the pool is woken up once.
pub(crate) fn permute(
    queue: &CpuQueue,
    mut plan: PlanMut<'_, Cpu>,
    args: BuildArgs<'_, Cpu>,
    rows: RawRows<'_, Cpu>,
    out: RawRowsMut<'_, Cpu>,
) {
    let shape = &plan.arrays.shape;
    let bytes = (shape.num_tokens + shape.rows) * rows.cols * rows.dtype.size();
    queue.run(bytes, |_| {
        plan::build(queue, plan.reborrow(), args);
        gather(queue, GatherArgs { plan: plan.as_ref(), rows: rows.shorten(), weights: None, out: out.shorten() });
    });
}

pub(crate) fn zero_tail(queue: &CpuQueue, args: ZeroTailArgs<'_, Cpu>) {
    let row_bytes = args.rows.cols * args.rows.dtype.size();
    let tail = placement(args.plan).used()..args.rows.rows;
    let out = rows_mut(args.rows);
    queue.run(tail.len() * row_bytes, |tier| kernels::zero_rows(tier, out, row_bytes, tail));
}
