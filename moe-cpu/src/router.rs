//! The router: from logits to expert ids and weights.

use crate::CpuQueue;
use moe_core::{Error, Result};
use rayon::prelude::*;

/// Tokens of one task.
const TOKENS: usize = 16;

/// Softmax over the experts, then the `top_k` largest: `logits` `[T, E]`, `ids` and `weights` `[T, K]`.
///
/// Experts are taken by descending logit, ties to the lower id, a NaN below everything: the ids of a token are always
/// distinct and in range. The weight of an expert is its softmax probability, over all experts or, with `renormalize`,
/// over those taken. What cannot be computed is defined: a NaN logit has probability 0; infinite logits share the
/// probability evenly; a token without any logit above -inf gives every expert the same.
///
/// # Errors
/// [`Error::InvalidArgument`] unless `1 <= top_k <= num_experts`, [`Error::Shape`] where the lengths do not fit.
pub fn softmax_top_k(
    queue: &CpuQueue,
    logits: &[f32],
    num_experts: usize,
    top_k: usize,
    renormalize: bool,
    ids: &mut [i32],
    weights: &mut [f32],
) -> Result<()> {
    let op = "softmax_top_k";
    if num_experts > i32::MAX as usize || !(1..=num_experts).contains(&top_k) {
        let (expected, got) = (format!("1 to {num_experts} (num_experts)"), top_k.to_string());
        return Err(Error::InvalidArgument { op, arg: "top_k", expected, got });
    }
    let tokens = logits.len() / num_experts;
    let lengths = [
        ("logits", tokens * num_experts, logits.len()),
        ("ids", tokens * top_k, ids.len()),
        ("weights", tokens * top_k, weights.len()),
    ];
    for (arg, expected, got) in lengths {
        if expected != got {
            let text = |n| format!("{n} elements");
            return Err(Error::Shape { op, arg, expected: text(expected), got: text(got) });
        }
    }
    queue.run(usize::MAX, |_| {
        let tasks = ids.par_chunks_mut(TOKENS * top_k).zip(weights.par_chunks_mut(TOKENS * top_k));
        tasks.zip(logits.par_chunks(TOKENS * num_experts)).for_each(|((ids, weights), logits)| {
            let tokens = ids.chunks_mut(top_k).zip(weights.chunks_mut(top_k));
            for ((ids, weights), logits) in tokens.zip(logits.chunks(num_experts)) {
                route(logits, renormalize, ids, weights);
            }
        });
    });
    Ok(())
}

/// Routes one token.
fn route(logits: &[f32], renormalize: bool, ids: &mut [i32], weights: &mut [f32]) {
    let top_k = ids.len();
    // The best so far lie in descending order; `weights` holds their logits meanwhile. A later expert goes behind its
    // equals, so that ties fall to the lower id.
    let mut taken = 0;
    for (id, logit) in logits.iter().enumerate() {
        let rank = rank(*logit);
        let mut at = taken;
        while at > 0 && weights[at - 1].total_cmp(&rank).is_lt() {
            at -= 1;
        }
        if at == top_k {
            continue;
        }
        taken = (taken + 1).min(top_k);
        ids.copy_within(at..taken - 1, at + 1);
        weights.copy_within(at..taken - 1, at + 1);
        (ids[at], weights[at]) = (id as i32, rank);
    }
    let max = weights[0];
    let sum = if renormalize {
        weights.iter().map(|w| share(*w, max)).sum()
    } else {
        logits.iter().map(|l| share(rank(*l), max)).sum::<f32>()
    };
    for weight in weights {
        *weight = share(*weight, max) / sum;
    }
}

/// What a logit is ordered by: -0 equals +0, NaN is a negative NaN, which is below -inf.
fn rank(logit: f32) -> f32 {
    if logit.is_nan() { f32::from_bits(0xffc0_0000) } else { logit + 0.0 }
}

/// The unnormalised probability, at most 1 and 1 for the largest.
fn share(rank: f32, max: f32) -> f32 {
    if max.is_nan() || (max == f32::NEG_INFINITY && rank == max) || (max == f32::INFINITY && rank == max) {
        1.0
    } else if rank.is_nan() || max == f32::INFINITY {
        0.0
    } else {
        (rank - max).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, CpuDevice};
    use moe_core::{Backend, Device};

    fn run(logits: &[f32], experts: usize, top_k: usize, renormalize: bool) -> (Vec<i32>, Vec<f32>) {
        let device = CpuDevice::open(&Cpu::NAME.parse().unwrap()).unwrap();
        let tokens = logits.len() / experts;
        let (mut ids, mut weights) = (vec![-7; tokens * top_k], vec![f32::NAN; tokens * top_k]);
        softmax_top_k(&device.queue().unwrap(), logits, experts, top_k, renormalize, &mut ids, &mut weights).unwrap();
        (ids, weights)
    }

    #[test]
    fn ties_go_to_the_lower_id() {
        assert_eq!(run(&[1.0, 3.0, 3.0, -0.0, 0.0, 3.0], 6, 5, true).0, [1, 2, 5, 0, 3]);
    }

    #[test]
    fn weights_are_softmax_probabilities() {
        let logits = [0.3f32, -1.0, 2.0, 0.7];
        let exp: Vec<f64> = logits.iter().map(|l| f64::from(*l).exp()).collect();
        let (all, top) = (exp.iter().sum::<f64>(), exp[2] + exp[3]);
        for (renormalize, sum) in [(false, all), (true, top)] {
            let (ids, weights) = run(&logits, 4, 2, renormalize);
            assert_eq!(ids, [2, 3]);
            for (w, e) in weights.iter().zip([exp[2], exp[3]]) {
                assert!((f64::from(*w) - e / sum).abs() < 1e-6, "{w} is not {}", e / sum);
            }
        }
    }

    /// Bugs 6 and 7: NaN logits gave ids out of range, and the same id twice.
    #[test]
    fn bug_06_07_nan_and_infinite_logits_give_distinct_ids_in_range() {
        let (n, i) = (f32::NAN, f32::INFINITY);
        let rows = [
            ([n, n, n, n], [0, 1, 2], [1.0 / 3.0; 3]),
            ([n, 1.0, n, 1.0], [1, 3, 0], [0.5, 0.5, 0.0]),
            ([i, 0.0, i, -i], [0, 2, 1], [0.5, 0.5, 0.0]),
            ([-i, -i, -i, n], [0, 1, 2], [1.0 / 3.0; 3]),
            ([-n, -i, 5.0, i], [3, 2, 1], [1.0, 0.0, 0.0]),
        ];
        for (logits, ids, weights) in rows {
            assert_eq!(run(&logits, 4, 3, true), (ids.to_vec(), weights.to_vec()), "{logits:?}");
        }
    }

    #[test]
    fn top_k_past_the_experts_is_a_typed_error() {
        let device = CpuDevice::open(&Cpu::NAME.parse().unwrap()).unwrap();
        let error = softmax_top_k(&device.queue().unwrap(), &[0.0; 4], 4, 5, true, &mut [0; 5], &mut [0.0; 5]);
        assert_eq!(error.unwrap_err().to_string(), "softmax_top_k: top_k is 5, expected 1 to 4 (num_experts)");
    }
}
