//! Copying and zeroing rows, through the cache or past it.

use super::elem::Output;
use super::simd::{LINE, Simd};
use std::sync::atomic::AtomicI32;

/// Bytes from `p` to the next line.
#[inline(always)]
fn to_line(p: *const u8) -> usize {
    (p as usize).wrapping_neg() % LINE
}

/// The first element of `dst` from which groups of `vectors` vectors can be streamed, less than a group in; `None` where
/// streaming is not asked for or not possible. Plain vectors at 0 and before that element cover what comes before it.
#[inline(always)]
pub(crate) fn stream_from<S: Simd, E: Output>(
    dst: *const u8,
    len: usize,
    vectors: usize,
    stream: bool,
) -> Option<usize> {
    let group = vectors * S::LANES;
    let bytes = (dst as usize).wrapping_neg() % (group * E::SIZE);
    (S::STREAMS && stream && bytes.is_multiple_of(E::SIZE) && bytes / E::SIZE + group <= len).then_some(bytes / E::SIZE)
}

/// Copies `len` bytes.
///
/// # Safety
/// The processor has `S`; `src` can be read and `dst` written for `len` bytes, and they do not overlap.
#[inline(always)]
pub(crate) unsafe fn copy<S: Simd>(dst: *mut u8, src: *const u8, len: usize, stream: bool) {
    let head = to_line(dst);
    // SAFETY: all parts lie in the `len` bytes at both addresses: `head`, whole lines up to `tail`, and the rest.
    // `dst + head` and every line after it are aligned.
    unsafe {
        if !(S::STREAMS && stream) || len < head + LINE {
            std::ptr::copy_nonoverlapping(src, dst, len);
            return;
        }
        std::ptr::copy_nonoverlapping(src, dst, head);
        let mut at = head;
        while at + 4 * LINE <= len {
            S::stream_line(dst.add(at), src.add(at));
            S::stream_line(dst.add(at + LINE), src.add(at + LINE));
            S::stream_line(dst.add(at + 2 * LINE), src.add(at + 2 * LINE));
            S::stream_line(dst.add(at + 3 * LINE), src.add(at + 3 * LINE));
            at += 4 * LINE;
        }
        while at + LINE <= len {
            S::stream_line(dst.add(at), src.add(at));
            at += LINE;
        }
        std::ptr::copy_nonoverlapping(src.add(at), dst.add(at), len - at);
    }
}

/// Zeroes `len` bytes.
///
/// # Safety
/// The processor has `S`; `dst` can be written for `len` bytes.
#[inline(always)]
pub(crate) unsafe fn zero<S: Simd>(dst: *mut u8, len: usize, stream: bool) {
    let head = to_line(dst);
    // SAFETY: all parts lie in the `len` bytes; `dst + head` and every line after it are aligned.
    unsafe {
        if !(S::STREAMS && stream) || len < head + LINE {
            std::ptr::write_bytes(dst, 0, len);
            return;
        }
        std::ptr::write_bytes(dst, 0, head);
        let mut at = head;
        while at + LINE <= len {
            S::stream_zero_line(dst.add(at));
            at += LINE;
        }
        std::ptr::write_bytes(dst.add(at), 0, len - at);
    }
}

/// Asks for the word at `index` of `words`, which may lie past their end, to be written soon.
#[inline(always)]
pub(crate) fn prefetch_word(words: &[AtomicI32], index: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: x86-64 has SSE; any address will do, for nothing is read or written.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(words.as_ptr().wrapping_add(index).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (words, index);
}

/// Stores sixteen words to a line, past the cache where the target's baseline can. `dst` is one aligned line, of which
/// no other task knows until `stream_fence`.
#[inline(always)]
pub(crate) fn stream_words(dst: &[AtomicI32; 16], words: &[u32; 16]) {
    assert!((dst.as_ptr() as usize).is_multiple_of(LINE), "a line");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: x86-64 has SSE2; `dst` is 64 bytes, aligned to 64, which atomics let shared references write.
    unsafe {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        let (to, from) = (dst.as_ptr().cast_mut().cast::<__m128i>(), words.as_ptr().cast::<__m128i>());
        for quarter in 0..4 {
            _mm_stream_si128(to.add(quarter), _mm_loadu_si128(from.add(quarter)));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (to, &word) in dst.iter().zip(words) {
        to.store(word as i32, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Orders [`stream_words`] before what this thread stores later.
pub(crate) fn stream_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: x86-64 has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
