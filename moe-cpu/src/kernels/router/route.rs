//! moe_route: logits [T, E] to ids and weights [T, K], and on request probabilities [T, E].

use super::{CHUNK, Probs, Row, Sum, key, order, score, share, write};
use crate::kernels::elem::{Elem, Input, with_input};
use crate::kernels::parallel::{Shared, for_ranges};
use crate::kernels::rows::{Rows, RowsMut, WeightsMut};
use crate::kernels::simd::Simd;
use crate::kernels::tier::{Op, Tier};
use moe_core::Scoring;
use moe_core::math;
use moe_core::raw::{RouterGroups, RouterShape};
use std::marker::PhantomData;
use std::ops::Range;

/// Arguments of [`route`].
pub(crate) struct Route<'a> {
    /// The numbers.
    pub(crate) shape: RouterShape,
    /// [T, E].
    pub(crate) logits: Rows<'a>,
    /// The type of the logits.
    pub(crate) elem: Elem,
    /// [E].
    pub(crate) bias: Option<&'a [f32]>,
    /// Tokens that are routed.
    pub(crate) valid: usize,
}

/// Outputs of [`route`].
pub(crate) struct RouteOut<'a> {
    /// [T, K].
    pub(crate) ids: &'a mut [i32],
    /// [T, K].
    pub(crate) weights: WeightsMut<'a>,
    /// f32 [T, E].
    pub(crate) probs: Option<RowsMut<'a>>,
}

/// Experts taken in one pass over a token's logits.
const TAKEN: usize = 32;

/// Routes all tokens.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub(crate) fn route(tier: Tier, args: &Route<'_>, out: RouteOut<'_>) {
    let RouterShape { num_experts, top_k, .. } = args.shape;
    let tokens = out.ids.len() / top_k;
    assert!(out.ids.len() == tokens * top_k, "ids must be [T, K]");
    assert!(args.logits.count(num_experts * args.elem.size()) >= tokens, "too few rows of logits");
    assert!(args.bias.is_none_or(|bias| bias.len() == num_experts), "the bias must be [E]");
    let (len, weight, ptr) = match out.weights {
        WeightsMut::F32(w) => (w.len(), Elem::F32, w.as_mut_ptr().cast()),
        WeightsMut::F16(w) => (w.len(), Elem::F16, w.as_mut_ptr().cast()),
        WeightsMut::Bf16(w) => (w.len(), Elem::Bf16, w.as_mut_ptr().cast()),
    };
    assert!(len == out.ids.len(), "weights must be [T, K]");
    let probs = out.probs.map(|probs| {
        assert!(probs.count(num_experts * 4) >= tokens, "too few rows of probabilities");
        (Shared::new(probs.bytes), probs.stride)
    });
    let (ids, weights) = (Shared::from_ptr(out.ids.as_mut_ptr().cast()), Shared::from_ptr(ptr));
    // About sixteen operations for each logit.
    let grain = tier.thresholds().grain_for(num_experts * 64);
    with_input!(args.elem, E => for_ranges(0..tokens, grain, &|tokens| {
        let (ids, weights, probs) = (&ids, &weights, probs.as_ref());
        tier.run(Tokens::<E> { args, ids, weights, weight, probs, tokens, elem: PhantomData });
    }));
}

/// Some tokens.
struct Tokens<'a, E> {
    args: &'a Route<'a>,
    ids: &'a Shared,
    weights: &'a Shared,
    weight: Elem,
    probs: Option<&'a (Shared, usize)>,
    tokens: Range<usize>,
    elem: PhantomData<E>,
}

impl<E: Input> Op for Tokens<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Tokens { args: Route { shape, logits, bias, valid, .. }, weight, .. } = self;
        let (experts, top_k) = (shape.num_experts, shape.top_k);
        let mut row = Row::<S, E>::new();
        for token in self.tokens {
            // SAFETY: `route` asserted that ids and weights are [T, K] and probs [T, E]; a token is in one task, so
            // that nothing is borrowed twice. The caller promises the instruction set.
            unsafe {
                let ids = self.ids.ptr().cast::<i32>().add(token * top_k);
                let ids = std::slice::from_raw_parts_mut(ids, top_k);
                let weights = self.weights.ptr().add(token * top_k * weight.size());
                let probs = self.probs.map(|(probs, stride)| probs.ptr().add(token * stride));
                if token >= *valid {
                    ids.fill(-1);
                    weights.write_bytes(0, top_k * weight.size());
                    if let Some(probs) = probs {
                        probs.write_bytes(0, experts * 4);
                    }
                    continue;
                }
                row.set(&logits.bytes[token * logits.stride..][..experts * E::SIZE]);
                let all = (probs.is_some() || needs_probs(shape, bias.is_some()))
                    .then(|| Probs::new(&mut row, shape.scoring == Scoring::Sigmoid));
                take(&mut row, shape, *bias, all, ids);
                weigh(&row, shape, all, ids, |k, w| write(weights.add(k * weight.size()), weight, w));
                if let (Some(probs), Some(all)) = (probs, all) {
                    let mut first = 0;
                    while first < experts {
                        let x = row.load(first);
                        all.apply(x, experts);
                        std::ptr::copy_nonoverlapping(x.as_ptr().cast(), probs.add(first * 4), x.len() * 4);
                        first += x.len();
                    }
                }
            }
        }
    }
}

/// Whether choice or weights need the softmax over all experts.
#[inline(always)]
fn needs_probs(shape: &RouterShape, bias: bool) -> bool {
    shape.scoring == Scoring::Softmax && (bias || !shape.renormalize)
}

/// Takes the experts: writes their ids in descending order of their keys.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn take<S: Simd, E: Input>(
    row: &mut Row<'_, S, E>,
    shape: &RouterShape,
    bias: Option<&[f32]>,
    all: Option<Probs>,
    ids: &mut [i32],
) {
    let groups = shape.groups.filter(|groups| groups.topk_group < groups.n_group);
    let mut open = u128::MAX;
    if let Some(groups) = groups {
        // SAFETY: the caller's promise.
        open = unsafe { best_groups(row, shape, groups, bias, all) };
    }
    let size = groups.map_or(usize::MAX, |groups| shape.num_experts / groups.n_group);
    let mut orders = [0u32; CHUNK];
    // The best so far lie in descending order. What was taken in an earlier pass bounds the next one.
    let (mut done, mut bound) = (0, (u32::MAX, -1));
    while done < ids.len() {
        let ids = &mut ids[done..];
        let most = ids.len().min(TAKEN);
        let (mut best, mut taken, mut least) = ([0u32; TAKEN], 0, 0);
        let mut first = 0;
        while first < row.experts() {
            // SAFETY: the caller's promise.
            let n = unsafe { load_orders(row, shape, bias, all, first, &mut orders) };
            if groups.is_some() {
                close(&mut orders[..n], first, size, open);
            }
            for (block, orders) in orders[..n].chunks(16).enumerate() {
                if orders.iter().copied().fold(0, u32::max) <= least {
                    continue;
                }
                for (i, order) in orders.iter().enumerate() {
                    let id = (first + block * 16 + i) as i32;
                    if *order <= least || *order > bound.0 || (*order == bound.0 && id <= bound.1) {
                        continue;
                    }
                    // A later expert goes behind its equals, so that ties fall to the lower id.
                    let mut at = taken;
                    while at > 0 && best[at - 1] < *order {
                        at -= 1;
                    }
                    taken = (taken + 1).min(most);
                    best.copy_within(at..taken - 1, at + 1);
                    ids.copy_within(at..taken - 1, at + 1);
                    (best[at], ids[at]) = (*order, id);
                    if taken == most {
                        least = best[most - 1];
                    }
                }
            }
            first += n;
        }
        bound = (best[most - 1], ids[most - 1]);
        done += most;
    }
}

/// The orders of the keys of experts from `first` on; how many.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn load_orders<S: Simd, E: Input>(
    row: &mut Row<'_, S, E>,
    shape: &RouterShape,
    bias: Option<&[f32]>,
    all: Option<Probs>,
    first: usize,
    orders: &mut [u32; CHUNK],
) -> usize {
    // SAFETY: the caller's promise.
    let x = unsafe { row.load(first) };
    let n = x.len();
    if let Some(bias) = bias {
        let mut scores = [0f32; CHUNK];
        let scores = &mut scores[..n];
        scores.copy_from_slice(x);
        match (shape.scoring, all) {
            (Scoring::Sigmoid, _) => scores.iter_mut().for_each(|s| *s = math::sigmoid(*s)),
            (Scoring::Softmax, Some(all)) => all.apply(scores, shape.num_experts),
            _ => {}
        }
        for ((x, s), b) in x.iter_mut().zip(scores).zip(&bias[first..]) {
            *x = if x.is_nan() { math::NAN } else { *s + b };
        }
    }
    for (order, x) in orders.iter_mut().zip(&*x) {
        *order = self::order(*x);
    }
    n
}

/// Closes the experts of groups that are not open: their order becomes 0.
fn close(orders: &mut [u32], first: usize, size: usize, open: u128) {
    let mut at = 0;
    while at < orders.len() {
        let group = (first + at) / size;
        let end = ((group + 1) * size - first).min(orders.len());
        if open >> group & 1 == 0 {
            orders[at..end].fill(0);
        }
        at = end;
    }
}

/// The groups that experts are taken from, a bit for each.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn best_groups<S: Simd, E: Input>(
    row: &mut Row<'_, S, E>,
    shape: &RouterShape,
    groups: RouterGroups,
    bias: Option<&[f32]>,
    all: Option<Probs>,
) -> u128 {
    let RouterGroups { n_group, topk_group } = groups;
    let size = shape.num_experts / n_group;
    let (mut first_best, mut second_best) = ([0u32; RouterGroups::MAX_GROUPS], [0u32; RouterGroups::MAX_GROUPS]);
    let mut orders = [0u32; CHUNK];
    let mut first = 0;
    while first < row.experts() {
        // SAFETY: the caller's promise.
        let n = unsafe { load_orders(row, shape, bias, all, first, &mut orders) };
        let mut at = 0;
        while at < n {
            let group = (first + at) / size;
            let end = ((group + 1) * size - first).min(n);
            let (mut one, mut two) = (first_best[group], second_best[group]);
            for order in &orders[at..end] {
                two = two.max(one.min(*order));
                one = one.max(*order);
            }
            (first_best[group], second_best[group]) = (one, two);
            at = end;
        }
        first += n;
    }
    if bias.is_some() && size > 1 {
        for (one, two) in first_best.iter_mut().zip(&second_best).take(n_group) {
            *one = order(key(*one) + key(*two));
        }
    }
    let mut open = 0u128;
    for _ in 0..topk_group {
        let (mut best, mut at) = (0, 0);
        for (group, order) in first_best[..n_group].iter().enumerate() {
            if *order > best {
                (best, at) = (*order, group);
            }
        }
        open |= 1 << at;
        first_best[at] = 0;
    }
    open
}

/// Hands out the weights of a token's experts.
#[inline(always)]
fn weigh<S: Simd, E: Input>(
    row: &Row<'_, S, E>,
    shape: &RouterShape,
    all: Option<Probs>,
    ids: &[i32],
    mut out: impl FnMut(usize, f32),
) {
    let x = |k: usize| row.get(ids[k] as usize);
    let scale = shape.scaling_factor;
    if let (Scoring::Softmax, false, Some(Probs::Softmax { m, sum })) = (shape.scoring, shape.renormalize, all) {
        (0..ids.len()).for_each(|k| out(k, share(x(k), m) / sum * scale));
    } else if shape.softmax_of_taken() {
        let (m, sum) = taken_softmax(ids.len(), x);
        (0..ids.len()).for_each(|k| out(k, share(x(k), m) / sum * scale));
    } else if !shape.renormalize {
        (0..ids.len()).for_each(|k| out(k, score(x(k)) * scale));
    } else {
        let sum = taken_scores(ids.len(), x);
        let score = |k| if sum == 0.0 { 1.0 } else { score(x(k)) };
        let sum = if sum == 0.0 { ids.len() as f32 } else { sum };
        (0..ids.len()).for_each(|k| out(k, score(k) / sum * scale));
    }
}

/// The largest of the logits taken, and the sum of their shares against it.
#[inline(always)]
pub(super) fn taken_softmax(top_k: usize, x: impl Fn(usize) -> f32) -> (f32, f32) {
    let m = key((0..top_k).fold(0, |max, k| max.max(order(x(k)))));
    let mut sum = Sum::new();
    (0..top_k).for_each(|k| sum.add_one(k, share(x(k), m)));
    (m, sum.total())
}

/// The sum of the scores taken.
#[inline(always)]
pub(super) fn taken_scores(top_k: usize, x: impl Fn(usize) -> f32) -> f32 {
    let mut sum = Sum::new();
    (0..top_k).for_each(|k| sum.add_one(k, score(x(k))));
    sum.total()
}
