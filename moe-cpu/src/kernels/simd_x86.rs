//! The AVX2 (with FMA and F16C) and AVX-512 vectors.
//!
//! bf16 is rounded with integer operations: the processors' own conversion flushes subnormals. e4m3 is widened by
//! moving its bits into an f16, whose exponent bias is larger by 8, and multiplying by 2^8; both steps are exact.

use super::simd::Simd;
use std::arch::x86_64::*;

/// 8 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// 16 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
const NAN: f32 = f32::from_bits(0x7fc0_0000);

/// The upper half of a word.
const HIGH: i32 = 0xffff_0000_u32 as i32;

/// Defines the methods of a `Simd` implementation whose bodies are one unsafe expression.
macro_rules! methods {
    ($($(<const $c:ident>)? fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $($body:tt)* })*) => {
        $(
            #[inline(always)]
            unsafe fn $name$(<const $c: bool>)?($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller promises the instruction set, and memory as the trait's docs say.
                unsafe { $($body)* }
            }
        )*
    };
}

impl Avx2 {
    methods! {
        fn canonical(v: __m256) -> __m256 {
            _mm256_blendv_ps(v, _mm256_set1_ps(NAN), _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v))
        }
        fn rounded(v: __m256) -> __m256i {
            let bits = _mm256_castps_si256(Self::canonical(v));
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd)
        }
    }
}

impl Avx512 {
    methods! {
        fn canonical(v: __m512) -> __m512 {
            _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), _mm512_set1_ps(NAN))
        }
        fn rounded(v: __m512) -> __m512i {
            let bits = _mm512_castps_si512(Self::canonical(v));
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd)
        }
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const STREAMS: bool = true;
    type F = __m256;

    methods! {
        fn splat(value: f32) -> __m256 { _mm256_set1_ps(value) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn load_f32(p: *const u8) -> __m256 { _mm256_loadu_ps(p.cast()) }
        fn load_bf16(p: *const u8) -> __m256 {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
        fn load_bf16_pair(p: *const u8) -> [__m256; 2] {
            let both = _mm256_loadu_si256(p.cast());
            let odd = _mm256_and_si256(both, _mm256_set1_epi32(HIGH));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)), _mm256_castsi256_ps(odd)]
        }
        fn load_f16(p: *const u8) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        fn load_e4m3(p: *const u8) -> __m256 {
            let b = _mm_cvtepu8_epi16(_mm_loadl_epi64(p.cast()));
            let sign = _mm_slli_epi16::<8>(_mm_and_si128(b, _mm_set1_epi16(0x80)));
            let rest = _mm_and_si128(b, _mm_set1_epi16(0x7f));
            let half = _mm_or_si128(sign, _mm_slli_epi16::<7>(rest));
            let value = _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0));
            let is_nan = _mm256_cvtepi16_epi32(_mm_cmpeq_epi16(rest, _mm_set1_epi16(0x7f)));
            _mm256_blendv_ps(value, _mm256_set1_ps(NAN), _mm256_castsi256_ps(is_nan))
        }
        fn load_e5m2(p: *const u8) -> __m256 {
            _mm256_cvtph_ps(_mm_slli_epi16::<8>(_mm_cvtepu8_epi16(_mm_loadl_epi64(p.cast()))))
        }
        fn store_raw(p: *mut u8, v: __m256) { _mm256_storeu_ps(p.cast(), v) }
        <const STREAM> fn store_f32(p: *mut u8, v: __m256) {
            let v = Self::canonical(v);
            if STREAM { _mm256_stream_ps(p.cast(), v) } else { _mm256_storeu_ps(p.cast(), v) }
        }
        <const STREAM> fn store_bf16(p: *mut u8, v: __m256) {
            let high = _mm256_srli_epi32::<16>(Self::rounded(v));
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(high, high));
            let out = _mm256_castsi256_si128(packed);
            if STREAM { _mm_stream_si128(p.cast(), out) } else { _mm_storeu_si128(p.cast(), out) }
        }
        <const STREAM> fn store_bf16_pair(p: *mut u8, v: [__m256; 2]) {
            let even = _mm256_srli_epi32::<16>(Self::rounded(v[0]));
            let odd = _mm256_and_si256(Self::rounded(v[1]), _mm256_set1_epi32(HIGH));
            let out = _mm256_or_si256(even, odd);
            if STREAM { _mm256_stream_si256(p.cast(), out) } else { _mm256_storeu_si256(p.cast(), out) }
        }
        <const STREAM> fn store_f16(p: *mut u8, v: __m256) {
            let out = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(Self::canonical(v));
            if STREAM { _mm_stream_si128(p.cast(), out) } else { _mm_storeu_si128(p.cast(), out) }
        }
        fn stream_line(dst: *mut u8, src: *const u8) {
            let low = _mm256_loadu_si256(src.cast());
            let high = _mm256_loadu_si256(src.add(32).cast());
            _mm256_stream_si256(dst.cast(), low);
            _mm256_stream_si256(dst.add(32).cast(), high)
        }
        fn stream_zero_line(dst: *mut u8) {
            _mm256_stream_si256(dst.cast(), _mm256_setzero_si256());
            _mm256_stream_si256(dst.add(32).cast(), _mm256_setzero_si256())
        }
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        fn prefetch_far(p: *const u8) { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        fn fence() { _mm_sfence() }
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const STREAMS: bool = true;
    type F = __m512;

    methods! {
        fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn load_f32(p: *const u8) -> __m512 { _mm512_loadu_ps(p.cast()) }
        fn load_bf16(p: *const u8) -> __m512 {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        fn load_bf16_pair(p: *const u8) -> [__m512; 2] {
            let both = _mm512_loadu_si512(p.cast());
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(HIGH));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
        }
        fn load_f16(p: *const u8) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        fn load_e4m3(p: *const u8) -> __m512 {
            let b = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(b, _mm256_set1_epi16(0x80)));
            let rest = _mm256_and_si256(b, _mm256_set1_epi16(0x7f));
            let half = _mm256_or_si256(sign, _mm256_slli_epi16::<7>(rest));
            let value = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0));
            let is_nan = _mm256_cmpeq_epi16_mask(rest, _mm256_set1_epi16(0x7f));
            _mm512_mask_mov_ps(value, is_nan, _mm512_set1_ps(NAN))
        }
        fn load_e5m2(p: *const u8) -> __m512 {
            _mm512_cvtph_ps(_mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()))))
        }
        fn store_raw(p: *mut u8, v: __m512) { _mm512_storeu_ps(p.cast(), v) }
        <const STREAM> fn store_f32(p: *mut u8, v: __m512) {
            let v = Self::canonical(v);
            if STREAM { _mm512_stream_ps(p.cast(), v) } else { _mm512_storeu_ps(p.cast(), v) }
        }
        <const STREAM> fn store_bf16(p: *mut u8, v: __m512) {
            let out = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(Self::rounded(v)));
            if STREAM { _mm256_stream_si256(p.cast(), out) } else { _mm256_storeu_si256(p.cast(), out) }
        }
        <const STREAM> fn store_bf16_pair(p: *mut u8, v: [__m512; 2]) {
            let even = _mm512_srli_epi32::<16>(Self::rounded(v[0]));
            let odd = _mm512_and_si512(Self::rounded(v[1]), _mm512_set1_epi32(HIGH));
            let out = _mm512_or_si512(even, odd);
            if STREAM { _mm512_stream_si512(p.cast(), out) } else { _mm512_storeu_si512(p.cast(), out) }
        }
        <const STREAM> fn store_f16(p: *mut u8, v: __m512) {
            let out = _mm512_cvtps_ph::<NEAREST>(Self::canonical(v));
            if STREAM { _mm256_stream_si256(p.cast(), out) } else { _mm256_storeu_si256(p.cast(), out) }
        }
        fn stream_line(dst: *mut u8, src: *const u8) {
            _mm512_stream_si512(dst.cast(), _mm512_loadu_si512(src.cast()))
        }
        fn stream_zero_line(dst: *mut u8) { _mm512_stream_si512(dst.cast(), _mm512_setzero_si512()) }
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        fn prefetch_far(p: *const u8) { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        fn fence() { _mm_sfence() }
    }
}
