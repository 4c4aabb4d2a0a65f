//! Parallel copies: what a benchmark measures beside the kernels as the floor of moving bytes.

use super::parallel::{Shared, for_ranges};
use super::simd::Simd;
use super::stores;
use super::tier::{Op, Tier};
use std::ops::Range;

/// Bytes of a task of a copy.
const TASK: usize = 1 << 20;

/// Copies with the C library's memcpy, in parallel.
///
/// # Panics
/// Where the lengths differ.
pub(crate) fn copy_memcpy(src: &[u8], dst: &mut [u8]) {
    assert_eq!(src.len(), dst.len(), "a copy needs equal lengths");
    run(Tier::SCALAR, src, dst, false);
}

/// Copies with stores past the cache, where the machine has them, in parallel.
///
/// # Panics
/// Where the lengths differ.
pub(crate) fn copy_streaming(tier: Tier, src: &[u8], dst: &mut [u8]) {
    assert_eq!(src.len(), dst.len(), "a copy needs equal lengths");
    run(tier, src, dst, true);
}

fn run(tier: Tier, src: &[u8], dst: &mut [u8], stream: bool) {
    let out = Shared::new(dst);
    for_ranges(0..src.len(), TASK, &|range| tier.run(Part { src, out: &out, range, stream }));
}

/// A range of the bytes.
struct Part<'a> {
    src: &'a [u8],
    out: &'a Shared,
    range: Range<usize>,
    stream: bool,
}

impl Op for Part<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let src = &self.src[self.range.clone()];
        // SAFETY: source and output have one length, which contains the range, and ranges of tasks are disjoint.
        unsafe {
            stores::copy::<S>(self.out.ptr().add(self.range.start), src.as_ptr(), src.len(), self.stream);
            S::fence();
        }
    }
}
