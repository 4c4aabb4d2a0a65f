//! Quantised rows, and the activation that can end in them. `moe_core::quant` has the rules.
//!
//! Rows are worked on in pieces that stay in the first cache level, as f32. Every step gives the same bits on each
//! instruction set.

mod gather;
mod piece;
mod rule;
mod swiglu;

pub(crate) use gather::{GatherQuant, gather_quant};
pub(crate) use swiglu::{Activation, swiglu, swiglu_quant};

use super::parallel::Shared;
use super::rows::RowsMut;
use moe_core::quant::{QuantFormat, ScaleShape};

/// Elements of a piece: a multiple of every group of a format.
const PIECE: usize = 2048;

/// Where quantised rows go.
pub(crate) struct QuantOut<'a> {
    /// What is written.
    pub(crate) format: QuantFormat,
    /// Elements of a row before it is quantised.
    pub(crate) len: usize,
    /// Rows of values.
    pub(crate) values: RowsMut<'a>,
    /// All scales.
    pub(crate) scales: &'a mut [u8],
    /// Where each lies.
    pub(crate) shape: ScaleShape,
}

/// [`QuantOut`] as tasks share it. Each writes the values and the scales of its own rows.
struct SharedOut {
    len: usize,
    value_bytes: usize,
    values: Shared,
    stride: usize,
    scales: Shared,
    scale_bytes: usize,
    shape: ScaleShape,
}

impl SharedOut {
    /// # Panics
    /// If `used` rows do not fit.
    fn new(out: QuantOut<'_>, used: usize) -> (QuantFormat, Self) {
        let QuantOut { format, len, values, scales, shape } = out;
        let value_bytes = format.value_cols(len).expect("moe-core checked the format");
        let scale_bytes = format.scale_dtype().size();
        assert!(used == 0 || values.count(value_bytes) >= used, "too few rows of values");
        assert!(shape.rows >= used && scales.len() == shape.len() * scale_bytes, "too few scales");
        assert!(shape.groups == format.group().map_or(1, |group| len.div_ceil(group)), "scales of other rows");
        let stride = values.stride;
        let (values, scales) = (Shared::new(values.bytes), Shared::new(scales));
        (format, Self { len, value_bytes, values, stride, scales, scale_bytes, shape })
    }

    /// # Safety
    /// `row` is below the rows that `new` was asked for and `group` below the padded groups; no other task writes the
    /// scales of this row.
    #[inline(always)]
    unsafe fn write_scale(&self, row: usize, group: usize, scale: u32) {
        let at = self.shape.index(row, group) * self.scale_bytes;
        // SAFETY: `new` saw that the scales have the shape's length, in which every place below lies; the write is
        // unaligned.
        unsafe {
            let p = self.scales.ptr().add(at);
            if self.scale_bytes == 4 { p.cast::<u32>().write_unaligned(scale) } else { p.write(scale as u8) }
        }
    }

    /// Scales of groups that follow each other, and zeros for the padding behind the last.
    ///
    /// # Safety
    /// As for [`write_scale`](Self::write_scale); `first + scales.len()` groups exist.
    #[inline(always)]
    unsafe fn write_scales(&self, row: usize, first: usize, scales: &[u32]) {
        // SAFETY: the caller's promise; padding lies below `padded_groups`.
        unsafe {
            for (i, scale) in scales.iter().enumerate() {
                self.write_scale(row, first + i, *scale);
            }
            if first + scales.len() == self.shape.groups {
                for group in self.shape.groups..self.shape.padded_groups() {
                    self.write_scale(row, group, 0);
                }
            }
        }
    }
}

/// Calls a generic function with the format's rule.
macro_rules! with_rule {
    ($format:expr, $rule:ident => $call:expr) => {
        match $format {
            QuantFormat::PerToken => {
                let $rule = rule::Fp8::<0>;
                $call
            }
            QuantFormat::Block128(_) => {
                let $rule = rule::Fp8::<128>;
                $call
            }
            QuantFormat::Mxfp8(rounding, _) => {
                let $rule = rule::Mx(rounding);
                $call
            }
            QuantFormat::Nvfp4 { global_scale, .. } => {
                let $rule = rule::Nv(global_scale);
                $call
            }
            other => unreachable!("moe-core asked whether this backend writes {other:?}"),
        }
    };
}
use with_rule;
