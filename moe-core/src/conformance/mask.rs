//! Plans of mask maps: their ids, probabilities and counters, and the way back of values to the map.

use super::axes::{Axes, BOTH, Case, Dist};
use super::compare::{same, same_plan};
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx};
use super::naive::{self, Source, Widen};
use super::rng::Rng;
use super::route::{self, contents};
use super::values::{values, widen};
use crate::{Capacity, DType, Float, Layout, MaskElement, PermuteBackend, PlanSpec, RoutePlan, Routing};
use half::{bf16, f16};

/// Maps of all shapes. The case's `top_k` is the routes of a token, `ids` the type of the map, `weights` that of its
/// probabilities, and `dist` how many experts are set.
const MASKS: Axes = Axes {
    tokens: &[0, 1, 2, 7, 33, 100, 257, 1000],
    top_k: &[1, 2, 3, 8, 33, 300],
    experts: &[1, 3, 8, 31, 32, 33, 60, 128, 256, 257, 1025],
    ids: &[DType::U8, DType::I32],
    weights: &[None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)],
    layout: &[Layout::Packed, Layout::Aligned(16), Layout::Aligned(13), Layout::Padded(5), Layout::Padded(64)],
    gap: &[0, 1, 5, 32],
    offset: &[0, 1, 3],
    wild: BOTH,
    ..Axes::PLAN
};

/// Ids, probabilities, counters and all arrays of plans of mask maps.
pub(super) fn mask_maps<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let (full, limit) = (ctx.options.full, ctx.options.element_limit());
    for case in MASKS.cover(&mut ctx.rng(), full, limit, |c| c.tokens * c.experts <= 1 << 18) {
        ctx.case(format!("{case:?}"), |ctx, rng| check_mask(ctx, &case, None, rng));
    }
}

/// A capacity by the map's own probabilities, as others drop routes.
pub(super) fn mask_maps_drop_by_probability<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for capacity in [1, 7, 40] {
        if !B::supports_capacity(&Capacity::ByWeight(capacity)) {
            return ctx.skip("the backend has no capacity by weight yet");
        }
        for weights in [DType::F32, DType::F16, DType::BF16] {
            for layout in [Layout::Packed, Layout::Aligned(16), Layout::Padded(9)] {
                let (tokens, top_k, experts, dist) = (130, 4, 8, Dist::Skewed);
                let weights = Some(weights);
                let case = Case { tokens, top_k, experts, dist, weights, layout, wild: true, ..Case::PLAIN };
                ctx.case(format!("{capacity} by weight, {case:?}"), |ctx, rng| {
                    check_mask(ctx, &case, Some(capacity), rng)
                });
            }
        }
    }
}

fn check_mask<B: PermuteBackend>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    by_weight: Option<usize>,
    rng: &mut Rng,
) -> Checked {
    match (case.ids, case.weights) {
        (DType::I32, Some(DType::F16)) => typed::<B, i32, f16>(ctx, case, by_weight, rng),
        (DType::I32, Some(DType::BF16)) => typed::<B, i32, bf16>(ctx, case, by_weight, rng),
        (DType::I32, _) => typed::<B, i32, f32>(ctx, case, by_weight, rng),
        (_, Some(DType::F16)) => typed::<B, u8, f16>(ctx, case, by_weight, rng),
        (_, Some(DType::BF16)) => typed::<B, u8, bf16>(ctx, case, by_weight, rng),
        _ => typed::<B, u8, f32>(ctx, case, by_weight, rng),
    }
}

/// Which experts are set, for each token.
fn random_mask(case: &Case, rng: &mut Rng) -> Vec<bool> {
    let (experts, column) = (case.experts, rng.below(case.experts));
    let mut mask = Vec::with_capacity(case.tokens * experts);
    for _ in 0..case.tokens {
        let twelfths = rng.below(13); // from none to all
        mask.extend((0..experts).map(|e| match case.dist {
            Dist::AllToOne => e == column,
            Dist::AllMasked => false,
            Dist::Uniform => rng.below(experts) < case.top_k,
            Dist::Skewed => rng.below(1 + e) < 2,
            Dist::Mixed => rng.below(12) < twelfths,
        }));
    }
    mask
}

/// What a set element holds: anything but 0.
fn element<M: MaskElement>(set: bool, wild: bool, rng: &mut Rng) -> M {
    let value: i32 = match (set, wild) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => {
            [1, 2, 255, 128, 256, -1, i32::MIN, 1 << 16][rng.below(if M::DTYPE == DType::U8 { 4 } else { 8 })]
        }
    };
    let mut element = M::default();
    let bytes = crate::dtype::as_bytes_mut(std::slice::from_mut(&mut element));
    let len = bytes.len();
    bytes.copy_from_slice(&value.to_le_bytes()[..len]);
    element
}

fn typed<B: PermuteBackend, M: MaskElement, P: Float + Widen>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    by_weight: Option<usize>,
    rng: &mut Rng,
) -> Checked {
    let (experts, top_k) = (case.experts, case.top_k);
    let capacity = |spec: PlanSpec| by_weight.map_or(spec, |c| spec.capacity(Capacity::ByWeight(c)));
    let spec = capacity(case.mask_spec());
    let (_, map, valid) = contents(&Case { ids: DType::I32, ..*case }, rng);
    let set = random_mask(case, rng);
    let bits: Vec<M> = set.iter().map(|set| element(*set, case.wild, rng)).collect();
    let probs: Vec<P> = values(rng, set.len(), case.wild);
    let place = Place::random(rng, case.offset, case.gap);
    let mask = Guarded::matrix(&mut ctx.queue, &bits, experts, place)?;
    let place = Place::random(rng, (case.offset + 2) % 5, case.gap / 2);
    let probs_in = Guarded::matrix(&mut ctx.queue, &probs, experts, place)?;
    let map_in = map.as_deref().map(|m| Guarded::vector(&mut ctx.queue, m, Place::default())).transpose()?;
    let valid_in = valid.map(|n| Guarded::vector(&mut ctx.queue, &[n], Place::default())).transpose()?;
    let routing = || {
        let mut routing = Routing::mask(mask.rows()?);
        if case.weights.is_some() {
            routing = routing.probs(probs_in.rows()?);
        }
        if let Some(map) = &map_in {
            routing = routing.expert_map(map.view()?);
        }
        if let Some(valid) = &valid_in {
            routing = routing.valid_tokens(valid.view()?);
        }
        Ok::<_, crate::Error>(routing)
    };
    let larger = if case.dirty { case.tokens + 9 } else { case.tokens };
    let mut workspace = ctx.workspace(larger, top_k, experts)?;
    let queue = &mut ctx.queue;
    let mut plan = RoutePlan::alloc(queue, spec.with_num_tokens(larger).with_m_indices().with_logical_load())?;
    if case.dirty {
        // A full map of a larger batch first, so that all of the memory holds something else.
        let full = queue.upload(&vec![element::<M>(true, false, rng); larger * experts])?;
        let weights: Vec<P> = values(rng, larger * experts, false);
        let (weights, map) = (queue.upload(&weights)?, map.as_deref().map(|m| queue.upload(m)).transpose()?);
        let mut routing = Routing::mask(full.rows(experts)?);
        if case.weights.is_some() {
            routing = routing.probs(weights.rows(experts)?);
        }
        if let Some(map) = &map {
            routing = routing.expert_map(map.view());
        }
        plan.build_into(queue, &mut workspace, spec.with_num_tokens(larger), routing)?;
    }
    plan.build_into(queue, &mut workspace, spec, routing()?)?;

    let (ids, over) = naive::mask_ids(&set, experts, top_k, valid);
    let wide: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let want_probs = naive::mask_values(&ids, top_k, &probs, experts);
    let weights = widen(&want_probs);
    let source = Source {
        ids: &wide,
        expert_map: map.as_deref(),
        capacity_weights: Some(&weights),
        valid_tokens: valid,
        mask_overflow: Some(over),
        ..Source::default()
    };
    let mut want = naive::plan_of(plan.shape(), &source);
    route::without_absent(&mut want, case);
    let got = plan.route_ids().expect("a plan of a mask has ids");
    same("route_ids", &queue.download(got)?, &ids, top_k)?;
    if case.weights.is_some() {
        same("probs", &queue.download(plan.probs::<P>()?)?, &want_probs, top_k)?;
    }
    same_plan(&route::download(queue, &plan)?, &want)?;
    plan.validate(queue)?;
    let hidden = [1, 8, 24][rng.below(3)];
    let rows: Vec<bf16> = values(rng, case.tokens * hidden, false);
    let x = queue.upload(&rows)?;
    let mut fused = RoutePlan::alloc(queue, spec)?;
    let mut out = Guarded::<B, bf16>::poisoned(queue, plan.num_rows(), hidden, Place::random(rng, case.offset, 0))?;
    fused.permute_into(queue, &mut workspace, spec, routing()?, x.rows(hidden)?, out.rows_mut()?)?;
    same_plan(&route::download(queue, &fused)?, &want)?;
    let mut want_rows = vec![out.poison(); plan.num_rows() * hidden];
    naive::gather(&want, &rows, hidden, &mut want_rows);
    same("permuted", &out.read(queue, "permuted")?, &want_rows, hidden)?;
    mask.read(queue, "mask")?;
    probs_in.read(queue, "probs")?;

    let grads: Vec<P> = values(rng, ids.len(), case.wild);
    let grad = Guarded::vector(queue, &grads, Place::random(rng, case.offset, 0))?;
    let mut out = Guarded::<B, P>::poisoned(queue, case.tokens, experts, Place::random(rng, case.offset, case.gap))?;
    plan.mask_grad(grad.view()?).run_into(queue, out.rows_mut()?)?;
    let want = naive::scatter_mask(&ids, top_k, &grads, experts);
    same("mask_grad", &out.read(queue, "mask_grad")?, &want, experts)
}
