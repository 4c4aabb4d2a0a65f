//! A piece of a row, quantised.

use super::rule::Rule;
use super::{CHUNK, PIECE};
use crate::kernels::elem::Input;
use crate::kernels::simd::Simd;
use std::ops::Range;

/// A quantised piece of a row.
pub(super) struct Piece {
    values: [u8; PIECE],
    scales: [u32; PIECE / CHUNK],
}

impl Piece {
    pub(super) fn new() -> Self {
        Self { values: [0; PIECE], scales: [0; PIECE / CHUNK] }
    }

    /// The values of a piece of `len` elements.
    #[inline(always)]
    pub(super) fn values<R: Rule>(&self, len: usize) -> &[u8] {
        &self.values[..if R::PACKED { len / 2 } else { len }]
    }

    /// The scales of a piece of `len` elements; one where a row has one.
    #[inline(always)]
    pub(super) fn scales<R: Rule>(&self, len: usize) -> &[u32] {
        &self.scales[..if R::GROUP == 0 { 1 } else { len.div_ceil(R::GROUP) }]
    }

    /// Quantises the elements `range`, at most [`PIECE`] from a multiple of it on, of a row at `src`. `amax` is the
    /// largest magnitude of the row, for rules that have one scale for a row.
    ///
    /// # Safety
    /// The processor has `S`; `src` can be read up to the end of the range.
    #[inline(always)]
    pub(super) unsafe fn quantise<S: Simd, E: Input, R: Rule>(
        &mut self,
        rule: R,
        src: *const u8,
        range: Range<usize>,
        amax: u32,
    ) {
        let group = if R::GROUP == 0 { PIECE } else { R::GROUP };
        for (i, from) in range.clone().step_by(group).enumerate() {
            let to = range.end.min(from + group);
            // SAFETY: the caller's promises; the group lies in the range.
            unsafe {
                let amax = if R::GROUP == 0 { amax } else { largest::<S, E>(src, from..to) };
                self.scales[i] = rule.scale(amax);
                let factor = rule.factor(self.scales[i]);
                for at in (from..to).step_by(CHUNK) {
                    let codes = R::codes(&chunk::<S, E>(src, at, to), factor);
                    self.put::<R>(at - range.start, &codes);
                }
            }
        }
    }

    /// Writes the values of a chunk. Those past the row's end are zeros.
    #[inline(always)]
    fn put<R: Rule>(&mut self, at: usize, codes: &[u8; CHUNK]) {
        if R::PACKED {
            let bytes: [u8; CHUNK / 2] = std::array::from_fn(|i| codes[2 * i] | codes[2 * i + 1] << 4);
            self.values[at / 2..][..CHUNK / 2].copy_from_slice(&bytes);
        } else {
            self.values[at..][..CHUNK].copy_from_slice(codes);
        }
    }
}

/// The elements from `at` on, widened; zeros from `end` on.
///
/// # Safety
/// The processor has `S`; `src` can be read for `end` elements.
#[inline(always)]
pub(super) unsafe fn chunk<S: Simd, E: Input>(src: *const u8, at: usize, end: usize) -> [f32; CHUNK] {
    const { assert!(CHUNK.is_multiple_of(S::LANES)) };
    let mut out = [0f32; CHUNK];
    // SAFETY: every element that is read is below `end`; what is stored lies in `out`.
    unsafe {
        if at + CHUNK <= end {
            for lane in (0..CHUNK).step_by(S::LANES) {
                let v = E::load::<S>(src.add((at + lane) * E::SIZE));
                S::store_raw(out.as_mut_ptr().add(lane).cast(), v);
            }
        } else {
            for (i, x) in out.iter_mut().enumerate().take(end.saturating_sub(at)) {
                *x = E::read(src.add((at + i) * E::SIZE));
            }
        }
    }
    out
}

/// The bits of the largest magnitude; above infinity's where an element is NaN.
///
/// # Safety
/// The processor has `S`; `src` can be read up to the end of the range.
#[inline(always)]
pub(super) unsafe fn largest<S: Simd, E: Input>(src: *const u8, range: Range<usize>) -> u32 {
    let mut lanes = [0u32; CHUNK];
    for at in range.clone().step_by(CHUNK) {
        // SAFETY: the caller's promises.
        let x = unsafe { chunk::<S, E>(src, at, range.end) };
        lanes = std::array::from_fn(|i| lanes[i].max(x[i].to_bits() & 0x7fff_ffff));
    }
    lanes.into_iter().fold(0, u32::max)
}
