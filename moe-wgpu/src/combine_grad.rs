//! The gradients of combine.

use crate::dispatch::Dispatch;
use crate::gather::{THREADS, code, gather, word};
use crate::kernels::{COMBINE_GRAD_WEIGHTS, Constants};
use crate::window::{Bound, Matrix};
use crate::{Wgpu, WgpuQueue};
use moe_core::Result;
use moe_core::raw::{CombineGradArgs, GatherArgs, PlanRef, RawGradWeights, RawRows};

/// Lanes of the sum over a row.
const MAX_LANES: usize = 1024;

/// The gradient of the rows is a gather of `grad_out`, with the weights or as bits; that of the weights has a kernel.
pub(crate) fn combine_grad(queue: &mut WgpuQueue<'_>, args: CombineGradArgs<'_, Wgpu>) -> Result<()> {
    let op = "combine_grad";
    let CombineGradArgs { plan, grad_out, weights, grad_rows, grad_weights } = args;
    if let Some(grad) = grad_weights {
        weights_gradient(queue, op, plan, &grad_out, grad)?;
    }
    match grad_rows {
        Some(out) => gather(queue, op, GatherArgs { plan, rows: grad_out, weights, out }),
        None => Ok(()),
    }
}

fn weights_gradient(
    queue: &mut WgpuQueue<'_>,
    op: &'static str,
    plan: PlanRef<'_, Wgpu>,
    grad_out: &RawRows<'_, Wgpu>,
    grad: RawGradWeights<'_, Wgpu>,
) -> Result<()> {
    let device = queue.device().clone();
    let shape = &plan.arrays.shape;
    let routes = shape.num_routes();
    if routes == 0 {
        return Ok(());
    }
    let bound_plan = Bound::plan(&device, op, plan)?;
    let out = Bound::new(&device, op, "grad_weights", &grad.out.region.0)?;
    let out_size = grad.out.dtype.size();
    let words = (out.base as usize % 4 + routes * out_size).div_ceil(4);
    let lanes = grad_out.cols.clamp(1, MAX_LANES).next_power_of_two();
    let constants = Constants::default()
        .number("ROWS", code(op, "grad_out", grad_out.dtype)?)
        .number("OUT", code(op, "grad_weights", grad.out.dtype)?)
        .number("SIZE_OF_ROW", grad_out.dtype.size() as u32)
        .number("SIZE_OF_OUT", out_size as u32)
        .number("LANES", lanes as u32);
    let mut dispatches = Vec::new();
    let tokens = Matrix::new(grad_out).windows(&device, op, "grad_out", usize::MAX)?;
    for (i, rows) in Matrix::new(&grad.rows).windows(&device, op, "rows", usize::MAX)?.iter().enumerate() {
        for grads in &tokens {
            let sizes = [routes, shape.top_k, shape.rows, grad_out.cols].map(|n| n as u32);
            let windows = [rows.first, rows.count, grads.first, grads.count];
            let places = [rows.bound.base, rows.stride, grads.bound.base, grads.stride];
            let params = [word(plan.arrays.slot)].into_iter().chain(sizes).chain(windows).chain(places);
            dispatches.push(Dispatch {
                kernel: &COMBINE_GRAD_WEIGHTS,
                constants: constants.clone(),
                buffers: vec![bound_plan, rows.bound, grads.bound, out],
                params: params.chain([out.base, words as u32, u32::from(i == 0)]).collect(),
                groups: (words * lanes.min(THREADS as usize)).div_ceil(THREADS as usize) as u64,
            });
        }
    }
    queue.record(op, &dispatches)
}
