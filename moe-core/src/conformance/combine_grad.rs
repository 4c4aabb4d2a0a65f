//! The gradients of combine.

use super::axes::{Axes, Case, Dist, FLOATS, Map, WEIGHTS};
use super::combine::expert_rows;
use super::compare::{Slack, close, same};
use super::gather::{Weights, with_weights};
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx, ensure};
use super::naive::{self, Plan, Widen};
use super::rng::Rng;
use super::route;
use super::values::values;
use crate::{DType, Float, Layout, PermuteBackend};
use half::{bf16, f16};

/// Both outputs, together and each alone, for all types of rows, weights and gradients of weights.
pub(super) fn combine_grad_both_outputs<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let axes = Axes { dtype: FLOATS, weights: WEIGHTS, out: FLOATS, ..Axes::ROWS };
    let (full, limit) = (ctx.options.full, ctx.options.element_limit());
    for case in axes.cover(&mut ctx.rng(), full, limit, |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| check_grad(ctx, &case, rng));
    }
}

/// Runs one case.
pub(super) fn check_grad<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    match (case.dtype, case.out) {
        (DType::F32, DType::F32) => typed::<B, f32, f32>(ctx, case, rng),
        (DType::F32, DType::F16) => typed::<B, f32, f16>(ctx, case, rng),
        (DType::F32, _) => typed::<B, f32, bf16>(ctx, case, rng),
        (DType::F16, DType::F32) => typed::<B, f16, f32>(ctx, case, rng),
        (DType::F16, DType::F16) => typed::<B, f16, f16>(ctx, case, rng),
        (DType::F16, _) => typed::<B, f16, bf16>(ctx, case, rng),
        (_, DType::F32) => typed::<B, bf16, f32>(ctx, case, rng),
        (_, DType::F16) => typed::<B, bf16, f16>(ctx, case, rng),
        _ => typed::<B, bf16, bf16>(ctx, case, rng),
    }
}

/// The inputs of a case and what came out.
struct Grads<T, W> {
    plan: Plan,
    rows: Vec<T>,
    grad_out: Vec<T>,
    weights: Vec<f32>,
    grad_rows: Option<Vec<T>>,
    poison: T,
    grad_weights: Option<Vec<W>>,
}

fn compute<B: PermuteBackend, T: Float + Widen, W: Float + Widen>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    rng: &mut Rng,
    outputs: usize,
) -> Checked<Grads<T, W>> {
    let (plan, want_plan, _inputs) = route::build(ctx, case, rng)?;
    let hidden = case.hidden;
    let grad_out: Vec<T> = values(rng, case.tokens * hidden, case.wild);
    let dx = Guarded::matrix(&mut ctx.queue, &grad_out, hidden, Place::random(rng, case.offset, case.gap))?;
    let data: Vec<T> = expert_rows(&want_plan, hidden, case.wild, rng);
    let rows = Guarded::matrix(&mut ctx.queue, &data, hidden, Place::random(rng, (case.offset + 2) % 5, case.gap))?;
    let mut w: Vec<f32> = values(rng, case.tokens * case.top_k, case.wild);
    w.iter_mut().zip(&want_plan.slot).filter(|(_, s)| **s < 0).for_each(|(w, _)| *w = f32::NAN);
    let weights = match case.weights {
        None => None,
        Some(dtype) => Some(Weights::new(&mut ctx.queue, dtype, &w, Place::random(rng, case.offset, 0))?),
    };
    let place = Place::random(rng, (case.offset + 1) % 4, case.gap / 2);
    let mut grad_rows = Guarded::<B, T>::poisoned(&mut ctx.queue, plan.num_rows(), hidden, place)?;
    let place = Place::random(rng, (case.offset + 1) % 4, 0);
    let mut grad_weights = Guarded::<B, W>::poisoned(&mut ctx.queue, 1, case.tokens * case.top_k, place)?;

    let mut op = with_weights!(plan.combine_grad(dx.rows()?), weights.as_ref().map(|(w, _)| w));
    if outputs & 2 != 0 {
        op = op.rows(rows.rows()?);
    }
    let want_rows = if outputs & 1 != 0 { Some(grad_rows.rows_mut()?) } else { None };
    let want_weights = if outputs & 2 != 0 { Some(grad_weights.view_mut()?) } else { None };
    op.run_into::<W>(&mut ctx.queue, want_rows, want_weights)?;

    let poison = grad_rows.poison();
    let got_rows = grad_rows.read(&mut ctx.queue, "grad_rows")?;
    let got_weights = grad_weights.read(&mut ctx.queue, "grad_weights")?;
    Ok(Grads {
        plan: want_plan,
        rows: data,
        grad_out,
        weights: weights.map_or_else(|| vec![1.0; w.len()], |(_, w)| w),
        grad_rows: (outputs & 1 != 0).then_some(got_rows),
        poison,
        grad_weights: (outputs & 2 != 0).then_some(got_weights),
    })
}

fn typed<B: PermuteBackend, T: Float + Widen, W: Float + Widen>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    rng: &mut Rng,
) -> Checked {
    let outputs = [3, 3, 1, 2][rng.below(4)];
    let (hidden, top_k) = (case.hidden, case.top_k);
    let g = compute::<B, T, W>(ctx, case, rng, outputs)?;
    if let Some(got) = &g.grad_rows {
        let mut want = vec![g.poison; got.len()];
        match case.weights {
            None => naive::gather(&g.plan, &g.grad_out, hidden, &mut want),
            Some(_) => naive::gather_weighted(&g.plan, &g.grad_out, &g.weights, hidden, &mut want),
        }
        if ctx.exact() || case.weights.is_none() {
            same("grad_rows", got, &want, hidden)?;
        } else {
            let used = g.plan.used() * hidden;
            same("grad_rows past the last offset", &got[used..], &want[used..], hidden)?;
            close("grad_rows", &got[..used], &want[..used], hidden, |i| {
                let mut slack = Slack::default();
                if let Ok(x) = usize::try_from(g.plan.source[i / hidden]) {
                    slack.add(g.weights[x], g.grad_out[x / top_k * hidden + i % hidden]);
                }
                slack
            })?;
        }
    }
    if let Some(got) = &g.grad_weights {
        let want: Vec<W> =
            naive::grad_weights(&g.plan, &g.rows, &g.grad_out, hidden).into_iter().map(naive::round).collect();
        if ctx.exact() {
            same("grad_weights", got, &want, top_k)?;
        } else {
            close("grad_weights", got, &want, top_k, |x| {
                let mut slack = Slack::default();
                if let Ok(row) = usize::try_from(g.plan.slot[x]) {
                    (0..hidden).for_each(|h| slack.add(g.rows[row * hidden + h], g.grad_out[x / top_k * hidden + h]));
                }
                slack.terms = hidden.div_ceil(1024) + 10; // the longest chain of additions
                slack
            })?;
        }
    }
    Ok(())
}

/// bf16 and f16 gradients are those of float64, rounded: no other error than the last rounding and f32's sum.
pub(super) fn bug_24_gradients_against_float64<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for top_k in 1..=8 {
        for dtype in [DType::BF16, DType::F16] {
            for layout in [Layout::Packed, Layout::Aligned(16)] {
                let case = Case {
                    tokens: 37,
                    top_k,
                    experts: 16,
                    hidden: 192,
                    layout,
                    dist: Dist::Mixed,
                    map: Map::Absent,
                    dtype,
                    weights: Some(DType::F32),
                    ..Case::PLAIN
                };
                ctx.case(format!("{case:?}"), |ctx, rng| match dtype {
                    DType::BF16 => against_float64::<B, bf16>(ctx, &case, rng, 2f64.powi(-8)),
                    _ => against_float64::<B, f16>(ctx, &case, rng, 2f64.powi(-11)),
                });
            }
        }
    }
}

fn against_float64<B: PermuteBackend, T: Float + Widen>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    rng: &mut Rng,
    half_ulp: f64,
) -> Checked {
    let (hidden, top_k) = (case.hidden, case.top_k);
    let g = compute::<B, T, f32>(ctx, case, rng, 3)?;
    let (rows, weights) = (g.grad_rows.unwrap_or_default(), g.grad_weights.unwrap_or_default());
    for (x, slot) in g.plan.slot.iter().enumerate() {
        let (mut dot, mut size) = (0f64, 0f64);
        if let Ok(row) = usize::try_from(*slot) {
            for h in 0..hidden {
                let dx = f64::from(g.grad_out[x / top_k * hidden + h].widen());
                let want = f64::from(g.weights[x]) * dx;
                let got = f64::from(rows[row * hidden + h].widen());
                let bound = want.abs() * half_ulp * 1.001 + 2f64.powi(-24);
                ensure((got - want).abs() <= bound, || {
                    format!("grad_rows[{row}, {h}] is {got}, float64 gives {want}")
                })?;
                let term = f64::from(g.rows[row * hidden + h].widen()) * dx;
                (dot, size) = (dot + term, size + term.abs());
            }
        }
        let got = f64::from(weights[x]);
        let ok = (got - dot).abs() <= size * 16.0 * 2f64.powi(-24);
        ensure(ok, || format!("grad_weights[{}, {}] is {got}, float64 gives {dot}", x / top_k, x % top_k))?;
    }
    Ok(())
}
