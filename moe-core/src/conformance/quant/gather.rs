//! Gather and quantise; permute of rows that are quantised already.

use super::super::axes::{Axes, Case};
use super::super::compare::{same, same_plan};
use super::super::guarded::{Guarded, Place};
use super::super::harness::{Checked, Ctx};
use super::super::naive as plain;
use super::super::naive::Widen;
use super::super::rng::Rng;
use super::super::route::{self, Inputs, contents};
use super::super::values::{values, widen};
use super::{AXES, LIMIT, Out, Slack, for_each_format, naive, rows};
use crate::quant::Quantization;
use crate::{DType, Float, QuantBackend, RoutePlan};
use float8::F8E4M3;
use half::{bf16, f16};

/// Every format, from every float.
pub(super) fn gather_quant_formats<B: QuantBackend>(ctx: &mut Ctx<'_, B>) {
    let full = ctx.options.full;
    for case in AXES.cover(&mut ctx.rng(), full, LIMIT, |_| true) {
        for_each_format!(case.hidden, format => {
            if B::supports_quant(&format.format()) {
                ctx.case(format!("{format:?} {case:?}"), |ctx, rng| match case.dtype {
                    DType::F32 => check::<B, f32, _>(ctx, &case, format, rng),
                    DType::F16 => check::<B, f16, _>(ctx, &case, format, rng),
                    _ => check::<B, bf16, _>(ctx, &case, format, rng),
                });
            }
        });
    }
}

fn check<B: QuantBackend, T: Float + Widen, Q: Quantization>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    format: Q,
    rng: &mut Rng,
) -> Checked {
    let (plan, want_plan, _inputs) = route::build(ctx, case, rng)?;
    let data: Vec<T> = rows(rng, case.tokens * case.hidden, case.hidden, case.wild, ctx.exact());
    let x = Guarded::matrix(&mut ctx.queue, &data, case.hidden, Place::random(rng, case.offset, case.gap))?;
    let mut out = Out::<B, Q>::new(&mut ctx.queue, rng, format, plan.num_rows(), case.hidden, case.gap / 2)?;
    let (values, scales) = out.views()?;
    plan.gather_quant(x.rows()?, format).run_into(&mut ctx.queue, values, scales)?;
    let (mut values, mut scales) = out.before();
    let shape = out.shape;
    naive::gather_quant(&want_plan, &widen(&data), case.hidden, format.format(), &shape, &mut values, &mut scales);
    out.check(ctx, &values, &scales, Slack { scale: 3e-7 })?;
    same("rows", &x.read(&mut ctx.queue, "rows")?, &data, case.hidden)
}

/// `permute_with_scales` gives the plan, the rows and the scales of a build and two gathers.
pub(super) fn permute_with_scales_equals_two_gathers<B: QuantBackend>(ctx: &mut Ctx<'_, B>) {
    let dtype = &[DType::F8E4M3];
    let axes = Axes { dtype, block: &[None, Some(128), Some(32)], hidden: &[1, 64, 384, 1025], ..Axes::ROWS };
    for case in axes.cover(&mut ctx.rng(), false, LIMIT, |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| {
            let spec = case.spec();
            let (ids, map, valid) = contents(&case, rng);
            let place = Place::random(rng, case.offset, 0);
            let inputs = Inputs::new(&mut ctx.queue, case.ids, &ids, map.as_deref(), valid, place)?;
            let mut workspace = ctx.workspace(case.tokens, case.top_k, case.experts)?;
            let groups = case.block.map_or(1, |block| case.hidden.div_ceil(block));
            let data: Vec<F8E4M3> = values(rng, case.tokens * case.hidden, case.wild);
            let data_scales: Vec<f32> = values(rng, case.tokens * groups, case.wild);
            let place = Place::random(rng, case.offset, case.gap);
            let rows = Guarded::matrix(&mut ctx.queue, &data, case.hidden, place)?;
            let scales = Guarded::matrix(&mut ctx.queue, &data_scales, groups, place)?;
            let mut plan = RoutePlan::alloc(&mut ctx.queue, spec)?;
            let mut out = Guarded::poisoned(&mut ctx.queue, plan.num_rows(), case.hidden, place)?;
            let mut out_scales = Guarded::poisoned(&mut ctx.queue, plan.num_rows(), groups, place)?;
            plan.permute_with_scales(
                &mut ctx.queue,
                &mut workspace,
                spec,
                inputs.routing()?,
                rows.rows()?,
                out.rows_mut()?,
                scales.rows()?,
                out_scales.rows_mut()?,
            )?;
            let mut want_plan = plain::plan(plan.shape(), &ids, map.as_deref(), valid);
            want_plan.m_indices.clear();
            want_plan.logical_load.clear();
            same_plan(&route::download(&mut ctx.queue, &plan)?, &want_plan)?;
            let mut want = vec![out.poison(); plan.num_rows() * case.hidden];
            plain::gather(&want_plan, &data, case.hidden, &mut want);
            same("out", &out.read(&mut ctx.queue, "out")?, &want, case.hidden)?;
            let mut want = vec![out_scales.poison(); plan.num_rows() * groups];
            plain::gather(&want_plan, &data_scales, groups, &mut want);
            same("scales_out", &out_scales.read(&mut ctx.queue, "scales_out")?, &want, groups)
        });
    }
}
