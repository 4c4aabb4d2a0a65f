//! moe_gather_quant: rows of tokens to quantised rows of routes.
//!
//! Shapes: x [T, H], values [R, H] or [R, H / 2] bytes, scales as their layout says. A token's row is quantised once,
//! piece by piece, and each piece is stored to its K rows. Padding rows become the quantisation of zeros; rows past the
//! last offset are not touched.

use super::piece::{Fence, Piece, largest_of, widen};
use super::rule::{self, Rule};
use super::{PIECE, QuantOut, SharedOut, with_rule};
use crate::kernels::elem::Elem;
use crate::kernels::parallel::for_ranges;
use crate::kernels::rows::{Placement, Rows};
use crate::kernels::tier::Tier;
use moe_core::quant::QuantFormat;
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
        for_ranges(0..tokens, grain, &|tokens| quantise_tokens(tier, args, rule, out, used, stream, tokens));
        for_ranges(0..used, tier.thresholds().grain_for(64), &|rows| zero_padding(rule, plan.source, out, rows));
    });
}

/// The rows of some tokens.
fn quantise_tokens<R: Rule>(
    tier: Tier,
    args: &GatherQuant<'_>,
    rule: R,
    out: &SharedOut,
    used: usize,
    stream: bool,
    tokens: Range<usize>,
) {
    let GatherQuant { plan, rows, elem } = args;
    let mut piece = Piece::new();
    let mut x = [0f32; PIECE];
    for token in tokens {
        let routes = token * plan.top_k..(token + 1) * plan.top_k;
        if routes.clone().all(|route| plan.row_of(route, used).is_none()) {
            continue;
        }
        // SAFETY: `gather_quant` asserted that the rows of all tokens can be read; a piece lies in its row.
        let load = |x: &mut [f32], from: usize| unsafe {
            widen(tier, *elem, rows.bytes.as_ptr().add(token * rows.stride + from * elem.size()), x)
        };
        let mut amax = 0;
        if R::GROUP == 0 {
            for from in (0..out.len).step_by(PIECE) {
                let x = &mut x[..PIECE.min(out.len - from)];
                load(x, from);
                amax = amax.max(largest_of(tier, x));
            }
        }
        for from in (0..out.len).step_by(PIECE) {
            let x = &mut x[..PIECE.min(out.len - from)];
            // A row of one piece is there already.
            if R::GROUP != 0 || out.len > PIECE {
                load(x, from);
            }
            piece.quantise(tier, rule, x, amax);
            for route in routes.clone() {
                let Some(row) = plan.row_of(route, used) else { continue };
                // SAFETY: `row_of` gives a row below `used` to one route only.
                unsafe { put_piece::<R>(tier, out, row, from, &piece, stream) }
            }
        }
    }
    tier.run(Fence);
}

/// Stores a piece of a row that begins with element `from`.
///
/// # Safety
/// `row` is below the rows that `out` was made for, and no other task writes it.
pub(super) unsafe fn put_piece<R: Rule>(
    tier: Tier,
    out: &SharedOut,
    row: usize,
    from: usize,
    piece: &Piece,
    stream: bool,
) {
    let at = row * out.stride + if R::PACKED { from / 2 } else { from };
    // SAFETY: the row lies in the values, and its groups in the scales. A whole row's scale is written with its first
    // piece.
    unsafe {
        piece.store(tier, out.values.ptr().add(at), stream);
        match R::GROUP {
            0 if from > 0 => {}
            0 => out.write_scales(row, 0, piece.scales()),
            group => out.write_scales(row, from / group, piece.scales()),
        }
    }
}

/// Rows without a source: zeros, with the scale of zeros.
fn zero_padding<R: Rule>(rule: R, source: &[i32], out: &SharedOut, rows: Range<usize>) {
    let scale = rule.scale(0);
    for row in rows.filter(|row| source[*row] < 0) {
        // SAFETY: the row is below those that `out` was made for, and as it has no source, it is no route's.
        unsafe {
            std::ptr::write_bytes(out.values.ptr().add(row * out.stride), 0, out.value_bytes);
            for group in 0..out.shape.groups {
                out.write_scale(row, group, scale);
            }
            out.write_scales(row, out.shape.groups, &[]);
        }
    }
}
