//! Gather, and zeroing what it leaves alone.

use crate::abi::{self, GatherParams, RowsParams, ZeroTailParams};
use crate::launch::{Launch, Shape};
use crate::plan::{PlanAddress, optional, plan_region};
use crate::ptx::Kernel;
use crate::thresholds::{gather_cut, tail_grid, with_padding};
use crate::{Cuda, CudaQueue, CudaRegionMut};
use moe_core::Result;
use moe_core::raw::{GatherArgs, RawRows, RawRowsMut, ZeroTailArgs};

const BLOCK: u32 = 256;
/// Threads that move one row of a list.
const LIST_BLOCK: u32 = 128;

/// The largest power of two, at most 16, that divides all of them.
pub(crate) fn common_vec(numbers: &[u64]) -> u32 {
    let bits = numbers.iter().fold(16, |bits, n| bits | n);
    1 << bits.trailing_zeros()
}

/// Rows to be moved between these addresses.
pub(crate) fn rows_params(rows: &RawRows<'_, Cuda>, out: &RawRowsMut<'_, Cuda>, input: u64, output: u64) -> RowsParams {
    let size = rows.dtype.size();
    let (input_stride, output_stride) = ((rows.stride * size) as u64, (out.stride * size) as u64);
    let vec = common_vec(&[input, output, input_stride, output_stride]);
    RowsParams { input, output, row_bytes: (rows.cols * size) as u64, input_stride, output_stride, vec, splits: 1 }
}

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn gather(queue: &CudaQueue, args: GatherArgs<'_, Cuda>) -> Result<()> {
    // SAFETY: the caller's promises are passed on.
    unsafe { gather_listed(queue, "gather", args, None) }
}

/// A gather, in the order of a list of the plan's rows where there is one.
///
/// # Safety
/// The promises of `PermuteBackend`. With a list there are routes and no weights, addresses and strides of the rows are
/// multiples of 16, and the list has a pair (row, route) of i32 for each route, whatever is in them.
pub(crate) unsafe fn gather_listed(
    queue: &CudaQueue,
    op: &'static str,
    mut args: GatherArgs<'_, Cuda>,
    mut list: Option<CudaRegionMut<'_>>,
) -> Result<()> {
    let shape = args.plan.arrays.shape;
    let region = plan_region(&args.plan);
    let mut launch = Launch::new(queue, op)?;
    let plan = PlanAddress::of(&args.plan, launch.read(&region)?);
    let input = launch.read(&args.rows.region)?;
    let mut moved = rows_params(&args.rows, &args.out, input, 0);
    moved.output = launch.write(&mut args.out.region)?;
    moved.vec = common_vec(&[moved.input, moved.output, moved.input_stride, moved.output_stride]);
    let order = match &mut list {
        Some(list) => launch.write(list)?,
        None => 0,
    };
    let mut ahead = 0;
    let (kernel, block, grid) = if order != 0 {
        debug_assert!(moved.vec == 16 && args.weights.is_none());
        (Kernel::GatherListV16, LIST_BLOCK, shape.num_routes() as u32)
    } else {
        let (tuned, row_bytes) = (queue.thresholds(), moved.row_bytes as usize);
        let whole = moved.vec == 16 && moved.row_bytes.is_multiple_of(16);
        let usual = whole && args.weights.is_none() && !plan.has_padding();
        let cut = gather_cut(&tuned, shape.num_tokens, row_bytes, moved.vec, usual, launch.multiprocessors());
        (moved.splits, ahead) = (cut.splits, cut.usual.unwrap_or(0));
        let kernel = match (&args.weights, cut.usual) {
            (Some(_), _) => Kernel::GatherWeighted,
            (None, Some(0)) => Kernel::GatherRowsV16,
            (None, Some(_)) => Kernel::GatherAheadV16,
            (None, None) if moved.vec == 16 => Kernel::GatherV16,
            (None, None) => Kernel::GatherAny,
        };
        let blocks = shape.num_tokens * moved.splits as usize;
        (kernel, cut.threads, with_padding(blocks, plan.has_padding(), shape.num_local_experts))
    };
    if grid == 0 {
        return Ok(());
    }
    let params = GatherParams {
        rows: [moved, RowsParams::UNUSED],
        slot: plan.slot(),
        expert_offsets: plan.expert_offsets(),
        tokens_per_expert: plan.tokens_per_expert(),
        weights: optional(&mut launch, args.weights.as_ref())?,
        out_rows: shape.rows as u64,
        tokens: shape.num_tokens as u32,
        k: shape.top_k as u32,
        local_experts: shape.num_local_experts as u32,
        zero_padding: plan.has_padding().into(),
        weight_dtype: args.weights.as_ref().map_or(abi::NONE, |weights| abi::dtype(weights.dtype)),
        dtype: abi::dtype(args.rows.dtype),
        hidden: args.rows.cols as u64,
        order,
        ahead,
        ..GatherParams::default()
    };
    // SAFETY: the gather kernels take `GatherParams`; addresses are from this launch; shapes and strides are those that
    // moe-core checked, and `vec` divides addresses and strides; a list is as long as the grid.
    unsafe { launch.launch(kernel, Shape { grid, block, shared: 0, cooperative: false }, params) }
}

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn zero_tail(queue: &CudaQueue, mut args: ZeroTailArgs<'_, Cuda>) -> Result<()> {
    let shape = args.plan.arrays.shape;
    if shape.rows == 0 {
        return Ok(());
    }
    let region = plan_region(&args.plan);
    let mut launch = Launch::new(queue, "zero_tail")?;
    let plan = PlanAddress::of(&args.plan, launch.read(&region)?);
    let size = args.rows.dtype.size();
    let output_stride = (args.rows.stride * size) as u64;
    let row_bytes = (args.rows.cols * size) as u64;
    let output = launch.write(&mut args.rows.region)?;
    let params = ZeroTailParams {
        output,
        row_bytes,
        output_stride,
        out_rows: shape.rows as u64,
        expert_offsets: plan.expert_offsets(),
        local_experts: shape.num_local_experts as u32,
        vec: common_vec(&[output, output_stride]),
    };
    let grid = tail_grid(shape.rows, launch.multiprocessors());
    // SAFETY: the kernel takes `ZeroTailParams`; addresses are from this launch; the rows are `[R, H]` as checked.
    unsafe { launch.launch(Kernel::ZeroTail, Shape { grid, block: BLOCK, shared: 0, cooperative: false }, params) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_never_wider_than_any_address_or_stride_allows() {
        for (numbers, vec) in [
            (&[0x1000, 0x2000, 14_336, 14_336][..], 16),
            (&[0x1000, 0x2008, 14_336, 14_336], 8),
            (&[0x1000, 0x2000, 14_336, 2_050], 2),
            (&[0x1001, 0x2000, 16, 16], 1),
            (&[0x1000, 0x2000, 0, 4], 4),
        ] {
            assert_eq!(common_vec(numbers), vec, "{numbers:x?}");
        }
    }
}
