//! Ids, weights and probabilities.

use super::super::compare::same;
use super::super::guarded::{Guarded, Place};
use super::super::harness::{Checked, Ctx, Fail, ensure};
use super::super::naive::{Widen, round};
use super::super::rng::Rng;
use super::super::values::widen;
use super::cases::{Case, Logits, cover, with_floats};
use super::naive;
use crate::{DType, Float, Router, RouterBackend, Scoring};
use half::{bf16, f16};
use std::collections::HashSet;

/// All scorings, groups, biases, types and sizes.
pub(super) fn ids_and_weights<B: RouterBackend>(ctx: &mut Ctx<'_, B>) {
    let full = ctx.options.full;
    for case in cover(&mut ctx.rng(), full) {
        ctx.case(format!("{case:?}"), |ctx, rng| with_floats!(case.dtype, case.weights, check::<B>(ctx, &case, rng)));
    }
}

/// Bugs of other libraries: NaN logits gave ids out of range. The weights are defined, too: they add up to 1.
pub(super) fn bug_06_nan_and_infinite_logits_give_ids_in_range<B: RouterBackend>(ctx: &mut Ctx<'_, B>) {
    broken(ctx, |ids, weights, experts| {
        let found = ids.iter().find(|id| !(0..experts as i32).contains(*id));
        ensure(found.is_none(), || format!("{ids:?} are not all below {experts}"))?;
        let sum: f32 = weights.iter().sum();
        ensure((sum - 1.0).abs() < 1e-5, || format!("weights {weights:?} add up to {sum}"))
    });
}

/// Bugs of other libraries: NaN logits gave the same id twice.
pub(super) fn bug_07_nan_and_infinite_logits_give_distinct_ids<B: RouterBackend>(ctx: &mut Ctx<'_, B>) {
    broken(ctx, |ids, _, _| {
        let distinct: HashSet<i32> = ids.iter().copied().collect();
        ensure(distinct.len() == ids.len(), || format!("{ids:?} are not distinct"))
    });
}

fn broken<B: RouterBackend>(ctx: &mut Ctx<'_, B>, holds: fn(&[i32], &[f32], usize) -> Checked) {
    for scoring in [Scoring::Softmax, Scoring::SoftmaxOfTopK, Scoring::Sigmoid] {
        for (experts, groups, top_k) in [(4, None, 4), (64, Some((8, 3)), 8), (256, None, 8), (1040, Some((8, 4)), 40)]
        {
            for bias in [false, true] {
                let plain = Case::plain(24, experts, top_k);
                let case = Case { scoring, groups, bias, renormalize: true, logits: Logits::Broken, ..plain };
                ctx.case(format!("{case:?}"), |ctx, rng| {
                    let logits: Vec<f32> = case.logits(rng);
                    let logits = ctx.queue.upload(&logits)?;
                    let bias = case.bias(rng).map(|bias| ctx.queue.upload(&bias)).transpose()?;
                    let router = case.router();
                    let mut op = router.route(logits.rows(experts)?);
                    if let Some(bias) = &bias {
                        op = op.correction_bias(bias.view());
                    }
                    let (ids, weights) = op.run::<f32>(&mut ctx.queue)?;
                    let (ids, weights) = (ctx.queue.download(ids.view())?, ctx.queue.download(weights.view())?);
                    let mut tokens = ids.chunks(top_k).zip(weights.chunks(top_k));
                    tokens.try_for_each(|(ids, weights)| holds(ids, weights, experts))
                });
            }
        }
    }
}

/// Equal logits in every place.
pub(super) fn ties_go_to_the_lower_id<B: RouterBackend>(ctx: &mut Ctx<'_, B>) {
    for experts in [6, 70, 256, 600] {
        ctx.case(format!("{experts} experts"), |ctx, _| {
            let x: Vec<f32> = (0..experts).map(|e| [1.0, 3.0, 3.0, -0.0, 0.0, 3.0][e % 6]).collect();
            let logits = ctx.queue.upload(&x)?;
            let top_k = experts * 5 / 6;
            let (ids, _) = Router::new(experts, top_k).route(logits.rows(experts)?).run::<f32>(&mut ctx.queue)?;
            let ids = ctx.queue.download(ids.view())?;
            for pair in ids.windows(2) {
                let (a, b) = (x[pair[0] as usize], x[pair[1] as usize]);
                ensure(a > b || (a == b && pair[0] < pair[1]), || format!("{pair:?} with logits {a} and {b}"))?;
            }
            Ok(())
        });
    }
}

/// A batch without tokens.
pub(super) fn no_tokens_to_route<B: RouterBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("T = 0", |ctx, _| {
        let router = Router::new(8, 2);
        let (logits, load) = (ctx.queue.zeros::<f32>(0)?, ctx.queue.zeros::<i32>(8)?);
        let (ids, weights) = router.route(logits.rows(8)?).run::<f32>(&mut ctx.queue)?;
        ensure(ids.is_empty() && weights.is_empty(), || "ids of no tokens".into())?;
        let losses = router.losses(logits.rows(8)?).balance(load.view(), 1.0).z(1.0).run(&mut ctx.queue)?;
        let losses = ctx.queue.download(losses.view())?;
        ensure(losses == [0.0, 0.0], || format!("losses {losses:?} of no tokens"))?;
        let grad = router.grad(logits.rows(8)?).z(1.0).run(&mut ctx.queue)?;
        ensure(grad.is_empty(), || "a gradient of no tokens".into())
    });
}

fn check<B: RouterBackend, T: Float + Widen, W: Float + Widen>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    rng: &mut Rng,
) -> Checked {
    let Case { tokens, experts, top_k, .. } = *case;
    let data: Vec<T> = case.logits(rng);
    let bias = case.bias(rng);
    let (told, valid) = case.valid(rng);
    let queue = &mut ctx.queue;
    let logits = Guarded::matrix(queue, &data, experts, case.place(rng))?;
    let bias_view = bias.as_ref().map(|b| Guarded::vector(queue, b, Place::random(rng, 3, 0))).transpose()?;
    let told = told.map(|n| queue.upload(&[n])).transpose()?;
    let mut ids = Guarded::<B, i32>::poisoned(queue, 1, tokens * top_k, Place::random(rng, case.offset, 0))?;
    let mut weights = Guarded::<B, W>::poisoned(queue, 1, tokens * top_k, Place::random(rng, case.offset, 0))?;
    let mut probs = Guarded::<B, f32>::poisoned(queue, tokens, experts, case.place(rng))?;

    let mut op = case.router().route(logits.rows()?);
    if let Some(bias) = &bias_view {
        op = op.correction_bias(bias.view()?);
    }
    if let Some(told) = &told {
        op = op.valid_tokens(told.view());
    }
    if case.probs {
        op = op.probs(probs.rows_mut()?);
    }
    op.run_into(queue, ids.view_mut()?, weights.view_mut()?)?;
    let ids = ids.read(queue, "ids")?;
    let weights = weights.read(queue, "weights")?;
    let poison = probs.poison();
    let probs = probs.read(queue, "probs")?;

    let (x, shape, exact) = (widen(&data), case.shape(), ctx.exact());
    let (mut want_ids, mut want_weights, mut want_probs) = (Vec::new(), Vec::<W>::new(), Vec::new());
    for (t, x) in x.chunks(experts).enumerate() {
        if t >= valid {
            want_ids.extend(vec![-1; top_k]);
            want_weights.extend(vec![W::default(); top_k]);
            want_probs.extend(vec![0.0; experts]);
            continue;
        }
        let choice = naive::choose(&shape, x, bias.as_deref());
        let got = &ids[t * top_k..][..top_k];
        let taken = if exact { choice.ids.clone() } else { plausible(&shape, &choice, got)? };
        want_weights.extend(naive::weigh(&shape, x, &taken).into_iter().map(round::<W>));
        want_ids.extend(taken);
        want_probs.extend(naive::probs(case.scoring, x));
    }
    if !case.probs {
        want_probs = vec![poison; tokens * experts];
    }
    same("ids", &ids, &want_ids, top_k)?;
    if exact || !case.probs {
        same("probs", &probs, &want_probs, experts)?;
    }
    if exact {
        return same("weights", &weights, &want_weights, top_k);
    }
    near("weights", &weights, &widen(&want_weights), top_k, |_| 0.0)?;
    if case.probs { near("probs", &probs, &want_probs, experts, |_| 0.0) } else { Ok(()) }
}

/// The relative error that arithmetic without a fused multiply-add and flushed subnormals may make.
const RELATIVE: f64 = 2e-6;

/// `got` where it is a choice as good as the right one within the error of the keys, else the right one.
fn plausible(shape: &crate::raw::RouterShape, choice: &naive::Choice, got: &[i32]) -> Checked<Vec<i32>> {
    let key = |id: i32| usize::try_from(id).ok().and_then(|id| choice.keys.get(id)).copied();
    let close = |a: f32, b: f32| {
        a == b || (a.is_nan() && b.is_nan()) || f64::from((a - b).abs()) <= 4.0 * RELATIVE * (1.0 + f64::from(a.abs()))
    };
    let distinct = got.iter().collect::<HashSet<_>>().len() == got.len();
    let Some(keys) = got.iter().map(|id| key(*id)).collect::<Option<Vec<f32>>>() else {
        return Err(Fail(format!("ids {got:?} are not all experts")));
    };
    ensure(distinct, || format!("ids {got:?} are not distinct"))?;
    let edge =
        shape.groups.and_then(|g| Some((*choice.groups.get(g.topk_group - 1)?, *choice.groups.get(g.topk_group)?)));
    let same_keys = keys.iter().zip(&choice.ids).all(|(k, id)| key(*id).is_some_and(|want| close(*k, want)));
    // Where two groups are as good as each other, either may have been taken.
    let same_groups = edge.is_some_and(|(last, next)| close(last, next));
    Ok(if same_keys || same_groups { got.to_vec() } else { choice.ids.clone() })
}

/// Within `RELATIVE` of the value, of `scale`, and one unit in the last place of the type. Where the value is not a
/// number or at the end of the range, the other has to be so too.
pub(super) fn near<T: Widen>(
    what: &str,
    got: &[T],
    want: &[f32],
    cols: usize,
    scale: impl Fn(usize) -> f64,
) -> Checked {
    let (digits, smallest) = match T::DTYPE {
        DType::F16 => (10, 2f64.powi(-14)),
        DType::BF16 => (7, 2f64.powi(-126)),
        _ => (23, 2f64.powi(-126)),
    };
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let (g, w) = (f64::from(got.widen()), f64::from(*want));
        if g == w || g.is_nan() && w.is_nan() || w.abs() > 1e37 && (g.abs() > 1e37 || g.is_nan()) {
            continue;
        }
        let ulp = 2f64.powi(w.abs().max(smallest).log2().floor() as i32 - digits);
        let bound = ulp + RELATIVE * (w.abs() + scale(i)) + 4.0 * f64::from(f32::MIN_POSITIVE);
        if (g - w).abs() > bound || g.is_nan() {
            let (row, col) = (i / cols.max(1), i % cols.max(1));
            return Err(Fail(format!("{what}[{row}, {col}] is {g}, expected {w} within {bound:e}")));
        }
    }
    Ok(())
}
