//! What the router's operations get, and their arithmetic.
//!
//! All three compute in f32 with the functions of [`math`](crate::math), one rounding for each operation written and a
//! fused multiply-add where it says `fma`. CPU and CUDA give these bits. Names: x is a token's row of logits, widened;
//! `sum e: …` over experts (and `sum k: …` over the experts taken) is 32 f32 lanes that start at +0, lane `e mod 32` in
//! ascending e by one addition (or fma, where the term is a product) each, then `lane[i] += lane[i + s]` for
//! s = 16, 8, 4, 2, 1. A NaN logit is lower than -infinity; -0 equals +0.
//!
//! `share(x, m)`, what a logit weighs against the largest, m: where m is finite, `exp(x - m)`, and 0 for NaN; where m is
//! ±infinity, 1 for what equals it and 0 else; where m is NaN, 1.

use super::{RawRows, RawRowsMut, RawView, RawViewMut};
use crate::{Backend, Scoring};

/// The numbers that shape a router; all were checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterShape {
    /// E, at least 1, at most `i32::MAX`.
    pub num_experts: usize,
    /// K, from 1 to E, and at most the experts of `topk_group` groups.
    pub top_k: usize,
    /// How logits become weights.
    pub scoring: Scoring,
    /// Whether the weights of a token are divided by their sum.
    pub renormalize: bool,
    /// What weights are multiplied with at the end; finite.
    pub scaling_factor: f32,
    /// Experts are taken from the best groups only.
    pub groups: Option<RouterGroups>,
}

/// Groups of consecutive experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterGroups {
    /// Groups: from 1 to [`MAX_GROUPS`](Self::MAX_GROUPS); divides E.
    pub n_group: usize,
    /// Groups that experts are taken from, from 1 to `n_group`.
    pub topk_group: usize,
}

impl RouterGroups {
    /// The most groups.
    pub const MAX_GROUPS: usize = 128;
}

impl RouterShape {
    /// Whether the weights are the softmax of the logits that were taken.
    pub fn softmax_of_taken(&self) -> bool {
        match self.scoring {
            Scoring::Softmax => self.renormalize,
            Scoring::SoftmaxOfTopK => true,
            Scoring::Sigmoid => false,
        }
    }
}

/// From logits to expert ids and weights.
///
/// **Probabilities** p: `share(x[e], m) / S` with m the largest x and S = sum e: `share(x[e], m)`. For sigmoid scoring
/// `s[e] / S` with s = `sigmoid(x[e])`, 0 for NaN, and S = sum e: `s[e]`; where S is 0, s is 1 for every expert.
///
/// **Choice.** Experts are taken in descending order of a key, ties to the lower id, NaN keys last. Without a bias the
/// key is x. With one it is `score + correction_bias[e]`, NaN where x is: the score is p for softmax, `sigmoid(x[e])` for
/// sigmoid, x for softmax of the top k. With groups, only experts of the `topk_group` best groups are taken: a group's value is its
/// largest key without a bias; with one, the sum of its two largest keys (of its one, if it has no more); ties to the
/// lower group, NaN last. So ids are always distinct and in range.
///
/// **Weights** of the taken experts i[0..K]:
/// * softmax, not renormalised: `p[i[k]] * scaling_factor`.
/// * [softmax of those taken](RouterShape::softmax_of_taken): `share(x[i[k]], m) / S * scaling_factor`, with m the
///   largest of the x that were taken and S = sum k: `share(x[i[k]], m)`.
/// * sigmoid: s, 0 for NaN; renormalised `s / S` with S = sum k: `s[i[k]]`, or `1 / K` where S is 0; times
///   `scaling_factor`.
///
/// Each is rounded once to the dtype (nearest even).
///
/// Tokens from `valid_tokens` on get ids -1, weights 0 and probabilities 0.
#[derive(Debug)]
pub struct RouteArgs<'a, B: Backend> {
    /// The numbers.
    pub shape: RouterShape,
    /// `[T, E]` in f32, f16 or bf16. `T * K` is at most `i32::MAX`.
    pub logits: RawRows<'a, B>,
    /// f32 `[E]`: added to the scores for the choice alone.
    pub correction_bias: Option<RawView<'a, B>>,
    /// i32 `[1]`: only tokens below this number are routed. A negative number means none, one above T means all.
    pub valid_tokens: Option<RawView<'a, B>>,
    /// i32 `[T, K]`.
    pub ids: RawViewMut<'a, B>,
    /// `[T, K]` in f32, f16 or bf16.
    pub weights: RawViewMut<'a, B>,
    /// f32 `[T, E]`: p.
    pub probs: Option<RawRowsMut<'a, B>>,
}

/// The two losses that keep a router in shape.
#[derive(Debug)]
pub struct RawLosses<'a, B: Backend> {
    /// i32 `[E]`: the routes of each expert; without it the load-balancing loss is 0.
    pub load: Option<RawView<'a, B>>,
    /// `coefficient * E / K`.
    pub balance_scale: f32,
    /// The coefficient of the z-loss; without it that loss is 0.
    pub z_scale: Option<f32>,
}

/// The losses of a batch.
///
/// For each token `a = sum e: p[e] * load[e]` (load as f32, p as in [`RouteArgs`]) and `z = l * l`, with
/// `l = m + ln(S)`, m the largest logit and S = sum e: `share(x[e], m)`. Both are 0 for a token whose m is not finite,
/// for those from `valid_tokens` on, and where the loss is not asked for.
///
/// `losses[0] = balance_scale * A / n / n` and `losses[1] = z_scale * Z / n`, from left to right, with n the number of
/// valid tokens as f32 and A and Z the sums of a and z over the tokens: 1,024 lanes that start at +0, lane `t mod 1024`
/// in ascending t by one addition each, then `lane[i] += lane[i + s]` for s = 512, 256, … 1. Both are 0 where n is 0, and NaN is canonical.
#[derive(Debug)]
pub struct RouterLossArgs<'a, B: Backend> {
    /// The numbers.
    pub shape: RouterShape,
    /// `[T, E]` in f32, f16 or bf16.
    pub logits: RawRows<'a, B>,
    /// As in [`RouteArgs`].
    pub valid_tokens: Option<RawView<'a, B>>,
    /// Which losses, and how they are scaled.
    pub losses: RawLosses<'a, B>,
    /// f32 `[T, 2]`: a and z of each token.
    pub token_losses: RawViewMut<'a, B>,
    /// f32 `[2]`.
    pub out: RawViewMut<'a, B>,
}

/// The losses' half of [`RouterGradArgs`].
#[derive(Debug)]
pub struct RawLossGrads<'a, B: Backend> {
    /// The losses, as they were computed.
    pub losses: RawLosses<'a, B>,
    /// f32 `[2]`: the gradients of the two. 1 where absent.
    pub grad: Option<RawView<'a, B>>,
}

/// The gradient of the logits, of everything that was made of them; the ids are constants.
///
/// With m, share, S, p and s as in [`RouteArgs`], the token's ids `i[0..K]`, `h[k] = scaling_factor * grad_weights[k]`
/// (rounded; 0 where the id is out of range, whose share and score are 0 too), c = load as f32, n as in
/// [`RouterLossArgs`], `A = grad[0] * balance_scale / n / n` and `Z = 2 * (grad[1] * z_scale / n)`:
///
/// 1. `g[e] = grad_probs[e]`, or 0; with a load, `g = fma(A, c[e], g)`; for softmax that is not renormalised, for k in
///    order, `g[i[k]] = fma(scaling_factor, grad_weights[k], g[i[k]])`.
/// 2. Softmax: `D = sum e: p[e] * g[e]`, `d[e] = p[e] * (g[e] - D)`.
///    Sigmoid: `D = sum e: p[e] * g[e]`, `d[e] = (g[e] - D) / S`, S the sum of the scores; 0 where S is 0.
///    Where there are no g (no `grad_probs`, no load, and no weights that count in 1.), d is +0.
/// 3. Softmax of those taken, for k in order: `d[i[k]] = fma(q[k], h[k] - D, d[i[k]])` with `q[k] = share(x[i[k]], m') /
///    S'`, m' the largest of the x taken, S' = sum k: share, D = sum k: `q[k] * h[k]`; left out where m' is not finite.
///    Sigmoid: for k in order `d[i[k]] += h[k]`; renormalised `d[i[k]] += (h[k] - D) / S'` with S' = sum k: `s[i[k]]`,
///    D = sum k: `(s[i[k]] / S') * h[k]`; left out where S' is 0.
/// 4. Sigmoid: `d[e] = d[e] * (s[e] * (1 - s[e]))`.
/// 5. With a z-loss, `d[e] = fma(Z * l, y[e], d[e])` with l as in [`RouterLossArgs`] and `y[e] = share(x[e], m) / S` of
///    the softmax.
///
/// d is rounded once to the dtype (nearest even). It is +0 for all experts of a token whose largest logit is not finite
/// and of tokens from `valid_tokens` on, and for a NaN logit.
#[derive(Debug)]
pub struct RouterGradArgs<'a, B: Backend> {
    /// The numbers.
    pub shape: RouterShape,
    /// `[T, E]` in f32, f16 or bf16: what [`RouteArgs`] had.
    pub logits: RawRows<'a, B>,
    /// As in [`RouteArgs`].
    pub valid_tokens: Option<RawView<'a, B>>,
    /// The gradient of the weights, and which experts were taken.
    pub weights: Option<RawRouteGrads<'a, B>>,
    /// f32 `[T, E]`: the gradient of the probabilities.
    pub grad_probs: Option<RawRows<'a, B>>,
    /// The losses.
    pub losses: Option<RawLossGrads<'a, B>>,
    /// `[T, E]`, the dtype of `logits`.
    pub grad_logits: RawRowsMut<'a, B>,
}

/// The weights' part of [`RouterGradArgs`].
#[derive(Debug)]
pub struct RawRouteGrads<'a, B: Backend> {
    /// i32 `[T, K]`, as [`RouteArgs`] gave them. Not trusted: an id out of range contributes nothing.
    pub ids: RawView<'a, B>,
    /// `[T, K]` in f32, f16 or bf16.
    pub grad: RawView<'a, B>,
}
