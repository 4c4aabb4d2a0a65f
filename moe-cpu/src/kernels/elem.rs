//! Element types of row data: how they are read as f32, and how f32 is rounded to them.

use super::simd::Simd;
use half::f16;

/// An element type at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Elem {
    F32,
    F16,
    Bf16,
    E4m3,
    E5m2,
}

impl Elem {
    /// Bytes of an element.
    pub(crate) const fn size(self) -> usize {
        match self {
            Elem::F32 => 4,
            Elem::F16 | Elem::Bf16 => 2,
            Elem::E4m3 | Elem::E5m2 => 1,
        }
    }
}

/// NaN as every kernel writes it; other values as they are.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fc0_0000) } else { x }
}

/// Rounds to bf16, nearest even.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = canonical(x).to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Rounds to f16, nearest even.
#[inline(always)]
pub(crate) fn f16_bits(x: f32) -> u16 {
    if x.is_nan() { 0x7e00 } else { f16::from_f32(x).to_bits() }
}

/// Widens f16; exact.
#[inline(always)]
pub(crate) fn f16_value(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// Widens f8 e4m3 (no infinities, one NaN per sign); exact. The bits are moved into an f16, whose exponent bias is
/// larger by 8.
#[inline(always)]
pub(crate) fn e4m3_value(bits: u8) -> f32 {
    let rest = u16::from(bits & 0x7f);
    if rest == 0x7f {
        return f32::from_bits(0x7fc0_0000);
    }
    f16_value(u16::from(bits & 0x80) << 8 | rest << 7) * 256.0
}

/// An element type that can be read.
///
/// # Safety
/// The methods read `S::LANES` elements, or one, at any alignment; vectors need the instruction set.
pub(crate) trait Input: Copy + Send + Sync + 'static {
    /// Bytes of an element.
    const SIZE: usize;
    /// Whether two vectors are read, and written, faster as the elements with even numbers and those with odd ones.
    const PAIRS: bool = false;
    /// Reads a vector.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    /// Reads two vectors: the elements with even numbers and those with odd ones, where `PAIRS`.
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(p: *const u8) -> [S::F; 2] {
        // SAFETY: the caller promises the instruction set and two vectors of elements.
        unsafe { [Self::load::<S>(p), Self::load::<S>(p.add(S::LANES * Self::SIZE))] }
    }
    /// Reads one.
    unsafe fn read(p: *const u8) -> f32;
}

/// An element type that can be written, with one rounding.
///
/// # Safety
/// As for [`Input`]; with `STREAM`, vectors are written to an address aligned to the bytes of the vector.
pub(crate) trait Output: Input {
    /// Rounds and writes a vector.
    unsafe fn store<S: Simd, const STREAM: bool>(p: *mut u8, v: S::F);
    /// Rounds and writes two vectors, which are what `load_pair` gives. With `STREAM`, to an address aligned to both.
    #[inline(always)]
    unsafe fn store_pair<S: Simd, const STREAM: bool>(p: *mut u8, v: [S::F; 2]) {
        // SAFETY: the caller promises the instruction set, two vectors of elements, and alignment with `STREAM`.
        unsafe {
            Self::store::<S, STREAM>(p, v[0]);
            Self::store::<S, STREAM>(p.add(S::LANES * Self::SIZE), v[1]);
        }
    }
    /// Rounds and writes one.
    unsafe fn write(p: *mut u8, v: f32);
}

/// `f32`.
#[derive(Clone, Copy)]
pub(crate) struct F32;
/// IEEE half precision.
#[derive(Clone, Copy)]
pub(crate) struct F16;
/// bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;
/// 8-bit float with 4 exponent bits.
#[derive(Clone, Copy)]
pub(crate) struct E4m3;
/// 8-bit float with 5 exponent bits.
#[derive(Clone, Copy)]
pub(crate) struct E5m2;

macro_rules! input {
    ($name:ident, $bits:ty, $load:ident, |$b:ident| $value:expr $(, { $($pairs:tt)* })?) => {
        impl Input for $name {
            $($($pairs)*)?
            const SIZE: usize = size_of::<$bits>();
            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const u8) -> S::F {
                // SAFETY: the caller promises the instruction set and `LANES` elements.
                unsafe { S::$load(p) }
            }
            #[inline(always)]
            unsafe fn read(p: *const u8) -> f32 {
                // SAFETY: the caller promises one element; the read is unaligned.
                let $b = unsafe { p.cast::<$bits>().read_unaligned() };
                $value
            }
        }
    };
}

macro_rules! output {
    ($name:ident, $bits:ty, $store:ident, |$v:ident| $value:expr $(, { $($pairs:tt)* })?) => {
        impl Output for $name {
            $($($pairs)*)?
            #[inline(always)]
            unsafe fn store<S: Simd, const STREAM: bool>(p: *mut u8, v: S::F) {
                // SAFETY: the caller promises the instruction set, `LANES` elements, and alignment with `STREAM`.
                unsafe { S::$store::<STREAM>(p, v) }
            }
            #[inline(always)]
            unsafe fn write(p: *mut u8, $v: f32) {
                let bits: $bits = $value;
                // SAFETY: the caller promises one element; the write is unaligned.
                unsafe { p.cast::<$bits>().write_unaligned(bits) }
            }
        }
    };
}

input!(F32, f32, load_f32, |b| b);
input!(F16, u16, load_f16, |b| f16_value(b));
input!(Bf16, u16, load_bf16, |b| f32::from_bits(u32::from(b) << 16), {
    const PAIRS: bool = true;
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(p: *const u8) -> [S::F; 2] {
        // SAFETY: the caller's promises are passed on.
        unsafe { S::load_bf16_pair(p) }
    }
});
input!(E4m3, u8, load_e4m3, |b| e4m3_value(b));
input!(E5m2, u8, load_e5m2, |b| f16_value(u16::from(b) << 8));
output!(F32, f32, store_f32, |v| canonical(v));
output!(F16, u16, store_f16, |v| f16_bits(v));
output!(Bf16, u16, store_bf16, |v| bf16_bits(v), {
    #[inline(always)]
    unsafe fn store_pair<S: Simd, const STREAM: bool>(p: *mut u8, v: [S::F; 2]) {
        // SAFETY: the caller's promises are passed on.
        unsafe { S::store_bf16_pair::<STREAM>(p, v) }
    }
});

/// Calls a generic function or method with the element types that the run-time values name.
macro_rules! with_output {
    ($elem:expr, $O:ident => $call:expr) => {
        match $elem {
            Elem::F32 => {
                type $O = crate::kernels::elem::F32;
                $call
            }
            Elem::F16 => {
                type $O = crate::kernels::elem::F16;
                $call
            }
            Elem::Bf16 => {
                type $O = crate::kernels::elem::Bf16;
                $call
            }
            Elem::E4m3 | Elem::E5m2 => panic!("8-bit floats are not written by this operation"),
        }
    };
}

/// As `with_output`, for types that are read.
macro_rules! with_input {
    ($elem:expr, $I:ident => $call:expr) => {
        match $elem {
            Elem::F32 => {
                type $I = crate::kernels::elem::F32;
                $call
            }
            Elem::F16 => {
                type $I = crate::kernels::elem::F16;
                $call
            }
            Elem::Bf16 => {
                type $I = crate::kernels::elem::Bf16;
                $call
            }
            Elem::E4m3 => {
                type $I = crate::kernels::elem::E4m3;
                $call
            }
            Elem::E5m2 => {
                type $I = crate::kernels::elem::E5m2;
                $call
            }
        }
    };
}

pub(crate) use {with_input, with_output};
