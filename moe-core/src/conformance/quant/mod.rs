//! The suite of quantisation and the activation, for backends that have [`QuantBackend`](crate::QuantBackend).
//!
//! ```
//! moe_core::quant_suite!(moe_cpu::Cpu, "cpu");
//! # fn main() {}
//! ```

mod errors;
mod gather;
mod naive;
mod swiglu;

super::suite::suite! { $ quant_suite by expect_quant_pass for QuantBackend:
    gather::gather_quant_formats,
    gather::permute_with_scales_equals_two_gathers,
    swiglu::swiglu_floats,
    swiglu::swiglu_quant_formats,
    errors::errors_of_quant_arguments,
}

use super::axes::{Axes, BOTH, FLOATS};
use super::compare::same;
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx, Fail};
use super::rng::Rng;
use crate::dtype::as_bytes;
use crate::quant::{Quantization, ScaleShape};
use crate::{DType, Element, Float, PermuteBackend, Queue, RowsMut, ViewMut};

/// Rows for quantisation: widths around groups, chunks and the pieces that rows are cut into.
const AXES: Axes = Axes {
    dtype: FLOATS,
    tokens: &[0, 1, 2, 7, 33, 100],
    top_k: &[1, 2, 5, 8],
    hidden: &[1, 2, 7, 16, 30, 64, 96, 129, 256, 1026, 8192, 8194],
    wild: BOTH,
    ..Axes::ROWS
};

/// Elements of the largest matrix of a case; the formats share cases.
const LIMIT: usize = 1 << 18;

/// Calls a function with every format and layout that takes rows of `hidden` elements.
macro_rules! for_each_format {
    ($hidden:expr, $format:ident => $call:expr) => {{
        use crate::quant::ExponentRounding::{Ceil, Floor};
        use crate::quant::ScaleLayout::{ColumnMajor, RowMajor, Swizzled};
        use crate::quant::{Block128, Mxfp8, Nvfp4, PerToken};
        let $format = PerToken;
        $call;
        for $format in [Block128(RowMajor), Block128(ColumnMajor)] {
            $call;
        }
        for $format in [(Floor, RowMajor), (Ceil, Swizzled), (Floor, Swizzled), (Ceil, RowMajor)] {
            let $format = Mxfp8 { rounding: $format.0, layout: $format.1 };
            $call;
        }
        if $hidden % 2 == 0 {
            for $format in [(448.0 * 6.0 / 4.0, RowMajor), (1.0, Swizzled), (1e-6, RowMajor), (3e7, Swizzled)] {
                let $format = Nvfp4 { global_scale: $format.0, layout: $format.1 };
                $call;
            }
        }
    }};
}
use for_each_format;

/// Rows of all sizes: ordinary, zero, close to the limits of f32, on ties, and where `wild` with NaN and infinities.
fn rows<T: Float>(rng: &mut Rng, len: usize, cols: usize, wild: bool, exact: bool) -> Vec<T> {
    let mut out: Vec<T> = super::values::values(rng, len, wild && exact);
    for row in out.chunks_mut(cols) {
        // GPUs without subnormals are not asked for any.
        let exponent = match rng.below(8) {
            0 => 0,
            1 if exact => -120,
            2 if exact => 100,
            3 => -14,
            4 => 9,
            5 => {
                row.fill(T::from_f32(0.0));
                continue;
            }
            6 => {
                // Multiples of 1/16 up to 28: with the largest at 28 the scale is 2^-4, and many lie halfway.
                row.iter_mut().for_each(|x| *x = T::from_f32(rng.below(897) as f32 / 32.0 - 14.0));
                row[0] = T::from_f32(28.0);
                continue;
            }
            _ => 1,
        };
        row.iter_mut().for_each(|x| *x = T::from_f32(x.to_f32() * 2f32.powi(exponent)));
    }
    out
}

/// Quantised output between canaries.
struct Out<B: PermuteBackend, Q: Quantization> {
    values: Guarded<B, Q::Value>,
    scales: Guarded<B, Q::Scale>,
    shape: ScaleShape,
    cols: usize,
}

impl<B: PermuteBackend, Q: Quantization> Out<B, Q> {
    fn new(
        queue: &mut Queue<'_, B>,
        rng: &mut Rng,
        format: Q,
        rows: usize,
        hidden: usize,
        gap: usize,
    ) -> Checked<Self> {
        let format = format.format();
        let (cols, shape) = (format.value_cols(hidden)?, format.scale_shape(rows, hidden)?);
        let offset = rng.below(6);
        let values = Guarded::poisoned(queue, rows, cols, Place::random(rng, offset, gap))?;
        let offset = rng.below(6);
        let scales = Guarded::poisoned(queue, 1, shape.len(), Place::random(rng, offset, 0))?;
        Ok(Self { values, scales, shape, cols })
    }

    #[allow(clippy::type_complexity)] // a matrix and a vector
    fn views(&mut self) -> Checked<(RowsMut<'_, B, Q::Value>, ViewMut<'_, B, Q::Scale>)> {
        Ok((self.values.rows_mut()?, self.scales.view_mut()?))
    }

    /// What both hold before they are written, as bytes and as scale bits.
    fn before(&self) -> (Vec<u8>, Vec<u32>) {
        let rows = self.shape.rows;
        (vec![byte(self.values.poison()); rows * self.cols], vec![bits(self.scales.poison()); self.shape.len()])
    }

    /// Compares with what is right.
    fn check(&self, ctx: &mut Ctx<'_, B>, values: &[u8], scales: &[u32], slack: Slack) -> Checked {
        let got = self.values.read(&mut ctx.queue, "values")?;
        let got: Vec<u8> = as_bytes(&got).to_vec();
        let got_scales: Vec<u32> = self.scales.read(&mut ctx.queue, "scales")?.into_iter().map(bits).collect();
        if ctx.exact() {
            same("scales", &got_scales, scales, self.shape.groups)?;
            return same("values", &got, values, self.cols);
        }
        for (i, (got, want)) in got_scales.iter().zip(scales).enumerate() {
            let near = match Q::Scale::DTYPE {
                DType::F32 => {
                    let (g, w) = (f32::from_bits(*got), f32::from_bits(*want));
                    got == want || (g - w).abs() <= slack.scale * w.abs()
                }
                _ => got.abs_diff(*want) <= 1,
            };
            if !near {
                return Err(Fail(format!("scales[{i}] is {got:#x}, expected {want:#x} or its neighbour")));
            }
        }
        for (i, (got, want)) in got.iter().zip(values).enumerate() {
            let near = match Q::Value::DTYPE {
                DType::F4x2 => neighbours(got & 15, want & 15, 8) && neighbours(got >> 4, want >> 4, 8),
                _ => neighbours(*got, *want, 0x80),
            };
            if !near {
                let (row, col) = (i / self.cols, i % self.cols);
                return Err(Fail(format!("values[{row}, {col}] is {got:#x}, expected {want:#x} or its neighbour")));
            }
        }
        Ok(())
    }
}

/// What a backend with an inexact division may do to scales; values may be neighbours.
#[derive(Clone, Copy)]
struct Slack {
    scale: f32,
}

/// Whether two codes are equal or next to each other.
fn neighbours(a: u8, b: u8, sign: u8) -> bool {
    let number = |code: u8| if code & sign == 0 { i32::from(code) } else { -i32::from(code & (sign - 1)) };
    (number(a) - number(b)).abs() <= 1
}

fn byte<T: Element>(x: T) -> u8 {
    as_bytes(std::slice::from_ref(&x))[0]
}

/// The bits of a scale of any type.
fn bits<T: Element>(x: T) -> u32 {
    let mut word = [0u8; 4];
    word[..size_of::<T>()].copy_from_slice(as_bytes(std::slice::from_ref(&x)));
    u32::from_le_bytes(word)
}

/// The rules that the formats' docs state, on numbers that can be checked by hand.
#[cfg(test)]
mod tests {
    use super::naive::Quantiser;
    use super::neighbours;
    use crate::quant::{Block128, ExponentRounding, Mxfp8, Nvfp4, PerToken, QuantFormat, Quantization, ScaleLayout};

    #[test]
    fn scales_of_groups_that_are_easy_to_see() {
        let scale = |format: QuantFormat, x: f32| Quantiser::new(format).row(&[x, 0.0]).scales[0];
        let mx = |rounding| Mxfp8 { rounding, layout: ScaleLayout::RowMajor }.format();
        assert_eq!(scale(PerToken.format(), 448.0), 1f32.to_bits());
        assert_eq!(scale(Block128(ScaleLayout::RowMajor).format(), 0.0), 1e-12f32.to_bits());
        assert_eq!(scale(mx(ExponentRounding::Floor), 448.0), 127);
        assert_eq!(scale(mx(ExponentRounding::Floor), 500.0), 127);
        assert_eq!(scale(mx(ExponentRounding::Ceil), 448.0), 127);
        assert_eq!(scale(mx(ExponentRounding::Ceil), 449.0), 128);
        assert_eq!(scale(mx(ExponentRounding::Floor), 512.0), 128);
        assert_eq!(scale(mx(ExponentRounding::Floor), 1e-45), 0);
        assert_eq!(scale(Nvfp4 { global_scale: 1.0, layout: ScaleLayout::RowMajor }.format(), 6.0), 0x38);
        assert!(neighbours(0x80, 0x01, 0x80) && !neighbours(0x81, 0x01, 0x80));
    }
}
