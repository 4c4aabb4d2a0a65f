//! moe_swiglu, moe_swiglu_quant: silu(gate) * up, rounded, and quantised.
//!
//! Shapes: gate, up [R, I], out [R, I]; values [R, I] or [R, I / 2] bytes, scales as their layout says. Rows below the
//! last offset are computed, padding too; others are neither read nor written.

use super::gather::put_piece;
use super::piece::{Piece, chunk, largest};
use super::rule::{self, Rule};
use super::{CHUNK, PIECE, QuantOut, SharedOut, with_rule};
use crate::kernels::elem::{Elem, F16, F32, Input, Output, bf16_bits, canonical, with_output};
use crate::kernels::parallel::{Shared, for_ranges};
use crate::kernels::rows::{Placement, Rows, RowsMut};
use crate::kernels::simd::Simd;
use crate::kernels::tier::{Op, Tier};
use moe_core::math;
use moe_core::quant::QuantFormat;
use std::marker::PhantomData;
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
    with_output!(args.elem, E => with_output!(out_elem, O => for_ranges(0..used, grain, &|rows| {
        tier.run(Plain::<E, O> { args, out, stride, rows, elems: PhantomData });
    })));
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
    with_rule!(format, rule => with_output!(args.elem, E => for_ranges(0..used, grain, &|rows| {
        tier.run(Quantised::<E, _> { args, rule, round_to, out, stream, rows, elem: PhantomData });
    })));
}

/// `silu(gate) * up` of a chunk.
///
/// # Safety
/// The processor has `S`; both rows can be read for `end` elements.
#[inline(always)]
unsafe fn activate<S: Simd, E: Input>(gate: *const u8, up: *const u8, at: usize, end: usize) -> [f32; CHUNK] {
    // SAFETY: the caller's promises.
    let (gate, up) = unsafe { (chunk::<S, E>(gate, at, end), chunk::<S, E>(up, at, end)) };
    std::array::from_fn(|i| math::silu(gate[i]) * up[i])
}

/// Rows that are written as they are.
struct Plain<'a, E, O> {
    args: &'a Activation<'a>,
    out: &'a Shared,
    stride: usize,
    rows: Range<usize>,
    elems: PhantomData<(E, O)>,
}

impl<E: Input, O: Output> Op for Plain<'_, E, O> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Activation { gate, up, len, .. } = *self.args;
        for row in self.rows {
            // SAFETY: `swiglu` asserted that `used` rows of all three lie in their memory; each row is in one task, and
            // what is stored lies below `len`.
            unsafe {
                let (gate, up) = (gate.bytes.as_ptr().add(row * gate.stride), up.bytes.as_ptr().add(row * up.stride));
                let dst = self.out.ptr().add(row * self.stride);
                for at in (0..len).step_by(CHUNK) {
                    let y = activate::<S, E>(gate, up, at, len);
                    if at + CHUNK <= len {
                        for lane in (0..CHUNK).step_by(S::LANES) {
                            let v = S::load_f32(y.as_ptr().add(lane).cast());
                            O::store::<S, false>(dst.add((at + lane) * O::SIZE), v);
                        }
                    } else {
                        for (i, y) in y.iter().enumerate().take(len - at) {
                            O::write(dst.add((at + i) * O::SIZE), *y);
                        }
                    }
                }
            }
        }
    }
}

/// Rows that are quantised.
struct Quantised<'a, E, R> {
    args: &'a Activation<'a>,
    rule: R,
    round_to: Elem,
    out: &'a SharedOut,
    stream: bool,
    rows: Range<usize>,
    elem: PhantomData<E>,
}

impl<E: Input, R: Rule> Op for Quantised<'_, E, R> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { args, rule, round_to, out, stream, .. } = self;
        let Activation { gate, up, len, .. } = *args;
        let mut piece = Piece::new();
        let mut buffer = [0f32; PIECE];
        for row in self.rows {
            // SAFETY: `swiglu_quant` asserted that `used` rows of the inputs and of the output lie in their memory; each
            // row is in one task, and a piece fits the buffer, whose elements past it are chunks' zeros.
            unsafe {
                let gate = gate.bytes.as_ptr().add(row * gate.stride);
                let up = up.bytes.as_ptr().add(row * up.stride);
                let mut amax = 0;
                let mut held = None;
                if R::GROUP == 0 {
                    for from in (0..len).step_by(PIECE) {
                        let to = len.min(from + PIECE);
                        fill::<S, E>(&mut buffer, gate, up, from..to, round_to);
                        amax = amax.max(largest::<S, F32>(buffer.as_ptr().cast(), 0..to - from));
                        held = Some(from);
                    }
                }
                for from in (0..len).step_by(PIECE) {
                    let to = len.min(from + PIECE);
                    // A row that is one piece is in the buffer still; others are computed again.
                    if held.replace(from) != Some(from) {
                        fill::<S, E>(&mut buffer, gate, up, from..to, round_to);
                    }
                    piece.quantise::<S, F32, R>(rule, buffer.as_ptr().cast(), 0..to - from, amax);
                    put_piece::<S, R>(out, row, from, to, &piece, stream);
                }
            }
        }
        // SAFETY: the caller promises the instruction set.
        unsafe { S::fence() }
    }
}

/// Fills the buffer with the elements `range` of `round(silu(gate) * up)`.
///
/// # Safety
/// The processor has `S`; both rows can be read up to the end of the range, which is at most [`PIECE`] long.
#[inline(always)]
unsafe fn fill<S: Simd, E: Input>(
    buffer: &mut [f32; PIECE],
    gate: *const u8,
    up: *const u8,
    range: Range<usize>,
    round_to: Elem,
) {
    for at in range.clone().step_by(CHUNK) {
        // SAFETY: the caller's promises.
        let y = unsafe { activate::<S, E>(gate, up, at, range.end) };
        let y = match round_to {
            Elem::Bf16 => y.map(|y| f32::from_bits(u32::from(bf16_bits(y)) << 16)),
            Elem::F16 => {
                let mut bits = [0u16; CHUNK];
                let mut out = y.map(canonical);
                for lane in (0..CHUNK).step_by(S::LANES) {
                    // SAFETY: the caller promises the instruction set; the lanes lie in the arrays.
                    unsafe {
                        let v = S::load_f32(out.as_ptr().add(lane).cast());
                        F16::store::<S, false>(bits.as_mut_ptr().add(lane).cast(), v);
                        let v = F16::load::<S>(bits.as_ptr().add(lane).cast());
                        S::store_raw(out.as_mut_ptr().add(lane).cast(), v);
                    }
                }
                out
            }
            _ => y,
        };
        buffer[at - range.start..][..CHUNK].copy_from_slice(&y);
    }
}
