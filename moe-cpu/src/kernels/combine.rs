//! moe_combine: X = Pᵀ diag(w) Y (+ s X0).
//!
//! Shapes: y [R, H], weights [T, K], scales [R, ceil(H / block)], x0 and out [T, H]. Each output element starts at x0
//! times its scale, rounded to f32, or at 0, adds w * y for k = 0, 1, … by fused multiply-add in f32, and is rounded once. A route that is not placed
//! contributes nothing, and neither its weight nor any row is read for it. A scale multiplies the weight first, with a
//! rounding to f32 of its own.
//!
//! The work goes by token; all K rows of a token are read side by side, a few lines of each at a time, so that sums
//! stay in registers.

use super::elem::{Elem, F32, Input, Output, with_input, with_output};
use super::parallel::{Shared, for_ranges};
use super::rows::{Placement, Rows, RowsMut, Weights};
use super::simd::{LINE, Simd};
use super::stores;
use super::tier::{Op, Tier};
use std::marker::PhantomData;
use std::ops::Range;

/// Scales of 8-bit rows.
#[derive(Clone, Copy)]
pub(crate) struct Scales<'a> {
    /// f32, [R, ceil(H / block)], with a stride in bytes.
    pub(crate) rows: Rows<'a>,
    /// Columns that share a scale.
    pub(crate) block: usize,
}

/// Arguments of [`combine`].
pub(crate) struct Combine<'a> {
    /// The index arrays.
    pub(crate) plan: Placement<'a>,
    /// Rows of routes.
    pub(crate) rows: Rows<'a>,
    /// Their type.
    pub(crate) elem: Elem,
    /// Columns, H.
    pub(crate) hidden: usize,
    /// Scales of the rows, or none.
    pub(crate) scales: Option<Scales<'a>>,
    /// Weights; 1 where absent.
    pub(crate) weights: Option<Weights<'a>>,
    /// What sums start from, of the output's type; +0 where absent.
    pub(crate) init: Option<Rows<'a>>,
    /// Multiplies it.
    pub(crate) init_scale: f32,
    /// The type of the output.
    pub(crate) out_elem: Elem,
}

/// Combines rows; writes all T rows of `out`.
///
/// # Panics
/// Where the lengths do not fit the shapes, or the output is an 8-bit float.
pub(crate) fn combine(tier: Tier, args: &Combine<'_>, out: RowsMut<'_>) {
    let (tokens, hidden) = (args.plan.tokens(), args.hidden);
    let out_bytes = hidden * args.out_elem.size();
    assert!(tokens == 0 || out.count(out_bytes) >= tokens, "too few rows to combine to");
    assert!(args.weights.is_none_or(|w| w.len() == args.plan.slot.len()), "weights must be [T, K]");
    assert!(args.init.is_none_or(|x| x.count(out_bytes) >= tokens), "too few rows to start from");
    let mut used = args.plan.used().min(args.rows.count(hidden * args.elem.size()));
    if let Some(scales) = &args.scales {
        assert!(scales.block > 0, "a scale must cover a column");
        used = used.min(scales.rows.count(hidden.div_ceil(scales.block) * 4));
    }
    let stream = tier.thresholds().streams(tokens * out_bytes, out_bytes);
    let stride = out.stride;
    let out = Shared::new(out.bytes);
    let grain = tier.thresholds().grain_for(hidden * args.elem.size() * args.plan.top_k);
    with_input!(args.elem, Y => with_output!(args.out_elem, O => for_ranges(0..tokens, grain, &|tokens| {
        tier.run(Tokens::<Y, O> { args, out: &out, stride, used, stream, tokens, elems: PhantomData });
    })));
}

/// Routes that are summed in one go; tokens with more placed routes keep their sums in memory between goes.
const BATCH: usize = 16;

/// Columns of a go when sums are kept in memory.
const COLUMNS: usize = 512;

/// How far ahead of the sums a row is asked for, in bytes. The processor's own prefetching alone loses a third: the
/// rows are short, and each begins at a place it cannot guess.
const AHEAD: usize = 1024;

/// A placed route.
#[derive(Clone, Copy)]
struct Route {
    row: usize,
    data: *const u8,
    weight: f32,
    /// What is read after the end of the row, less the bytes of the row: only ever prefetched.
    then: *const u8,
}

/// What the sums of a row start from; `data` may be null, for 0.
#[derive(Clone, Copy)]
struct Init {
    data: *const u8,
    scale: f32,
}

impl Init {
    /// The same from `bytes` bytes on.
    #[inline(always)]
    fn skip(self, bytes: usize) -> Self {
        let data = if self.data.is_null() { self.data } else { self.data.wrapping_add(bytes) };
        Self { data, ..self }
    }
}

/// Some tokens.
struct Tokens<'a, Y, O> {
    args: &'a Combine<'a>,
    out: &'a Shared,
    stride: usize,
    used: usize,
    stream: bool,
    tokens: Range<usize>,
    elems: PhantomData<(Y, O)>,
}

impl<Y: Input, O: Output> Tokens<'_, Y, O> {
    /// Lists the placed routes from `*next` to `end`, at most `BATCH`, and moves `*next` behind the last one looked at.
    #[inline(always)]
    fn batch(&self, list: &mut [Route; BATCH], next: &mut usize, end: usize) -> usize {
        let mut n = 0;
        while n < BATCH && *next < end {
            let row = self.args.plan.slot[*next] as u32 as usize;
            if row < self.used {
                let weight = self.args.weights.map_or(1.0, |w| w.get(*next));
                let data = self.args.rows.bytes.as_ptr().wrapping_add(row * self.args.rows.stride);
                list[n] = Route { row, data, weight, then: data };
                n += 1;
            }
            *next += 1;
        }
        n
    }

    /// Multiplies weights by the scale of their row for column block `block`.
    #[inline(always)]
    fn scale(&self, list: &[Route], block: usize, scaled: &mut [Route; BATCH]) {
        for (to, from) in scaled.iter_mut().zip(list) {
            *to = *from;
            if let Some(s) = &self.args.scales {
                let at = from.row * s.rows.stride + block * 4;
                let bytes = s.rows.bytes[at..at + 4].try_into().expect("four bytes");
                to.weight = from.weight * f32::from_ne_bytes(bytes);
            }
        }
    }
}

impl<Y: Input, O: Output> Op for Tokens<'_, Y, O> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (hidden, top_k) = (self.args.hidden, self.args.plan.top_k);
        let block = self.args.scales.map_or(usize::MAX, |s| s.block);
        let mut list = [Route { row: 0, data: std::ptr::null(), weight: 0.0, then: std::ptr::null() }; BATCH];
        let (mut scaled, mut coming) = (list, list);
        let mut next = self.tokens.start * top_k;
        let mut coming_n = self.batch(&mut coming, &mut next, self.tokens.start * top_k + top_k);
        for token in self.tokens.clone() {
            let end = (token + 1) * top_k;
            let whole = next == end;
            let n = coming_n;
            list = coming;
            if token + 1 < self.tokens.end {
                next = end;
                coming_n = self.batch(&mut coming, &mut next, end + top_k);
                for (route, coming) in list[..n].iter_mut().zip(&coming[..coming_n]) {
                    route.then = coming.data.wrapping_sub(hidden * Y::SIZE);
                }
            }
            // SAFETY: `combine` asserted that all T rows of the output and of `init` lie in their memory, and that
            // `used` rows of data (hence those listed) do; columns `at..to` are below H. One task has a token, and
            // the output is borrowed mutably, so nothing overlaps.
            unsafe {
                let out = self.out.ptr().add(token * self.stride);
                let data = self.args.init.map_or(std::ptr::null(), |x| x.bytes.as_ptr().add(token * x.stride));
                let init = Init { data, scale: self.args.init_scale };
                if whole && self.args.scales.is_none() {
                    sum::<S, Y, O, O>(init, &list[..n], 0, hidden, out, self.stream);
                    continue;
                }
                let mut at = 0;
                while at < hidden {
                    let b = at / block;
                    let mut to = hidden.min((b + 1).saturating_mul(block));
                    let dst = out.add(at * O::SIZE);
                    let start = init.skip(at * O::SIZE);
                    if whole {
                        self.scale(&list[..n], b, &mut scaled);
                        sum::<S, Y, O, O>(start, &scaled[..n], at, to, dst, self.stream);
                    } else {
                        to = to.min(at + COLUMNS);
                        let mut sums = [0f32; COLUMNS];
                        let sums = sums.as_mut_ptr().cast::<u8>();
                        let mut next = token * top_k;
                        let n = self.batch(&mut list, &mut next, end);
                        self.scale(&list[..n], b, &mut scaled);
                        sum::<S, Y, O, F32>(start, &scaled[..n], at, to, sums, false);
                        while next < end {
                            let n = self.batch(&mut list, &mut next, end);
                            self.scale(&list[..n], b, &mut scaled);
                            sum_in_place::<S, Y>(sums, &scaled[..n], at, to);
                        }
                        sum::<S, Y, F32, O>(Init { data: sums, scale: 1.0 }, &[], at, to, dst, self.stream);
                    }
                    at = to;
                }
            }
        }
        // SAFETY: the caller promises the instruction set.
        unsafe { S::fence() }
    }
}

/// `out[i] = round(scale * init[i] + Σ weight * data[from + i])` for columns `from..to`.
///
/// # Safety
/// The processor has `S`; the routes' data can be read for `to` columns, `init` (unless its data are null) read and `out` written
/// for `to - from`; `out` overlaps nothing else.
#[inline(always)]
unsafe fn sum<S: Simd, Y: Input, I: Input, O: Output>(
    init: Init,
    routes: &[Route],
    from: usize,
    to: usize,
    out: *mut u8,
    stream: bool,
) {
    let len = to - from;
    // SAFETY: every access is to columns below `len` of `init` and `out`, below `to` of the data; streaming stores
    // follow `stream_from`, so are aligned.
    unsafe {
        if len < S::LANES {
            for i in 0..len {
                let mut acc = if init.data.is_null() { 0.0 } else { init.scale * I::read(init.data.add(i * I::SIZE)) };
                for route in routes {
                    acc = route.weight.mul_add(Y::read(route.data.add((from + i) * Y::SIZE)), acc);
                }
                O::write(out.add(i * O::SIZE), acc);
            }
            return;
        }
        let mut i = 0;
        if let Some(start) = stores::stream_from::<S, O>(out, len, stream) {
            if start > 0 {
                let v = vectors::<S, Y, I, 1>(init, routes, from, 0, len);
                O::store::<S, false>(out, v[0]);
                i = start;
            }
            while i + UNROLL * S::LANES <= len {
                let v = vectors::<S, Y, I, UNROLL>(init, routes, from, i, len);
                for (j, v) in v.into_iter().enumerate() {
                    O::store::<S, true>(out.add((i + j * S::LANES) * O::SIZE), v);
                }
                i += UNROLL * S::LANES;
            }
        }
        while i + UNROLL * S::LANES <= len {
            let v = vectors::<S, Y, I, UNROLL>(init, routes, from, i, len);
            for (j, v) in v.into_iter().enumerate() {
                O::store::<S, false>(out.add((i + j * S::LANES) * O::SIZE), v);
            }
            i += UNROLL * S::LANES;
        }
        while i < len {
            // The last vector overlaps what is written; the same values are written again.
            let at = i.min(len - S::LANES);
            let v = vectors::<S, Y, I, 1>(init, routes, from, at, len);
            O::store::<S, false>(out.add(at * O::SIZE), v[0]);
            i += S::LANES;
        }
    }
}

/// Vectors of sums that are kept in registers at a time.
const UNROLL: usize = 4;

/// The sums of `U` vectors from column `from + i` on.
///
/// # Safety
/// As for [`sum`], with `i + U * LANES <= to - from`.
#[inline(always)]
unsafe fn vectors<S: Simd, Y: Input, I: Input, const U: usize>(
    init: Init,
    routes: &[Route],
    from: usize,
    i: usize,
    len: usize,
) -> [S::F; U] {
    // SAFETY: the columns lie below the lengths that the caller promises.
    unsafe {
        let mut acc = [S::splat(0.0); U];
        if !init.data.is_null() {
            let scale = S::splat(init.scale);
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = S::mul(scale, I::load::<S>(init.data.add((i + j * S::LANES) * I::SIZE)));
            }
        }
        for route in routes {
            let w = S::splat(route.weight);
            let data = route.data.add((from + i) * Y::SIZE);
            if U > 1 {
                let base = if i * Y::SIZE + AHEAD < len * Y::SIZE { route.data } else { route.then };
                for line in 0..(U * S::LANES * Y::SIZE).div_ceil(LINE) {
                    S::prefetch(base.wrapping_add((from + i) * Y::SIZE + AHEAD + line * LINE));
                }
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = S::fma(w, Y::load::<S>(data.add(j * S::LANES * Y::SIZE)), *acc);
            }
        }
        acc
    }
}

/// Adds routes to f32 sums in memory, one element at a time where vectors would overlap.
///
/// # Safety
/// As for [`sum`], with `sums` being both start and output.
#[inline(always)]
unsafe fn sum_in_place<S: Simd, Y: Input>(sums: *mut u8, routes: &[Route], from: usize, to: usize) {
    let len = to - from;
    // SAFETY: every access is to columns below `len` of the sums and below `to` of the data.
    unsafe {
        let mut i = 0;
        while i + S::LANES <= len {
            let v = vectors::<S, Y, F32, 1>(Init { data: sums, scale: 1.0 }, routes, from, i, len);
            S::store_raw(sums.add(i * 4), v[0]);
            i += S::LANES;
        }
        while i < len {
            let mut acc = F32::read(sums.add(i * 4));
            for route in routes {
                acc = route.weight.mul_add(Y::read(route.data.add((from + i) * Y::SIZE)), acc);
            }
            F32::write(sums.add(i * 4), acc);
            i += 1;
        }
    }
}
