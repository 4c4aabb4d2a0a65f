//! Vectors of f32, their conversions, and stores past the cache.

use super::elem::{bf16_bits, canonical, e4m3_value, f16_bits, f16_value};
use half::bf16;

/// Bytes of a cache line, which streaming stores fill as a whole.
pub(crate) const LINE: usize = 64;

/// A vector of `LANES` f32 values. All instruction sets give the same bits: multiply-add is fused, conversions round
/// to the nearest even and keep subnormals, and NaN results of the stores are canonical.
///
/// # Safety
/// Every method needs a processor that has the instruction set. Loads read, and stores write, `LANES` elements at any
/// alignment; `stream_*` stores need the alignment of the vector that they write.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// f32 values in a vector.
    const LANES: usize;
    /// Whether the `STREAM` forms really bypass the cache.
    const STREAMS: bool;
    /// The vector.
    type F: Copy;

    /// All lanes equal.
    unsafe fn splat(value: f32) -> Self::F;
    /// `a * b`, rounded.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a + b`, rounded.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Loads f32.
    unsafe fn load_f32(p: *const u8) -> Self::F;
    /// Loads and widens bf16.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    /// Loads and widens two vectors of bf16: the elements with even numbers, and those with odd ones.
    unsafe fn load_bf16_pair(p: *const u8) -> [Self::F; 2];
    /// Loads and widens f16.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// Loads and widens f8 e4m3 (the variant without infinities).
    unsafe fn load_e4m3(p: *const u8) -> Self::F;
    /// Loads and widens f8 e5m2.
    unsafe fn load_e5m2(p: *const u8) -> Self::F;

    /// Stores f32 as it is, NaN included.
    unsafe fn store_raw(p: *mut u8, v: Self::F);
    /// Stores f32; with `STREAM`, past the cache and to an aligned address.
    unsafe fn store_f32<const STREAM: bool>(p: *mut u8, v: Self::F);
    /// Rounds to bf16 and stores.
    unsafe fn store_bf16<const STREAM: bool>(p: *mut u8, v: Self::F);
    /// Rounds two vectors to bf16 and stores them: the elements with even numbers, and those with odd ones.
    unsafe fn store_bf16_pair<const STREAM: bool>(p: *mut u8, v: [Self::F; 2]);
    /// Rounds to f16 and stores.
    unsafe fn store_f16<const STREAM: bool>(p: *mut u8, v: Self::F);

    /// Copies a line from any address to an aligned one, past the cache.
    unsafe fn stream_line(dst: *mut u8, src: *const u8);
    /// Zeroes an aligned line, past the cache.
    unsafe fn stream_zero_line(dst: *mut u8);
    /// Asks for a line to be read soon. Any address will do.
    unsafe fn prefetch(p: *const u8);
    /// Asks for a line to be read later, so not to be brought nearer than the second cache level.
    unsafe fn prefetch_far(p: *const u8);
    /// Orders streaming stores before what this thread stores later.
    unsafe fn fence();
}

/// Plain Rust on eight values at a time, which compilers turn into the target's baseline vectors.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

const N: usize = 8;

#[inline(always)]
fn map2(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// # Safety
/// `p` can be read for `N` values of `T`.
#[inline(always)]
unsafe fn read<T: Copy>(p: *const u8) -> [T; N] {
    // SAFETY: the caller promises that the bytes can be read; the read is unaligned.
    unsafe { p.cast::<[T; N]>().read_unaligned() }
}

/// # Safety
/// `p` can be written for `N` values of `T`.
#[inline(always)]
unsafe fn write<T: Copy>(p: *mut u8, v: [T; N]) {
    // SAFETY: the caller promises that the bytes can be written; the write is unaligned.
    unsafe { p.cast::<[T; N]>().write_unaligned(v) }
}

impl Simd for Scalar {
    const LANES: usize = N;
    const STREAMS: bool = false;
    type F = [f32; N];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        [value; N]
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn load_f32(p: *const u8) -> Self::F {
        // SAFETY: the caller's promise of `LANES` elements.
        unsafe { read::<f32>(p) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        // SAFETY: the caller's promise of `LANES` elements.
        unsafe { read::<u16>(p) }.map(|b| f32::from_bits(u32::from(b) << 16))
    }
    #[inline(always)]
    unsafe fn load_bf16_pair(p: *const u8) -> [Self::F; 2] {
        // SAFETY: the caller's promise of two vectors of elements.
        let words = unsafe { read::<u32>(p) };
        let (low, high) = if cfg!(target_endian = "little") { (16, 0) } else { (0, 16) };
        let half = |shift: u32| words.map(|w| f32::from_bits((w << shift) & 0xffff_0000));
        [half(low), half(high)]
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: the caller's promise of `LANES` elements.
        unsafe { read::<u16>(p) }.map(f16_value)
    }
    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self::F {
        // SAFETY: the caller's promise of `LANES` elements.
        unsafe { read::<u8>(p) }.map(e4m3_value)
    }
    #[inline(always)]
    unsafe fn load_e5m2(p: *const u8) -> Self::F {
        // SAFETY: the caller's promise of `LANES` elements.
        unsafe { read::<u8>(p) }.map(|b| f16_value(u16::from(b) << 8))
    }
    #[inline(always)]
    unsafe fn store_raw(p: *mut u8, v: Self::F) {
        // SAFETY: the caller's promise of `LANES` elements.
        unsafe { write(p, v) }
    }
    #[inline(always)]
    unsafe fn store_f32<const STREAM: bool>(p: *mut u8, v: Self::F) {
        // SAFETY: the caller's promise of `LANES` elements.
        unsafe { write(p, v.map(canonical)) }
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(p: *mut u8, v: Self::F) {
        // SAFETY: the caller's promise of `LANES` elements.
        unsafe { write(p, v.map(|x| bf16::from_bits(bf16_bits(x)))) }
    }
    #[inline(always)]
    unsafe fn store_bf16_pair<const STREAM: bool>(p: *mut u8, v: [Self::F; 2]) {
        let pairs: [[u16; 2]; N] = std::array::from_fn(|i| [bf16_bits(v[0][i]), bf16_bits(v[1][i])]);
        // SAFETY: the caller's promise of two vectors of elements.
        unsafe { write(p, pairs) }
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(p: *mut u8, v: Self::F) {
        // SAFETY: the caller's promise of `LANES` elements.
        unsafe { write(p, v.map(f16_bits)) }
    }
    #[inline(always)]
    unsafe fn stream_line(dst: *mut u8, src: *const u8) {
        // SAFETY: the caller promises a line at both addresses, which do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(src, dst, LINE) }
    }
    #[inline(always)]
    unsafe fn stream_zero_line(dst: *mut u8) {
        // SAFETY: the caller promises a line at this address.
        unsafe { std::ptr::write_bytes(dst, 0, LINE) }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_far(_: *const u8) {}
    #[inline(always)]
    unsafe fn fence() {}
}
