//! moe_gather_quant: rows of tokens to quantised rows of routes.
//!
//! Shapes: x [T, H], values [R, H] or [R, H / 2] bytes, scales as their layout says. A token's row is quantised once, in
//! a buffer that stays in the cache, and stored to its K rows. Padding rows become the quantisation of zeros; rows past
//! the last offset are not touched.

use super::piece::{Piece, largest};
use super::rule::{self, Rule};
use super::{PIECE, QuantOut, SharedOut, with_rule};
use crate::kernels::elem::{Elem, Input, with_output};
use crate::kernels::parallel::for_ranges;
use crate::kernels::rows::{Placement, Rows};
use crate::kernels::simd::Simd;
use crate::kernels::stores;
use crate::kernels::tier::{Op, Tier};
use moe_core::quant::QuantFormat;
use std::marker::PhantomData;
use std::ops::Range;

/// Arguments of [`gather_quant`].
pub(crate) struct GatherQuant<'a> {
    /// The index arrays.
    pub(crate) plan: Placement<'a>,
    /// Token rows.
    pub(crate) rows: Rows<'a>,
    /// Their type: f32, f16 or bf16.
    pub(crate) elem: Elem,
}

/// Gathers and quantises rows.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub(crate) fn gather_quant(tier: Tier, args: &GatherQuant<'_>, out: QuantOut<'_>) {
    let GatherQuant { plan, rows, elem } = args;
    let (tokens, used) = (plan.tokens(), plan.used());
    assert!(rows.count(out.len * elem.size()) >= tokens, "too few rows to gather from");
    let (format, out) = SharedOut::new(out, used);
    let stream = tier.thresholds().streams(used * out.value_bytes, out.value_bytes);
    let grain = tier.thresholds().grain_for(out.len * elem.size() + out.value_bytes * plan.top_k);
    let out = &out;
    with_rule!(format, rule => {
        with_output!(elem, E => for_ranges(0..tokens, grain, &|tokens| {
            tier.run(Tokens::<E, _> { args, rule, out, used, stream, tokens, elem: PhantomData });
        }));
        for_ranges(0..used, tier.thresholds().grain_for(64), &|rows| {
            tier.run(Padding { rule, source: plan.source, out, rows });
        });
    });
}

/// The rows of some tokens.
struct Tokens<'a, E, R> {
    args: &'a GatherQuant<'a>,
    rule: R,
    out: &'a SharedOut,
    used: usize,
    stream: bool,
    tokens: Range<usize>,
    elem: PhantomData<E>,
}

impl<E: Input, R: Rule> Op for Tokens<'_, E, R> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { args: GatherQuant { plan, rows, .. }, rule, out, used, stream, .. } = self;
        let mut piece = Piece::new();
        for token in self.tokens {
            let routes = token * plan.top_k..(token + 1) * plan.top_k;
            if routes.clone().all(|route| plan.row_of(route, used).is_none()) {
                continue;
            }
            // SAFETY: `gather_quant` asserted that token rows and `used` output rows and their scales lie in their memory,
            // and `row_of` gives a row below `used` to one route only; the outputs are borrowed mutably, so nothing
            // overlaps.
            unsafe {
                let src = rows.bytes.as_ptr().add(token * rows.stride);
                let amax = if R::GROUP == 0 { largest::<S, E>(src, 0..out.len) } else { 0 };
                for from in (0..out.len).step_by(PIECE) {
                    let to = out.len.min(from + PIECE);
                    piece.quantise::<S, E, R>(rule, src, from..to, amax);
                    for route in routes.clone() {
                        let Some(row) = plan.row_of(route, used) else { continue };
                        put_piece::<S, R>(out, row, from, to, &piece, stream);
                    }
                }
            }
        }
        // SAFETY: the caller promises the instruction set.
        unsafe { S::fence() }
    }
}

/// Stores a piece of a row, the elements from `from` to `to`.
///
/// # Safety
/// The processor has `S`; `row` is below the rows that `out` was made for, and no other task writes it.
#[inline(always)]
pub(super) unsafe fn put_piece<S: Simd, R: Rule>(
    out: &SharedOut,
    row: usize,
    from: usize,
    to: usize,
    piece: &Piece,
    stream: bool,
) {
    let (values, scales) = (piece.values::<R>(to - from), piece.scales::<R>(to - from));
    let at = row * out.stride + if R::PACKED { from / 2 } else { from };
    // SAFETY: the row lies in the values, and its groups in the scales. A whole row's scale is written with its first
    // piece.
    unsafe {
        stores::copy::<S>(out.values.ptr().add(at), values.as_ptr(), values.len(), stream);
        match R::GROUP {
            0 if from > 0 => {}
            0 => out.write_scales(row, 0, scales),
            group => out.write_scales(row, from / group, scales),
        }
    }
}

/// Rows without a source: zeros, with the scale of zeros.
struct Padding<'a, R> {
    rule: R,
    source: &'a [i32],
    out: &'a SharedOut,
    rows: Range<usize>,
}

impl<R: Rule> Op for Padding<'_, R> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rule, source, out, rows } = self;
        let scale = rule.scale(0);
        for row in rows.filter(|row| source[*row] < 0) {
            // SAFETY: as for `Tokens`; a row without a source is no route's.
            unsafe {
                stores::zero::<S>(out.values.ptr().add(row * out.stride), out.value_bytes, false);
                for group in 0..out.shape.groups {
                    out.write_scale(row, group, scale);
                }
                out.write_scales(row, out.shape.groups, &[]);
            }
        }
    }
}
