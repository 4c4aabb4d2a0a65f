//! The router: from logits to expert ids and weights, its losses and its gradient.

use crate::abi::{self, RouteParams, RouterGradParams, RouterLossParams};
use crate::launch::{Launch, Shape};
use crate::plan::optional;
use crate::ptx::Kernel;
use crate::thresholds::route_cut;
use crate::{Cuda, CudaQueue};
use moe_core::raw::{RawRows, RouteArgs, RouterGradArgs, RouterGroups, RouterLossArgs};
use moe_core::{Result, RouterBackend};

/// Threads of a block of the losses' terms and of the gradient, and of the one that adds the terms up.
const BLOCK: u32 = 128;
const SUM_BLOCK: u32 = 1_024;
const WARP: u32 = 32;

/// A warp for each token.
fn by_token(tokens: usize) -> Shape {
    Shape { grid: (tokens as u32).div_ceil(BLOCK / WARP), block: BLOCK, shared: 0, cooperative: false }
}

fn row_bytes(rows: &RawRows<'_, Cuda>) -> u64 {
    (rows.stride * rows.dtype.size()) as u64
}

// SAFETY: the kernels address with token and expert numbers below the sizes that moe-core checked, and with ids only
// after they compared them with the number of experts; each writes every element of its outputs (kernels/ABI.md).
unsafe impl RouterBackend for Cuda {
    unsafe fn route(queue: &mut CudaQueue, mut args: RouteArgs<'_, Self>) -> Result<()> {
        let tokens = args.logits.rows;
        if tokens == 0 {
            return Ok(());
        }
        let shape = args.shape;
        let RouterGroups { n_group, topk_group } = shape.groups.unwrap_or(RouterGroups { n_group: 1, topk_group: 1 });
        let mut launch = Launch::new(queue, "route")?;
        let mut params = RouteParams {
            logits: launch.read(&args.logits.region)?,
            bias: optional(&mut launch, args.correction_bias.as_ref())?,
            valid_tokens: optional(&mut launch, args.valid_tokens.as_ref())?,
            ids: launch.write(&mut args.ids.region)?,
            weights: launch.write(&mut args.weights.region)?,
            logit_stride: row_bytes(&args.logits),
            tokens: tokens as u32,
            experts: shape.num_experts as u32,
            k: shape.top_k as u32,
            dtype: abi::dtype(args.logits.dtype),
            weight_dtype: abi::dtype(args.weights.dtype),
            scoring: abi::scoring(shape.scoring),
            renormalize: shape.renormalize.into(),
            n_group: n_group as u32,
            topk_group: topk_group as u32,
            scaling_factor: shape.scaling_factor,
            ..RouteParams::default()
        };
        if let Some(probs) = &mut args.probs {
            params.prob_stride = (probs.stride * 4) as u64;
            params.probs = launch.write(&mut probs.region)?;
        }
        let (kernel, cut) = route_cut(tokens, &shape, params.bias != 0, params.probs != 0);
        // SAFETY: the kernels take `RouteParams`; addresses are from this launch; shapes, strides and dtypes are those
        // that moe-core checked, and `route_cut` picks a kernel that serves such a router.
        unsafe { launch.launch(kernel, cut, params) }
    }

    unsafe fn router_losses(queue: &mut CudaQueue, mut args: RouterLossArgs<'_, Self>) -> Result<()> {
        let tokens = args.logits.rows;
        let mut launch = Launch::new(queue, "router losses")?;
        let params = RouterLossParams {
            logits: launch.read(&args.logits.region)?,
            load: optional(&mut launch, args.losses.load.as_ref())?,
            valid_tokens: optional(&mut launch, args.valid_tokens.as_ref())?,
            token_losses: launch.write(&mut args.token_losses.region)?,
            out: launch.write(&mut args.out.region)?,
            logit_stride: row_bytes(&args.logits),
            tokens: tokens as u32,
            experts: args.shape.num_experts as u32,
            dtype: abi::dtype(args.logits.dtype),
            scoring: abi::scoring(args.shape.scoring),
            has_z: args.losses.z_scale.is_some().into(),
            balance_scale: args.losses.balance_scale,
            z_scale: args.losses.z_scale.unwrap_or(0.0),
            reserved: 0,
        };
        if tokens > 0 {
            // SAFETY: the kernel takes `RouterLossParams`; addresses are from this launch; shapes, strides and dtypes
            // are those that moe-core checked.
            unsafe { launch.launch(Kernel::RouterTerms, by_token(tokens), params) }?;
        }
        let sum = Shape { grid: 1, block: SUM_BLOCK, shared: 0, cooperative: false };
        // SAFETY: as above; the terms of every token were enqueued before.
        unsafe { launch.launch(Kernel::RouterLosses, sum, params) }
    }

    unsafe fn router_grad(queue: &mut CudaQueue, mut args: RouterGradArgs<'_, Self>) -> Result<()> {
        let tokens = args.logits.rows;
        if tokens == 0 {
            return Ok(());
        }
        let shape = args.shape;
        let mut launch = Launch::new(queue, "router grad")?;
        let mut params = RouterGradParams {
            logits: launch.read(&args.logits.region)?,
            valid_tokens: optional(&mut launch, args.valid_tokens.as_ref())?,
            grad_logits: launch.write(&mut args.grad_logits.region)?,
            logit_stride: row_bytes(&args.logits),
            grad_logit_stride: (args.grad_logits.stride * args.grad_logits.dtype.size()) as u64,
            tokens: tokens as u32,
            experts: shape.num_experts as u32,
            k: shape.top_k as u32,
            dtype: abi::dtype(args.logits.dtype),
            weight_dtype: abi::NONE,
            scoring: abi::scoring(shape.scoring),
            renormalize: shape.renormalize.into(),
            scaling_factor: shape.scaling_factor,
            ..RouterGradParams::default()
        };
        if let Some(weights) = &args.weights {
            params.ids = launch.read(&weights.ids.region)?;
            params.grad_weights = launch.read(&weights.grad.region)?;
            params.weight_dtype = abi::dtype(weights.grad.dtype);
        }
        if let Some(probs) = &args.grad_probs {
            params.grad_probs = launch.read(&probs.region)?;
            params.grad_prob_stride = row_bytes(probs);
        }
        if let Some(given) = &args.losses {
            params.load = optional(&mut launch, given.losses.load.as_ref())?;
            params.loss_grads = optional(&mut launch, given.grad.as_ref())?;
            params.balance_scale = given.losses.balance_scale;
            params.has_z = given.losses.z_scale.is_some().into();
            params.z_scale = given.losses.z_scale.unwrap_or(0.0);
        }
        // SAFETY: the kernel takes `RouterGradParams`; addresses are from this launch; shapes, strides and dtypes are
        // those that moe-core checked.
        unsafe { launch.launch(Kernel::RouterGrad, by_token(tokens), params) }
    }
}
