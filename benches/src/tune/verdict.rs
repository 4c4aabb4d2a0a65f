//! Whether a candidate is better than the built-in value, or only luckier.

use crate::stats::median;
use std::fmt;

/// A gain that is worth another value than the built-in one, whatever the spread.
const WORTH: f64 = 0.01;

/// What a value gave: for each cell the logarithms of its times over those of the built-in value in the same rounds.
#[derive(Clone, Debug)]
pub(super) struct Arm {
    pub(super) cells: Vec<Vec<f64>>,
}

/// A value over all cells, as logarithms of ratios of times: below 0 is faster.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Score {
    /// The median over the rounds of the mean over the cells.
    pub(super) middle: f64,
    /// Half of the distance between the quartiles of the same.
    pub(super) spread: f64,
}

impl Arm {
    pub(super) fn score(&self) -> Score {
        let rounds = self.cells.first().map_or(0, Vec::len);
        let mean = |round: usize| self.cells.iter().map(|cell| cell[round]).sum::<f64>() / self.cells.len() as f64;
        let mut means: Vec<f64> = (0..rounds).map(mean).collect();
        means.sort_by(f64::total_cmp);
        if means.is_empty() {
            return Score::default();
        }
        let quarter = |n: usize| means[(rounds - 1) * n / 4];
        Score { middle: median(&means), spread: (quarter(3) - quarter(1)) / 2.0 }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = (self.middle.exp() - 1.0) * 100.0;
        let word = if percent < 0.0 { "faster" } else { "slower" };
        write!(f, "{:.1} % {word}, spread {:.1} %", percent.abs(), self.spread * 100.0)
    }
}

/// What becomes of a knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The built-in value.
    Keep,
    /// The value of this score.
    Take(usize),
}

/// The fastest of the values, of which the first is the built-in one, if it is faster by more than 1 %, by more than its
/// own spread, and by more than the built-in value differs from itself (`noise`).
pub(super) fn judge(scores: &[Score], noise: &Score) -> Verdict {
    let fastest = scores.iter().enumerate().skip(1).min_by(|a, b| a.1.middle.total_cmp(&b.1.middle));
    match fastest {
        Some((i, score)) if -score.middle > WORTH.max(score.spread).max(noise.middle.abs() + noise.spread) => {
            Verdict::Take(i)
        }
        _ => Verdict::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of a cell with a ratio, and noise that repeats.
    fn cell(ratio: f64, noise: f64) -> Vec<f64> {
        (0..15).map(|round| ratio.ln() + noise * [0.3, -1.0, 0.1, 1.0, -0.4][round % 5]).collect()
    }

    fn score(cells: &[(f64, f64)]) -> Score {
        Arm { cells: cells.iter().map(|(ratio, noise)| cell(*ratio, *noise)).collect() }.score()
    }

    #[test]
    fn a_gain_inside_of_the_noise_keeps_the_built_in_value() {
        let scores = [score(&[(1.0, 0.0)]), score(&[(0.97, 0.1)])];
        assert_eq!(judge(&scores, &score(&[(1.0, 0.1)])), Verdict::Keep);
        // The same gain where the built-in value differs from itself by as much.
        let scores = [score(&[(1.0, 0.0)]), score(&[(0.97, 0.0)])];
        assert_eq!(judge(&scores, &score(&[(0.965, 0.0)])), Verdict::Keep);
        assert_eq!(judge(&scores, &score(&[(1.001, 0.0)])), Verdict::Take(1));
    }

    #[test]
    fn the_fastest_of_those_that_are_faster_is_taken_and_a_hair_is_not_enough() {
        let noise = score(&[(1.0, 0.01)]);
        let scores = [score(&[(1.0, 0.0)]), score(&[(0.95, 0.01)]), score(&[(0.8, 0.01)]), score(&[(1.2, 0.01)])];
        assert_eq!(judge(&scores, &noise), Verdict::Take(2));
        assert_eq!(judge(&[score(&[(1.0, 0.0)]), score(&[(0.995, 0.0)])], &Score::default()), Verdict::Keep);
        assert_eq!(judge(&scores[..1], &noise), Verdict::Keep);
    }

    #[test]
    fn what_one_batch_gains_and_others_lose_is_weighed() {
        let loses = score(&[(0.9, 0.01), (1.1, 0.01), (1.05, 0.01)]);
        assert_eq!(judge(&[Score::default(), loses], &Score::default()), Verdict::Keep);
        let gains = score(&[(0.9, 0.01), (1.02, 0.01), (0.95, 0.01)]);
        assert_eq!(judge(&[Score::default(), gains], &Score::default()), Verdict::Take(1));
    }

    #[test]
    fn a_score_is_said_in_words() {
        assert_eq!(score(&[(0.9, 0.0)]).to_string(), "10.0 % faster, spread 0.0 %");
        assert!(score(&[(1.25, 0.0)]).to_string().starts_with("25.0 % slower"));
    }
}
