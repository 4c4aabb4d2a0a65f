//! Combine: floats, 8-bit floats with and without scales, residuals.

use super::axes::{Axes, Case, FLOATS, Residual, WEIGHTS};
use super::compare::{Slack, close, same};
use super::gather::{Weights, with_weights};
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx};
use super::naive::{self, Plan, Widen};
use super::rng::Rng;
use super::route;
use super::values::values;
use crate::{CombineInput, DType, Float, PermuteBackend};
use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

/// f32, f16 and bf16 rows, into their own type and f32.
pub(super) fn combine_floats<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    run(
        ctx,
        Axes {
            dtype: FLOATS,
            weights: WEIGHTS,
            out: FLOATS,
            residual: &[Residual::Absent, Residual::Plain],
            ..Axes::ROWS
        },
    );
}

/// 8-bit float rows, into every float, with scales per row, per block of 128 and of an odd size, and without.
pub(super) fn combine_8_bit_floats<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    run(
        ctx,
        Axes {
            dtype: &[DType::F8E4M3, DType::F8E5M2],
            weights: WEIGHTS,
            out: FLOATS,
            residual: &[Residual::Absent, Residual::Plain],
            block: &[None, Some(128), Some(5), Some(1), Some(usize::MAX)],
            ..Axes::ROWS
        },
    );
}

/// Floats and 8-bit floats onto a residual that is multiplied first.
pub(super) fn combine_onto_scaled_residuals<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let dtype = &[DType::F32, DType::F16, DType::BF16, DType::F8E4M3];
    let (residual, block) = (&[Residual::Scaled], &[None, Some(128), Some(5)]);
    run(ctx, Axes { dtype, weights: WEIGHTS, out: FLOATS, residual, block, ..Axes::ROWS });
}

fn run<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, axes: Axes) {
    let fits = |c: &Case| {
        (c.dtype.is_f8() || c.block.is_none()) && (c.dtype.is_f8() || c.out == DType::F32 || c.out == c.dtype)
    };
    let (full, limit) = (ctx.options.full, ctx.options.element_limit());
    for case in axes.cover(&mut ctx.rng(), full, limit, fits) {
        ctx.case(format!("{case:?}"), |ctx, rng| check_combine(ctx, &case, rng));
    }
}

/// Runs one case.
pub(super) fn check_combine<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    match (case.dtype, case.out) {
        (DType::F32, _) => typed::<B, f32, f32>(ctx, case, rng),
        (DType::F16, DType::F32) => typed::<B, f16, f32>(ctx, case, rng),
        (DType::F16, _) => typed::<B, f16, f16>(ctx, case, rng),
        (DType::BF16, DType::F32) => typed::<B, bf16, f32>(ctx, case, rng),
        (DType::BF16, _) => typed::<B, bf16, bf16>(ctx, case, rng),
        (DType::F8E4M3, DType::F32) => typed::<B, F8E4M3, f32>(ctx, case, rng),
        (DType::F8E4M3, DType::F16) => typed::<B, F8E4M3, f16>(ctx, case, rng),
        (DType::F8E4M3, _) => typed::<B, F8E4M3, bf16>(ctx, case, rng),
        (_, DType::F32) => typed::<B, F8E5M2, f32>(ctx, case, rng),
        (_, DType::F16) => typed::<B, F8E5M2, f16>(ctx, case, rng),
        _ => typed::<B, F8E5M2, bf16>(ctx, case, rng),
    }
}

/// Rows `[R, H]` whose padding and tail hold NaN: no primitive may read them.
pub(super) fn expert_rows<T: Widen>(plan: &Plan, hidden: usize, wild: bool, rng: &mut Rng) -> Vec<T> {
    let mut rows: Vec<T> = values(rng, plan.source.len() * hidden, wild);
    for (row, source) in rows.chunks_exact_mut(hidden).zip(&plan.source) {
        if *source < 0 {
            crate::dtype::as_bytes_mut(row).fill(0xff);
        }
    }
    rows
}

fn typed<B: PermuteBackend, T: CombineInput + Widen, O: Float + Widen>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    rng: &mut Rng,
) -> Checked {
    let (plan, want_plan, _inputs) = route::build(ctx, case, rng)?;
    let (hidden, top_k) = (case.hidden, case.top_k);
    let data: Vec<T> = expert_rows(&want_plan, hidden, case.wild, rng);
    let rows = Guarded::matrix(&mut ctx.queue, &data, hidden, Place::random(rng, case.offset, case.gap))?;
    // The weight of a route that is not placed must not be read: it is NaN.
    let mut w: Vec<f32> = values(rng, case.tokens * top_k, case.wild);
    w.iter_mut().zip(&want_plan.slot).filter(|(_, s)| **s < 0).for_each(|(w, _)| *w = f32::NAN);
    let weights = match case.weights {
        None => None,
        Some(dtype) => Some(Weights::new(&mut ctx.queue, dtype, &w, Place::random(rng, case.offset, 0))?),
    };
    let block = case.block.map(|block| block.min(hidden + 3)); // one for each row where it is more than H
    let scales = match block {
        None => None,
        Some(block) => {
            let cols = hidden.div_ceil(block);
            let data: Vec<f32> = expert_rows(&want_plan, cols, false, rng);
            let place = Place::random(rng, case.offset, case.gap);
            Some((Guarded::matrix(&mut ctx.queue, &data, cols, place)?, data, block))
        }
    };
    let scale = (case.residual == Residual::Scaled).then(|| [0.0, -0.5, 1.0 / 3.0, 3.0][rng.below(4)]);
    let residual = match case.residual {
        Residual::Absent => None,
        Residual::Plain | Residual::Scaled => {
            let data: Vec<O> = values(rng, case.tokens * hidden, case.wild);
            let place = Place::random(rng, (case.offset + 2) % 5, case.gap);
            Some((Guarded::matrix(&mut ctx.queue, &data, hidden, place)?, data))
        }
    };
    let place = Place::random(rng, (case.offset + 1) % 4, case.gap / 2);
    let mut out = Guarded::<B, O>::poisoned(&mut ctx.queue, case.tokens, hidden, place)?;

    let mut op = with_weights!(plan.combine(rows.rows()?), weights.as_ref().map(|(w, _)| w));
    if let Some((scales, _, block)) = &scales {
        op = op.scales(scales.rows()?, *block);
    }
    if let Some((residual, _)) = &residual {
        op = op.residual(residual.rows()?);
        if let Some(scale) = scale {
            op = op.residual_scale(scale);
        }
    }
    op.run_into(&mut ctx.queue, out.rows_mut()?)?;

    let got = out.read(&mut ctx.queue, "out")?;
    let w = weights.as_ref().map(|(_, w)| w.as_slice());
    let s = scales.as_ref().map(|(_, data, block)| (data.as_slice(), *block));
    let x0 = residual.as_ref().map(|(_, data)| (data.as_slice(), scale.unwrap_or(1.0)));
    let want = naive::combine(&want_plan, &data, w, s, x0, hidden);
    if ctx.exact() {
        return same("out", &got, &want, hidden);
    }
    close("out", &got, &want, hidden, |i| {
        let (t, h) = (i / hidden, i % hidden);
        let mut slack = Slack { terms: 1, ..Slack::default() };
        if let Some((x0, scale)) = x0 {
            slack.add(scale, x0[i]);
        }
        for x in t * top_k..(t + 1) * top_k {
            if let Ok(row) = usize::try_from(want_plan.slot[x]) {
                let scale = s.map_or(1.0, |(s, block)| s[row * hidden.div_ceil(block) + h / block]);
                slack.add(w.map_or(1.0, |w| w[x]) * scale, data[row * hidden + h]);
            }
        }
        slack
    })
}
