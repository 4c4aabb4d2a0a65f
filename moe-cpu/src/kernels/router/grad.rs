//! moe_router_grad: the gradient of the logits, [T, E].

use super::losses::Losses;
use super::route::{taken_scores, taken_softmax};
use super::{CHUNK, Probs, Row, Sum, score, share, shares};
use crate::kernels::elem::{Elem, Output, with_output};
use crate::kernels::parallel::{Shared, for_ranges};
use crate::kernels::rows::{Rows, RowsMut, Weights};
use crate::kernels::simd::Simd;
use crate::kernels::tier::{Op, Tier};
use moe_core::raw::RouterShape;
use moe_core::{Scoring, math};
use std::marker::PhantomData;
use std::ops::Range;

/// The losses and the gradients of the two, [2].
#[derive(Clone, Copy)]
pub(crate) struct LossGrads<'a> {
    /// The losses.
    pub(crate) losses: Losses<'a>,
    /// Their gradients.
    pub(crate) grad: [f32; 2],
}

/// Arguments of [`router_grad`].
pub(crate) struct RouterGrad<'a> {
    /// The numbers.
    pub(crate) shape: RouterShape,
    /// [T, E].
    pub(crate) logits: Rows<'a>,
    /// The type of the logits and of their gradient.
    pub(crate) elem: Elem,
    /// Tokens that count.
    pub(crate) valid: usize,
    /// All tokens.
    pub(crate) tokens: usize,
    /// Ids and the gradients of the weights, [T, K].
    pub(crate) weights: Option<(&'a [i32], Weights<'a>)>,
    /// f32 [T, E].
    pub(crate) grad_probs: Option<Rows<'a>>,
    /// The losses.
    pub(crate) losses: Option<LossGrads<'a>>,
}

/// Computes the gradient.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub(crate) fn router_grad(tier: Tier, args: &RouterGrad<'_>, out: RowsMut<'_>) {
    let RouterShape { num_experts: experts, top_k, .. } = args.shape;
    let row = experts * args.elem.size();
    assert!(args.logits.count(row) >= args.tokens, "too few rows of logits");
    assert!(out.count(row) >= args.tokens, "too few rows of the gradient");
    assert!(args.grad_probs.is_none_or(|rows| rows.count(experts * 4) >= args.tokens), "too few rows of grad_probs");
    if let Some((ids, grad)) = args.weights {
        assert!(ids.len() == args.tokens * top_k && grad.len() == ids.len(), "ids and gradients must be [T, K]");
    }
    assert!(args.losses.and_then(|l| l.losses.load).is_none_or(|load| load.len() == experts), "the load must be [E]");
    let stride = out.stride;
    let out = Shared::new(out.bytes);
    let grain = tier.thresholds().grain_for(experts * 128);
    with_output!(args.elem, E => for_ranges(0..args.tokens, grain, &|tokens| {
        tier.run(Tokens::<E> { args, out: &out, stride, tokens, elem: PhantomData });
    }));
}

/// Some tokens.
struct Tokens<'a, E> {
    args: &'a RouterGrad<'a>,
    out: &'a Shared,
    stride: usize,
    tokens: Range<usize>,
    elem: PhantomData<E>,
}

impl<E: Output> Op for Tokens<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let experts = self.args.shape.num_experts;
        let mut row = Row::<S, E>::new();
        for token in self.tokens {
            // SAFETY: `router_grad` asserted that the output has a row for each token; a token is in one task.
            let out =
                unsafe { std::slice::from_raw_parts_mut(self.out.ptr().add(token * self.stride), experts * E::SIZE) };
            out.fill(0);
            if token < self.args.valid {
                row.set(&self.args.logits.bytes[token * self.args.logits.stride..][..experts * E::SIZE]);
                // SAFETY: the caller promises the instruction set.
                unsafe { token_grad(&mut row, self.args, token, out) }
            }
        }
    }
}

/// The part of a token's weights that is added expert by expert.
#[derive(Clone, Copy)]
enum Direct {
    None,
    /// q and h - D of the softmax of those taken.
    Softmax {
        m: f32,
        sum: f32,
        dot: f32,
    },
    /// The gradients of the scores: h, or (h - D) / S'.
    Sigmoid {
        dot: f32,
        sum: f32,
    },
}

/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn token_grad<S: Simd, E: Output>(row: &mut Row<'_, S, E>, args: &RouterGrad<'_>, token: usize, out: &mut [u8]) {
    let RouterGrad { shape, weights, losses, .. } = args;
    let (experts, top_k) = (shape.num_experts, shape.top_k);
    let sigmoid = shape.scoring == Scoring::Sigmoid;
    // SAFETY: the caller's promise.
    let m = unsafe { row.max() };
    if !m.is_finite() {
        return;
    }
    let n = args.valid.min(args.tokens) as f32;
    let load = losses.and_then(|l| Some((l.losses.load?, l.grad[0] * l.losses.balance_scale / n / n)));
    let grad_probs = args.grad_probs.map(|rows| &rows.bytes[token * rows.stride..][..experts * 4]);
    let spread = *weights.as_ref().map(|_| &shape.renormalize).unwrap_or(&true) || shape.scoring != Scoring::Softmax;
    let has_g = grad_probs.is_some() || load.is_some() || !spread;
    let id =
        |k: usize| weights.and_then(|(ids, _)| usize::try_from(ids[token * top_k + k]).ok()).filter(|id| *id < experts);
    let grad = |k: usize| weights.map_or(0.0, |(_, grad)| grad.get(token * top_k + k));
    let g = |g: &mut [f32], first: usize| {
        g.fill(0.0);
        if let Some(probs) = grad_probs {
            for (g, bytes) in g.iter_mut().zip(probs[first * 4..].as_chunks::<4>().0) {
                *g = f32::from_ne_bytes(*bytes);
            }
        }
        if let Some((load, a)) = load {
            for (g, load) in g.iter_mut().zip(&load[first..]) {
                *g = a.mul_add(*load as f32, *g);
            }
        }
        if !spread {
            for k in 0..top_k {
                if let Some(g) = id(k).and_then(|id| g.get_mut(id.checked_sub(first)?)) {
                    *g = shape.scaling_factor.mul_add(grad(k), *g);
                }
            }
        }
    };

    // The sums over all experts.
    let z = losses.and_then(|l| Some(2.0 * (l.grad[1] * l.losses.z_scale? / n)));
    // SAFETY: the caller's promise.
    let softmax_sum = if z.is_some() || (has_g && !sigmoid) { unsafe { row.sum_of_shares(m) } } else { 0.0 };
    let all = match sigmoid {
        // SAFETY: the caller's promise.
        true => Probs::Sigmoid { sum: if has_g { unsafe { row.sum_of_scores() } } else { 0.0 } },
        false => Probs::Softmax { m, sum: softmax_sum },
    };
    let mut g_chunk = [0f32; CHUNK];
    let mut dot = 0.0;
    if has_g {
        let (mut sum, mut first) = (Sum::new(), 0);
        while first < experts {
            // SAFETY: the caller's promise.
            let x = unsafe { row.load(first) };
            let g_chunk = &mut g_chunk[..x.len()];
            g(g_chunk, first);
            all.apply(x, experts);
            sum.add_products(x, g_chunk);
            first += x.len();
        }
        dot = sum.total();
    }

    // The sums over those taken.
    let h = |k: usize| if id(k).is_some() { shape.scaling_factor * grad(k) } else { 0.0 };
    let taken = |k: usize| id(k).map_or(math::NAN, |id| row.get(id));
    let mut direct = Direct::None;
    if weights.is_some() && shape.softmax_of_taken() {
        let (m, sum) = taken_softmax(top_k, taken);
        if m.is_finite() {
            let mut dot = Sum::new();
            (0..top_k).for_each(|k| dot.0[k % 32] = (share(taken(k), m) / sum).mul_add(h(k), dot.0[k % 32]));
            direct = Direct::Softmax { m, sum, dot: dot.total() };
        }
    } else if weights.is_some() && sigmoid {
        let sum = taken_scores(top_k, taken);
        if !shape.renormalize {
            direct = Direct::Sigmoid { dot: 0.0, sum: 1.0 };
        } else if sum != 0.0 {
            let mut dot = Sum::new();
            (0..top_k).for_each(|k| dot.0[k % 32] = (score(taken(k)) / sum).mul_add(h(k), dot.0[k % 32]));
            direct = Direct::Sigmoid { dot: dot.total(), sum };
        }
    }

    let lse = if z.is_some() { m + math::ln(softmax_sum) } else { 0.0 };
    let mut x_chunk = [0f32; CHUNK];
    let mut d_chunk = [0f32; CHUNK];
    let mut first = 0;
    while first < experts {
        // SAFETY: the caller's promise.
        let p = unsafe { row.load(first) };
        let len = p.len();
        let (x, d, g_chunk) = (&mut x_chunk[..len], &mut d_chunk[..len], &mut g_chunk[..len]);
        x.copy_from_slice(p);
        d.fill(0.0);
        if has_g {
            g(g_chunk, first);
            match all {
                Probs::Softmax { .. } => {
                    all.apply(p, experts);
                    for ((d, p), g) in d.iter_mut().zip(&*p).zip(&*g_chunk) {
                        *d = p * (g - dot);
                    }
                }
                Probs::Sigmoid { sum } if sum != 0.0 => {
                    for (d, g) in d.iter_mut().zip(&*g_chunk) {
                        *d = (g - dot) / sum;
                    }
                }
                Probs::Sigmoid { .. } => {}
            }
        }
        for k in 0..top_k {
            let Some((id, d)) = id(k).and_then(|id| Some((id, d.get_mut(id.checked_sub(first)?)?))) else { continue };
            match direct {
                Direct::None => {}
                Direct::Softmax { m, sum, dot } => {
                    *d = (share(x[id - first], m) / sum).mul_add(shape.scaling_factor * grad(k) - dot, *d);
                }
                Direct::Sigmoid { dot, sum } => {
                    let h = shape.scaling_factor * grad(k);
                    *d += if shape.renormalize { (h - dot) / sum } else { h };
                }
            }
        }
        if sigmoid {
            for (d, x) in d.iter_mut().zip(&*x) {
                let s = score(*x);
                *d *= s * (1.0 - s);
            }
        }
        if let Some(z) = z {
            p.copy_from_slice(x);
            shares(p, m);
            for (d, p) in d.iter_mut().zip(&*p) {
                *d = (z * lse).mul_add(p / softmax_sum, *d);
            }
        }
        for (i, (d, x)) in d.iter().zip(&*x).enumerate() {
            let d = if x.is_nan() { 0.0 } else { *d };
            let out = &mut out[(first + i) * E::SIZE..][..E::SIZE];
            // SAFETY: the slice has the bytes of one element.
            unsafe { E::write(out.as_mut_ptr(), d) }
        }
        first += len;
    }
}
