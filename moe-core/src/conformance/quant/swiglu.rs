//! The activation, as it is and quantised.

use super::super::axes::{Axes, Case, FLOATS};
use super::super::compare::same;
use super::super::guarded::{Guarded, Place};
use super::super::harness::{Checked, Ctx, Fail};
use super::super::naive::{Plan, Widen, round};
use super::super::rng::Rng;
use super::super::route;
use super::super::values::{values, widen};
use super::naive::Quantiser;
use super::{AXES, LIMIT, Out, Slack, for_each_format, naive, rows};
use crate::quant::Quantization;
use crate::{DType, Float, QuantBackend, RoutePlan, Rows, Swiglu};
use half::{bf16, f16};

/// Every float to every float, from one matrix and from two.
pub(super) fn swiglu_floats<B: QuantBackend>(ctx: &mut Ctx<'_, B>) {
    let axes = Axes { out: FLOATS, ..AXES };
    let full = ctx.options.full;
    for case in axes.cover(&mut ctx.rng(), full, LIMIT, |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| match case.dtype {
            DType::F32 => to::<B, f32>(ctx, &case, rng),
            DType::F16 => to::<B, f16>(ctx, &case, rng),
            _ => to::<B, bf16>(ctx, &case, rng),
        });
    }
}

fn to<B: QuantBackend, T: Float + Widen>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    match case.out {
        DType::F32 => check::<B, T, f32>(ctx, case, rng),
        DType::F16 => check::<B, T, f16>(ctx, case, rng),
        _ => check::<B, T, bf16>(ctx, case, rng),
    }
}

/// Gate and up in one matrix or in two, and what they hold.
struct Input<B: QuantBackend, T: Float> {
    matrices: Vec<Guarded<B, T>>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl<B: QuantBackend, T: Float + Widen> Input<B, T> {
    fn new(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng, num_rows: usize) -> Checked<Self> {
        let (cols, fused) = (case.hidden, rng.below(2) == 0);
        let wild = case.wild && ctx.exact();
        let gate: Vec<T> = values(rng, num_rows * cols, wild);
        // The gate is where the exponential is; now and then it is large.
        let gate: Vec<T> = gate.into_iter().map(|x| T::from_f32(x.to_f32() * [1.0, 30.0][rng.below(2)])).collect();
        let up: Vec<T> = rows(rng, num_rows * cols, cols, wild, false);
        let place = Place::random(rng, case.offset, case.gap);
        let matrices = if fused {
            let both = gate.chunks_exact(cols).zip(up.chunks_exact(cols)).flat_map(|(gate, up)| [gate, up].concat());
            vec![Guarded::matrix(&mut ctx.queue, &both.collect::<Vec<_>>(), 2 * cols, place)?]
        } else {
            let other = Place::random(rng, (case.offset + 2) % 5, case.gap / 2);
            vec![
                Guarded::matrix(&mut ctx.queue, &gate, cols, place)?,
                Guarded::matrix(&mut ctx.queue, &up, cols, other)?,
            ]
        };
        Ok(Self { matrices, gate: widen(&gate), up: widen(&up) })
    }

    fn op<'a>(&'a self, plan: &'a RoutePlan<B>) -> Checked<Swiglu<'a, B, T>> {
        let rows = |i: usize| -> Checked<Rows<'a, B, T>> { Ok(self.matrices[i].rows()?) };
        Ok(if self.matrices.len() == 1 { plan.swiglu(rows(0)?)? } else { plan.swiglu_of(rows(0)?, rows(1)?) })
    }

    /// `silu(gate) * up` of the rows in use.
    fn want(&self, plan: &Plan, cols: usize) -> Vec<f32> {
        let used = plan.used() * cols;
        self.gate[..used].iter().zip(&self.up[..used]).map(|(gate, up)| naive::swiglu(*gate, *up)).collect()
    }
}

fn check<B: QuantBackend, T: Float + Widen, O: Float + Widen>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    rng: &mut Rng,
) -> Checked {
    let (plan, want_plan, _inputs) = route::build(ctx, case, rng)?;
    let input = Input::<B, T>::new(ctx, case, rng, plan.num_rows())?;
    let place = Place::random(rng, (case.offset + 1) % 4, case.gap / 2);
    let mut out = Guarded::<B, O>::poisoned(&mut ctx.queue, plan.num_rows(), case.hidden, place)?;
    input.op(&plan)?.run_into(&mut ctx.queue, out.rows_mut()?)?;
    let got = out.read(&mut ctx.queue, "out")?;
    let exact = input.want(&want_plan, case.hidden);
    let mut want = vec![out.poison(); plan.num_rows() * case.hidden];
    want.iter_mut().zip(&exact).for_each(|(want, y)| *want = round(*y));
    if ctx.exact() {
        return same("out", &got, &want, case.hidden);
    }
    same("out, past the last offset", &got[exact.len()..], &want[exact.len()..], case.hidden)?;
    for (i, (got, want)) in got.iter().zip(&exact).enumerate() {
        let ulp = match O::DTYPE {
            DType::F32 => 2f32.powi(-22),
            DType::F16 => 2f32.powi(-10),
            _ => 2f32.powi(-7),
        };
        // An exponential within a few ulp, and subnormal results that may be flushed.
        let bound = want.abs() * (ulp + 2f32.powi(-18)) + 6.2e-5;
        if (got.widen() - want).abs() > bound && got.widen() != round::<O>(*want).widen() {
            let (row, col) = (i / case.hidden, i % case.hidden);
            return Err(Fail(format!("out[{row}, {col}] is {got:?}, expected {want} within {bound}")));
        }
    }
    Ok(())
}

/// Every format, after rounding to every float.
pub(super) fn swiglu_quant_formats<B: QuantBackend>(ctx: &mut Ctx<'_, B>) {
    let axes = Axes { out: FLOATS, ..AXES };
    let full = ctx.options.full;
    for case in axes.cover(&mut ctx.rng(), full, LIMIT, |_| true) {
        for_each_format!(case.hidden, format => {
            if B::supports_quant(&format.format()) {
                ctx.case(format!("{format:?} {case:?}"), |ctx, rng| match case.dtype {
                    DType::F32 => check_quant::<B, f32, _>(ctx, &case, format, rng),
                    DType::F16 => check_quant::<B, f16, _>(ctx, &case, format, rng),
                    _ => check_quant::<B, bf16, _>(ctx, &case, format, rng),
                });
            }
        });
    }
}

fn check_quant<B: QuantBackend, T: Float + Widen, Q: Quantization>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    format: Q,
    rng: &mut Rng,
) -> Checked {
    let (plan, want_plan, _inputs) = route::build(ctx, case, rng)?;
    let input = Input::<B, T>::new(ctx, case, rng, plan.num_rows())?;
    let mut out = Out::<B, Q>::new(&mut ctx.queue, rng, format, plan.num_rows(), case.hidden, case.gap / 2)?;
    let (values, scales) = out.views()?;
    let op = input.op(&plan)?.quantized(format);
    match case.out {
        DType::F32 => op.round_to::<f32>().run_into(&mut ctx.queue, values, scales)?,
        DType::F16 => op.round_to::<f16>().run_into(&mut ctx.queue, values, scales)?,
        _ => op.run_into(&mut ctx.queue, values, scales)?, // bf16 is the default
    }
    let (mut values, mut scales) = out.before();
    let quantiser = Quantiser::new(format.format());
    let y: Vec<f32> = input.want(&want_plan, case.hidden);
    let y: Vec<f32> = y.into_iter().map(|y| naive::rounded(y, case.out)).collect();
    for (at, row) in y.chunks_exact(case.hidden).enumerate() {
        quantiser.put(&quantiser.row(row), at, &out.shape, &mut values, &mut scales);
    }
    out.check(ctx, &values, &scales, Slack { scale: 2f32.powi(-7) })
}
