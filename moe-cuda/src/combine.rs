//! Combine.

use crate::abi::{self, CombineParams};
use crate::gather::common_vec;
use crate::launch::{Launch, Shape};
use crate::plan::{PlanAddress, optional, plan_region};
use crate::ptx::Kernel;
use crate::thresholds::{COMBINE_USUAL_THREADS, combine_any_cut, combine_cut, combine_is_dense};
use crate::{Cuda, CudaQueue};
use moe_core::raw::CombineArgs;
use moe_core::{DType, Result};

/// The kernel that reads rows and writes results of these types in vectors.
pub(crate) fn fast_kernel(rows: DType, out: DType) -> Option<Kernel> {
    use DType::*;
    Some(match (rows, out) {
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

/// The one that does nothing else than the usual, if there is one for these types and this `top_k`: f32 weights, no
/// residual, and whole vectors. It takes 0.3 microseconds less at few tokens. `dense`: with few registers.
pub(crate) fn usual_kernel(rows: DType, out: DType, top_k: usize, dense: bool) -> Option<Kernel> {
    use DType::*;
    Some(match (rows, out, top_k) {
        (F16, F16, 8) if dense => Kernel::CombineF16F16K8R64,
        (F16, F16, 8) => Kernel::CombineF16F16K8,
        (F16, F16, 2) => Kernel::CombineF16F16K2,
        (BF16, BF16, 8) if dense => Kernel::CombineBf16Bf16K8R64,
        (BF16, BF16, 8) => Kernel::CombineBf16Bf16K8,
        (BF16, BF16, 2) => Kernel::CombineBf16Bf16K2,
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
    let kernel = if aligned { fast_kernel(y, x) } else { None };
    let (threads, splits) = match kernel {
        Some(_) => {
            combine_cut(&queue.thresholds(), shape.num_tokens, shape.top_k, args.rows.cols, (16 / y.size()).min(8))
        }
        None => combine_any_cut(shape.num_tokens, args.rows.cols, launch.multiprocessors()),
    };
    params.splits = splits;
    let grid = shape.num_tokens as u32 * splits;
    let vectors = params.out_rows.saturating_mul(params.row_stride / 16);
    let whole = args.rows.cols.is_multiple_of(8) && vectors < u32::MAX.into() && threads == COMBINE_USUAL_THREADS;
    let usual = params.weight_dtype == abi::dtype(DType::F32) && params.initial == 0 && whole;
    let kernel = match (kernel, reciprocal(splits, grid)) {
        (Some(general), Some(reciprocal)) if usual => {
            params.reciprocal = reciprocal;
            let dense = combine_is_dense(grid, threads, launch.multiprocessors());
            usual_kernel(y, x, shape.top_k, dense).unwrap_or(general)
        }
        (general, _) => general.unwrap_or(Kernel::CombineAny),
    };
    let shape = Shape { grid, block: threads, shared: 0, cooperative: false };
    // SAFETY: the combine kernels take `CombineParams`; addresses are from this launch; shapes, strides and dtypes are
    // those that moe-core checked, and a vector kernel gets addresses and strides that are multiples of 16; a kernel for
    // one `top_k` gets that one, and what else it asks for.
    unsafe { launch.launch(kernel, shape, params) }
}

/// `ceil(2^32 / splits)`, and 0 for 1: the upper half of its product with a block's number is the number over `splits`,
/// rounded down, for all blocks of a grid. `None` where it is not.
fn reciprocal(splits: u32, grid: u32) -> Option<u32> {
    // The product is too large by less than `grid * splits`, which must not reach the next whole number.
    let exact = u64::from(grid) * u64::from(splits) <= 1 << 32;
    exact.then(|| if splits == 1 { 0 } else { (1u64 << 32).div_ceil(u64::from(splits)) as u32 })
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
                let name = fast_kernel(rows, out).map(Kernel::name);
                let expected = format!("moe_combine_{}_{}", short(rows), short(out));
                assert_eq!(name, allowed.then_some(expected.as_str()), "{rows} {out}");
                for (top_k, dense) in [(1, false), (2, false), (2, true), (3, true), (8, false), (8, true), (9, false)]
                {
                    let name = usual_kernel(rows, out, top_k, dense).map(Kernel::name);
                    let has_one = matches!(top_k, 2 | 8) && rows == out && matches!(rows, F16 | BF16);
                    let registers = if dense && top_k == 8 { "_r64" } else { "" };
                    let expected = format!("{expected}_k{top_k}{registers}");
                    assert_eq!(name, has_one.then_some(expected.as_str()), "{rows} {out} {top_k} {dense}");
                }
            }
        }
    }

    #[test]
    fn the_reciprocal_divides_every_block_of_a_grid_or_is_not_used() {
        for splits in [1, 2, 3, 7, 14, 1_000, 65_535] {
            let most = (u64::from(u32::MAX) / u64::from(splits)) as u32;
            for grid in [splits.min(most), (7 * splits).min(most), most, most.min(i32::MAX as u32)] {
                let magic = reciprocal(splits, grid).unwrap();
                for block in [0, 1, splits - 1, splits, splits + 1, grid / 2, grid / splits * splits - 1, grid - 1] {
                    let by_magic =
                        if magic == 0 { block } else { ((u64::from(block) * u64::from(magic)) >> 32) as u32 };
                    assert_eq!(by_magic, block / splits, "{block} of {grid} by {splits}");
                }
            }
        }
        assert_eq!(reciprocal(3, i32::MAX as u32), None);
    }
}
