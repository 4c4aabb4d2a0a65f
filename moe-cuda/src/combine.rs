//! Combine.

use crate::abi::{self, CombineParams};
use crate::gather::common_vec;
use crate::launch::{Launch, Shape};
use crate::plan::{PlanAddress, optional, plan_region};
use crate::ptx::Kernel;
use crate::thresholds::{combine_any_cut, combine_cut};
use crate::{Cuda, CudaQueue};
use moe_core::raw::CombineArgs;
use moe_core::{DType, Result};

/// The kernel that reads rows and writes results of these types in vectors; where there is one for this `top_k` alone, it
/// takes 0.1 microseconds less at few tokens.
pub(crate) fn fast_kernel(rows: DType, out: DType, top_k: usize) -> Option<Kernel> {
    use DType::*;
    Some(match (rows, out) {
        (F16, F16) if top_k == 8 => Kernel::CombineF16F16K8,
        (F16, F16) if top_k == 2 => Kernel::CombineF16F16K2,
        (BF16, BF16) if top_k == 8 => Kernel::CombineBf16Bf16K8,
        (BF16, BF16) if top_k == 2 => Kernel::CombineBf16Bf16K2,
        (F32, F32) => Kernel::CombineF32F32,
        (F16, F16) => Kernel::CombineF16F16,
        (F16, F32) => Kernel::CombineF16F32,
        (BF16, BF16) => Kernel::CombineBf16Bf16,
        (BF16, F32) => Kernel::CombineBf16F32,
        (F8E4M3, F32) => Kernel::CombineE4m3F32,
        (F8E4M3, F16) => Kernel::CombineE4m3F16,
        (F8E4M3, BF16) => Kernel::CombineE4m3Bf16,
        (F8E5M2, F32) => Kernel::CombineE5m2F32,
        (F8E5M2, F16) => Kernel::CombineE5m2F16,
        (F8E5M2, BF16) => Kernel::CombineE5m2Bf16,
        _ => return None,
    })
}

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn combine(queue: &CudaQueue, mut args: CombineArgs<'_, Cuda>) -> Result<()> {
    let shape = args.plan.arrays.shape;
    if shape.num_tokens == 0 {
        return Ok(());
    }
    let region = plan_region(&args.plan);
    let mut launch = Launch::new(queue, "combine")?;
    let plan = PlanAddress::of(&args.plan, launch.read(&region)?);
    let bytes = |stride: usize, dtype: DType| (stride * dtype.size()) as u64;
    let (y, x) = (args.rows.dtype, args.out.dtype);
    let mut params = CombineParams {
        rows: launch.read(&args.rows.region)?,
        slot: plan.slot(),
        weights: optional(&mut launch, args.weights.as_ref())?,
        output: launch.write(&mut args.out.region)?,
        hidden: args.rows.cols as u64,
        row_stride: bytes(args.rows.stride, y),
        output_stride: bytes(args.out.stride, x),
        out_rows: shape.rows as u64,
        tokens: shape.num_tokens as u32,
        k: shape.top_k as u32,
        y_dtype: abi::dtype(y),
        x_dtype: abi::dtype(x),
        weight_dtype: args.weights.as_ref().map_or(abi::NONE, |weights| abi::dtype(weights.dtype)),
        ..CombineParams::default()
    };
    let mut block = 16; // any multiple of 16 keeps the vectors
    if let Some(scales) = &args.scales {
        params.scales = launch.read(&scales.rows.region)?;
        params.scale_stride = bytes(scales.rows.stride, DType::F32);
        // One scale for a whole row is the same with a block as long as the row, or longer.
        block = scales.block.min(args.rows.cols.next_multiple_of(16)).min(u32::MAX as usize & !15);
        params.scale_block = block as u32;
    }
    if let Some(residual) = &args.residual {
        params.initial = launch.read(&residual.region)?;
        params.initial_stride = bytes(residual.stride, residual.dtype);
        params.initial_scale = args.residual_scale;
    }
    let aligned = common_vec(&[
        params.rows,
        params.row_stride,
        params.output,
        params.output_stride,
        params.initial,
        params.initial_stride,
        block as u64,
    ]) == 16;
    let kernel = if aligned { fast_kernel(y, x, shape.top_k) } else { None };
    let (threads, splits) = match kernel {
        Some(_) => {
            combine_cut(&queue.thresholds(), shape.num_tokens, shape.top_k, args.rows.cols, (16 / y.size()).min(8))
        }
        None => combine_any_cut(shape.num_tokens, args.rows.cols, launch.multiprocessors()),
    };
    params.splits = splits;
    let shape = Shape { grid: shape.num_tokens as u32 * splits, block: threads, shared: 0, cooperative: false };
    // SAFETY: the combine kernels take `CombineParams`; addresses are from this launch; shapes, strides and dtypes are
    // those that moe-core checked, and a vector kernel gets addresses and strides that are multiples of 16.
    unsafe { launch.launch(kernel.unwrap_or(Kernel::CombineAny), shape, params) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_kernel_is_named_after_the_types_it_is_picked_for() {
        use DType::*;
        for rows in [F32, F16, BF16, F8E4M3, F8E5M2] {
            for out in [F32, F16, BF16] {
                let allowed = rows.is_f8() || out == F32 || out == rows;
                let short = |dtype: DType| dtype.name().trim_start_matches("f8").to_owned();
                for top_k in [1, 2, 3, 8, 9] {
                    let name = fast_kernel(rows, out, top_k).map(|kernel| kernel.name().to_owned());
                    let mut expected = format!("moe_combine_{}_{}", short(rows), short(out));
                    if matches!(top_k, 2 | 8) && rows == out && matches!(rows, F16 | BF16) {
                        expected += &format!("_k{top_k}");
                    }
                    assert_eq!(name, allowed.then_some(expected), "{rows} {out} {top_k}");
                }
            }
        }
    }
}
