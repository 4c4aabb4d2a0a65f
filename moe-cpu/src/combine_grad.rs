//! The gradients of combine.

use crate::buffer::typed_mut;
use crate::kernels::{self, CombineGrad, WeightsMut};
use crate::plan::{elem, placement, rows, rows_mut, weights};
use crate::{Cpu, CpuQueue};
use moe_core::DType;
use moe_core::raw::{CombineGradArgs, RawViewMut};

pub(crate) fn combine_grad(queue: &CpuQueue, args: CombineGradArgs<'_, Cpu>) {
    let kernel_args = CombineGrad {
        plan: placement(args.plan),
        dx: rows(&args.grad_out),
        y: args.grad_weights.as_ref().map(|grad| rows(&grad.rows)),
        elem: elem(args.grad_out.dtype),
        hidden: args.grad_out.cols,
        weights: args.weights.as_ref().map(weights),
    };
    let grad_rows = args.grad_rows.map(rows_mut);
    let grad_weights = args.grad_weights.map(|grad| weights_mut(grad.out));
    let shape = &args.plan.arrays.shape;
    let bytes = (2 * shape.rows.max(shape.num_routes()) + shape.num_tokens) * kernel_args.hidden * 4;
    queue.run(bytes, |tier| kernels::combine_grad(tier, &kernel_args, grad_rows, grad_weights));
}

pub(crate) fn weights_mut(view: RawViewMut<'_, Cpu>) -> WeightsMut<'_> {
    match view.dtype {
        DType::F16 => WeightsMut::F16(typed_mut(view.region.0)),
        DType::BF16 => WeightsMut::Bf16(typed_mut(view.region.0)),
        _ => WeightsMut::F32(typed_mut(view.region.0)),
    }
}
