//! What the three primitives get.

use super::{PlanRef, RawRows, RawRowsMut, RawView, RawViewMut};
use crate::Backend;

/// `out[slot[t, k], :] = rows[t, :]` for placed routes, times `weights[t, k]` where there are weights.
///
/// Without weights the bits are copied. With weights: widen both to f32, multiply, round once to the dtype (nearest
/// even), NaN canonical. Padding rows below the last expert offset become zero; rows from there on are not touched.
#[derive(Debug)]
pub struct GatherArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// `[T, H]`, any dtype without weights; f32, f16 or bf16 with.
    pub rows: RawRows<'a, B>,
    /// `[T, K]` in f32, f16 or bf16.
    pub weights: Option<RawView<'a, B>>,
    /// `[R, H]`, the dtype of `rows`.
    pub out: RawRowsMut<'a, B>,
}

/// Scales of 8-bit float rows.
#[derive(Debug)]
pub struct RawScales<'a, B: Backend> {
    /// f32 `[R, ceil(H / block)]`.
    pub rows: RawRows<'a, B>,
    /// Elements of a row that share one scale, at least 1. H or more means one scale for each row.
    pub block: usize,
}

/// `out[t, :] = residual_scale * residual[t, :] + Σ_k weights[t, k] * rows[slot[t, k], :]`, summed in f32.
///
/// The sum starts at the residual, widened, times its scale, rounded to f32, or at +0, and adds k = 0, 1, … with one fused multiply-add each; a weight
/// that is not there is 1. With scales the factor is `weight * scale`, rounded to f32 (the scale alone without
/// weights). One rounding to the output's dtype at the end (nearest even); NaN canonical: 0x7fc00000, 0x7fc0 for bf16,
/// 0x7e00 for f16. A route that is not placed contributes nothing: its weight and any row are not read.
#[derive(Debug)]
pub struct CombineArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// `[R, H]` in f32, f16, bf16, f8e4m3 or f8e5m2.
    pub rows: RawRows<'a, B>,
    /// `[T, K]` in f32, f16 or bf16.
    pub weights: Option<RawView<'a, B>>,
    /// Only for 8-bit float rows.
    pub scales: Option<RawScales<'a, B>>,
    /// `[T, H]`, the dtype of `out`.
    pub residual: Option<RawRows<'a, B>>,
    /// Multiplies the residual; 1 where there is none.
    pub residual_scale: f32,
    /// `[T, H]`: the dtype of `rows` or f32; for 8-bit float rows f32, f16 or bf16.
    pub out: RawRowsMut<'a, B>,
}

/// `grad_rows[slot[t, k], :] = weights[t, k] * grad_out[t, :]` and `grad_weights[t, k] = Σ_h rows[slot[t, k], h] *
/// grad_out[t, h]`.
///
/// `grad_rows`: as a weighted [gather](GatherArgs) of `grad_out`, rounded once; a bit copy where there are no weights.
/// Padding rows below the last expert offset become zero; rows from there on are not touched. `grad_weights` is summed
/// in an order that does not depend on the machine: 1,024 f32 lanes that start at +0, lane `h mod 1024` in ascending h
/// with one fused multiply-add each, then `lane[i] += lane[i + s]` for s = 512, 256, … 1, then one rounding; 0 for
/// routes that are not placed; NaN canonical.
#[derive(Debug)]
pub struct CombineGradArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// `[T, H]`, the gradient of combine's output, in f32, f16 or bf16.
    pub grad_out: RawRows<'a, B>,
    /// `[T, K]` in f32, f16 or bf16.
    pub weights: Option<RawView<'a, B>>,
    /// The first output, `[R, H]`, the dtype of `grad_out`.
    pub grad_rows: Option<RawRowsMut<'a, B>>,
    /// The second output and what it is made of.
    pub grad_weights: Option<RawGradWeights<'a, B>>,
}

/// The weights' half of [`CombineGradArgs`].
#[derive(Debug)]
pub struct RawGradWeights<'a, B: Backend> {
    /// What combine read: `[R, H]`, the dtype of `grad_out`.
    pub rows: RawRows<'a, B>,
    /// `[T, K]` in f32, f16 or bf16.
    pub out: RawViewMut<'a, B>,
}

/// Zeroes the rows from the last expert offset to R.
#[derive(Debug)]
pub struct ZeroTailArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// `[R, H]`, any dtype.
    pub rows: RawRowsMut<'a, B>,
}
