//! moe_router_losses: the load-balancing loss and the z-loss of a batch.

use super::{Probs, Row, Sum};
use crate::kernels::elem::{Elem, Input, canonical, with_input};
use crate::kernels::parallel::{Shared, for_ranges};
use crate::kernels::rows::Rows;
use crate::kernels::simd::Simd;
use crate::kernels::tier::{Op, Tier};
use moe_core::raw::RouterShape;
use moe_core::{Scoring, math};
use std::marker::PhantomData;
use std::ops::Range;

/// Which losses, and how they are scaled.
#[derive(Clone, Copy)]
pub(crate) struct Losses<'a> {
    /// Routes of each expert, [E].
    pub(crate) load: Option<&'a [i32]>,
    /// coefficient * E / K.
    pub(crate) balance_scale: f32,
    /// The coefficient of the z-loss.
    pub(crate) z_scale: Option<f32>,
}

/// Arguments of [`router_losses`].
pub(crate) struct RouterLosses<'a> {
    /// The numbers.
    pub(crate) shape: RouterShape,
    /// [T, E].
    pub(crate) logits: Rows<'a>,
    /// The type of the logits.
    pub(crate) elem: Elem,
    /// Tokens that count.
    pub(crate) valid: usize,
    /// The losses.
    pub(crate) losses: Losses<'a>,
}

/// The lanes of a sum over tokens.
const LANES: usize = 1024;

/// Computes each token's terms, [T, 2], and the two losses.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub(crate) fn router_losses(tier: Tier, args: &RouterLosses<'_>, token_losses: &mut [f32], out: &mut [f32]) {
    let experts = args.shape.num_experts;
    let tokens = token_losses.len() / 2;
    assert!(token_losses.len() == tokens * 2 && out.len() == 2, "losses must be [T, 2] and [2]");
    assert!(args.logits.count(experts * args.elem.size()) >= tokens, "too few rows of logits");
    assert!(args.losses.load.is_none_or(|load| load.len() == experts), "the load must be [E]");
    let terms = Shared::from_ptr(token_losses.as_mut_ptr().cast());
    let grain = tier.thresholds().grain_for(experts * 64);
    with_input!(args.elem, E => for_ranges(0..tokens, grain, &|tokens| {
        tier.run(Tokens::<E> { args, terms: &terms, tokens, elem: PhantomData });
    }));
    let mut lanes = [[0f32; LANES]; 2];
    for (t, terms) in token_losses.as_chunks::<2>().0.iter().enumerate() {
        lanes[0][t % LANES] += terms[0];
        lanes[1][t % LANES] += terms[1];
    }
    let [a, z] = lanes.map(|mut lanes| {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    });
    let n = args.valid.min(tokens) as f32;
    out.fill(0.0);
    if n > 0.0 {
        out[0] = canonical(args.losses.balance_scale * a / n / n);
        out[1] = canonical(args.losses.z_scale.unwrap_or(0.0) * z / n);
    }
}

/// Some tokens.
struct Tokens<'a, E> {
    args: &'a RouterLosses<'a>,
    terms: &'a Shared,
    tokens: Range<usize>,
    elem: PhantomData<E>,
}

impl<E: Input> Op for Tokens<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let RouterLosses { shape, logits, losses, valid, .. } = self.args;
        let mut row = Row::<S, E>::new();
        for token in self.tokens {
            let mut terms = [0f32; 2];
            if token < *valid {
                row.set(&logits.bytes[token * logits.stride..][..shape.num_experts * E::SIZE]);
                // SAFETY: the caller promises the instruction set.
                terms = unsafe { token_terms(&mut row, shape, losses) };
            }
            // SAFETY: `router_losses` asserted that the terms are [T, 2]; a token is in one task.
            unsafe { self.terms.ptr().cast::<[f32; 2]>().add(token).write_unaligned(terms) }
        }
    }
}

/// What a token adds.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn token_terms<S: Simd, E: Input>(
    row: &mut Row<'_, S, E>,
    shape: &RouterShape,
    losses: &Losses<'_>,
) -> [f32; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let m = row.max();
        if !m.is_finite() {
            return [0.0; 2];
        }
        let mut terms = [0.0; 2];
        if let Some(load) = losses.load {
            let all = Probs::new(row, shape.scoring == Scoring::Sigmoid);
            let (mut sum, mut first) = (Sum::new(), 0);
            while first < row.experts() {
                let mut counts = [0f32; super::CHUNK];
                let x = row.load(first);
                all.apply(x, shape.num_experts);
                for (count, load) in counts.iter_mut().zip(&load[first..]) {
                    *count = *load as f32;
                }
                sum.add_products(x, &counts);
                first += x.len();
            }
            terms[0] = sum.total();
        }
        if losses.z_scale.is_some() {
            let lse = m + math::ln(row.sum_of_shares(m));
            terms[1] = lse * lse;
        }
        terms
    }
}
