//! Values to compute with: random ones, and those that break careless arithmetic.

use super::naive::Widen;
use super::rng::Rng;
use crate::dtype::as_bytes_mut;
use crate::{DType, Element, Float};
use half::f16;

/// Values from -4 to 4 and now and then, where `wild`, one that is not a plain number.
pub(super) fn values<T: Element>(rng: &mut Rng, len: usize, wild: bool) -> Vec<T> {
    let mut out = vec![T::default(); len];
    for value in &mut out {
        let bits = if wild && rng.below(48) == 0 { special(rng, T::DTYPE) } else { plain(rng, T::DTYPE) };
        as_bytes_mut(std::slice::from_mut(value)).copy_from_slice(&bits.to_le_bytes()[..size_of::<T>()]);
    }
    out
}

fn plain(rng: &mut Rng, dtype: DType) -> u64 {
    let x = rng.unit() * 4.0;
    match dtype {
        DType::F32 => x.to_bits().into(),
        DType::F16 => f16::from_f32(x).to_bits().into(),
        DType::BF16 => half::bf16::from_f32(x).to_bits().into(),
        DType::F8E4M3 => rng.next() & 0x87 | (3 + rng.below(7) as u64) << 3,
        DType::F8E5M2 => (f16::from_f32(x).to_bits() >> 8).into(),
        _ => rng.next(),
    }
}

/// NaN with and without payload, infinities, zeros of both signs, subnormals, numbers that end in a tie.
fn special(rng: &mut Rng, dtype: DType) -> u64 {
    let f32s = [
        0x7fc0_0000,
        0xffc1_2345,
        0x7f80_0001,
        0x7f80_0000,
        0xff80_0000,
        0,
        0x8000_0000,
        1,
        0x8000_0123,
        0x007f_ffff,
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_1000,
        0x3f80_3000,
        0x3380_0000,
        0x0080_0000,
    ];
    let f16s = [0x7e00, 0xfe23, 0x7c01, 0x7c00, 0xfc00, 0, 0x8000, 1, 0x8155, 0x03ff, 0x3c01, 0x0400];
    let bf16s = [0x7fc0, 0xffd5, 0x7f81, 0x7f80, 0xff80, 0, 0x8000, 1, 0x8055, 0x007f, 0x3f81, 0x0080];
    match dtype {
        DType::F32 => f32s[rng.below(f32s.len())],
        DType::F16 => f16s[rng.below(f16s.len())],
        DType::BF16 => bf16s[rng.below(bf16s.len())],
        DType::F8E4M3 => [0x7f, 0xff, 0, 0x80, 1, 0x87, 0x7e, 0xfe][rng.below(8)],
        DType::F8E5M2 => [0x7c, 0xfc, 0x7e, 0xff, 0, 0x80, 1, 0x83, 0x7b, 0xfb][rng.below(10)],
        _ => rng.next(),
    }
}

/// Values widened to f32.
pub(super) fn widen<T: Widen>(values: &[T]) -> Vec<f32> {
    values.iter().map(|x| x.widen()).collect()
}

/// Values rounded from f32.
pub(super) fn narrow<T: Float>(values: &[f32]) -> Vec<T> {
    values.iter().map(|x| T::from_f32(*x)).collect()
}
