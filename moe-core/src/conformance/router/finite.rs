//! Gradients against finite differences of the same functions in float64.

use super::super::harness::{Checked, Ctx, ensure};
use super::super::rng::Rng;
use super::super::values::values;
use super::cases::Case;
use super::naive;
use crate::{RouterBackend, Scoring};

/// What is differentiated: everything that is made of the logits, weighted.
struct Objective<'a> {
    case: &'a Case,
    ids: &'a [i32],
    grad_weights: &'a [f32],
    grad_probs: &'a [f32],
    load: &'a [i32],
    coefficients: [f32; 2],
    grads: [f32; 2],
}

/// The gradient of weights, probabilities and both losses at once.
pub(super) fn gradients_against_finite_differences<B: RouterBackend>(ctx: &mut Ctx<'_, B>) {
    for scoring in [Scoring::Softmax, Scoring::SoftmaxOfTopK, Scoring::Sigmoid] {
        for renormalize in [false, true] {
            for (experts, groups, top_k) in [(7, None, 2), (40, Some((8, 3)), 6), (66, None, 1)] {
                let case = Case {
                    scoring,
                    renormalize,
                    groups,
                    bias: groups.is_some(),
                    scaling_factor: 1.5,
                    ..Case::plain(4, experts, top_k)
                };
                ctx.case(format!("{case:?}"), |ctx, rng| check(ctx, &case, rng));
            }
        }
    }
}

fn check<B: RouterBackend>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let Case { tokens, experts, top_k, .. } = *case;
    let logits: Vec<f32> = case.logits(rng);
    let bias = case.bias(rng);
    let shape = case.shape();
    let ids: Vec<i32> = logits.chunks(experts).flat_map(|x| naive::choose(&shape, x, bias.as_deref()).ids).collect();
    let (grad_weights, grad_probs): (Vec<f32>, Vec<f32>) =
        (values(rng, tokens * top_k, false), values(rng, tokens * experts, false));
    let load: Vec<i32> = (0..experts).map(|_| rng.below(5) as i32).collect();
    let (coefficients, grads) = ([0.5, 0.25], [2.0, -0.5]);

    let queue = &mut ctx.queue;
    let (x, i, w) = (queue.upload(&logits)?, queue.upload(&ids)?, queue.upload(&grad_weights)?);
    let (p, n, g) = (queue.upload(&grad_probs)?, queue.upload(&load)?, queue.upload(&grads)?);
    let op = case.router().grad(x.rows(experts)?).weights(i.view(), w.view()).probs(p.rows(experts)?);
    let op = op.balance(n.view(), coefficients[0]).z(coefficients[1]).loss_grads(g.view());
    let got = op.run(queue)?;
    let got = queue.download(got.view())?;

    let objective = Objective {
        case,
        ids: &ids,
        grad_weights: &grad_weights,
        grad_probs: &grad_probs,
        load: &load,
        coefficients,
        grads,
    };
    let mut wide: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
    const STEP: f64 = 1e-4;
    for at in 0..wide.len() {
        let x = wide[at];
        let mut value = |d: f64| {
            wide[at] = x + d;
            objective.value(&wide)
        };
        // Central differences of the fourth order.
        let want = (8.0 * (value(STEP) - value(-STEP)) - (value(2.0 * STEP) - value(-2.0 * STEP))) / (12.0 * STEP);
        wide[at] = x;
        let bound = 1e-5 * (1.0 + want.abs() + top_k as f64);
        ensure((f64::from(got[at]) - want).abs() <= bound, || {
            format!("grad_logits[{}, {}] is {}, float64 gives {want}", at / experts, at % experts, got[at])
        })?;
    }
    Ok(())
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let sum: f64 = x.iter().map(|x| x.exp()).sum();
    x.iter().map(|x| x.exp() / sum).collect()
}

fn normalized(x: Vec<f64>) -> Vec<f64> {
    let sum: f64 = x.iter().sum();
    x.into_iter().map(|x| x / sum).collect()
}

fn dot(a: &[f64], b: impl Iterator<Item = f64>) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Objective<'_> {
    fn value(&self, logits: &[f64]) -> f64 {
        let Case { tokens, experts, top_k, scoring, renormalize, scaling_factor, .. } = *self.case;
        let (mut value, mut balance, mut z) = (0.0, 0.0, 0.0);
        for (t, x) in logits.chunks(experts).enumerate() {
            let scores: Vec<f64> = x.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
            let probs = if scoring == Scoring::Sigmoid { normalized(scores.clone()) } else { softmax(x) };
            let of_taken = |all: &[f64]| self.ids[t * top_k..][..top_k].iter().map(|id| all[*id as usize]).collect();
            let weights: Vec<f64> = match (scoring, renormalize) {
                (Scoring::Sigmoid, false) => of_taken(&scores),
                (Scoring::Sigmoid, true) => normalized(of_taken(&scores)),
                (Scoring::Softmax, false) => of_taken(&probs),
                (Scoring::Softmax, true) => normalized(of_taken(&probs)),
                _ => softmax(&of_taken(x)),
            };
            let grads = self.grad_weights[t * top_k..][..top_k].iter().map(|g| f64::from(*g));
            value += f64::from(scaling_factor) * dot(&weights, grads);
            value += dot(&probs, self.grad_probs[t * experts..][..experts].iter().map(|g| f64::from(*g)));
            balance += dot(&probs, self.load.iter().map(|n| f64::from(*n)));
            z += x.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2);
        }
        let n = tokens as f64;
        let [c0, c1] = self.coefficients.map(f64::from);
        balance *= c0 * experts as f64 / (n * n * top_k as f64);
        z *= c1 / n;
        value + f64::from(self.grads[0]) * balance + f64::from(self.grads[1]) * z
    }
}
