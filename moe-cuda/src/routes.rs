//! Ids from masks and chunks, and further index arrays of a plan.

use crate::abi::{BlockTableParams, ChunksParams, MaskParams, ScatterMaskParams, SplitSizesParams};
use crate::gather::common_vec;
use crate::launch::{Launch, Shape};
use crate::plan::{PlanAddress, optional, plan_region};
use crate::ptx::Kernel;
use crate::thresholds::{thread_grid, warp_grid};
use crate::{Cuda, CudaQueue};
use moe_core::Result;
use moe_core::raw::{BlockTableArgs, ChunkArgs, MaskArgs, ScatterMaskArgs, SplitSizesArgs};

/// Threads of a block: of a kernel that takes a warp for each token, of one that takes a thread for each element, of the
/// one that adds up chunks, and of the one that makes block tables.
const WARPS_BLOCK: u32 = 256;
const BLOCK: u32 = 256;
const CHUNKS_BLOCK: u32 = 1024;
const TABLE_BLOCK: u32 = 512;

fn shape(grid: u32, block: u32) -> Shape {
    Shape { grid, block, shared: 0, cooperative: false }
}

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn expand_mask(queue: &CudaQueue, mut args: MaskArgs<'_, Cuda>) -> Result<()> {
    let mut launch = Launch::new(queue, "expand_mask")?;
    let (mask_size, mask) = (args.mask.dtype.size(), &args.mask);
    let over_max_routes = launch.write(&mut args.over_max_routes.region)?;
    if mask.rows == 0 || args.max_routes < mask.cols {
        // SAFETY: the counter is a u32.
        unsafe { launch.zero(over_max_routes, 4) }?;
    }
    if mask.rows == 0 {
        return Ok(());
    }
    let mut params = MaskParams {
        mask: launch.read(&mask.region)?,
        valid_tokens: optional(&mut launch, args.valid_tokens.as_ref())?,
        ids: launch.write(&mut args.ids.region)?,
        over_max_routes,
        mask_stride: (mask.stride * mask_size) as u64,
        tokens: mask.rows as u32,
        experts: mask.cols as u32,
        max_routes: args.max_routes as u32,
        mask_bytes: mask_size as u32,
        ..MaskParams::default()
    };
    if let (Some(probs), Some(out)) = (&args.probs, &mut args.probs_out) {
        params.probs = launch.read(&probs.region)?;
        params.probs_out = launch.write(&mut out.region)?;
        params.prob_bytes = probs.dtype.size() as u32;
        params.probs_stride = (probs.stride * probs.dtype.size()) as u64;
    }
    let grid = warp_grid(WARPS_BLOCK, mask.rows, launch.multiprocessors());
    // SAFETY: the kernel takes `MaskParams`; addresses are from this launch; shapes and strides are those that moe-core
    // checked, and the counter was zeroed if the kernel adds to it.
    unsafe { launch.launch(Kernel::ExpandMask, shape(grid, WARPS_BLOCK), params) }
}

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn scatter_mask(queue: &CudaQueue, mut args: ScatterMaskArgs<'_, Cuda>) -> Result<()> {
    let (tokens, size) = (args.out.rows, args.out.dtype.size());
    if tokens == 0 {
        return Ok(());
    }
    let mut launch = Launch::new(queue, "scatter_mask")?;
    let output_stride = (args.out.stride * size) as u64;
    let output = launch.write(&mut args.out.region)?;
    let params = ScatterMaskParams {
        ids: launch.read(&args.ids.region)?,
        values: launch.read(&args.values.region)?,
        output,
        output_stride,
        tokens: tokens as u32,
        experts: args.out.cols as u32,
        max_routes: args.max_routes as u32,
        bytes: size as u32,
        vec: common_vec(&[output, output_stride]),
        reserved: 0,
    };
    let grid = warp_grid(WARPS_BLOCK, tokens, launch.multiprocessors());
    // SAFETY: the kernel takes `ScatterMaskParams`; addresses are from this launch; shapes and strides are those that
    // moe-core checked, and `vec` divides the output's address and stride.
    unsafe { launch.launch(Kernel::ScatterMask, shape(grid, WARPS_BLOCK), params) }
}

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn expand_chunks(queue: &CudaQueue, mut args: ChunkArgs<'_, Cuda>) -> Result<()> {
    let (tokens, chunks) = (args.ids.len, args.sizes.len);
    if tokens == 0 {
        return Ok(());
    }
    let mut launch = Launch::new(queue, "expand_chunks")?;
    let params = ChunksParams {
        sizes: launch.read(&args.sizes.region)?,
        order: optional(&mut launch, args.order.as_ref())?,
        ids: launch.write(&mut args.ids.region)?,
        work: launch.write(&mut args.work.region)?,
        tokens: tokens as u32,
        chunks: chunks as u32,
    };
    // SAFETY: the kernel takes `ChunksParams`; addresses are from this launch; lengths are those that moe-core checked.
    unsafe { launch.launch(Kernel::ExpandChunksStarts, shape(1, CHUNKS_BLOCK), params) }?;
    let grid = thread_grid(BLOCK, tokens, launch.multiprocessors());
    // SAFETY: likewise; what it looks up was written by the launch before.
    unsafe { launch.launch(Kernel::ExpandChunks, shape(grid, BLOCK), params) }
}

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn block_table(queue: &CudaQueue, mut args: BlockTableArgs<'_, Cuda>) -> Result<()> {
    let plan_shape = args.plan.arrays.shape;
    let region = plan_region(&args.plan);
    let mut launch = Launch::new(queue, "block_table")?;
    let plan = PlanAddress::of(&args.plan, launch.read(&region)?);
    let local_experts = plan_shape.num_local_experts as u32;
    let params = BlockTableParams {
        source: plan.at(plan.arrays.source),
        expert_offsets: plan.expert_offsets(),
        tokens_per_expert: plan.tokens_per_expert(),
        sorted_token_ids: launch.write(&mut args.sorted_token_ids.region)?,
        expert_ids: launch.write(&mut args.expert_ids.region)?,
        num_tokens_post_padded: launch.write(&mut args.num_tokens_post_padded.region)?,
        routes: plan_shape.num_routes() as u32,
        rows: plan_shape.rows as u32,
        local_experts,
        block: args.block as u32,
        blocks: args.expert_ids.len as u32,
        reserved: 0,
    };
    // Less shared memory than building the plan took.
    let shared = 4 * local_experts;
    let grid = thread_grid(TABLE_BLOCK, args.sorted_token_ids.len, launch.multiprocessors());
    // SAFETY: the kernel takes `BlockTableParams`; addresses are from this launch; lengths are those that moe-core
    // checked: a table has `block` entries for each of its blocks.
    unsafe { launch.launch(Kernel::BlockTable, Shape { shared, ..shape(grid, TABLE_BLOCK) }, params) }
}

/// # Safety
/// The promises of `PermuteBackend`.
pub(crate) unsafe fn split_sizes(queue: &CudaQueue, mut args: SplitSizesArgs<'_, Cuda>) -> Result<()> {
    let region = plan_region(&args.plan);
    let mut launch = Launch::new(queue, "split_sizes")?;
    let plan = PlanAddress::of(&args.plan, launch.read(&region)?);
    let params = SplitSizesParams {
        expert_offsets: plan.expert_offsets(),
        output: launch.write(&mut args.out.region)?,
        ranks: args.ranks as u32,
        experts_per_rank: (plan.arrays.shape.num_local_experts / args.ranks) as u32,
    };
    // SAFETY: the kernel takes `SplitSizesParams`; addresses are from this launch; the ranks divide the experts.
    unsafe { launch.launch(Kernel::SplitSizes, shape(params.ranks.div_ceil(BLOCK), BLOCK), params) }
}
