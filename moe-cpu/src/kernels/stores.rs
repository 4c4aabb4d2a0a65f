//! Copying and zeroing rows, through the cache or past it.

use super::elem::Output;
use super::simd::{LINE, Simd};
use std::sync::atomic::AtomicI32;

/// Bytes from `p` to the next line.
#[inline(always)]
fn to_line(p: *const u8) -> usize {
    (p as usize).wrapping_neg() % LINE
}

/// The first element of `dst` from which whole vectors can be streamed, at most `LANES` elements in where the type's
/// vectors fill a line or less; `None` where streaming is not asked for or not possible. `len` is at least `LANES`:
/// one plain vector at 0 covers what comes before.
#[inline(always)]
pub(crate) fn stream_from<S: Simd, E: Output>(dst: *const u8, len: usize, stream: bool) -> Option<usize> {
    let vector = S::LANES * E::SIZE;
    let bytes = (dst as usize).wrapping_neg() % vector;
    (S::STREAMS && stream && bytes.is_multiple_of(E::SIZE) && bytes / E::SIZE + S::LANES <= len)
        .then_some(bytes / E::SIZE)
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
