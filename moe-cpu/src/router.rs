//! The router: from logits to expert ids and weights, its losses and its gradient.

use crate::buffer::{typed, typed_mut};
use crate::combine_grad::weights_mut;
use crate::kernels::{self, Elem, LossGrads, Losses, RouteOut};
use crate::plan::{elem, rows, rows_mut, weights};
use crate::{Cpu, CpuQueue};
use moe_core::raw::{RawLosses, RawView, RouteArgs, RouterGradArgs, RouterLossArgs};
use moe_core::{Result, RouterBackend};

// SAFETY: the kernels write through slices of the outputs and rows whose number was asserted, whatever logits, ids and
// loads say; each writes its outputs to their full length.
unsafe impl RouterBackend for Cpu {
    unsafe fn route(queue: &mut CpuQueue, args: RouteArgs<'_, Self>) -> Result<()> {
        route(queue, args);
        Ok(())
    }

    unsafe fn router_losses(queue: &mut CpuQueue, args: RouterLossArgs<'_, Self>) -> Result<()> {
        router_losses(queue, args);
        Ok(())
    }

    unsafe fn router_grad(queue: &mut CpuQueue, args: RouterGradArgs<'_, Self>) -> Result<()> {
        router_grad(queue, args);
        Ok(())
    }
}

/// Bytes that stand for the arithmetic of a batch: a few operations for each logit.
fn work(tokens: usize, experts: usize) -> usize {
    tokens * experts * 64
}

fn route(queue: &CpuQueue, args: RouteArgs<'_, Cpu>) {
    let tokens = args.logits.rows;
    let kernel_args = kernels::Route {
        shape: args.shape,
        logits: rows(&args.logits),
        elem: elem(args.logits.dtype),
        bias: args.correction_bias.as_ref().map(|bias| typed(bias.region.0)),
        valid: valid(args.valid_tokens.as_ref(), tokens),
    };
    let out = RouteOut {
        ids: typed_mut(args.ids.region.0),
        weights: weights_mut(args.weights),
        probs: args.probs.map(rows_mut),
    };
    queue.run(work(tokens, args.shape.num_experts), |tier| kernels::route(tier, &kernel_args, out));
}

fn router_losses(queue: &CpuQueue, args: RouterLossArgs<'_, Cpu>) {
    let tokens = args.logits.rows;
    let kernel_args = kernels::RouterLosses {
        shape: args.shape,
        logits: rows(&args.logits),
        elem: elem(args.logits.dtype),
        valid: valid(args.valid_tokens.as_ref(), tokens),
        losses: losses(&args.losses),
    };
    let (terms, out) = (typed_mut(args.token_losses.region.0), typed_mut(args.out.region.0));
    queue.run(work(tokens, args.shape.num_experts), |tier| kernels::router_losses(tier, &kernel_args, terms, out));
}

fn router_grad(queue: &CpuQueue, args: RouterGradArgs<'_, Cpu>) {
    let tokens = args.logits.rows;
    let kernel_args = kernels::RouterGrad {
        shape: args.shape,
        logits: rows(&args.logits),
        elem: match elem(args.logits.dtype) {
            elem @ (Elem::F16 | Elem::Bf16) => elem,
            _ => Elem::F32,
        },
        valid: valid(args.valid_tokens.as_ref(), tokens),
        tokens,
        weights: args.weights.as_ref().map(|given| (typed(given.ids.region.0), weights(&given.grad))),
        grad_probs: args.grad_probs.as_ref().map(rows),
        losses: args.losses.as_ref().map(|given| LossGrads {
            losses: losses(&given.losses),
            grad: given.grad.as_ref().map_or([1.0; 2], |grad| {
                let grad: &[f32] = typed(grad.region.0);
                [grad[0], grad[1]]
            }),
        }),
    };
    let out = rows_mut(args.grad_logits);
    queue.run(work(tokens, args.shape.num_experts), |tier| kernels::router_grad(tier, &kernel_args, out));
}

fn losses<'a>(raw: &RawLosses<'a, Cpu>) -> Losses<'a> {
    Losses {
        load: raw.load.as_ref().map(|load| typed(load.region.0)),
        balance_scale: raw.balance_scale,
        z_scale: raw.z_scale,
    }
}

/// How many tokens count.
fn valid(count: Option<&RawView<'_, Cpu>>, tokens: usize) -> usize {
    count.map_or(tokens, |count| usize::try_from(typed::<i32>(count.region.0)[0]).unwrap_or(0).min(tokens))
}
