//! Medians of repeated measurements that take turns.

use crate::Result;
use std::time::{Duration, Instant};

/// The middle value; of an even number the mean of the two in the middle. NaN for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Microseconds of each repeat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The middle one.
    pub fn median(&self) -> f64 {
        median(&self.0)
    }

    /// The fastest one.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Samples of each job.
    pub rounds: usize,
    /// A job takes no further samples after this time, but at least three.
    pub budget: Duration,
    /// Calls are repeated within a sample until it takes this long.
    pub sample: Duration,
}

impl Effort {
    /// For figures worth keeping.
    pub const FULL: Self = Self { rounds: 15, budget: Duration::from_millis(1500), sample: Duration::from_micros(400) };
    /// For a first look.
    pub const QUICK: Self = Self { rounds: 7, budget: Duration::from_millis(300), sample: Duration::from_micros(200) };
}

const MIN_SAMPLES: usize = 3;

/// A piece of work that is called again and again, done when the call returns.
pub struct Job<'a> {
    run: Box<dyn FnMut() -> Result<()> + 'a>,
}

impl<'a> Job<'a> {
    /// From what to call.
    pub fn new(run: impl FnMut() -> Result<()> + 'a) -> Self {
        Self { run: Box::new(run) }
    }
}

/// Measures jobs by the wall clock. They take turns, so that other load on the machine meets all of them; each round
/// starts with another one.
///
/// # Errors
/// The first that a job returns.
pub fn interleave(jobs: &mut [Job<'_>], effort: Effort) -> Result<Vec<Samples>> {
    let mut calls = Vec::with_capacity(jobs.len());
    for job in jobs.iter_mut() {
        (job.run)()?; // the first call may grow pools and touch memory
        let start = Instant::now();
        (job.run)()?;
        let once = start.elapsed().max(Duration::from_nanos(100));
        let repeats = (effort.sample.as_nanos() / once.as_nanos()).clamp(1, 10_000);
        calls.push(repeats as u32);
    }
    let mut samples = vec![Samples::default(); jobs.len()];
    let mut spent = vec![Duration::ZERO; jobs.len()];
    for round in 0..effort.rounds {
        for turn in 0..jobs.len() {
            let i = (turn + round) % jobs.len();
            if spent[i] > effort.budget && samples[i].len() >= MIN_SAMPLES {
                continue;
            }
            let start = Instant::now();
            for _ in 0..calls[i] {
                (jobs[i].run)()?;
            }
            let time = start.elapsed();
            spent[i] += time;
            samples[i].0.push(time.as_secs_f64() * 1e6 / f64::from(calls[i]));
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn the_median_is_the_middle_and_ignores_an_outlier() {
        assert_eq!(median(&[3.0, 1.0, 1e9]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn jobs_take_turns_and_no_job_is_always_first() {
        let log = RefCell::new(Vec::new());
        let effort = Effort { rounds: 4, budget: Duration::from_secs(9), sample: Duration::ZERO };
        let mut jobs: Vec<_> = ["a", "b"]
            .iter()
            .map(|name| {
                Job::new(|| {
                    log.borrow_mut().push(*name);
                    Ok(())
                })
            })
            .collect();
        let samples = interleave(&mut jobs, effort).unwrap();
        drop(jobs);
        assert_eq!(samples.iter().map(Samples::len).collect::<Vec<_>>(), [4, 4]);
        assert_eq!(log.borrow()[4..].concat(), "abbaabba");
    }

    #[test]
    fn a_slow_job_stops_early_and_the_other_goes_on() {
        let effort = Effort { rounds: 9, budget: Duration::from_millis(5), sample: Duration::ZERO };
        let slow = Job::new(|| {
            std::thread::sleep(Duration::from_millis(6));
            Ok(())
        });
        let samples = interleave(&mut [slow, Job::new(|| Ok(()))], effort).unwrap();
        assert_eq!((samples[0].len(), samples[1].len()), (3, 9));
        assert!(samples[0].min() >= 6000.0);
    }

    #[test]
    fn an_error_of_a_job_is_not_lost() {
        assert!(interleave(&mut [Job::new(|| Err("no".into()))], Effort::QUICK).is_err());
    }
}
