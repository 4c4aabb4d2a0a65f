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

/// How far ahead of the sums a row is asked for, in bytes: into the first cache level, of which a core waits for 12 to 16
/// lines at a time, and long before into the second, of which it waits for more. The processor's own prefetching alone
/// loses a third: the rows are short, and each begins at a place it cannot guess.
const AHEAD: usize = 512;
const FAR: usize = 4096;

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
            if token + 1 < self.args.plan.tokens() {
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
                    sum::<S, Y, O, O>(init, &list[..n], Cols { from: 0, to: hidden, row: hidden }, out, self.stream);
                    continue;
                }
                let mut at = 0;
                while at < hidden {
                    let b = at / block;
                    let mut to = hidden.min((b + 1).saturating_mul(block));
                    let dst = out.add(at * O::SIZE);
                    let start = init.skip(at * O::SIZE);
                    if !whole {
                        to = to.min(at + COLUMNS);
                    }
                    let cols = Cols { from: at, to, row: hidden };
                    if whole {
                        self.scale(&list[..n], b, &mut scaled);
                        sum::<S, Y, O, O>(start, &scaled[..n], cols, dst, self.stream);
                    } else {
                        let mut sums = [0f32; COLUMNS];
                        let sums = sums.as_mut_ptr().cast::<u8>();
                        let mut next = token * top_k;
                        let n = self.batch(&mut list, &mut next, end);
                        self.scale(&list[..n], b, &mut scaled);
                        sum::<S, Y, O, F32>(start, &scaled[..n], cols, sums, false);
                        while next < end {
                            let n = self.batch(&mut list, &mut next, end);
                            self.scale(&list[..n], b, &mut scaled);
                            sum_in_place::<S, Y>(sums, &scaled[..n], cols);
                        }
                        sum::<S, Y, F32, O>(Init { data: sums, scale: 1.0 }, &[], cols, dst, self.stream);
                    }
                    at = to;
                }
            }
        }
        // SAFETY: the caller promises the instruction set.
        unsafe { S::fence() }
    }
}

/// Columns `from..to` of rows of `row` columns.
#[derive(Clone, Copy)]
struct Cols {
    from: usize,
    to: usize,
    row: usize,
}

/// `out[i] = round(scale * init[i] + Σ weight * data[from + i])` for columns `from..to`.
///
/// # Safety
/// The processor has `S`; the routes' data can be read for `to` columns, `init` (unless its data are null) read and
/// `out` written for `to - from`; `out` overlaps nothing else.
#[inline(always)]
unsafe fn sum<S: Simd, Y: Input, I: Input, O: Output>(
    init: Init,
    routes: &[Route],
    cols: Cols,
    out: *mut u8,
    stream: bool,
) {
    let Cols { from, to, .. } = cols;
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
        if Y::PAIRS && I::PAIRS && O::PAIRS {
            sum_vectors::<S, Y, I, O, true>(init, routes, cols, out, stream);
        } else {
            sum_vectors::<S, Y, I, O, false>(init, routes, cols, out, stream);
        }
    }
}

/// [`sum`] of at least a vector. With `PAIRED`, sums are kept as the types' pairs.
///
/// # Safety
/// As for [`sum`]; all types have pairs where `PAIRED`.
#[inline(always)]
unsafe fn sum_vectors<S: Simd, Y: Input, I: Input, O: Output, const PAIRED: bool>(
    init: Init,
    routes: &[Route],
    cols: Cols,
    out: *mut u8,
    stream: bool,
) {
    let len = cols.to - cols.from;
    let step = UNROLL * S::LANES;
    // SAFETY: every access is to columns below `len` of `init` and `out`, below `to` of the data; streaming stores
    // follow `stream_from`, so are aligned.
    unsafe {
        let single = |i: usize| {
            let v = vectors::<S, Y, I, 1, false>(init, routes, cols, i);
            O::store::<S, false>(out.add(i * O::SIZE), v[0]);
        };
        let mut i = 0;
        if let Some(start) = stores::stream_from::<S, O>(out, len, 1 + usize::from(PAIRED), stream) {
            // Of overlapping vectors the same values are written twice.
            if start > 0 {
                single(0);
            }
            if start > S::LANES {
                single(start - S::LANES);
            }
            i = start;
            while i + step <= len {
                let v = vectors::<S, Y, I, UNROLL, PAIRED>(init, routes, cols, i);
                store::<S, O, PAIRED, true>(out.add(i * O::SIZE), v);
                i += step;
            }
        }
        while i + step <= len {
            let v = vectors::<S, Y, I, UNROLL, PAIRED>(init, routes, cols, i);
            store::<S, O, PAIRED, false>(out.add(i * O::SIZE), v);
            i += step;
        }
        while i < len {
            single(i.min(len - S::LANES));
            i += S::LANES;
        }
    }
}

/// Rounds and stores sums.
///
/// # Safety
/// The processor has `S`; `out` can be written for all elements, and is aligned to a pair or a vector with `STREAM`.
#[inline(always)]
unsafe fn store<S: Simd, O: Output, const PAIRED: bool, const STREAM: bool>(out: *mut u8, v: [S::F; UNROLL]) {
    let vector = S::LANES * O::SIZE;
    for (j, pair) in v.as_chunks::<2>().0.iter().enumerate() {
        // SAFETY: the caller's promises are passed on.
        unsafe {
            if PAIRED {
                O::store_pair::<S, STREAM>(out.add(2 * j * vector), *pair);
            } else {
                O::store::<S, STREAM>(out.add(2 * j * vector), pair[0]);
                O::store::<S, STREAM>(out.add((2 * j + 1) * vector), pair[1]);
            }
        }
    }
}

/// Vectors of sums that are kept in registers at a time: four pairs.
const UNROLL: usize = 8;

/// The sums of `U` vectors from column `from + i` on.
///
/// # Safety
/// As for [`sum`], with `i + U * LANES <= to - from`.
#[inline(always)]
unsafe fn vectors<S: Simd, Y: Input, I: Input, const U: usize, const PAIRED: bool>(
    init: Init,
    routes: &[Route],
    cols: Cols,
    i: usize,
) -> [S::F; U] {
    let at = (cols.from + i) * Y::SIZE;
    // SAFETY: the columns lie below the lengths that the caller promises.
    unsafe {
        let mut acc = [S::splat(0.0); U];
        if !init.data.is_null() {
            let scale = S::splat(init.scale);
            for (acc, x) in acc.iter_mut().zip(load::<S, I, U, PAIRED>(init.data.add(i * I::SIZE))) {
                *acc = S::mul(scale, x);
            }
        }
        for route in routes {
            let w = S::splat(route.weight);
            if U > 1 {
                let row = cols.row * Y::SIZE;
                let (near, far) = (at + AHEAD.min(row), at + FAR.min(row));
                let base = |at: usize| if at < row { route.data } else { route.then };
                let (near, far) = (base(near).wrapping_add(near), base(far).wrapping_add(far));
                for line in 0..(U * S::LANES * Y::SIZE).div_ceil(LINE) {
                    S::prefetch(near.wrapping_add(line * LINE));
                    S::prefetch_far(far.wrapping_add(line * LINE));
                }
            }
            let row = load::<S, Y, U, PAIRED>(route.data.add(at));
            for (acc, x) in acc.iter_mut().zip(row) {
                *acc = S::fma(w, x, *acc);
            }
        }
        acc
    }
}

/// Loads and widens `U` vectors.
///
/// # Safety
/// The processor has `S`, and the elements can be read.
#[inline(always)]
unsafe fn load<S: Simd, E: Input, const U: usize, const PAIRED: bool>(p: *const u8) -> [S::F; U] {
    let vector = S::LANES * E::SIZE;
    // SAFETY: the caller's promises are passed on.
    unsafe {
        if PAIRED {
            let pairs: [[S::F; 2]; UNROLL / 2] = std::array::from_fn(|j| E::load_pair::<S>(p.add(2 * j * vector)));
            std::array::from_fn(|j| pairs[j / 2][j % 2])
        } else {
            std::array::from_fn(|j| E::load::<S>(p.add(j * vector)))
        }
    }
}

/// Adds routes to f32 sums in memory, one element at a time where vectors would overlap.
///
/// # Safety
/// As for [`sum`], with `sums` being both start and output.
#[inline(always)]
unsafe fn sum_in_place<S: Simd, Y: Input>(sums: *mut u8, routes: &[Route], cols: Cols) {
    let Cols { from, to, .. } = cols;
    let len = to - from;
    // SAFETY: every access is to columns below `len` of the sums and below `to` of the data.
    unsafe {
        let mut i = 0;
        while i + S::LANES <= len {
            let v = vectors::<S, Y, F32, 1, false>(Init { data: sums, scale: 1.0 }, routes, cols, i);
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
