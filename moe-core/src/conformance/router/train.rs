//! Losses and gradients, to the bit.

use super::super::compare::same;
use super::super::guarded::{Guarded, Place};
use super::super::harness::{Checked, Ctx, ensure};
use super::super::naive::{Widen, round};
use super::super::rng::Rng;
use super::super::values::{values, widen};
use super::cases::{Case, Logits, cover, with_floats};
use super::naive::{self, Losses};
use super::route::near;
use crate::{DType, Float, RouterBackend, Scoring};
use half::{bf16, f16};

const COEFFICIENTS: (f32, f32) = (0.01, 0.001);

/// Both losses, and each alone.
pub(super) fn router_losses<B: RouterBackend>(ctx: &mut Ctx<'_, B>) {
    let full = ctx.options.full;
    for case in cover(&mut ctx.rng(), full).into_iter().step_by(2) {
        ctx.case(format!("{case:?}"), |ctx, rng| match case.dtype {
            DType::F32 => losses::<B, f32>(ctx, &case, rng),
            DType::F16 => losses::<B, f16>(ctx, &case, rng),
            _ => losses::<B, bf16>(ctx, &case, rng),
        });
    }
    let case = Case { logits: Logits::Plain, ..Case::plain(2500, 8, 2) };
    ctx.case(format!("{case:?}"), |ctx, rng| losses::<B, f32>(ctx, &case, rng));
}

fn losses<B: RouterBackend, T: Float + Widen>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let Case { tokens, experts, .. } = *case;
    let data: Vec<T> = case.logits(rng);
    let load: Vec<i32> = (0..experts).map(|_| rng.below(1000) as i32).collect();
    let (told, valid) = case.valid(rng);
    let which = rng.below(4);
    let queue = &mut ctx.queue;
    let logits = Guarded::matrix(queue, &data, experts, case.place(rng))?;
    let load_view = Guarded::vector(queue, &load, Place::random(rng, case.offset, 0))?;
    let told = told.map(|n| queue.upload(&[n])).transpose()?;
    let mut terms = Guarded::<B, f32>::poisoned(queue, 1, tokens * 2, Place::random(rng, case.offset, 0))?;
    let mut out = Guarded::<B, f32>::poisoned(queue, 1, 2, Place::random(rng, case.offset, 0))?;

    let mut op = case.router().losses(logits.rows()?);
    if which != 1 {
        op = op.balance(load_view.view()?, COEFFICIENTS.0);
    }
    if which != 2 {
        op = op.z(COEFFICIENTS.1);
    }
    if let Some(told) = &told {
        op = op.valid_tokens(told.view());
    }
    op.run_into(queue, terms.view_mut()?, out.view_mut()?)?;
    let (terms, out) = (terms.read(queue, "token_losses")?, out.read(queue, "losses")?);

    let inputs = Losses {
        balance: (which != 1).then_some((&load[..], COEFFICIENTS.0)),
        z: (which != 2).then_some(COEFFICIENTS.1),
        grad: [1.0; 2],
    };
    let x = widen(&data);
    let (want_terms, want) = naive::losses(&case.shape(), &x, valid, &inputs);
    if ctx.exact() {
        same("token_losses", &terms, &want_terms, 2)?;
        return same("losses", &out, &want, 2);
    }
    // A logarithm that is near 0 has an absolute error, and its square twice that times it.
    near("token_losses", &terms, &want_terms, 2, |i| 1.0 + f64::from(want_terms[i]).abs() * 4.0)?;
    near("losses", &out, &want, 2, |i| f64::from(want[i]).abs() * 8.0 + 1e-3)
}

/// Everything that has a gradient, together and apart.
pub(super) fn router_gradients<B: RouterBackend>(ctx: &mut Ctx<'_, B>) {
    let full = ctx.options.full;
    for case in cover(&mut ctx.rng(), full) {
        ctx.case(format!("{case:?}"), |ctx, rng| {
            with_floats!(case.dtype, case.weights, gradients::<B>(ctx, &case, rng, false))
        });
    }
}

/// What is in the ids is not trusted.
pub(super) fn ids_that_are_no_experts_get_no_gradient<B: RouterBackend>(ctx: &mut Ctx<'_, B>) {
    for scoring in [Scoring::Softmax, Scoring::SoftmaxOfTopK, Scoring::Sigmoid] {
        for (renormalize, experts) in [(false, 40), (true, 256), (true, 700)] {
            let case = Case { scoring, renormalize, ..Case::plain(9, experts, 8) };
            ctx.case(format!("{case:?}"), |ctx, rng| gradients::<B, f32, f32>(ctx, &case, rng, true));
        }
    }
}

fn gradients<B: RouterBackend, T: Float + Widen, W: Float + Widen>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    rng: &mut Rng,
    wrong: bool,
) -> Checked {
    let Case { tokens, experts, top_k, .. } = *case;
    let (shape, exact) = (case.shape(), ctx.exact());
    let data: Vec<T> = case.logits(rng);
    let x = widen(&data);
    let bias = case.bias(rng);
    let (told, valid) = case.valid(rng);
    let mut ids: Vec<i32> = x.chunks(experts).flat_map(|x| naive::choose(&shape, x, bias.as_deref()).ids).collect();
    if wrong {
        let wrong = [-1, i32::MIN, experts as i32, i32::MAX, 0];
        ids.iter_mut().step_by(3).for_each(|id| *id = wrong[rng.below(5)]);
    }
    let grad_weights: Vec<W> = values(rng, tokens * top_k, false);
    let grad_probs: Vec<f32> = values(rng, tokens * experts, false);
    let load: Vec<i32> = (0..experts).map(|_| rng.below(1000) as i32).collect();
    let grads: Option<[f32; 2]> = (rng.below(2) == 0).then(|| [3.0, -0.75]);
    let parts = if wrong { 1 } else { 1 + rng.below(15) };

    let queue = &mut ctx.queue;
    let logits = Guarded::matrix(queue, &data, experts, case.place(rng))?;
    let ids_view = Guarded::vector(queue, &ids, Place::random(rng, case.offset, 0))?;
    let weights_view = Guarded::vector(queue, &grad_weights, Place::random(rng, case.offset, 0))?;
    let probs_view = Guarded::matrix(queue, &grad_probs, experts, case.place(rng))?;
    let load_view = Guarded::vector(queue, &load, Place::random(rng, case.offset, 0))?;
    let grads_view = grads.map(|grads| queue.upload(&grads)).transpose()?;
    let told = told.map(|n| queue.upload(&[n])).transpose()?;
    let mut out = Guarded::<B, T>::poisoned(queue, tokens, experts, case.place(rng))?;

    let mut op = case.router().grad(logits.rows()?);
    if parts & 1 != 0 {
        op = op.weights(ids_view.view()?, weights_view.view()?);
    }
    if parts & 2 != 0 {
        op = op.probs(probs_view.rows()?);
    }
    if parts & 4 != 0 {
        op = op.balance(load_view.view()?, COEFFICIENTS.0);
    }
    if parts & 8 != 0 {
        op = op.z(COEFFICIENTS.1);
    }
    if let Some(grads) = &grads_view {
        op = op.loss_grads(grads.view());
    }
    if let Some(told) = &told {
        op = op.valid_tokens(told.view());
    }
    op.run_into(queue, out.rows_mut()?)?;
    let got = out.read(queue, "grad_logits")?;

    let grad_weights = widen(&grad_weights);
    let losses = Losses {
        balance: (parts & 4 != 0).then_some((&load[..], COEFFICIENTS.0)),
        z: (parts & 8 != 0).then_some(COEFFICIENTS.1),
        grad: grads.unwrap_or([1.0; 2]),
    };
    let mut want = Vec::new();
    for (t, x) in x.chunks(experts).enumerate() {
        if t >= valid {
            want.extend(vec![0.0; experts]);
            continue;
        }
        let routes = t * top_k..(t + 1) * top_k;
        let weights = (parts & 1 != 0).then(|| (&ids[routes.clone()], &grad_weights[routes]));
        let probs = (parts & 2 != 0).then(|| &grad_probs[t * experts..][..experts]);
        want.extend(naive::grad(&shape, x, valid as f32, weights, probs, Some(&losses)));
    }
    let rounded: Vec<T> = want.iter().map(|d| round(*d)).collect();
    if exact {
        return same("grad_logits", &got, &rounded, experts);
    }
    let balance = if parts & 4 == 0 { 0.0 } else { 3.0 * 10.0 * experts as f64 / (valid.max(1) as f64).powi(2) };
    // Sums of terms of these sizes, and differences of them.
    let size = 4.0 + 4.0 * f64::from(case.scaling_factor) * top_k as f64 + balance;
    near("grad_logits", &got, &widen(&rounded), experts, |_| size * 8.0)?;
    ensure(got.len() == want.len(), || "lengths differ".into())
}
