//! What quantising operations and the activation get. [`crate::quant`] has the rules for values and scales.

use super::{PlanRef, RawRows, RawRowsMut, RawView, RawViewMut};
use crate::quant::{QuantFormat, ScaleShape};
use crate::{Backend, DType};

/// Quantised rows to be written: values `[R, C]` with the format's `value_cols`, and their scales.
#[derive(Debug)]
pub struct RawQuantMut<'a, B: Backend> {
    /// The format, checked.
    pub format: QuantFormat,
    /// `[R, H]` in f8e4m3, or `[R, H / 2]` packed 4-bit floats.
    pub values: RawRowsMut<'a, B>,
    /// `scale_shape.len()` elements of the format's scale dtype.
    pub scales: RawViewMut<'a, B>,
    /// Where each scale lies.
    pub scale_shape: ScaleShape,
}

/// Row `slot[t, k]` becomes the quantisation of row t, for placed routes.
///
/// The bits are those of "quantise row t, then gather values and scales", so that a backend may quantise each token
/// once. Padding rows below the last expert offset become the quantisation of a row of zeros; of rows from there on
/// neither values nor scales are touched. In the swizzled layout the groups past the last of a row in use are zero.
#[derive(Debug)]
pub struct GatherQuantArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// `[T, H]` in f32, f16 or bf16, H at least 1.
    pub rows: RawRows<'a, B>,
    /// `R` rows of H elements.
    pub out: RawQuantMut<'a, B>,
}

/// The two inputs of SwiGLU: `silu(gate) * up`.
#[derive(Debug)]
pub struct RawSwiglu<'a, B: Backend> {
    /// `[R, I]` in f32, f16 or bf16.
    pub gate: RawRows<'a, B>,
    /// `[R, I]`, the dtype of `gate`. The two may be halves of one matrix `[R, 2 I]`: their regions can overlap.
    pub up: RawRows<'a, B>,
}

/// `out[r, :] = silu(gate[r, :]) * up[r, :]` for rows below the last expert offset, padding rows too; rows from there
/// on are neither read nor touched.
///
/// Both are widened to f32. With [`exp`](crate::math::exp), and each step rounded to f32:
/// `silu = gate / (1 + exp(-gate))`, `y = silu * up`; then one rounding to the output's dtype (nearest even), NaN
/// canonical.
#[derive(Debug)]
pub struct SwigluArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// The inputs.
    pub input: RawSwiglu<'a, B>,
    /// `[R, I]` in f32, f16 or bf16.
    pub out: RawRowsMut<'a, B>,
}

/// [`SwigluArgs`] rounded to `round_to`, then quantised: the bits of the two steps.
#[derive(Debug)]
pub struct SwigluQuantArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// The inputs.
    pub input: RawSwiglu<'a, B>,
    /// What `silu(gate) * up` is rounded to before it is quantised: f32 (no rounding), f16 or bf16.
    pub round_to: DType,
    /// `R` rows of I elements.
    pub out: RawQuantMut<'a, B>,
}

/// Scales that travel with the rows of a permute: an unweighted [gather](super::GatherArgs) by the same plan.
#[derive(Debug)]
pub struct RowScales<'a, B: Backend> {
    /// `[T, S]`, any dtype.
    pub rows: RawRows<'a, B>,
    /// `[R, S]`, the same dtype.
    pub out: RawRowsMut<'a, B>,
}

/// f32 scales of the rows of a product.
#[derive(Debug)]
pub struct RawRowScales<'a, B: Backend> {
    /// `shape.len()` elements of f32.
    pub scales: RawView<'a, B>,
    /// Elements of a row that share a scale, at least 1; K or more means one scale for each row.
    pub block: usize,
    /// `[R, ceil(K / block)]`, row-major or column-major.
    pub shape: ScaleShape,
}
