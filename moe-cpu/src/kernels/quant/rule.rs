//! The rules of the formats, for one group.

use moe_core::quant::{ExponentRounding, MIN_SCALE, RECIPROCAL_6, RECIPROCAL_448, e2m1, e4m3, e4m3_value};

const INFINITY: u32 = 0x7f80_0000;
const NAN: u32 = 0x7fc0_0000;

/// How a group is scaled and its elements are rounded.
pub(super) trait Rule: Copy + Send + Sync {
    /// Elements that share a scale; 0 for a whole row.
    const GROUP: usize;
    /// Two values lie in a byte.
    const PACKED: bool;
    /// The scale's bits, from the bits of the largest magnitude, which is above infinity's where an element is NaN.
    fn scale(self, amax: u32) -> u32;
    /// What [`code`](Self::code) needs of the scale.
    fn factor(self, scale: u32) -> f32;
    /// The value of an element.
    fn code(x: f32, factor: f32) -> u8;
}

/// f8e4m3 with an f32 scale for each row (0) or group.
#[derive(Clone, Copy)]
pub(super) struct Fp8<const GROUP: usize>;

impl<const GROUP: usize> Rule for Fp8<GROUP> {
    const GROUP: usize = GROUP;
    const PACKED: bool = false;
    #[inline(always)]
    fn scale(self, amax: u32) -> u32 {
        if amax > INFINITY {
            return NAN;
        }
        (f32::from_bits(amax) * RECIPROCAL_448).max(MIN_SCALE).to_bits()
    }
    #[inline(always)]
    fn factor(self, scale: u32) -> f32 {
        f32::from_bits(scale)
    }
    #[inline(always)]
    fn code(x: f32, scale: f32) -> u8 {
        e4m3(x / scale)
    }
}

/// MXFP8.
#[derive(Clone, Copy)]
pub(super) struct Mx(pub(super) ExponentRounding);

impl Rule for Mx {
    const GROUP: usize = 32;
    const PACKED: bool = false;
    #[inline(always)]
    fn scale(self, amax: u32) -> u32 {
        if amax >= INFINITY {
            return 255;
        }
        let up = self.0 == ExponentRounding::Ceil && amax & 0x7f_ffff > 0x60_0000;
        ((amax >> 23) + u32::from(up)).saturating_sub(8)
    }
    #[inline(always)]
    fn factor(self, scale: u32) -> f32 {
        if scale == 255 { f32::NAN } else { f32::from_bits((254 - scale) << 23) }
    }
    #[inline(always)]
    fn code(x: f32, factor: f32) -> u8 {
        e4m3(x * factor)
    }
}

/// NVFP4 with its global scale.
#[derive(Clone, Copy)]
pub(super) struct Nv(pub(super) f32);

impl Rule for Nv {
    const GROUP: usize = 16;
    const PACKED: bool = true;
    #[inline(always)]
    fn scale(self, amax: u32) -> u32 {
        if amax >= INFINITY {
            return 0x7f;
        }
        e4m3((f32::from_bits(amax) * RECIPROCAL_6) * self.0).into()
    }
    #[inline(always)]
    fn factor(self, scale: u32) -> f32 {
        if scale == 0 { 0.0 } else { self.0 / e4m3_value(scale as u8) }
    }
    #[inline(always)]
    fn code(x: f32, factor: f32) -> u8 {
        e2m1(x * factor)
    }
}
