//! moe_gather: Y = P X, or diag(w) P X.
//!
//! Shapes: x [T, row], y [R, row] in bytes, with strides; weights [T, K]. The row of route t * K + k becomes a copy of
//! token t's row, or round(w * x). Padding rows (source -1 below the last expert offset) become zero, rows past the
//! last offset are not touched.
//!
//! The work goes by token: a token's row is read once, stays in the first cache level, and is stored to its K rows.

use super::elem::{Elem, Output, with_output};
use super::parallel::{Shared, for_ranges};
use super::rows::{Placement, Rows, RowsMut, Weights};
use super::simd::{LINE, Simd};
use super::stores;
use super::tier::{Op, Tier};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Arguments of [`gather`].
pub(crate) struct Gather<'a> {
    /// The index arrays.
    pub(crate) plan: Placement<'a>,
    /// Token rows.
    pub(crate) rows: Rows<'a>,
    /// Bytes of a row.
    pub(crate) row_bytes: usize,
    /// Weights, and the type of the row's elements, which they scale. Without weights rows are copied as bits.
    pub(crate) weights: Option<(Weights<'a>, Elem)>,
}

/// Gathers rows.
///
/// # Panics
/// Where the lengths do not fit the shapes, or weights come with 8-bit floats.
pub(crate) fn gather(tier: Tier, args: &Gather<'_>, out: RowsMut<'_>) {
    let Gather { plan, rows, row_bytes, weights } = args;
    let (tokens, used) = (plan.tokens(), plan.used());
    assert!(rows.count(*row_bytes) >= tokens, "too few rows to gather from");
    assert!(out.count(*row_bytes) >= used, "too few rows to gather to");
    if let Some((w, elem)) = weights {
        assert!(w.len() == plan.slot.len(), "weights must be [T, K]");
        assert!(row_bytes.is_multiple_of(elem.size()), "a row must be whole elements");
    }
    let stream = tier.thresholds().streams(used * row_bytes, *row_bytes);
    let stride = out.stride;
    let out = Shared::new(out.bytes);
    let grain = tier.thresholds().grain_for(row_bytes * plan.top_k);
    let placed = AtomicUsize::new(0);
    match *weights {
        None => for_ranges(0..tokens, grain, &|tokens| {
            tier.run(Copies { args, out: &out, stride, used, stream, tokens, placed: &placed });
        }),
        Some((weights, elem)) => with_output!(elem, E => for_ranges(0..tokens, grain, &|tokens| {
            let placed = &placed;
            tier.run(Scaled::<E> { args, weights, out: &out, stride, used, stream, tokens, placed, elem: PhantomData });
        })),
    }
    // Each route has a row of its own: where all rows have a route, none is padding.
    if placed.into_inner() < used {
        zero_padding(tier, plan, used, &out, stride, *row_bytes, stream);
    }
}

/// Zeroes rows `range` of `out`.
///
/// # Panics
/// Where the range is not inside.
pub(crate) fn zero_rows(tier: Tier, out: RowsMut<'_>, row_bytes: usize, range: Range<usize>) {
    assert!(range.is_empty() || out.count(row_bytes) >= range.end, "too few rows to zero");
    let stream = tier.thresholds().streams(range.len() * row_bytes, row_bytes);
    let stride = out.stride;
    let out = Shared::new(out.bytes);
    for_ranges(range, tier.thresholds().grain_for(row_bytes), &|rows| {
        tier.run(Zeros { source: None, out: &out, stride, row_bytes, stream, rows });
    });
}

/// Zeroes the rows below `used` whose source is negative. `out` has `used` rows of `row_bytes` at `stride`.
pub(super) fn zero_padding(
    tier: Tier,
    plan: &Placement<'_>,
    used: usize,
    out: &Shared,
    stride: usize,
    row_bytes: usize,
    stream: bool,
) {
    for_ranges(0..used, tier.thresholds().grain_for(row_bytes.min(64)), &|rows| {
        tier.run(Zeros { source: Some(plan.source), out, stride, row_bytes, stream, rows });
    });
}

/// Rows of a token that are written side by side.
const SIDE: usize = 16;

/// Bytes of a row that go to all of them before the next bytes do, where they are whole lines. Of 512 to 2048 bytes all
/// are better than a row of 14 KiB at a time; with 256, too few lines of a page are written together.
const PIECE: usize = 1024;

/// Unweighted rows of some tokens.
struct Copies<'a> {
    args: &'a Gather<'a>,
    out: &'a Shared,
    stride: usize,
    used: usize,
    stream: bool,
    tokens: Range<usize>,
    placed: &'a AtomicUsize,
}

impl Op for Copies<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Gather { plan, rows, row_bytes, .. } = self.args;
        let mut placed = 0;
        let whole_lines = (self.out.ptr() as usize | self.stride).is_multiple_of(LINE);
        let piece = if self.stream && whole_lines { PIECE } else { *row_bytes };
        for token in self.tokens {
            let mut routes = token * plan.top_k..(token + 1) * plan.top_k;
            while !routes.is_empty() {
                let mut list = [0; SIDE];
                let mut n = 0;
                for row in routes.by_ref().take(SIDE).filter_map(|route| plan.row_of(route, self.used)) {
                    list[n] = row;
                    n += 1;
                }
                placed += n;
                let mut at = 0;
                while at < *row_bytes {
                    let len = piece.min(row_bytes - at);
                    for &row in &list[..n] {
                        // SAFETY: `gather` asserted that token rows and `used` output rows lie in their memory, and
                        // `row_of` gives a row below `used` to one route only; the output is borrowed mutably, so
                        // nothing overlaps. `at + len` is at most a row.
                        unsafe {
                            let src = rows.bytes.as_ptr().add(token * rows.stride + at);
                            stores::copy::<S>(self.out.ptr().add(row * self.stride + at), src, len, self.stream);
                        }
                    }
                    at += len;
                }
            }
        }
        self.placed.fetch_add(placed, Relaxed);
        // SAFETY: the caller promises the instruction set.
        unsafe { S::fence() }
    }
}

/// Weighted rows of some tokens.
struct Scaled<'a, E> {
    args: &'a Gather<'a>,
    weights: Weights<'a>,
    out: &'a Shared,
    stride: usize,
    used: usize,
    stream: bool,
    tokens: Range<usize>,
    placed: &'a AtomicUsize,
    elem: PhantomData<E>,
}

impl<E: Output> Op for Scaled<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Gather { plan, rows, row_bytes, .. } = self.args;
        let mut placed = 0;
        for token in self.tokens {
            for route in token * plan.top_k..(token + 1) * plan.top_k {
                let Some(row) = plan.row_of(route, self.used) else { continue };
                placed += 1;
                // SAFETY: as for `Copies`.
                unsafe {
                    let src = rows.bytes.as_ptr().add(token * rows.stride);
                    let dst = self.out.ptr().add(row * self.stride);
                    scale_row::<S, E>(dst, src, row_bytes / E::SIZE, self.weights.get(route), self.stream);
                }
            }
        }
        self.placed.fetch_add(placed, Relaxed);
        // SAFETY: the caller promises the instruction set.
        unsafe { S::fence() }
    }
}

/// `dst = round(weight * src)` for `len` elements.
///
/// # Safety
/// The processor has `S`; `src` can be read and `dst` written for `len` elements, and they do not overlap.
#[inline(always)]
pub(super) unsafe fn scale_row<S: Simd, E: Output>(
    dst: *mut u8,
    src: *const u8,
    len: usize,
    weight: f32,
    stream: bool,
) {
    // SAFETY: every access is at an element below `len`; streaming stores follow `stream_from`, so are aligned.
    unsafe {
        if len < S::LANES {
            for i in 0..len {
                E::write(dst.add(i * E::SIZE), weight * E::read(src.add(i * E::SIZE)));
            }
            return;
        }
        let w = S::splat(weight);
        let vector = |i: usize| S::mul(w, E::load::<S>(src.add(i * E::SIZE)));
        let mut i = 0;
        if let Some(start) = stores::stream_from::<S, E>(dst, len, 1, stream) {
            E::store::<S, false>(dst, vector(0));
            i = start;
            while i + 2 * S::LANES <= len {
                E::store::<S, true>(dst.add(i * E::SIZE), vector(i));
                E::store::<S, true>(dst.add((i + S::LANES) * E::SIZE), vector(i + S::LANES));
                i += 2 * S::LANES;
            }
        }
        while i + S::LANES <= len {
            E::store::<S, false>(dst.add(i * E::SIZE), vector(i));
            i += S::LANES;
        }
        // The last vector overlaps what is written; the same values are written again.
        let last = len - S::LANES;
        E::store::<S, false>(dst.add(last * E::SIZE), vector(last));
    }
}

/// Zeroes rows: all, or those whose source is negative.
struct Zeros<'a> {
    source: Option<&'a [i32]>,
    out: &'a Shared,
    stride: usize,
    row_bytes: usize,
    stream: bool,
    rows: Range<usize>,
}

impl Op for Zeros<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for row in self.rows {
            if self.source.is_none_or(|source| source[row] < 0) {
                // SAFETY: the entry point asserted that the rows lie in the output; each is in one task.
                unsafe { stores::zero::<S>(self.out.ptr().add(row * self.stride), self.row_bytes, self.stream) }
            }
        }
        // SAFETY: the caller promises the instruction set.
        unsafe { S::fence() }
    }
}
