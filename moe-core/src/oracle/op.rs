//! The operations that can be wished for.

use super::wish::Sizes;
use crate::DType;
use std::fmt;

/// An operation, as far as a choice of a backend depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// Building a route plan.
    Plan,
    /// Gathering rows, as bits.
    Gather,
    /// Gathering rows times their weights.
    WeightedGather,
    /// Combining rows.
    Combine,
    /// The gradients of combine.
    CombineGrad,
    /// Taking each token's experts from its logits; the type of the rows is that of the logits.
    Route,
}

impl Op {
    /// All of them.
    pub const ALL: &'static [Op] = &[Op::Plan, Op::Gather, Op::WeightedGather, Op::Combine, Op::CombineGrad, Op::Route];

    /// The name used in messages and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Plan => "plan",
            Op::Gather => "gather",
            Op::WeightedGather => "weighted gather",
            Op::Combine => "combine",
            Op::CombineGrad => "combine_grad",
            Op::Route => "route",
        }
    }

    /// Whether the library has this operation for rows of a type, on any backend.
    pub const fn takes(self, dtype: DType) -> bool {
        let float = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        match self {
            Op::Plan | Op::Gather => true,
            Op::Combine => float || dtype.is_f8(),
            Op::WeightedGather | Op::CombineGrad | Op::Route => float,
        }
    }

    /// Bytes that it reads and writes for `tokens` tokens, if routes are spread evenly over the experts. 64 bits wide,
    /// because a wish is checked for overflow only at its largest size.
    pub(super) fn bytes(self, sizes: &Sizes, dtype: DType, tokens: usize) -> f64 {
        let routes = tokens as f64 * sizes.top_k as f64;
        let placed = routes * sizes.num_local_experts as f64 / sizes.num_experts as f64;
        let row = sizes.hidden_size as f64 * dtype.size() as f64;
        let tokens = tokens as f64;
        match self {
            // Ids, both maps, offsets and counts.
            Op::Plan => 4.0 * (3.0 * routes + 2.0 * sizes.num_local_experts as f64 + 1.0),
            Op::Gather | Op::WeightedGather | Op::Combine => (tokens + placed) * row,
            Op::CombineGrad => (tokens + 2.0 * placed) * row,
            // Logits; ids and weights.
            Op::Route => tokens * sizes.num_experts as f64 * dtype.size() as f64 + 8.0 * routes,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
