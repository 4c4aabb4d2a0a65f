//! Plans whose builder chooses: copies of experts, and which routes an expert over its capacity keeps.

use super::axes::{Axes, Case, Dist};
use super::compare::same_plan;
use super::gather::{Weights, with_weights};
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx};
use super::naive::{self, Source};
use super::rng::Rng;
use super::route::{self, Inputs, contents};
use super::values::values;
use crate::{Capacity, DType, Layout, PermuteBackend, RoutePlan};

/// Routes to copies of experts, where counts and entries of the placement can be anything.
pub(super) fn copies_of_experts<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    if !B::supports_replicas() {
        return ctx.skip("the backend has no copies of experts yet");
    }
    let (full, limit) = (ctx.options.full, ctx.options.element_limit());
    let axes = Axes { tokens: &[0, 1, 7, 33, 257, 1000], experts: &[1, 3, 8, 60, 256, 1025], ..Axes::PLAN };
    for case in axes.cover(&mut ctx.rng(), full, limit, |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| check_copies(ctx, &case, rng));
    }
}

/// The case's experts are the physical ones; its map is of them. There are fewer logical experts, most with copies.
fn check_copies<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let physical = case.experts;
    let (logical, width) = (1 + rng.below(physical), 1 + rng.below(4));
    let (ids, ..) = contents(&Case { experts: logical, ..*case }, rng);
    let (_, map, valid) = contents(case, rng);
    let mut logcnt: Vec<i32> = (0..logical).map(|_| 1 + rng.below(width) as i32).collect();
    let mut log2phy: Vec<i32> = (0..logical * width).map(|_| rng.below(physical) as i32).collect();
    if matches!(case.dist, Dist::Mixed) {
        let odd = [0, -1, width as i32 + 1, i32::MIN, i32::MAX];
        logcnt[rng.below(logical)] = odd[rng.below(odd.len())];
        let odd = [-1, physical as i32, i32::MIN, i32::MAX];
        log2phy[rng.below(logical * width)] = odd[rng.below(odd.len())];
    }
    let place = Place::random(rng, case.offset, 0);
    let inputs = Inputs::new(&mut ctx.queue, case.ids, &ids, map.as_deref(), valid, place)?;
    let table = Guarded::matrix(&mut ctx.queue, &log2phy, width, Place { gap: 0, ..place })?;
    let counts = Guarded::vector(&mut ctx.queue, &logcnt, place)?;
    let spec = case.spec_of_copies(logical);
    let mut workspace = ctx.workspace(case.tokens, case.top_k, physical)?;
    let routing = inputs.routing()?.replicas(table.rows()?, counts.view()?);
    let plan = RoutePlan::new(&mut ctx.queue, &mut workspace, spec, routing)?;
    let source = Source {
        ids: &ids,
        replicas: Some((&log2phy, width, &logcnt)),
        expert_map: map.as_deref(),
        valid_tokens: valid,
        ..Source::default()
    };
    let mut want = naive::plan_of(plan.shape(), &source);
    route::without_absent(&mut want, case);
    same_plan(&route::download(&mut ctx.queue, &plan)?, &want)?;
    plan.validate(&mut ctx.queue)?;
    table.read(&mut ctx.queue, "log2phy")?;
    counts.read(&mut ctx.queue, "logcnt").map(drop)
}

/// The largest weights stay, ties to the lower route, NaN lowest; survivors in route order.
pub(super) fn capacity_by_weight<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    if !B::supports_capacity(&Capacity::ByWeight(1)) {
        return ctx.skip("the backend has no capacity by weight yet");
    }
    let axes = Axes {
        tokens: &[0, 1, 7, 33, 257, 2049],
        experts: &[1, 3, 8, 60, 256, 1025],
        capacity: &[Some(1), Some(7), Some(100)],
        layout: &[Layout::Packed, Layout::Aligned(16), Layout::Padded(5), Layout::Padded(64)],
        weights: &[Some(DType::F32), Some(DType::F16), Some(DType::BF16)],
        wild: &[false, true],
        ..Axes::PLAN
    };
    let (full, limit) = (ctx.options.full, ctx.options.element_limit());
    for case in axes.cover(&mut ctx.rng(), full, limit, |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| check_by_weight(ctx, &case, rng));
    }
}

fn check_by_weight<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let (ids, map, valid) = contents(case, rng);
    let place = Place::random(rng, case.offset, 0);
    let inputs = Inputs::new(&mut ctx.queue, case.ids, &ids, map.as_deref(), valid, place)?;
    let mut weights: Vec<f32> = values(rng, ids.len(), case.wild);
    if !case.wild {
        // Few different weights, so that ties decide, those of both zeros too.
        weights.iter_mut().for_each(|w| *w = [0.0, -0.0, 0.5, -0.5][rng.below(4)]);
    }
    let dtype = case.weights.unwrap_or(DType::F32);
    let (weights, widened) = Weights::new(&mut ctx.queue, dtype, &weights, Place::random(rng, case.offset, 0))?;
    let spec = case.spec().capacity(Capacity::ByWeight(case.capacity.unwrap_or(1)));
    let mut workspace = ctx.workspace(case.tokens, case.top_k, case.experts)?;
    let routing = with_weights!(inputs.routing()?, capacity_weights, Some(&weights));
    let plan = RoutePlan::new(&mut ctx.queue, &mut workspace, spec, routing)?;
    let source = Source {
        ids: &ids,
        expert_map: map.as_deref(),
        capacity_weights: Some(&widened),
        valid_tokens: valid,
        ..Source::default()
    };
    let mut want = naive::plan_of(plan.shape(), &source);
    route::without_absent(&mut want, case);
    same_plan(&route::download(&mut ctx.queue, &plan)?, &want)?;
    Ok(plan.validate(&mut ctx.queue)?)
}
