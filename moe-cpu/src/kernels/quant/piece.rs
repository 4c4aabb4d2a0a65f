//! Steps on a piece of a row, each compiled for every instruction set.
//!
//! A step is a loop over slices of f32, which compilers turn into vector code; a step knows the element type or the
//! format's rule and never both, so that there are few of them.

use super::PIECE;
use super::rule::Rule;
use crate::kernels::elem::{Elem, F16, Input, Output, bf16_bits, with_output};
use crate::kernels::simd::Simd;
use crate::kernels::stores;
use crate::kernels::tier::{Op, Tier};
use moe_core::math;
use std::marker::PhantomData;

/// A quantised piece of a row.
pub(super) struct Piece {
    values: [u8; PIECE],
    scales: [u32; PIECE / 16],
    /// Bytes of values, and scales, in use.
    len: (usize, usize),
}

impl Piece {
    pub(super) fn new() -> Self {
        Self { values: [0; PIECE], scales: [0; PIECE / 16], len: (0, 0) }
    }

    /// Its scales; one where a row has one.
    pub(super) fn scales(&self) -> &[u32] {
        &self.scales[..self.len.1]
    }

    /// Quantises elements, at most [`PIECE`]. `amax` is the largest magnitude of the row, for rules that have one scale
    /// for a row.
    pub(super) fn quantise<R: Rule>(&mut self, tier: Tier, rule: R, x: &[f32], amax: u32) {
        tier.run(Codes { rule, x, amax, piece: self });
    }

    /// Stores the values.
    ///
    /// # Safety
    /// `dst` can be written for the values.
    pub(super) unsafe fn store(&self, tier: Tier, dst: *mut u8, stream: bool) {
        let values = &self.values[..self.len.0];
        if stream {
            tier.run(Stream { dst, values });
        } else {
            // SAFETY: the caller's promise; the values are this piece's own.
            unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), dst, values.len()) }
        }
    }
}

struct Codes<'a, R> {
    rule: R,
    x: &'a [f32],
    amax: u32,
    piece: &'a mut Piece,
}

impl<R: Rule> Op for Codes<'_, R> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rule, x, amax, piece } = self;
        let group = if R::GROUP == 0 { PIECE } else { R::GROUP };
        let groups = x.chunks(group).zip(piece.values.chunks_mut(group)).zip(&mut piece.scales);
        for ((x, codes), scale) in groups {
            *scale = rule.scale(if R::GROUP == 0 { amax } else { largest(x) });
            let factor = rule.factor(*scale);
            for (code, x) in codes.iter_mut().zip(x) {
                *code = R::code(*x, factor);
            }
        }
        piece.len = (x.len(), if R::GROUP == 0 { 1 } else { x.len().div_ceil(group) });
        if R::PACKED {
            piece.len.0 /= 2;
            // Byte i comes from codes 2 i and 2 i + 1, which are read before they are written over.
            for i in 0..piece.len.0 {
                piece.values[i] = piece.values[2 * i] | piece.values[2 * i + 1] << 4;
            }
        }
    }
}

struct Stream<'a> {
    dst: *mut u8,
    values: &'a [u8],
}

impl Op for Stream<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `Piece::store`'s caller promises the destination; the values are a piece's own.
        unsafe { stores::copy::<S>(self.dst, self.values.as_ptr(), self.values.len(), true) }
    }
}

/// Orders streaming stores before what this thread stores later.
pub(super) struct Fence;

impl Op for Fence {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller promises the instruction set.
        unsafe { S::fence() }
    }
}

/// The bits of the largest magnitude; above infinity's where an element is NaN.
#[inline(always)]
fn largest(x: &[f32]) -> u32 {
    x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff))
}

/// [`largest`] of a piece.
pub(super) fn largest_of(tier: Tier, x: &[f32]) -> u32 {
    let mut out = 0;
    tier.run(Largest { x, out: &mut out });
    out
}

struct Largest<'a> {
    x: &'a [f32],
    out: &'a mut u32,
}

impl Op for Largest<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        *self.out = largest(self.x);
    }
}

/// Widens elements into all of `out`.
///
/// # Safety
/// `src` can be read for as many elements of this type.
pub(super) unsafe fn widen(tier: Tier, elem: Elem, src: *const u8, out: &mut [f32]) {
    with_output!(elem, E => tier.run(Widen::<E> { src, out, elem: PhantomData }));
}

struct Widen<'a, E> {
    src: *const u8,
    out: &'a mut [f32],
    elem: PhantomData<E>,
}

impl<E: Input> Op for Widen<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { src, out, .. } = self;
        let mut at = 0;
        // SAFETY: `widen`'s caller promises the elements; every store is inside `out`.
        unsafe {
            while at + S::LANES <= out.len() {
                S::store_raw(out.as_mut_ptr().add(at).cast(), E::load::<S>(src.add(at * E::SIZE)));
                at += S::LANES;
            }
            for (i, out) in out.iter_mut().enumerate().skip(at) {
                *out = E::read(src.add(i * E::SIZE));
            }
        }
    }
}

/// Rounds elements and writes them.
///
/// # Safety
/// `dst` can be written for as many elements of this type.
pub(super) unsafe fn narrow(tier: Tier, elem: Elem, x: &[f32], dst: *mut u8) {
    with_output!(elem, E => tier.run(Narrow::<E> { x, dst, elem: PhantomData }));
}

struct Narrow<'a, E> {
    x: &'a [f32],
    dst: *mut u8,
    elem: PhantomData<E>,
}

impl<E: Output> Op for Narrow<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, dst, .. } = self;
        let mut at = 0;
        // SAFETY: `narrow`'s caller promises the elements; every load is inside `x`.
        unsafe {
            while at + S::LANES <= x.len() {
                E::store::<S, false>(dst.add(at * E::SIZE), S::load_f32(x.as_ptr().add(at).cast()));
                at += S::LANES;
            }
            for (i, x) in x.iter().enumerate().skip(at) {
                E::write(dst.add(i * E::SIZE), *x);
            }
        }
    }
}

/// `gate = silu(gate) * up`.
pub(super) fn activate(tier: Tier, gate: &mut [f32], up: &[f32]) {
    tier.run(Activate { gate, up });
}

struct Activate<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Op for Activate<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (gate, up) in self.gate.iter_mut().zip(self.up) {
            *gate = math::silu(*gate) * up;
        }
    }
}

/// Rounds to a type and widens again.
pub(super) fn round(tier: Tier, elem: Elem, x: &mut [f32]) {
    tier.run(Round { elem, x });
}

struct Round<'a> {
    elem: Elem,
    x: &'a mut [f32],
}

impl Op for Round<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { elem, x } = self;
        match elem {
            Elem::Bf16 => x.iter_mut().for_each(|x| *x = f32::from_bits(u32::from(bf16_bits(*x)) << 16)),
            Elem::F16 => {
                let mut bits = [0u16; 16];
                for x in x.chunks_mut(16) {
                    let bits: *mut u8 = bits.as_mut_ptr().cast();
                    // SAFETY: sixteen elements at most, of both, and the caller promises the instruction set.
                    unsafe {
                        Narrow::<F16> { x, dst: bits, elem: PhantomData }.run::<S>();
                        Widen::<F16> { src: bits, out: x, elem: PhantomData }.run::<S>();
                    }
                }
            }
            _ => {}
        }
    }
}
