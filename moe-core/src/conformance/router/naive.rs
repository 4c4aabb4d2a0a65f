//! Plain implementations of the router's operations, on the host. Slow and short on purpose; [`crate::raw`] has the
//! same in words.

use crate::Scoring;
use crate::conformance::naive::round;
use crate::math::{exp, ln, sigmoid};
use crate::raw::RouterShape;
use std::cmp::Ordering;

/// The losses' inputs.
pub struct Losses<'a> {
    /// `[E]` and the coefficient.
    pub balance: Option<(&'a [i32], f32)>,
    /// The coefficient.
    pub z: Option<f32>,
    /// The gradients of the two.
    pub grad: [f32; 2],
}

/// The sum of terms in lanes; each term adds itself to its lane.
fn in_lanes(lanes: usize, terms: usize, add: impl Fn(usize, f32) -> f32) -> f32 {
    let mut sums = vec![0f32; lanes];
    (0..terms).for_each(|i| sums[i % lanes] = add(i, sums[i % lanes]));
    while sums.len() > 1 {
        let upper = sums.split_off(sums.len() / 2);
        sums.iter_mut().zip(upper).for_each(|(lower, upper)| *lower += upper);
    }
    sums[0]
}

fn sum(terms: &[f32]) -> f32 {
    in_lanes(32, terms.len(), |i, lane| lane + terms[i])
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    in_lanes(32, a.len(), |i, lane| a[i].mul_add(b[i], lane))
}

/// NaN lowest, -0 equal to +0.
fn order(a: f32, b: f32) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => a.partial_cmp(&b).expect("both are numbers"),
        (a, b) => b.cmp(&a),
    }
}

/// The places of the `n` largest, descending, ties to the lower place.
fn largest(keys: &[f32], n: usize, open: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut places: Vec<usize> = (0..keys.len()).filter(|i| open(*i)).collect();
    places.sort_by(|a, b| order(keys[*b], keys[*a]).then(a.cmp(b)));
    places.truncate(n);
    places
}

fn max(x: &[f32]) -> f32 {
    x[largest(x, 1, |_| true)[0]]
}

fn share(x: f32, m: f32) -> f32 {
    match () {
        () if m.is_nan() => 1.0,
        () if m.is_infinite() => f32::from(u8::from(x == m)),
        () if x.is_nan() => 0.0,
        () => exp(x - m),
    }
}

fn score(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { sigmoid(x) }
}

/// Scores; all 1 where their sum is 0.
fn scores(x: &[f32]) -> Vec<f32> {
    let scores: Vec<f32> = x.iter().map(|x| score(*x)).collect();
    if sum(&scores) == 0.0 { vec![1.0; x.len()] } else { scores }
}

fn divided(terms: Vec<f32>) -> Vec<f32> {
    let sum = sum(&terms);
    terms.into_iter().map(|x| x / sum).collect()
}

fn softmax(x: &[f32]) -> Vec<f32> {
    let m = max(x);
    divided(x.iter().map(|x| share(*x, m)).collect())
}

/// The probabilities over all experts of a token.
pub fn probs(scoring: Scoring, x: &[f32]) -> Vec<f32> {
    match scoring {
        Scoring::Sigmoid => divided(scores(x)),
        _ => softmax(x),
    }
}

/// Which experts a token takes, and what decided it.
pub struct Choice {
    /// In descending order of their keys.
    pub ids: Vec<i32>,
    /// `[E]`.
    pub keys: Vec<f32>,
    /// The values of the groups, descending; empty without groups.
    pub groups: Vec<f32>,
}

/// Takes a token's experts.
pub fn choose(shape: &RouterShape, x: &[f32], bias: Option<&[f32]>) -> Choice {
    let all = probs(shape.scoring, x);
    let key = |e: usize| match (bias, shape.scoring) {
        (None, _) => x[e],
        (Some(_), _) if x[e].is_nan() => f32::NAN,
        (Some(bias), Scoring::Sigmoid) => sigmoid(x[e]) + bias[e],
        (Some(bias), Scoring::Softmax) => all[e] + bias[e],
        (Some(bias), _) => x[e] + bias[e],
    };
    let keys: Vec<f32> = (0..x.len()).map(key).collect();
    let Some(groups) = shape.groups else {
        let ids = largest(&keys, shape.top_k, |_| true);
        return Choice { ids: ids.into_iter().map(|e| e as i32).collect(), keys, groups: Vec::new() };
    };
    let size = x.len() / groups.n_group;
    let value = |keys: &[f32]| match *largest(keys, 2, |_| true) {
        [one, two] if bias.is_some() => keys[one] + keys[two],
        [one, ..] => keys[one],
        [] => f32::NAN,
    };
    let values: Vec<f32> = keys.chunks(size).map(value).collect();
    let best = largest(&values, groups.n_group, |_| true);
    let open = &best[..groups.topk_group];
    let ids = largest(&keys, shape.top_k, |e| open.contains(&(e / size)));
    let groups = best.iter().map(|group| values[*group]).collect();
    Choice { ids: ids.into_iter().map(|e| e as i32).collect(), keys, groups }
}

/// The weights of the experts that a token took, which are in range.
pub fn weigh(shape: &RouterShape, x: &[f32], ids: &[i32]) -> Vec<f32> {
    let taken: Vec<f32> = ids.iter().map(|id| x[*id as usize]).collect();
    let weights = match shape.scoring {
        Scoring::Softmax if !shape.renormalize => {
            let all = softmax(x);
            ids.iter().map(|id| all[*id as usize]).collect()
        }
        Scoring::Sigmoid if !shape.renormalize => taken.iter().map(|x| score(*x)).collect(),
        Scoring::Sigmoid => divided(scores(&taken)),
        _ => softmax(&taken),
    };
    weights.iter().map(|w| w * shape.scaling_factor).collect()
}

/// The terms of each token and the two losses.
pub fn losses(shape: &RouterShape, logits: &[f32], valid: usize, losses: &Losses<'_>) -> (Vec<f32>, [f32; 2]) {
    let experts = shape.num_experts;
    let term = |(t, x): (usize, &[f32])| {
        let m = max(x);
        if t >= valid || !m.is_finite() {
            return [0.0; 2];
        }
        let load = losses.balance.map(|(load, _)| load.iter().map(|n| *n as f32).collect::<Vec<_>>());
        let l = m + ln(sum(&x.iter().map(|x| share(*x, m)).collect::<Vec<_>>()));
        [load.map_or(0.0, |load| dot(&probs(shape.scoring, x), &load)), losses.z.map_or(0.0, |_| l * l)]
    };
    let terms: Vec<[f32; 2]> = logits.chunks(experts).enumerate().map(term).collect();
    let total = |i: usize| in_lanes(1024, terms.len(), |t, lane| lane + terms[t][i]);
    let n = valid as f32;
    let both = [scale(shape, losses) * total(0) / n / n, losses.z.unwrap_or(0.0) * total(1) / n];
    (terms.concat(), if valid == 0 { [0.0; 2] } else { both.map(round) })
}

fn scale(shape: &RouterShape, losses: &Losses<'_>) -> f32 {
    losses.balance.map_or(0.0, |(_, c)| (f64::from(c) * shape.num_experts as f64 / shape.top_k as f64) as f32)
}

/// The gradient of a token's logits. `weights` are its ids and the gradients of its weights.
pub fn grad(
    shape: &RouterShape,
    x: &[f32],
    n: f32,
    weights: Option<(&[i32], &[f32])>,
    grad_probs: Option<&[f32]>,
    losses: Option<&Losses<'_>>,
) -> Vec<f32> {
    let (experts, c) = (x.len(), shape.scaling_factor);
    let m = max(x);
    if !m.is_finite() {
        return vec![0.0; experts];
    }
    let sigmoid = shape.scoring == Scoring::Sigmoid;
    let s: Vec<f32> = x.iter().map(|x| score(*x)).collect();
    let load = losses.and_then(|l| Some((l.balance?.0, l.grad[0] * scale(shape, l) / n / n)));
    let (ids, gw) = weights.unwrap_or_default();
    let known: Vec<Option<usize>> = ids.iter().map(|id| usize::try_from(*id).ok().filter(|id| *id < experts)).collect();
    let plain = weights.is_some() && shape.scoring == Scoring::Softmax && !shape.renormalize;

    let mut d = vec![0.0; experts];
    if plain || load.is_some() || grad_probs.is_some() {
        let mut g = grad_probs.map_or_else(|| vec![0.0; experts], <[f32]>::to_vec);
        if let Some((load, a)) = load {
            g.iter_mut().zip(load).for_each(|(g, n)| *g = a.mul_add(*n as f32, *g));
        }
        if plain {
            known.iter().zip(gw).for_each(|(e, gw)| e.iter().for_each(|e| g[*e] = c.mul_add(*gw, g[*e])));
        }
        let p = probs(shape.scoring, x);
        let total = dot(&p, &g);
        for e in 0..experts {
            d[e] = match (sigmoid, sum(&s)) {
                (false, _) => p[e] * (g[e] - total),
                (true, 0.0) => 0.0,
                (true, sum) => (g[e] - total) / sum,
            };
        }
    }
    if weights.is_some() && !plain {
        let h: Vec<f32> = known.iter().zip(gw).map(|(e, gw)| if e.is_some() { c * gw } else { 0.0 }).collect();
        let taken: Vec<f32> = known.iter().map(|e| e.map_or(f32::NAN, |e| x[e])).collect();
        let taken_s: Vec<f32> = taken.iter().map(|x| score(*x)).collect();
        let (q, sum) = (softmax(&taken), sum(&taken_s));
        for (k, e) in known.iter().enumerate() {
            let Some(e) = *e else { continue };
            match (sigmoid, shape.renormalize) {
                (false, _) if !max(&taken).is_finite() => {}
                (false, _) => d[e] = q[k].mul_add(h[k] - dot(&q, &h), d[e]),
                (true, false) => d[e] += h[k],
                (true, true) if sum == 0.0 => {}
                (true, true) => d[e] += (h[k] - dot(&divided(taken_s.clone()), &h)) / sum,
            }
        }
    }
    if sigmoid {
        d.iter_mut().zip(&s).for_each(|(d, s)| *d *= s * (1.0 - s));
    }
    if let Some((z, grad)) = losses.and_then(|l| Some((l.z?, l.grad[1]))) {
        let l = m + ln(sum(&x.iter().map(|x| share(*x, m)).collect::<Vec<_>>()));
        let z = 2.0 * (grad * z / n);
        d.iter_mut().zip(softmax(x)).for_each(|(d, y)| *d = (z * l).mul_add(y, *d));
    }
    d.iter_mut().zip(x).filter(|(_, x)| x.is_nan()).for_each(|(d, _)| *d = 0.0);
    d
}
