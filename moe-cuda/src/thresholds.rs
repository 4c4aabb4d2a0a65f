//! Which kernel does the work, and how it is cut into blocks: every choice between paths is made here.
//!
//! The limits are those of `kernels/ABI.md`. The choices were measured on an H200 with rows of bf16; `benches/NOTES.md`
//! holds the measurements. Figures are microseconds inside of a graph; "dsv3" means `top_k` 8, 256 experts and rows of
//! 14,336 bytes, "qwen3" 8, 128 and 4,096.

mod knobs;
mod paths;
mod route;

use crate::launch::Shape;
use crate::ptx::Kernel;
pub(crate) use knobs::{KNOBS, Thresholds};
use knobs::{LEAST_LISTED_ROUTES, LEAST_SMALL_ROUTES};
pub(crate) use paths::paths;
pub(crate) use route::route_cut;
use std::ops::Range;

/// Chunks of a plan from which they get longer instead of more, and how long: every block reads what all chunks tell.
/// 32,768 routes of dsv3 take 10.8 in 128 chunks, 7.6 in 64 and 8.4 in 32; 131,072 routes 13.4 in 128 and 13.0 in 64.
const PLAN_CHUNKS: usize = 64;
const PLAN_LONG_CHUNK: usize = 1_024;
/// Routes that a chunk can hold where blocks exchange counts: these have 16 bits.
const MOST_ROUTES_OF_CHUNK: usize = 65_535;
/// `top_k` up to which a block can rank its own token: one warp holds a token's routes.
const SMALL_PERMUTE_TOP_K: usize = 32;
/// Bytes of a row that a block of the small permutes moves: the more tokens there are, the longer a part.
const SMALL_PART_BYTES: usize = 4_096;
const TINY_PART_BYTES: [(usize, usize); 2] = [(64, 4_096), (256, 8_192)];
/// Routes above which, and tokens up to which, blocks that compare keys have 512 threads.
const TINY_WIDE_ROUTES: usize = 512;
const TINY_WIDE_TOKENS: usize = 256;
/// Tokens up to which a row is moved in four parts by the kernel that ranks chunks and moves their rows: dsv3 with 256
/// takes 13.6 so, 15.0 in halves.
const PERMUTE_GRID_QUARTER_TOKENS: usize = 256;
/// Bytes of a row up to which it is moved by the kernels that make the plan: they number its parts with 32 bits.
const MOST_ROW_BYTES: usize = 1 << 20;
/// Parts of a row, each of which a thread takes in one step, up to which the row of a combine is short.
const COMBINE_SHORT_PARTS: usize = 4;
/// Threads of a block of a combine that does the usual case alone.
pub(crate) const COMBINE_USUAL_THREADS: u32 = 64;
/// Threads of 64 registers that a multiprocessor holds.
const DENSE_THREADS: u64 = 1_024;
/// Tokens by which rows are asked for ahead of their gather: dsv3 with 4,096 tokens takes 139.8 without, 137.2 with 16,
/// 134.5 with 32 and 135.4 with 256.
const GATHER_AHEAD: u32 = 32;
/// Blocks that a combine by element is cut into at least, where rows allow, for each multiprocessor.
const COMBINE_BLOCKS: usize = 4;
/// Blocks that zero padding rows at most.
const PADDING_BLOCKS: usize = 1_024;
/// Threads that a multiprocessor runs at once.
const THREADS: usize = 2_048;
/// Blocks that zero the tail at most, for each multiprocessor.
const TAIL_BLOCKS: usize = 8;

/// Elements that a thread quantises at a time.
const QUANT_UNIT: usize = 16;
/// Blocks of whole rows, for each multiprocessor, from which on there are enough of them: with fewer a row is shared, or
/// where it has one scale goes to a larger block. dsv3 takes 3.5 with 1 token in blocks of 448 threads and 4.3 in blocks
/// of 256, 84.9 and 81.7 with 4,096 tokens.
const QUANT_BLOCKS: usize = 2;
const QUANT_MOST_THREADS: usize = 256;
const QUANT_FEW_THREADS: usize = 512;
const QUANT_SPLIT_THREADS: usize = 64;
/// Threads for each multiprocessor where blocks take rows in turn, four times what it holds: SwiGLU to 8-bit floats of
/// 32,768 rows of 2,048 takes 128 so, 133 with half as many.
const TURNS_THREADS: usize = 8_192;

/// How a plan is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlanCut {
    pub(crate) kernel: Kernel,
    pub(crate) shape: Shape,
    pub(crate) chunk_tokens: u32,
    pub(crate) rank_warps: u32,
    /// Blocks that share a chunk.
    pub(crate) share: u32,
}

/// How a plan is made and rows are moved by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By one kernel, which cuts each row into parts.
    Together { cut: PlanCut, splits: u32 },
    /// By a plan that also lists its rows, and a gather that moves them in that order.
    Listed(PlanCut),
    /// By a plan and a gather that know nothing of each other.
    Apart,
}

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanSize {
    pub(crate) tokens: usize,
    pub(crate) top_k: usize,
    pub(crate) experts: usize,
    pub(crate) local_experts: usize,
    /// Packed and without capacity: every route to a local expert is placed.
    pub(crate) plain: bool,
    /// Not all experts are local, or not in their order.
    pub(crate) mapped: bool,
}

impl PlanSize {
    fn routes(&self) -> usize {
        self.tokens * self.top_k
    }

    /// Warps that can rank at a time: a multiple of four.
    fn most_rank_warps(&self) -> usize {
        (16_384 / self.local_experts).clamp(4, 32) & !3
    }

    /// Warps that rank at a time: no more than a chunk has work for, because each has a count for each expert, which
    /// takes time to clear and to add up.
    fn rank_warps(&self, chunk_tokens: usize) -> usize {
        (chunk_tokens * self.top_k).div_ceil(128).clamp(1, 8).min(self.most_rank_warps() / 4) * 4
    }

    /// Dynamic shared memory for counts of each expert.
    fn counting_bytes(&self) -> usize {
        8 * self.local_experts.next_multiple_of(8) + 4 * self.experts.next_multiple_of(8)
    }

    /// The same with counts of each warp that ranks.
    fn ranking_bytes(&self, rank_warps: usize) -> usize {
        self.counting_bytes() + 2 * (rank_warps + 1) * self.local_experts.next_multiple_of(8)
    }

    fn cut(&self, kernel: Kernel, block: u32, chunk_tokens: usize, grid: usize, share: usize) -> PlanCut {
        let rank_warps = self.rank_warps(chunk_tokens);
        let shared = if block == 1024 { self.ranking_bytes(rank_warps) } else { self.counting_bytes() };
        let cooperative = matches!(kernel, Kernel::PlanGrid | Kernel::PermuteGrid);
        PlanCut {
            kernel,
            shape: Shape { grid: grid as u32, block, shared: shared as u32, cooperative },
            chunk_tokens: chunk_tokens as u32,
            rank_warps: rank_warps as u32,
            share: share as u32,
        }
    }

    /// Tokens of a chunk of about so many routes, if there is a multiprocessor for each chunk.
    fn chunk(&self, routes: usize, multiprocessors: usize) -> usize {
        routes.div_ceil(self.top_k).max(self.tokens.div_ceil(multiprocessors)).min(self.tokens.max(1))
    }

    /// The plan alone.
    pub(crate) fn plan(&self, tuned: &Thresholds, multiprocessors: u32) -> PlanCut {
        let routes =
            (self.routes() / PLAN_CHUNKS).clamp(tuned.plan_chunk_routes, PLAN_LONG_CHUNK.max(tuned.plan_chunk_routes));
        let chunk = self.chunk(routes, multiprocessors as usize);
        // A chunk that is too long for the exchange is not for counting all ids: slow, but any size is right.
        let small = self.routes() <= tuned.small_plan_routes || chunk * self.top_k > MOST_ROUTES_OF_CHUNK;
        let kernel = if small { Kernel::PlanSmall } else { Kernel::PlanGrid };
        self.cut(kernel, 1024, chunk, self.tokens.div_ceil(chunk).max(1), 1)
    }

    /// The plan and rows of `row_bytes` whose addresses and strides are multiples of 16.
    pub(crate) fn permute(&self, tuned: &Thresholds, multiprocessors: u32, row_bytes: usize) -> Way {
        if self.tokens == 0 {
            return Way::Apart;
        }
        let fused = row_bytes <= MOST_ROW_BYTES;
        let wide = self.is_wide(tuned);
        let small = wide || self.routes() <= tuned.small_permute_routes;
        if fused && small && self.top_k <= SMALL_PERMUTE_TOP_K {
            return self.small_permute(row_bytes, wide);
        }
        let few = self.routes() <= tuned.permute_grid_routes && self.top_k >= tuned.permute_grid_top_k;
        if fused
            && few
            && let Some(way) = self.permute_grid(tuned, multiprocessors as usize, row_bytes)
        {
            return way;
        }
        if self.routes() >= tuned.listed_routes && row_bytes >= tuned.listed_row_bytes && !self.mapped {
            return self.listed(tuned, multiprocessors as usize).map_or(Way::Apart, Way::Listed);
        }
        Way::Apart
    }

    /// Whether all ids are compared by blocks of 512 threads.
    fn is_wide(&self, tuned: &Thresholds) -> bool {
        let many = self.routes() > TINY_WIDE_ROUTES && self.routes() <= tuned.wide_permute_routes;
        self.plain && many && self.tokens <= TINY_WIDE_TOKENS
    }

    fn small_permute(&self, row_bytes: usize, wide: bool) -> Way {
        let (kernel, part) = if wide {
            (Kernel::PermuteTinyWide, None)
        } else if self.plain {
            let part = TINY_PART_BYTES.iter().find(|(tokens, _)| self.tokens <= *tokens).map(|(_, part)| *part);
            (Kernel::PermuteTiny, part)
        } else {
            (Kernel::PermuteSmall, Some(SMALL_PART_BYTES))
        };
        let splits = part.map_or(1, |part| row_bytes.div_ceil(part).next_power_of_two());
        // The kernels that compare keys have one more block, for what the plan says of experts.
        let grid = self.tokens * splits + usize::from(self.plain);
        let threads = if wide { 512 } else { 256 };
        Way::Together { cut: self.cut(kernel, threads, 1, grid, 1), splits: splits as u32 }
    }

    /// Only where each chunk is ranked in one round.
    fn permute_grid(&self, tuned: &Thresholds, multiprocessors: usize, row_bytes: usize) -> Option<Way> {
        let routes = tuned.permute_grid_chunk_routes.max(self.top_k).min(32 * self.most_rank_warps());
        let chunk = (routes / self.top_k).min(self.tokens);
        if chunk == 0 || self.tokens.div_ceil(chunk) > multiprocessors {
            return None;
        }
        let chunks = self.tokens.div_ceil(chunk);
        let share = 1 << (multiprocessors / chunks).ilog2();
        let splits = match self.tokens {
            ..=PERMUTE_GRID_QUARTER_TOKENS => 4,
            tokens if tokens < tuned.permute_grid_whole_tokens || row_bytes > tuned.permute_grid_whole_bytes => 2,
            _ => 1,
        };
        let cut = self.cut(Kernel::PermuteGrid, 1024, chunk, chunks * share, share);
        Some(Way::Together { cut, splits })
    }

    fn listed(&self, tuned: &Thresholds, multiprocessors: usize) -> Option<PlanCut> {
        let long = self.routes() >= tuned.listed_long_routes;
        let routes = if long { tuned.listed_long_chunk_routes } else { tuned.listed_chunk_routes };
        let chunk = self.chunk(routes, multiprocessors);
        let fits = chunk * self.top_k <= MOST_ROUTES_OF_CHUNK;
        fits.then(|| self.cut(Kernel::PlanGrid, 1024, chunk, self.tokens.div_ceil(chunk), 1))
    }
}

/// Bytes of scratch for plans of up to these sizes: the call's number, a table with a row for each chunk, then the list
/// of rows or the routes of each expert, and the marks of routes that stay. The table's words are told from those of
/// earlier calls by the number that they carry, so the rest lies where no table ever does: at the end.
pub(crate) fn scratch_bytes(max_routes: usize, max_experts: usize, multiprocessors: u32) -> usize {
    let multiprocessors = multiprocessors as usize;
    let table = match max_routes {
        // No kernel that exchanges counts is used, whatever top_k is.
        ..=LEAST_SMALL_ROUTES => 0,
        _ => 256 + 4 * max_routes.min(multiprocessors) * (2 * max_experts.next_multiple_of(8) + 4),
    };
    let listed =
        if max_routes < LEAST_LISTED_ROUTES { 0 } else { max_routes.min(MOST_ROUTES_OF_CHUNK * multiprocessors) };
    let sorted = 4 * max_routes.next_multiple_of(2);
    table + sorted.max(8 * listed) + max_routes.next_multiple_of(8)
}

/// Where in such scratch the marks of routes that stay are, a byte for each.
pub(crate) fn keep_in_scratch(bytes: usize, routes: usize) -> Range<usize> {
    let start = (bytes & !7) - routes.next_multiple_of(8);
    start..start + routes
}

/// Where the routes of each expert are that are chosen from, 4 bytes for each.
pub(crate) fn sorted_in_scratch(bytes: usize, routes: usize) -> Range<usize> {
    let end = keep_in_scratch(bytes, routes).start;
    end - 4 * routes..end
}

/// Where the list of a plan's rows is, 8 bytes for each route.
pub(crate) fn list_in_scratch(bytes: usize, routes: usize) -> Range<usize> {
    let end = keep_in_scratch(bytes, routes).start;
    end - 8 * routes..end
}

fn splits(tokens: usize, blocks: usize, most: usize) -> usize {
    if tokens >= blocks {
        return 1;
    }
    blocks.div_ceil(tokens.max(1)).clamp(1, most.max(1))
}

/// How a gather is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GatherCut {
    pub(crate) threads: u32,
    /// Blocks that share a row.
    pub(crate) splits: u32,
    /// By a kernel for the usual case alone, and by how many tokens that asks for rows ahead: 0 for not at all.
    pub(crate) usual: Option<u32>,
}

/// A gather of rows that are read `vec` bytes at a time. `usual`: whole vectors of 16 bytes, copied, without padding.
pub(crate) fn gather_cut(
    tuned: &Thresholds,
    tokens: usize,
    row_bytes: usize,
    vec: u32,
    usual: bool,
    multiprocessors: u32,
) -> GatherCut {
    let most = row_bytes.div_ceil(256 * vec as usize);
    let splits = splits(tokens, tuned.gather_blocks * multiprocessors as usize, most) as u32;
    // The kernels for the usual case have a block for each token, and count the bytes of a row with 32 bits.
    if !usual || splits > 1 || row_bytes > u32::MAX as usize {
        return GatherCut { threads: 256, splits, usual: None };
    }
    let far = tokens.saturating_mul(row_bytes) >= tuned.gather_ahead_bytes;
    // Four vectors a thread, if that is enough work for a block.
    let threads = row_bytes.div_ceil(64).next_power_of_two().clamp(if far { 128 } else { 64 }, 256);
    GatherCut { threads: threads as u32, splits, usual: Some(if far { GATHER_AHEAD } else { 0 }) }
}

/// Threads of a block, and blocks that share a token, in a combine of `hidden` elements, `per_thread` of which are a
/// vector.
pub(crate) fn combine_cut(
    tuned: &Thresholds,
    tokens: usize,
    top_k: usize,
    hidden: usize,
    per_thread: usize,
) -> (u32, u32) {
    let threads = 32 * tuned.combine_warps;
    // With few routes a thread takes two vectors at a time.
    let step = threads * per_thread * if top_k <= 2 { 2 } else { 1 };
    let full = hidden.div_ceil(step).max(1);
    let short = full <= COMBINE_SHORT_PARTS && tokens > tuned.combine_long_tokens;
    let splits = if tokens <= tuned.combine_whole_tokens || short { full } else { full.div_ceil(2) };
    // The grid is one-dimensional, and has an i32 for its blocks.
    (threads as u32, splits.min(i32::MAX as usize / tokens.max(1)) as u32)
}

/// Whether a combine of eight routes runs in one wave if its kernel takes few registers, and has enough blocks for that
/// to matter. With 128 tokens qwen3 takes 2.07 with 64 registers and 2.20 with 72, with 1,024 tokens 5.7 and 7.0; with one
/// token 1.55 and 1.48, with 4,096 37.2 and 36.7.
pub(crate) fn combine_is_dense(grid: u32, threads: u32, multiprocessors: u32) -> bool {
    grid > multiprocessors && u64::from(grid) * u64::from(threads) <= DENSE_THREADS * u64::from(multiprocessors)
}

/// The same for a combine by element.
pub(crate) fn combine_any_cut(tokens: usize, hidden: usize, multiprocessors: u32) -> (u32, u32) {
    (256, splits(tokens, COMBINE_BLOCKS * multiprocessors as usize, hidden.div_ceil(256)) as u32)
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

/// Blocks for `n` elements, a thread for each, as far as the device runs them at once.
pub(crate) fn thread_grid(block: u32, n: usize, multiprocessors: u32) -> u32 {
    let most = THREADS / block as usize * multiprocessors as usize;
    n.div_ceil(block as usize).clamp(1, most) as u32
}

/// The same with a warp for each.
pub(crate) fn warp_grid(block: u32, n: usize, multiprocessors: u32) -> u32 {
    let most = THREADS / block as usize * multiprocessors as usize;
    n.div_ceil(block as usize / 32).clamp(1, most) as u32
}

/// Threads of a block, and blocks that share a token, in a gather that quantises; a thread takes a unit of 16 elements.
/// A row with one scale is not shared.
pub(crate) fn quant_cut(tokens: usize, hidden: usize, one_scale: bool, multiprocessors: u32) -> (u32, u32) {
    let threads = |most: usize| hidden.div_ceil(QUANT_UNIT).next_multiple_of(32).min(most);
    if tokens >= QUANT_BLOCKS * multiprocessors as usize {
        (threads(QUANT_MOST_THREADS) as u32, 1)
    } else if one_scale {
        (threads(QUANT_FEW_THREADS) as u32, 1)
    } else {
        let block = threads(QUANT_SPLIT_THREADS);
        (block as u32, hidden.div_ceil(QUANT_UNIT * block) as u32)
    }
}

/// Threads of a block that activates whole rows: one for each unit, as far as a block has them.
pub(crate) fn activation_threads(hidden: usize) -> u32 {
    hidden.div_ceil(QUANT_UNIT).next_multiple_of(32).min(QUANT_MOST_THREADS) as u32
}

/// Blocks of so many threads that take `rows` rows in turn.
pub(crate) fn turns(rows: usize, block: u32, multiprocessors: u32) -> u32 {
    rows.min(TURNS_THREADS / block as usize * multiprocessors as usize).max(1) as u32
}

#[cfg(test)]
mod tests;
