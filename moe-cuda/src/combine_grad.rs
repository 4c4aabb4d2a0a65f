//! The gradients of combine.

use crate::abi::{self, CombineGradParams};
use crate::gather::common_vec;
use crate::launch::{Launch, Shape};
use crate::plan::{PlanAddress, optional, plan_region};
use crate::ptx::Kernel;
use crate::thresholds::with_padding;
use crate::{Cuda, CudaQueue};
use moe_core::raw::CombineGradArgs;
use moe_core::{DType, Result};

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn combine_grad(queue: &CudaQueue, mut args: CombineGradArgs<'_, Cuda>) -> Result<()> {
    let shape = args.plan.arrays.shape;
    let region = plan_region(&args.plan);
    let mut launch = Launch::new(queue, "combine_grad")?;
    let plan = PlanAddress::of(&args.plan, launch.read(&region)?);
    let dtype = args.grad_out.dtype;
    let bytes = |stride: usize| (stride * dtype.size()) as u64;
    let mut params = CombineGradParams {
        grad: launch.read(&args.grad_out.region)?,
        weights: optional(&mut launch, args.weights.as_ref())?,
        slot: plan.slot(),
        expert_offsets: plan.expert_offsets(),
        tokens_per_expert: plan.tokens_per_expert(),
        hidden: args.grad_out.cols as u64,
        grad_stride: bytes(args.grad_out.stride),
        out_rows: shape.rows as u64,
        tokens: shape.num_tokens as u32,
        k: shape.top_k as u32,
        x_dtype: abi::dtype(dtype),
        y_dtype: abi::dtype(dtype),
        dy_dtype: abi::dtype(dtype),
        weight_dtype: args.weights.as_ref().map_or(abi::NONE, |weights| abi::dtype(weights.dtype)),
        local_experts: shape.num_local_experts as u32,
        ..CombineGradParams::default()
    };
    let mut zero_padding = false;
    if let Some(grad_rows) = &mut args.grad_rows {
        params.grad_row_stride = bytes(grad_rows.stride);
        params.grad_rows = launch.write(&mut grad_rows.region)?;
        zero_padding = plan.has_padding();
    }
    if let Some(grad) = &mut args.grad_weights {
        params.row_stride = bytes(grad.rows.stride);
        params.rows = launch.read(&grad.rows.region)?;
        params.dw_dtype = abi::dtype(grad.out.dtype);
        params.grad_weights = launch.write(&mut grad.out.region)?;
    }
    params.zero_padding = zero_padding.into();
    let grid = with_padding(shape.num_routes(), zero_padding, shape.num_local_experts);
    if grid == 0 || (params.grad_rows == 0 && params.grad_weights == 0) {
        return Ok(());
    }
    let aligned = common_vec(&[
        params.grad,
        params.grad_stride,
        params.rows,
        params.row_stride,
        params.grad_rows,
        params.grad_row_stride,
    ]) == 16;
    let kernel = match dtype {
        DType::F32 if aligned => Kernel::CombineGradF32,
        DType::F16 if aligned => Kernel::CombineGradF16,
        DType::BF16 if aligned => Kernel::CombineGradBf16,
        _ => Kernel::CombineGradAny,
    };
    let shape = Shape { grid, block: 128, shared: 0, cooperative: false };
    // SAFETY: the kernels take `CombineGradParams`; addresses are from this launch; shapes, strides and dtypes are those
    // that moe-core checked, and a vector kernel gets addresses and strides that are multiples of 16.
    unsafe { launch.launch(kernel, shape, params) }
}
