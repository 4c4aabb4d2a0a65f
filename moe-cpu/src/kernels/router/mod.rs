//! moe_route, moe_router_losses, moe_router_grad: one token after the other, its logits in chunks on the stack, so that
//! any number of experts is served and nothing is allocated. `moe_core::raw` has the arithmetic, to the bit.

mod grad;
mod losses;
mod route;

pub(crate) use grad::{LossGrads, RouterGrad, router_grad};
pub(crate) use losses::{Losses, RouterLosses, router_losses};
pub(crate) use route::{Route, RouteOut, route};

use super::elem::{Elem, Input, bf16_bits, canonical, f16_bits};
use super::simd::Simd;
use moe_core::math;
use std::marker::PhantomData;

/// Logits that are looked at together; a multiple of `LANES`.
const CHUNK: usize = 512;
/// The lanes of a sum over experts.
const LANES: usize = 32;

/// A sum in the fixed order: lane `i mod 32` in ascending i, then a halving tree.
#[derive(Clone, Copy)]
struct Sum([f32; LANES]);

impl Sum {
    #[inline(always)]
    fn new() -> Self {
        Sum([0.0; LANES])
    }

    /// Adds terms 0.. of a chunk, which starts at a multiple of the lanes.
    #[inline(always)]
    fn add(&mut self, terms: &[f32]) {
        let mut blocks = terms.chunks_exact(LANES);
        for block in &mut blocks {
            for (lane, x) in self.0.iter_mut().zip(block) {
                *lane += x;
            }
        }
        for (lane, x) in self.0.iter_mut().zip(blocks.remainder()) {
            *lane += x;
        }
    }

    /// The same for products, fused.
    #[inline(always)]
    fn add_products(&mut self, a: &[f32], b: &[f32]) {
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            for ((lane, a), b) in self.0.iter_mut().zip(a).zip(b) {
                *lane = a.mul_add(*b, *lane);
            }
        }
    }

    /// Adds term number `i` alone.
    #[inline(always)]
    fn add_one(&mut self, i: usize, x: f32) {
        self.0[i % LANES] += x;
    }

    #[inline(always)]
    fn total(mut self) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                self.0[i] += self.0[i + half];
            }
            half /= 2;
        }
        self.0[0]
    }
}

/// What keys are ordered by: a NaN is 1, below -infinity; -0 equals +0. 0 is left for what cannot be taken.
#[inline(always)]
fn order(key: f32) -> u32 {
    let bits = (key + 0.0).to_bits();
    let ordered = if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits };
    if key.is_nan() { 1 } else { ordered }
}

/// The key of an order.
#[inline(always)]
fn key(order: u32) -> f32 {
    match order {
        1 => math::NAN,
        o if o >> 31 == 0 => f32::from_bits(!o),
        o => f32::from_bits(o & 0x7fff_ffff),
    }
}

/// What a logit weighs against the largest.
#[inline(always)]
fn share(x: f32, m: f32) -> f32 {
    if m.is_finite() {
        let e = math::exp(x - m);
        if x.is_nan() { 0.0 } else { e }
    } else if m.is_nan() || x == m {
        1.0
    } else {
        0.0
    }
}

/// Shares in place.
#[inline(always)]
fn shares(x: &mut [f32], m: f32) {
    if m.is_finite() {
        for x in x {
            let e = math::exp(*x - m);
            *x = if x.is_nan() { 0.0 } else { e };
        }
    } else {
        for x in x {
            *x = share(*x, m);
        }
    }
}

/// The sigmoid, 0 for NaN.
#[inline(always)]
fn score(x: f32) -> f32 {
    let s = math::sigmoid(x);
    if x.is_nan() { 0.0 } else { s }
}

/// The logits of a token, widened chunk by chunk.
struct Row<'a, S, E> {
    bytes: &'a [u8],
    chunk: [f32; CHUNK],
    marker: PhantomData<(S, E)>,
}

impl<'a, S: Simd, E: Input> Row<'a, S, E> {
    #[inline(always)]
    fn new() -> Self {
        Row { bytes: &[], chunk: [0.0; CHUNK], marker: PhantomData }
    }

    /// Goes on to another token's logits.
    #[inline(always)]
    fn set(&mut self, bytes: &'a [u8]) {
        self.bytes = bytes;
    }

    #[inline(always)]
    fn experts(&self) -> usize {
        self.bytes.len() / E::SIZE
    }

    /// One logit.
    #[inline(always)]
    fn get(&self, expert: usize) -> f32 {
        let bytes = &self.bytes[expert * E::SIZE..][..E::SIZE];
        // SAFETY: the slice has the bytes of one element.
        unsafe { E::read(bytes.as_ptr()) }
    }

    /// The logits from `first` on, as many as a chunk holds.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn load(&mut self, first: usize) -> &mut [f32] {
        let n = CHUNK.min(self.experts() - first);
        let from = &self.bytes[first * E::SIZE..][..n * E::SIZE];
        let mut i = 0;
        while i + S::LANES <= n {
            // SAFETY: `i + S::LANES <= n`, which both slices hold; the caller promises the instruction set.
            unsafe { S::store_raw(self.chunk[i..n].as_mut_ptr().cast(), E::load::<S>(from[i * E::SIZE..].as_ptr())) }
            i += S::LANES;
        }
        while i < n {
            // SAFETY: `i < n`, which the slice holds.
            self.chunk[i] = unsafe { E::read(from[i * E::SIZE..].as_ptr()) };
            i += 1;
        }
        &mut self.chunk[..n]
    }

    /// The largest logit, NaN where there is nothing else.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn max(&mut self) -> f32 {
        let (mut most, mut first) = (0, 0);
        while first < self.experts() {
            // SAFETY: the caller's promise.
            let x = unsafe { self.load(first) };
            for x in &*x {
                most = most.max(order(*x));
            }
            first += x.len();
        }
        key(most)
    }

    /// The sum of the shares against `m`.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn sum_of_shares(&mut self, m: f32) -> f32 {
        let (mut sum, mut first) = (Sum::new(), 0);
        while first < self.experts() {
            // SAFETY: the caller's promise.
            let x = unsafe { self.load(first) };
            shares(x, m);
            sum.add(x);
            first += x.len();
        }
        sum.total()
    }

    /// The sum of the scores.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn sum_of_scores(&mut self) -> f32 {
        let (mut sum, mut first) = (Sum::new(), 0);
        while first < self.experts() {
            // SAFETY: the caller's promise.
            let x = unsafe { self.load(first) };
            for x in &mut *x {
                *x = score(*x);
            }
            sum.add(x);
            first += x.len();
        }
        sum.total()
    }
}

/// What turns logits into probabilities over all experts.
#[derive(Clone, Copy)]
enum Probs {
    /// share(x, m) / sum.
    Softmax { m: f32, sum: f32 },
    /// score / sum, all alike where the sum is 0.
    Sigmoid { sum: f32 },
}

impl Probs {
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn new<S: Simd, E: Input>(row: &mut Row<'_, S, E>, sigmoid: bool) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            if sigmoid {
                Probs::Sigmoid { sum: row.sum_of_scores() }
            } else {
                let m = row.max();
                Probs::Softmax { m, sum: row.sum_of_shares(m) }
            }
        }
    }

    /// Probabilities in place of logits.
    #[inline(always)]
    fn apply(self, x: &mut [f32], experts: usize) {
        match self {
            Probs::Softmax { m, sum } => {
                shares(x, m);
                for x in x {
                    *x /= sum;
                }
            }
            Probs::Sigmoid { sum: 0.0 } => x.fill(1.0 / experts as f32),
            Probs::Sigmoid { sum } => {
                for x in x {
                    *x = score(*x) / sum;
                }
            }
        }
    }
}

/// Rounds and writes an element.
///
/// # Safety
/// One element can be written at `p`.
#[inline(always)]
unsafe fn write(p: *mut u8, elem: Elem, x: f32) {
    // SAFETY: the caller's promise; the writes are unaligned.
    unsafe {
        match elem {
            Elem::F32 => p.cast::<f32>().write_unaligned(canonical(x)),
            Elem::F16 => p.cast::<u16>().write_unaligned(f16_bits(x)),
            _ => p.cast::<u16>().write_unaligned(bf16_bits(x)),
        }
    }
}
