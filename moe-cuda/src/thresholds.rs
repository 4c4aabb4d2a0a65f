//! Which kernel does the work, and how it is cut into blocks: every choice between paths is made here.
//!
//! The figures are those of `kernels/ABI.md`; `benches/NOTES.md` holds the measurements.

use crate::launch::Shape;
use crate::ptx::Kernel;

/// Routes up to which every block of a plan counts all ids for itself, which spares the barrier of the whole grid.
pub(crate) const SMALL_PLAN_ROUTES: usize = 16_384;
/// Routes and `top_k` up to which one launch makes the plan in every block and moves the rows.
pub(crate) const SMALL_PERMUTE_ROUTES: usize = 2_048;
pub(crate) const SMALL_PERMUTE_TOP_K: usize = 32;
/// Routes that a block of a plan ranks at least.
const ROUTES_PER_BLOCK: usize = 1_024;
/// Bytes of a row that a block of the small permute moves.
const SMALL_PERMUTE_BYTES: usize = 4_096;
/// Blocks that gathers and combines are cut into at least, where rows allow, for each multiprocessor.
const GATHER_BLOCKS: usize = 2;
const COMBINE_BLOCKS: usize = 4;
/// Blocks that zero padding rows at most.
const PADDING_BLOCKS: usize = 1_024;
/// Blocks that zero the tail at most, for each multiprocessor.
const TAIL_BLOCKS: usize = 8;

/// How a plan is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlanCut {
    pub(crate) kernel: Kernel,
    pub(crate) shape: Shape,
    pub(crate) chunk_tokens: u32,
    pub(crate) rank_warps: u32,
}

/// The sizes that a cut depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanSize {
    pub(crate) tokens: usize,
    pub(crate) top_k: usize,
    pub(crate) experts: usize,
    pub(crate) local_experts: usize,
}

impl PlanSize {
    fn routes(&self) -> usize {
        self.tokens * self.top_k
    }

    fn rank_warps(&self) -> usize {
        (16_384 / self.local_experts).clamp(4, 32)
    }

    /// Dynamic shared memory of the kernels that rank with several warps at a time.
    fn ranking_bytes(&self) -> usize {
        let local = self.local_experts.next_multiple_of(8);
        8 * local + 2 * (self.rank_warps() + 1) * local + 4 * self.experts.next_multiple_of(8)
    }

    fn chunked(&self, blocks: usize) -> (u32, u32) {
        let chunk = self.tokens.div_ceil(blocks.max(1)).max(1);
        (chunk as u32, self.tokens.div_ceil(chunk).max(1) as u32)
    }

    /// The plan alone.
    pub(crate) fn plan(&self, multiprocessors: u32) -> PlanCut {
        let blocks = self.routes().div_ceil(ROUTES_PER_BLOCK).clamp(1, multiprocessors as usize);
        let (chunk_tokens, grid) = self.chunked(blocks);
        let small = self.routes() <= SMALL_PLAN_ROUTES;
        PlanCut {
            kernel: if small { Kernel::PlanSmall } else { Kernel::PlanGrid },
            shape: Shape { grid, block: 1024, shared: self.ranking_bytes() as u32, cooperative: !small },
            chunk_tokens,
            rank_warps: self.rank_warps() as u32,
        }
    }

    /// The plan and rows of `row_bytes` in one launch, and into how many blocks each row is cut. Not for 0 tokens.
    pub(crate) fn permute(&self, multiprocessors: u32, row_bytes: usize) -> (PlanCut, u32) {
        let rank_warps = self.rank_warps() as u32;
        if self.routes() <= SMALL_PERMUTE_ROUTES && self.top_k <= SMALL_PERMUTE_TOP_K {
            let splits = row_bytes.div_ceil(SMALL_PERMUTE_BYTES).max(1);
            let shared = 8 * self.local_experts.next_multiple_of(8) + 4 * self.experts.next_multiple_of(8);
            let grid = (self.tokens * splits) as u32;
            let shape = Shape { grid, block: 256, shared: shared as u32, cooperative: false };
            return (PlanCut { kernel: Kernel::PermuteSmall, shape, chunk_tokens: 0, rank_warps }, splits as u32);
        }
        let (chunk_tokens, grid) = self.chunked(multiprocessors as usize);
        let shape = Shape { grid, block: 1024, shared: self.ranking_bytes() as u32, cooperative: true };
        (PlanCut { kernel: Kernel::PermuteGrid, shape, chunk_tokens, rank_warps }, 1)
    }
}

/// Bytes of scratch for plans of up to these sizes: a barrier, and a table with a row for each block.
pub(crate) fn scratch_bytes(max_routes: usize, max_experts: usize, multiprocessors: u32) -> usize {
    if max_routes <= SMALL_PERMUTE_TOP_K {
        return 0; // no kernel with a barrier is used, whatever top_k is
    }
    let blocks = max_routes.min(multiprocessors as usize);
    256 + 4 * (blocks + 1) * (2 * max_experts.next_multiple_of(8) + 8)
}

fn splits(tokens: usize, blocks: usize, most: usize) -> u32 {
    if tokens >= blocks {
        return 1;
    }
    blocks.div_ceil(tokens.max(1)).clamp(1, most.max(1)) as u32
}

/// Blocks that share a row in a gather of `row_bytes`, read `vec` bytes at a time.
pub(crate) fn gather_splits(tokens: usize, row_bytes: usize, vec: u32, multiprocessors: u32) -> u32 {
    splits(tokens, GATHER_BLOCKS * multiprocessors as usize, row_bytes.div_ceil(256 * vec as usize))
}

/// Blocks that share a token in a combine of `hidden` elements, `per_thread` of which a thread takes at a time.
pub(crate) fn combine_splits(tokens: usize, hidden: usize, per_thread: usize, multiprocessors: u32) -> u32 {
    splits(tokens, COMBINE_BLOCKS * multiprocessors as usize, hidden.div_ceil(128 * per_thread))
}

/// Blocks for work in `blocks`, and for zeroing the padding rows of the experts where there are any.
pub(crate) fn with_padding(blocks: usize, padding: bool, local_experts: usize) -> u32 {
    let padding = if padding { local_experts.min(PADDING_BLOCKS) } else { 0 };
    blocks.max(padding) as u32
}

/// Blocks that zero a tail of at most `rows` rows.
pub(crate) fn tail_grid(rows: usize, multiprocessors: u32) -> u32 {
    rows.clamp(1, TAIL_BLOCKS * multiprocessors as usize) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(tokens: usize, top_k: usize, experts: usize) -> PlanSize {
        PlanSize { tokens, top_k, experts, local_experts: experts }
    }

    #[test]
    fn a_plan_of_no_tokens_is_still_launched() {
        let cut = size(0, 8, 256).plan(132);
        assert_eq!((cut.kernel, cut.shape.grid, cut.chunk_tokens), (Kernel::PlanSmall, 1, 1));
    }

    #[test]
    fn chunks_cover_all_tokens_and_no_block_is_empty() {
        for tokens in [1, 2, 127, 128, 129, 2_047, 2_048, 2_049, 4_097, 16_384, 131_072] {
            for sms in [1, 14, 108, 132, 148] {
                for cut in [size(tokens, 8, 256).plan(sms), size(tokens, 33, 256).permute(sms, 64).0] {
                    let (grid, chunk) = (cut.shape.grid as usize, cut.chunk_tokens as usize);
                    assert!(grid * chunk >= tokens && (grid - 1) * chunk < tokens, "{tokens} tokens, {sms}: {cut:?}");
                    assert!(grid <= sms as usize, "{cut:?}: all blocks must be resident at once");
                }
            }
        }
    }

    /// A workspace for limits serves every smaller batch, whichever kernel it takes.
    #[test]
    fn scratch_holds_the_table_of_any_cut_within_the_limits() {
        for (max_tokens, top_k) in [(1, 1), (32, 1), (33, 1), (1, 33), (2, 33), (512, 8), (4_096, 8), (100_000, 1)] {
            for experts in [1, 3, 256, 4_096] {
                let have = scratch_bytes(max_tokens * top_k, experts, 132);
                for tokens in [1, max_tokens / 2 + 1, max_tokens] {
                    let size = size(tokens, top_k, experts);
                    for cut in [size.plan(132), size.permute(132, 14_336).0] {
                        if cut.shape.cooperative {
                            let columns = 2 * experts.next_multiple_of(8) + 8;
                            let need = 256 + 4 * (cut.shape.grid as usize + 1) * columns;
                            assert!(have >= need, "{max_tokens} x {top_k}, {experts} experts: {have} of {need}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_cut_only_while_tokens_alone_do_not_fill_the_device() {
        assert_eq!(gather_splits(1, 14_336, 16, 132), 4);
        assert_eq!(gather_splits(264, 14_336, 16, 132), 1);
        assert_eq!(combine_splits(1, 7_168, 8, 132), 7);
        assert_eq!(combine_splits(528, 7_168, 8, 132), 1);
        assert_eq!(combine_splits(1, 1, 4, 132), 1);
    }
}
