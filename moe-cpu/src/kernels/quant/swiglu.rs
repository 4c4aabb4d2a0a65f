//! moe_swiglu, moe_swiglu_quant: silu(gate) * up, rounded, and quantised.
//!
//! Shapes: gate, up [R, I], out [R, I]; values [R, I] or [R, I / 2] bytes, scales as their layout says. Rows below the
//! last offset are computed, padding too; others are neither read nor written.

use super::gather::put_piece;
use super::piece::{Fence, Piece, activate, largest_of, narrow, round, widen};
use super::rule::{self, Rule};
use super::{PIECE, QuantOut, SharedOut, with_rule};
use crate::kernels::elem::Elem;
use crate::kernels::parallel::{Shared, for_ranges};
use crate::kernels::rows::{Placement, Rows, RowsMut};
use crate::kernels::tier::Tier;
use moe_core::quant::QuantFormat;
use std::ops::Range;

/// The two inputs.
pub(crate) struct Activation<'a> {
    /// The index arrays.
    pub(crate) plan: Placement<'a>,
    /// `[R, I]`.
    pub(crate) gate: Rows<'a>,
    /// `[R, I]`.
    pub(crate) up: Rows<'a>,
    /// The type of both: f32, f16 or bf16.
    pub(crate) elem: Elem,
    /// I.
    pub(crate) len: usize,
}

impl Activation<'_> {
    /// The rows to compute.
    ///
    /// # Panics
    /// Where the inputs have fewer.
    fn used(&self) -> usize {
        let (used, row) = (self.plan.used(), self.len * self.elem.size());
        assert!(self.gate.count(row).min(self.up.count(row)) >= used, "too few rows to activate");
        used
    }

    /// Bytes that a row reads, for the size of tasks. The exponential takes as long as some more.
    fn row_bytes(&self) -> usize {
        self.len * self.elem.size() * 4
    }
}

/// `out = round(silu(gate) * up)`.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub(crate) fn swiglu(tier: Tier, args: &Activation<'_>, out: RowsMut<'_>, out_elem: Elem) {
    let used = args.used();
    assert!(used == 0 || out.count(args.len * out_elem.size()) >= used, "too few rows to write");
    let stride = out.stride;
    let out = &Shared::new(out.bytes);
    let grain = tier.thresholds().grain_for(args.row_bytes());
    for_ranges(0..used, grain, &|rows| {
        let mut buffers = Buffers::new();
        for row in rows {
            for from in (0..args.len).step_by(PIECE) {
                let y = buffers.fill(tier, args, row, from);
                // SAFETY: `used` rows lie in `out`, as asserted, and the piece in its row; each row is in one task.
                unsafe {
                    let dst = out.ptr().add(row * stride + from * out_elem.size());
                    narrow(tier, out_elem, y, dst);
                }
            }
        }
    });
}

/// `quantise(round(silu(gate) * up))`, rounded to the type of `round_to`.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub(crate) fn swiglu_quant(tier: Tier, args: &Activation<'_>, round_to: Elem, out: QuantOut<'_>) {
    let used = args.used();
    assert!(out.len == args.len, "values of other rows");
    let (format, out) = SharedOut::new(out, used);
    let out = &out;
    let stream = tier.thresholds().streams(used * out.value_bytes, out.value_bytes);
    let grain = tier.thresholds().grain_for(args.row_bytes());
    with_rule!(format, rule => {
        for_ranges(0..used, grain, &|rows| quantise_rows(tier, args, rule, round_to, out, stream, rows));
    });
}

/// Activates and quantises some rows.
fn quantise_rows<R: Rule>(
    tier: Tier,
    args: &Activation<'_>,
    rule: R,
    round_to: Elem,
    out: &SharedOut,
    stream: bool,
    rows: Range<usize>,
) {
    let (mut buffers, mut piece) = (Buffers::new(), Piece::new());
    for row in rows {
        let mut amax = 0;
        if R::GROUP == 0 {
            for from in (0..args.len).step_by(PIECE) {
                let y = buffers.fill(tier, args, row, from);
                round(tier, round_to, y);
                amax = amax.max(largest_of(tier, y));
            }
        }
        for from in (0..args.len).step_by(PIECE) {
            // A row of one piece is there already; longer ones are computed again.
            let y = if R::GROUP != 0 || args.len > PIECE {
                let y = buffers.fill(tier, args, row, from);
                round(tier, round_to, y);
                y
            } else {
                &mut buffers.gate[..args.len]
            };
            piece.quantise(tier, rule, y, amax);
            // SAFETY: the row is below `used`, and in this task alone.
            unsafe { put_piece::<R>(tier, out, row, from, &piece, stream) }
        }
    }
    tier.run(Fence);
}

/// A piece of both inputs; the gate's becomes the result.
struct Buffers {
    gate: [f32; PIECE],
    up: [f32; PIECE],
}

impl Buffers {
    fn new() -> Self {
        Self { gate: [0.0; PIECE], up: [0.0; PIECE] }
    }

    /// `silu(gate) * up` of a row below `used`, from element `from` on: a piece, or what is left of the row.
    fn fill(&mut self, tier: Tier, args: &Activation<'_>, row: usize, from: usize) -> &mut [f32] {
        let Activation { gate, up, elem, len, .. } = *args;
        let count = PIECE.min(len - from);
        let (x, y) = (&mut self.gate[..count], &mut self.up[..count]);
        // SAFETY: `Activation::used` asserted that the rows can be read, and the piece lies in its row.
        unsafe {
            widen(tier, elem, gate.bytes.as_ptr().add(row * gate.stride + from * elem.size()), x);
            widen(tier, elem, up.bytes.as_ptr().add(row * up.stride + from * elem.size()), y);
        }
        activate(tier, x, y);
        x
    }
}
