//! What a router's cases are made of.

use super::super::guarded::Place;
use super::super::rng::Rng;
use super::super::values::values;
use crate::raw::{RouterGroups, RouterShape};
use crate::{DType, Float, Router, Scoring};

/// What the logits are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Logits {
    /// From -4 to 4.
    Plain,
    /// Plain, and now and then one that is no plain number.
    Wild,
    /// Few different values.
    Ties,
    /// All the same.
    Equal,
    /// From -100 to 100: shares and scores reach both ends.
    Wide,
    /// Rows of NaN and infinities.
    Broken,
}

/// The device-side count of valid tokens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Valid {
    Absent,
    Some,
    None,
    TooMany,
    Negative,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) tokens: usize,
    pub(super) experts: usize,
    pub(super) groups: Option<(usize, usize)>,
    pub(super) top_k: usize,
    pub(super) scoring: Scoring,
    pub(super) renormalize: bool,
    pub(super) scaling_factor: f32,
    pub(super) bias: bool,
    pub(super) dtype: DType,
    pub(super) weights: DType,
    pub(super) probs: bool,
    pub(super) logits: Logits,
    pub(super) valid: Valid,
    pub(super) gap: usize,
    pub(super) offset: usize,
}

/// Elements of a case's logits.
const ELEMENTS: usize = 1 << 15;

const TOKENS: &[usize] = &[1, 5, 33, 131, 700];
const EXPERTS: &[(usize, Option<(usize, usize)>)] = &[
    (1, None),
    (2, Some((2, 1))),
    (3, None),
    (8, Some((4, 2))),
    (60, None),
    (64, Some((8, 3))),
    (128, None),
    (160, Some((8, 3))),
    (256, Some((8, 4))),
    (256, None),
    (257, None),
    (384, Some((128, 96))),
    (512, Some((1, 1))),
    (513, Some((27, 5))),
    (1025, None),
    (1536, Some((4, 2))),
    (4096, None),
];
const TOP_K: &[usize] = &[1, 2, 6, 8, 9, 33, 70];
const SCORING: &[Scoring] = &[Scoring::Softmax, Scoring::SoftmaxOfTopK, Scoring::Sigmoid];
const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];
const LOGITS: &[Logits] = &[Logits::Plain, Logits::Wild, Logits::Ties, Logits::Equal, Logits::Wide, Logits::Broken];
const VALID: &[Valid] = &[Valid::Absent, Valid::Some, Valid::None, Valid::TooMany, Valid::Negative];
const GAPS: &[usize] = &[0, 1, 8];

/// The number of levels of each axis.
const LEVELS: [usize; 14] = [
    TOKENS.len(),
    EXPERTS.len(),
    TOP_K.len(),
    SCORING.len(),
    2,
    2,
    2,
    FLOATS.len(),
    FLOATS.len(),
    2,
    LOGITS.len(),
    VALID.len(),
    GAPS.len(),
    4,
];

fn case(i: &[usize; LEVELS.len()]) -> Case {
    let (experts, groups) = EXPERTS[i[1]];
    let most = groups.map_or(experts, |(n, best)| experts / n * best);
    Case {
        tokens: TOKENS[i[0]].min((ELEMENTS / experts).max(2)),
        experts,
        groups,
        top_k: TOP_K[i[2]].min(most),
        scoring: SCORING[i[3]],
        renormalize: i[4] == 1,
        scaling_factor: [1.0, 2.5][i[5]],
        bias: i[6] == 1,
        dtype: FLOATS[i[7]],
        weights: FLOATS[i[8]],
        probs: i[9] == 1,
        logits: LOGITS[i[10]],
        valid: VALID[i[11]],
        gap: GAPS[i[12]],
        offset: i[13],
    }
}

/// Cases that hold every combination of two axes' levels, the other axes at random; three times over where `full`.
pub(super) fn cover(rng: &mut Rng, full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for _ in 0..if full { 3 } else { 1 } {
        let mut open: Vec<[usize; 4]> = Vec::new();
        for (a, levels) in LEVELS.into_iter().enumerate() {
            for (b, others) in LEVELS[..a].iter().enumerate() {
                open.extend((0..levels * others).map(|i| [a, i % levels, b, i / levels]));
            }
        }
        while let Some(pair) = open.first().copied() {
            // Of many random cases that hold the first open pair, the one that holds most.
            let tries = (0..40).map(|_| {
                let mut levels = LEVELS.map(|n| rng.below(n));
                (levels[pair[0]], levels[pair[2]]) = (pair[1], pair[3]);
                levels
            });
            let holds = |i: &[usize; LEVELS.len()], p: &[usize; 4]| i[p[0]] == p[1] && i[p[2]] == p[3];
            let best = tries.max_by_key(|i| open.iter().filter(|p| holds(i, p)).count());
            let Some(best) = best else { break };
            open.retain(|p| !holds(&best, p));
            cases.push(case(&best));
        }
    }
    cases
}

impl Case {
    /// A case of plain numbers.
    pub(super) fn plain(tokens: usize, experts: usize, top_k: usize) -> Self {
        let mut case = case(&[0; LEVELS.len()]);
        (case.tokens, case.experts, case.top_k) = (tokens, experts, top_k);
        case
    }

    pub(super) fn router(&self) -> Router {
        let mut router = Router::new(self.experts, self.top_k).scoring(self.scoring);
        if self.renormalize {
            router = router.renormalize();
        }
        if let Some((n_group, topk_group)) = self.groups {
            router = router.groups(n_group, topk_group);
        }
        router.scaling_factor(self.scaling_factor)
    }

    pub(super) fn shape(&self) -> RouterShape {
        RouterShape {
            num_experts: self.experts,
            top_k: self.top_k,
            scoring: self.scoring,
            renormalize: self.renormalize,
            scaling_factor: self.scaling_factor,
            groups: self.groups.map(|(n_group, topk_group)| RouterGroups { n_group, topk_group }),
        }
    }

    /// What the device is told, and how many tokens count.
    pub(super) fn valid(&self, rng: &mut Rng) -> (Option<i32>, usize) {
        let tokens = self.tokens;
        let some = rng.below(tokens + 1);
        match self.valid {
            Valid::Absent => (None, tokens),
            Valid::Some => (Some(some as i32), some),
            Valid::None => (Some(0), 0),
            Valid::TooMany => (Some(i32::MAX), tokens),
            Valid::Negative => (Some(-3), 0),
        }
    }

    pub(super) fn logits<T: Float>(&self, rng: &mut Rng) -> Vec<T> {
        let n = self.tokens * self.experts;
        let number = T::from_f32;
        match self.logits {
            Logits::Plain => values(rng, n, false),
            Logits::Wild => values(rng, n, true),
            Logits::Ties => (0..n).map(|_| number([-0.0, 0.0, 1.5, -2.0][rng.below(4)])).collect(),
            Logits::Equal => vec![number(0.25); n],
            Logits::Wide => (0..n).map(|_| number(rng.unit() * 100.0)).collect(),
            Logits::Broken => {
                let (nan, inf) = (f32::NAN, f32::INFINITY);
                let rows = [
                    vec![nan],
                    vec![-inf],
                    vec![inf],
                    vec![nan, -inf],
                    vec![nan, 1.0],
                    vec![inf, 0.0, -inf, nan],
                    vec![-inf, 1.0],
                ];
                let row = |_| rows[rng.below(rows.len())].clone();
                let rows: Vec<Vec<f32>> = (0..self.tokens).map(row).collect();
                (0..n)
                    .map(|i| {
                        let row = &rows[i / self.experts];
                        number(row[rng.below(row.len())])
                    })
                    .collect()
            }
        }
    }

    pub(super) fn bias(&self, rng: &mut Rng) -> Option<Vec<f32>> {
        let wild = self.logits == Logits::Wild;
        self.bias.then(|| {
            let mut bias: Vec<f32> = values(rng, self.experts, wild);
            bias.iter_mut().for_each(|b| *b *= 0.125);
            bias
        })
    }

    pub(super) fn place(&self, rng: &mut Rng) -> Place {
        Place::random(rng, self.offset, self.gap)
    }
}

/// Calls a function with the types that two dtypes name.
macro_rules! with_floats {
    ($dtype:expr, $weights:expr, $call:ident::<$B:ident>($($arg:expr),*)) => {
        match ($dtype, $weights) {
            (DType::F32, DType::F32) => $call::<$B, f32, f32>($($arg),*),
            (DType::F32, DType::F16) => $call::<$B, f32, f16>($($arg),*),
            (DType::F32, _) => $call::<$B, f32, bf16>($($arg),*),
            (DType::F16, DType::F32) => $call::<$B, f16, f32>($($arg),*),
            (DType::F16, DType::F16) => $call::<$B, f16, f16>($($arg),*),
            (DType::F16, _) => $call::<$B, f16, bf16>($($arg),*),
            (_, DType::F32) => $call::<$B, bf16, f32>($($arg),*),
            (_, DType::F16) => $call::<$B, bf16, f16>($($arg),*),
            _ => $call::<$B, bf16, bf16>($($arg),*),
        }
    };
}

pub(super) use with_floats;
