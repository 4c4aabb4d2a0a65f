//! Gather, with and without weights, and zeroing its tail.

use super::axes::{Axes, BOTH, Case, FLOATS};
use super::compare::{Slack, close, same};
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx};
use super::naive::{self, Widen};
use super::rng::Rng;
use super::route;
use super::values::{narrow, values, widen};
use crate::dtype::F4x2;
use crate::{DType, Element, Float, Gather, PermuteBackend, Queue, Result};
use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

/// Weights on the device, of a type known at run time.
pub(super) enum Weights<B: PermuteBackend> {
    F32(Guarded<B, f32>),
    F16(Guarded<B, f16>),
    Bf16(Guarded<B, bf16>),
}

impl<B: PermuteBackend> Weights<B> {
    /// Uploads weights rounded to the type; gives back what they are then.
    pub(super) fn new(queue: &mut Queue<'_, B>, dtype: DType, w: &[f32], place: Place) -> Result<(Self, Vec<f32>)> {
        Ok(match dtype {
            DType::F16 => {
                let w = narrow::<f16>(w);
                (Self::F16(Guarded::vector(queue, &w, place)?), widen(&w))
            }
            DType::BF16 => {
                let w = narrow::<bf16>(w);
                (Self::Bf16(Guarded::vector(queue, &w, place)?), widen(&w))
            }
            _ => (Self::F32(Guarded::vector(queue, w, place)?), w.to_vec()),
        })
    }
}

macro_rules! with_weights {
    ($op:expr, $weights:expr) => {
        with_weights!($op, weights, $weights)
    };
    ($op:expr, $name:ident, $weights:expr) => {
        match $weights {
            None => $op,
            Some(Weights::F32(w)) => $op.$name(w.view()?),
            Some(Weights::F16(w)) => $op.$name(w.view()?),
            Some(Weights::Bf16(w)) => $op.$name(w.view()?),
        }
    };
}
pub(super) use with_weights;

/// Unweighted, every dtype.
pub(super) fn gather_copies_bits<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let dtype = &[
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::F4x2,
        DType::U8,
        DType::I32,
        DType::U32,
        DType::I64,
    ];
    run(ctx, Axes { dtype, dirty: BOTH, ..Axes::ROWS });
}

/// Weighted, every dtype that takes weights.
pub(super) fn gather_with_weights<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let weights = &[Some(DType::F32), Some(DType::F16), Some(DType::BF16)];
    run(ctx, Axes { dtype: FLOATS, weights, ..Axes::ROWS });
}

fn run<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, axes: Axes) {
    let (full, limit) = (ctx.options.full, ctx.options.element_limit());
    for case in axes.cover(&mut ctx.rng(), full, limit, |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| check_gather(ctx, &case, rng));
    }
}

/// Runs one case.
pub(super) fn check_gather<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    match (case.weights, case.dtype) {
        (Some(_), DType::F32) => weighted::<B, f32>(ctx, case, rng),
        (Some(_), DType::F16) => weighted::<B, f16>(ctx, case, rng),
        (Some(_), _) => weighted::<B, bf16>(ctx, case, rng),
        (None, DType::F32) => copied::<B, f32>(ctx, case, rng),
        (None, DType::F16) => copied::<B, f16>(ctx, case, rng),
        (None, DType::BF16) => copied::<B, bf16>(ctx, case, rng),
        (None, DType::F8E4M3) => copied::<B, F8E4M3>(ctx, case, rng),
        (None, DType::F8E5M2) => copied::<B, F8E5M2>(ctx, case, rng),
        (None, DType::F4x2) => copied::<B, F4x2>(ctx, case, rng),
        (None, DType::I32) => copied::<B, i32>(ctx, case, rng),
        (None, DType::U32) => copied::<B, u32>(ctx, case, rng),
        (None, DType::I64) => copied::<B, i64>(ctx, case, rng),
        (None, DType::U8) => copied::<B, u8>(ctx, case, rng),
    }
}

fn copied<B: PermuteBackend, T: Element>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let (plan, want_plan, _inputs) = route::build(ctx, case, rng)?;
    let data: Vec<T> = values(rng, case.tokens * case.hidden, case.wild);
    let rows = Guarded::matrix(&mut ctx.queue, &data, case.hidden, Place::random(rng, case.offset, case.gap))?;
    // The output lies differently: its offset and gap are not those of the input.
    let place = Place::random(rng, (case.offset + 1) % 4, case.gap / 2);
    let mut out = Guarded::poisoned(&mut ctx.queue, plan.num_rows(), case.hidden, place)?;
    plan.gather(rows.rows()?).run_into(&mut ctx.queue, out.rows_mut()?)?;
    let mut want = vec![out.poison(); plan.num_rows() * case.hidden];
    naive::gather(&want_plan, &data, case.hidden, &mut want);
    same("out", &out.read(&mut ctx.queue, "out")?, &want, case.hidden)?;
    same("rows", &rows.read(&mut ctx.queue, "rows")?, &data, case.hidden)
}

fn weighted<B: PermuteBackend, T: Float + Widen>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let (plan, want_plan, _inputs) = route::build(ctx, case, rng)?;
    let data: Vec<T> = values(rng, case.tokens * case.hidden, case.wild);
    let rows = Guarded::matrix(&mut ctx.queue, &data, case.hidden, Place::random(rng, case.offset, case.gap))?;
    let w: Vec<f32> = values(rng, case.tokens * case.top_k, case.wild);
    let dtype = case.weights.unwrap_or(DType::F32);
    let (weights, w) = Weights::new(&mut ctx.queue, dtype, &w, Place::random(rng, case.offset, 0))?;
    let place = Place::random(rng, (case.offset + 1) % 4, case.gap / 2);
    let mut out = Guarded::poisoned(&mut ctx.queue, plan.num_rows(), case.hidden, place)?;
    let op: Gather<'_, B, T> = plan.gather(rows.rows()?);
    with_weights!(op, Some(&weights)).run_into(&mut ctx.queue, out.rows_mut()?)?;
    let got = out.read(&mut ctx.queue, "out")?;
    let mut want = vec![out.poison(); plan.num_rows() * case.hidden];
    naive::gather_weighted(&want_plan, &data, &w, case.hidden, &mut want);
    if ctx.exact() {
        return same("out", &got, &want, case.hidden);
    }
    let used = want_plan.used() * case.hidden;
    same("out, past the last offset", &got[used..], &want[used..], case.hidden)?;
    close("out", &got[..used], &want[..used], case.hidden, |i| {
        let mut slack = Slack::default();
        let x = want_plan.source[i / case.hidden];
        if x >= 0 {
            slack.add(w[x as usize], data[x as usize / case.top_k * case.hidden + i % case.hidden]);
        }
        slack
    })
}

/// `zero_tail` writes zeros from the last offset on, and nothing else.
pub(super) fn zero_tail_touches_the_tail_alone<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let dtype = &[DType::BF16];
    let axes = Axes { dtype, hidden: &[1, 7, 64, 1025], ..Axes::ROWS };
    for case in axes.cover(&mut ctx.rng(), false, ctx.options.element_limit(), |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| {
            let (plan, want_plan, _inputs) = route::build(ctx, &case, rng)?;
            let place = Place::random(rng, case.offset, case.gap);
            let mut rows = Guarded::<B, bf16>::poisoned(&mut ctx.queue, plan.num_rows(), case.hidden, place)?;
            plan.zero_tail(&mut ctx.queue, rows.rows_mut()?)?;
            let mut want = vec![rows.poison(); plan.num_rows() * case.hidden];
            want[want_plan.used() * case.hidden..].fill(bf16::ZERO);
            same("rows", &rows.read(&mut ctx.queue, "rows")?, &want, case.hidden)
        });
    }
}
