//! Forms that must give the same bits: fused and in two steps, allocating and not.

use super::axes::{Axes, BOTH, Case};
use super::compare::{same, same_plan};
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx};
use super::naive;
use super::rng::Rng;
use super::route::{self, Inputs, contents};
use super::values::values;
use crate::dtype::F4x2;
use crate::{DType, Element, Layout, PermuteBackend, RoutePlan};
use float8::F8E4M3;
use half::{bf16, f16};

/// `permute_into` gives the plan and rows of `build_into` and `gather`, also over an older, larger plan.
pub(super) fn permute_equals_build_then_gather<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let axes = Axes {
        ids: &[DType::I32, DType::U32, DType::I64],
        dtype: &[DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F4x2, DType::I64],
        m_indices: BOTH,
        logical_load: BOTH,
        dirty: BOTH,
        ..Axes::ROWS
    };
    let (full, limit) = (ctx.options.full, ctx.options.element_limit());
    for case in axes.cover(&mut ctx.rng(), full, limit, |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| match case.dtype {
            DType::F32 => permute::<B, f32>(ctx, &case, rng),
            DType::F16 => permute::<B, f16>(ctx, &case, rng),
            DType::BF16 => permute::<B, bf16>(ctx, &case, rng),
            DType::F8E4M3 => permute::<B, F8E4M3>(ctx, &case, rng),
            DType::I64 => permute::<B, i64>(ctx, &case, rng),
            _ => permute::<B, F4x2>(ctx, &case, rng),
        });
    }
}

fn permute<B: PermuteBackend, T: Element>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let spec = case.spec();
    let (ids, map, valid) = contents(case, rng);
    let place = Place::random(rng, case.offset, 0);
    let inputs = Inputs::new(&mut ctx.queue, case.ids, &ids, map.as_deref(), valid, place)?;
    let data: Vec<T> = values(rng, case.tokens * case.hidden, case.wild);
    let rows = Guarded::matrix(&mut ctx.queue, &data, case.hidden, Place::random(rng, case.offset, case.gap))?;
    let place = Place::random(rng, (case.offset + 1) % 4, case.gap / 2);
    let queue = &mut ctx.queue;
    let mut out = Guarded::<B, T>::poisoned(queue, spec.num_rows()?, case.hidden, place)?;
    let mut workspace = ctx.workspace(case.tokens + 9, case.top_k, case.experts)?;
    let queue = &mut ctx.queue;
    let mut plan = if case.dirty {
        let large = case.spec().with_num_tokens(case.tokens + 9).with_m_indices().with_logical_load();
        let ids: Vec<i64> = (0..(case.tokens + 9) * case.top_k).map(|_| rng.below(case.experts) as i64).collect();
        let inputs = Inputs::new(queue, DType::I32, &ids, map.as_deref(), None, Place::default())?;
        RoutePlan::new(queue, &mut workspace, large, inputs.routing()?)?
    } else {
        RoutePlan::alloc(queue, spec)?
    };
    plan.permute_into(queue, &mut workspace, spec, inputs.routing()?, rows.rows()?, out.rows_mut()?)?;
    let two_steps = RoutePlan::new(queue, &mut workspace, spec, inputs.routing()?)?;
    same_plan(&route::download(queue, &plan)?, &route::download(queue, &two_steps)?)?;

    let mut want_plan = naive::plan(plan.shape(), &ids, map.as_deref(), valid);
    route::without_absent(&mut want_plan, case);
    same_plan(&route::download(queue, &plan)?, &want_plan)?;
    let mut want = vec![out.poison(); plan.num_rows() * case.hidden];
    naive::gather(&want_plan, &data, case.hidden, &mut want);
    same("out", &out.read(queue, "out")?, &want, case.hidden)?;
    inputs.check(queue)
}

/// `run`, `run_rows` and `permute` give what the `_into` forms give into zeros.
pub(super) fn allocating_forms_equal_into_forms<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for layout in [Layout::Packed, Layout::Aligned(16), Layout::Padded(9)] {
        for (tokens, top_k, experts, hidden) in [(0, 2, 3, 5), (1, 1, 1, 1), (33, 4, 8, 65), (70, 8, 60, 128)] {
            let case = Case { tokens, top_k, experts, hidden, layout, ..Case::PLAIN };
            ctx.case(format!("{case:?}"), |ctx, rng| forms(ctx, &case, rng));
        }
    }
}

fn forms<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let hidden = case.hidden;
    let (plan, _, inputs) = route::build(ctx, case, rng)?;
    let mut workspace = ctx.workspace(case.tokens, case.top_k, case.experts)?;
    let queue = &mut ctx.queue;
    let x = queue.upload(&values::<bf16>(rng, case.tokens * hidden, false))?;
    let w = queue.upload(&values::<f32>(rng, case.tokens * case.top_k, false))?;

    let gathered = plan.gather(x.rows(hidden)?).weights(w.view()).run(queue)?;
    let mut into = queue.zeros(gathered.len())?;
    plan.gather(x.rows(hidden)?).weights(w.view()).run_into(queue, into.rows_mut(hidden)?)?;
    same("gather", &queue.download(gathered.view())?, &queue.download(into.view())?, hidden)?;

    let combined = plan.combine(gathered.rows(hidden)?).weights(w.view()).run::<f32>(queue)?;
    let mut into = queue.zeros(combined.len())?;
    plan.combine(gathered.rows(hidden)?).weights(w.view()).run_into(queue, into.rows_mut(hidden)?)?;
    same("combine", &queue.download(combined.view())?, &queue.download(into.view())?, hidden)?;

    let grad = || -> crate::Result<_> {
        Ok(plan.combine_grad(x.rows(hidden)?).weights(w.view()).rows(gathered.rows(hidden)?))
    };
    let (both_rows, both_weights) = grad()?.run::<f16>(queue)?;
    let rows_alone = grad()?.run_rows(queue)?;
    let mut into_rows = queue.zeros(gathered.len())?;
    let mut into_weights = queue.zeros::<f16>(w.len())?;
    grad()?.run_into(queue, Some(into_rows.rows_mut(hidden)?), Some(into_weights.view_mut()))?;
    let want = queue.download(into_rows.view())?;
    same("grad_rows of run", &queue.download(both_rows.view())?, &want, hidden)?;
    same("grad_rows of run_rows", &queue.download(rows_alone.view())?, &want, hidden)?;
    same("grad_weights", &queue.download(both_weights.view())?, &queue.download(into_weights.view())?, case.top_k)?;

    let (plan2, permuted) = RoutePlan::permute(queue, &mut workspace, case.spec(), inputs.routing()?, x.rows(hidden)?)?;
    same_plan(&route::download(queue, &plan2)?, &route::download(queue, &plan)?)?;
    let gathered = plan.gather(x.rows(hidden)?).run(queue)?;
    same("permute", &queue.download(permuted.view())?, &queue.download(gathered.view())?, hidden)
}
