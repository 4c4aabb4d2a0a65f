//! Gather, and zeroing what it leaves alone.

use crate::kernels::{self, Gather};
use crate::plan::{elem, placement, rows, rows_mut, weights};
use crate::{Cpu, CpuQueue};
use moe_core::raw::{GatherArgs, ZeroTailArgs};

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

pub(crate) fn zero_tail(queue: &CpuQueue, args: ZeroTailArgs<'_, Cpu>) {
    let row_bytes = args.rows.cols * args.rows.dtype.size();
    let tail = placement(args.plan).used()..args.rows.rows;
    let out = rows_mut(args.rows);
    queue.run(tail.len() * row_bytes, |tier| kernels::zero_rows(tier, out, row_bytes, tail));
}
