//! Combine.

use crate::kernels::{self, Combine, Scales};
use crate::plan::{elem, placement, rows, rows_mut, weights};
use crate::{Cpu, CpuQueue};
use moe_core::raw::CombineArgs;

pub(crate) fn combine(queue: &CpuQueue, args: CombineArgs<'_, Cpu>) {
    let kernel_args = Combine {
        plan: placement(args.plan),
        rows: rows(&args.rows),
        elem: elem(args.rows.dtype),
        hidden: args.rows.cols,
        scales: args.scales.as_ref().map(|s| Scales { rows: rows(&s.rows), block: s.block }),
        weights: args.weights.as_ref().map(weights),
        init: args.residual.as_ref().map(rows),
        init_scale: args.residual_scale,
        out_elem: elem(args.out.dtype),
    };
    let out = rows_mut(args.out);
    let shape = &args.plan.arrays.shape;
    let bytes = (shape.num_routes() + shape.num_tokens) * args.rows.cols * 4;
    queue.run(bytes, |tier| kernels::combine(tier, &kernel_args, out));
}
