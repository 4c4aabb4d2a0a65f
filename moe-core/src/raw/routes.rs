//! What turns masks and chunks into ids, and what derives further index arrays from a plan.

use super::{PlanRef, RawRows, RawRowsMut, RawView, RawViewMut};
use crate::Backend;

/// A mask map becomes expert ids: `ids[t, k]` is the k-th set expert of token t in ascending order, -1 where there is
/// none. All outputs are written to their full length.
///
/// Tokens from `valid_tokens` on get -1 everywhere and count nowhere. `T * E` is at most `i32::MAX`; with a stride the
/// mask can reach further, so element offsets need 64 bits.
#[derive(Debug)]
pub struct MaskArgs<'a, B: Backend> {
    /// `[T, E]`, u8 or i32; an element that is not 0 is set.
    pub mask: RawRows<'a, B>,
    /// `[T, E]` in f32, f16 or bf16. There if and only if `probs_out` is.
    pub probs: Option<RawRows<'a, B>>,
    /// i32 `[1]`, as in [`BuildArgs`](super::BuildArgs).
    pub valid_tokens: Option<RawView<'a, B>>,
    /// K, at least 1. May be more than E.
    pub max_routes: usize,
    /// i32 `[T, K]`.
    pub ids: RawViewMut<'a, B>,
    /// `[T, K]`, the dtype of `probs`: the bits of `probs[t, ids[t, k]]`, +0 where the id is -1.
    pub probs_out: Option<RawViewMut<'a, B>>,
    /// u32 `[1]`: set experts past the K-th of their token, over all valid tokens. Holds anything before.
    pub over_max_routes: RawViewMut<'a, B>,
}

/// The way back of [`MaskArgs`]: `out[t, ids[t, k]] = values[t, k]`, +0 everywhere else. Bits are copied. Ids outside
/// `0..E` write nothing; those of a token that are not are distinct.
#[derive(Debug)]
pub struct ScatterMaskArgs<'a, B: Backend> {
    /// i32 `[T, K]`, as [`expand_mask`](crate::PermuteBackend::expand_mask) wrote them.
    pub ids: RawView<'a, B>,
    /// K, at least 1.
    pub max_routes: usize,
    /// `[T, K]` in f32, f16 or bf16.
    pub values: RawView<'a, B>,
    /// `[T, E]`, the dtype of `values`. Every element is written.
    pub out: RawRowsMut<'a, B>,
}

/// Chunks become ids: the id of a row is the place of its chunk in the output.
///
/// Chunk c has the rows from `min(T, Σ_{i<c} max(sizes[i], 0))` to `min(T, Σ_{i<=c} max(sizes[i], 0))`, summed without
/// overflow. Its place is the lowest p with `order[p] == c` (c itself without an order); entries outside `0..C` name no
/// chunk. Rows of a chunk that no entry names, and rows past the last chunk, get the id C, which is invalid.
#[derive(Debug)]
pub struct ChunkArgs<'a, B: Backend> {
    /// i32 `[C]`, C at least 1: rows of each chunk, in the order in which they lie.
    pub sizes: RawView<'a, B>,
    /// i32 `[C]`: the chunk at each place of the output.
    pub order: Option<RawView<'a, B>>,
    /// i32 `[T]`, written to its full length.
    pub ids: RawViewMut<'a, B>,
    /// u32 `[2 * C + 2]`, to work with. Holds anything before and after.
    pub work: RawViewMut<'a, B>,
}

/// The placed routes of a plan in blocks of one expert each, whatever the plan's layout: those of local expert 0, padded
/// to a multiple of `block`, then those of expert 1, and so on, in route order. An expert without routes takes no block.
///
/// L is R of a plan of this shape with `Layout::Aligned(block)` and no capacity, a multiple of `block`. All outputs are
/// written to their full length.
#[derive(Debug)]
pub struct BlockTableArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// Routes of a block, at least 1.
    pub block: usize,
    /// i32 `[L]`: route numbers; N on padding and past the end.
    pub sorted_token_ids: RawViewMut<'a, B>,
    /// i32 `[L / block]`: the local expert of each block; -1 past the end.
    pub expert_ids: RawViewMut<'a, B>,
    /// i32 `[1]`: entries in use, padding included.
    pub num_tokens_post_padded: RawViewMut<'a, B>,
}

/// Rows for each rank of an all-to-all, where rank r has `E_local / ranks` experts one after the other:
/// `out[r] = expert_offsets[(r + 1) * E_local / ranks] - expert_offsets[r * E_local / ranks]`, padding included.
#[derive(Debug)]
pub struct SplitSizesArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// At least 1; divides `E_local`.
    pub ranks: usize,
    /// i32 `[ranks]`.
    pub out: RawViewMut<'a, B>,
}
