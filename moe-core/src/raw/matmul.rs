//! What grouped products get.

use super::quant::RawRowScales;
use super::{PlanRef, RawRows, RawRowsMut, RawView};
use crate::Backend;

/// For each local expert e and each row r with `expert_offsets[e] <= r < expert_offsets[e + 1]`, padding rows too:
/// `out[r, n] = Σ_k rows[r, k] * weights[e, n, k]`, each factor times its scale where there are scales.
///
/// Rows past the last offset are neither read nor touched. Products are exact and summed in f32 or wider, in an order
/// that is the implementation's own but does not change from run to run; one rounding to the output's dtype at the end.
/// So `|error| <= 1 ulp of the output + K * 2^-23 * Σ_k |rows[r, k] * weights[e, n, k]|`.
///
/// The offsets are on the device and are not trusted: an implementation clamps them to `0..=R` and takes a range that
/// does not ascend as empty. Where it writes from several tasks at once, it also sees to it that no two ranges overlap.
#[derive(Debug)]
pub struct GroupedMatmulArgs<'a, B: Backend> {
    /// The plan, for its `expert_offsets`.
    pub plan: PlanRef<'a, B>,
    /// `[R, K]` in f32, f16, bf16 or f8e4m3; K at least 1.
    pub rows: RawRows<'a, B>,
    /// f32 scales of the rows. Only for f8e4m3.
    pub row_scales: Option<RawRowScales<'a, B>>,
    /// `[E_local * N, K]`, the dtype of `rows`: the weights `[N, K]` of one expert after the other.
    pub weights: RawRows<'a, B>,
    /// Scales of the weights. Only for f8e4m3.
    pub weight_scales: Option<RawWeightScales<'a, B>>,
    /// `[R, N]`: the dtype of `rows` or f32; for f8e4m3 f32, f16 or bf16.
    pub out: RawRowsMut<'a, B>,
}

/// f32 scales of weights: one for each block of `block[0]` outputs (N) and `block[1]` inputs (K).
#[derive(Clone, Debug)]
pub struct RawWeightScales<'a, B: Backend> {
    /// `[E_local, ceil(N / block[0]), ceil(K / block[1])]` in f32.
    pub scales: RawView<'a, B>,
    /// At least 1 each. `[1, K]` is one scale for each output channel, `[128, 128]` DeepSeek's blocks, `[N, K]` one for
    /// each expert.
    pub block: [usize; 2],
}
