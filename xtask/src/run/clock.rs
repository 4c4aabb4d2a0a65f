//! Times of stages.

use std::time::{Duration, Instant};

/// Passes over the layer; the fastest time of each stage is shown.
pub(crate) const PASSES: usize = 5;

/// Times of stages, in order. Stages of one name add up.
pub(crate) struct Clock {
    pub(crate) stages: Vec<(&'static str, Duration)>,
    last: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { stages: Vec::new(), last: Instant::now() }
    }
}

impl Clock {
    /// Ends a stage.
    pub(crate) fn lap(&mut self, stage: &'static str) {
        let now = Instant::now();
        let time = now - std::mem::replace(&mut self.last, now);
        match self.stages.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, sum)) => *sum += time,
            None => self.stages.push((stage, time)),
        }
    }
}

/// Keeps the fastest time of each stage.
pub(crate) fn keep_fastest(best: &mut Vec<(&'static str, Duration)>, stages: Vec<(&'static str, Duration)>) {
    if best.is_empty() {
        *best = stages;
        return;
    }
    for ((_, best), (_, time)) in best.iter_mut().zip(stages) {
        *best = time.min(*best);
    }
}

/// Prints them, and what part of all routing takes.
pub(crate) fn print_stages(stages: &[(&'static str, Duration)]) {
    let total: Duration = stages.iter().map(|(_, time)| *time).sum();
    for (stage, time) in stages {
        let share = 100.0 * time.as_secs_f64() / total.as_secs_f64();
        println!("  {stage:<10}{:>9.3} ms {share:>5.1} %", time.as_secs_f64() * 1e3);
    }
    let routing = ["plan", "gather", "combine"];
    let ours: Duration = stages.iter().filter(|(s, _)| routing.contains(s)).map(|(_, time)| *time).sum();
    let share = 100.0 * ours.as_secs_f64() / total.as_secs_f64();
    println!("  {:<10}{:>9.3} ms, of which plan, gather and combine {share:.1} %", "all", total.as_secs_f64() * 1e3);
}
