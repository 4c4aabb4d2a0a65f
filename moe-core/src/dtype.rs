//! Element types.

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use std::fmt;

/// An element type, at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    I32,
    U32,
    I64,
    U8,
    /// Two packed 4-bit floats in a byte. Rows of these can be gathered and nothing else.
    F4x2,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::F8E4M3 | DType::F8E5M2 | DType::U8 | DType::F4x2 => 1,
            DType::I64 => 8,
        }
    }

    /// The name used in messages and reports.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F8E4M3 => "f8e4m3",
            DType::F8E5M2 => "f8e5m2",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::F4x2 => "f4x2",
        }
    }

    /// Whether this is an 8-bit float, whose rows may carry scales.
    pub const fn is_f8(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::F8E5M2)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Two packed 4-bit floats. Opaque here: its rows can be gathered, and the types allow nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct F4x2(pub u8);

/// A type that can lie in a buffer.
///
/// # Safety
/// Plain data: no padding, every bit pattern is a value, `size_of::<Self>() == DTYPE.size()`, and its alignment is its
/// size.
#[allow(unsafe_code)]
pub unsafe trait Element: Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The type at run time.
    const DTYPE: DType;
}

/// The types of expert ids: `i32`, `u32` and `i64`.
pub trait RouteId: Element {}

/// The elements of a mask map: `u8`, also for bool, and `i32`. Not 0 is set.
pub trait MaskElement: Element {}

/// The floats that weights and results come in: `f32`, `f16` and `bf16`.
pub trait Float: CombineInput {
    /// Widens to f32, exactly.
    fn to_f32(self) -> f32;
    /// Rounds to the nearest value, ties to even.
    fn from_f32(x: f32) -> Self;
}

/// The floats that `combine` and `combine_grad` read rows of: [`Float`] and the 8-bit floats.
pub trait CombineInput: Element {}

/// What grouped products read: [`Float`] and f8e4m3.
pub trait MatmulInput: CombineInput {}

macro_rules! elements {
    ($($t:ty => $d:ident),* $(,)?) => { $(
        // SAFETY: a primitive number, or a transparent wrapper of one: no padding, every bit pattern valid, and the
        // alignment of each is its size on the supported 64-bit targets.
        #[allow(unsafe_code)]
        unsafe impl Element for $t { const DTYPE: DType = DType::$d; }
        const _: () = assert!(size_of::<$t>() == DType::$d.size() && align_of::<$t>() == size_of::<$t>());
    )* };
}
elements!(f32 => F32, f16 => F16, bf16 => BF16, F8E4M3 => F8E4M3, F8E5M2 => F8E5M2, i32 => I32, u32 => U32,
    i64 => I64, u8 => U8, F4x2 => F4x2);

impl RouteId for i32 {}
impl RouteId for u32 {}
impl RouteId for i64 {}
impl MaskElement for u8 {}
impl MaskElement for i32 {}
impl CombineInput for f32 {}
impl CombineInput for f16 {}
impl CombineInput for bf16 {}
impl CombineInput for F8E4M3 {}
impl CombineInput for F8E5M2 {}

impl MatmulInput for f32 {}
impl MatmulInput for f16 {}
impl MatmulInput for bf16 {}
impl MatmulInput for F8E4M3 {}

impl Float for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> Self {
        x
    }
}
impl Float for f16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}
impl Float for bf16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

/// The bytes of a slice of elements.
#[allow(unsafe_code)]
pub fn as_bytes<T: Element>(data: &[T]) -> &[u8] {
    // SAFETY: `Element` promises plain data without padding, so each byte of the slice is initialised; u8 has no
    // alignment, the length is the slice's own and the lifetime is carried over.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

/// The bytes of a slice of elements, to be overwritten.
#[allow(unsafe_code)]
pub fn as_bytes_mut<T: Element>(data: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `as_bytes`; `Element` promises that every bit pattern is a value, so any bytes may be written.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), size_of_val(data)) }
}
