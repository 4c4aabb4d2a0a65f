//! The choice.

use super::candidate::{Candidate, Opened};
use super::report::{Entry, Report, Verdict, size};
use super::wish::{Ask, LayoutKind, Need, Quantisation, Wish};
use std::time::Duration;

/// What was chosen, and why.
#[derive(Clone, Debug)]
pub struct Selection<D> {
    /// The device.
    pub device: D,
    /// All candidates and what became of them.
    pub report: Report,
}

/// Why nothing could be chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OracleError {
    /// No backend could grant the wish, whatever the machine: a size or a type that the library does not take.
    #[error(transparent)]
    InvalidWish(#[from] crate::Error),
    /// The required backend or device cannot be used.
    #[error("{asked} is required and cannot be used: {why}; {}", would_work(report))]
    Unmet {
        /// What was required.
        asked: String,
        /// Why not.
        why: String,
        /// All candidates.
        report: Box<Report>,
    },
    /// No candidate can do the work.
    #[error("no device can do the work\n{report}")]
    NoDevice {
        /// All candidates.
        report: Box<Report>,
    },
}

impl OracleError {
    /// All candidates and what became of them.
    pub fn report(&self) -> Option<&Report> {
        match self {
            OracleError::InvalidWish(_) => None,
            OracleError::Unmet { report, .. } | OracleError::NoDevice { report } => Some(report),
        }
    }
}

fn would_work(report: &Report) -> String {
    let names = report.would_work();
    if names.is_empty() { "nothing else here would work".into() } else { format!("would work: {}", names.join(", ")) }
}

/// Chooses a candidate for a wish. Done once, at set-up.
///
/// Of the candidates that can do the work, the one that was required; else the one that was preferred; else the one
/// with the shortest estimated step, ties to the earlier.
///
/// # Errors
/// [`OracleError::InvalidWish`] where no machine could grant it, [`OracleError::Unmet`] where the required device
/// cannot be used, [`OracleError::NoDevice`] where none can.
pub fn select<D>(wish: &Wish, candidates: Vec<Candidate<D>>) -> Result<Selection<D>, OracleError> {
    let need = wish.check()?;
    let judged: Vec<Result<Duration, String>> = candidates
        .iter()
        .map(|candidate| match &candidate.outcome {
            Err(reason) => Err(reason.clone()),
            Ok(opened) => judge(wish, &need, opened),
        })
        .collect();
    let fastest = |named: &dyn Fn(&Candidate<D>) -> bool| {
        let able = judged.iter().enumerate().filter_map(|(i, time)| Some((i, *time.as_ref().ok()?)));
        able.filter(|(i, _)| named(&candidates[*i])).min_by_key(|(_, time)| *time).map(|(i, _)| i)
    };
    let named = |candidate: &Candidate<D>| wish.ask.spec().is_some_and(|spec| candidate.is_named_by(spec));
    let chosen = match &wish.ask {
        Ask::Any => fastest(&|_| true),
        Ask::Prefer(_) => fastest(&named).or_else(|| fastest(&|_| true)),
        Ask::Require(_) => fastest(&named),
    };
    let able = judged.iter().filter(|time| time.is_ok()).count();
    let entries = candidates.iter().zip(&judged).enumerate().map(|(i, (candidate, time))| {
        let verdict = match time {
            Err(_) => Verdict::Rejected,
            Ok(_) if chosen == Some(i) => Verdict::Taken,
            Ok(_) => Verdict::PassedOver,
        };
        let reason = match time {
            Err(reason) => reason.clone(),
            Ok(time) => {
                let mut reason = estimate(candidate, *time);
                reason.push_str(&match (verdict, chosen) {
                    (Verdict::Taken, _) if named(candidate) => "; as asked for".into(),
                    (Verdict::Taken, _) if able == 1 => "; the only one that can do the work".into(),
                    (Verdict::Taken, _) => format!("; the shortest of {able}"),
                    (_, Some(other)) if named(&candidates[other]) && !named(candidate) => {
                        format!("; {} was asked for", candidates[other].name())
                    }
                    (_, Some(other)) => format!("; {} is expected to be at least as fast", candidates[other].name()),
                    (_, None) => "; another is required".into(),
                });
                reason
            }
        };
        Entry {
            name: candidate.name(),
            description: candidate.outcome.as_ref().map_or(String::new(), |opened| opened.info.name.clone()),
            verdict,
            reason,
            estimate: time.as_ref().ok().copied(),
            paths: candidate.outcome.as_ref().map_or(Vec::new(), |opened| opened.paths.clone()),
        }
    });
    let report = Report { wish: wish.to_string(), ask: wish.ask.clone(), entries: entries.collect() };
    let device = chosen.and_then(|i| candidates.into_iter().nth(i)?.outcome.ok());
    match (device, &wish.ask) {
        (Some(opened), _) => Ok(Selection { device: opened.device, report }),
        (None, Ask::Require(spec)) => Err(unmet(spec, Box::new(report))),
        (None, _) => Err(OracleError::NoDevice { report: Box::new(report) }),
    }
}

/// The estimated time of a step of the typical size, or why the device cannot do the work.
fn judge<D>(wish: &Wish, need: &Need, opened: &Opened<D>) -> Result<Duration, String> {
    let capabilities = &opened.capabilities;
    let layout = LayoutKind::from(wish.layout);
    for &op in &wish.ops {
        if let Some(gap) = capabilities.lacks(op, wish.dtype, layout) {
            return Err(format!("cannot {op} {} rows in a {} plan: {}", wish.dtype, layout.name(), gap.why));
        }
    }
    let quantisation = wish.quantisation;
    if quantisation != Quantisation::None && !capabilities.quantisations.contains(&quantisation) {
        return Err(format!("does not quantise rows to {} on the way", quantisation.name()));
    }
    if let Some(max) = capabilities.max_rows.filter(|max| need.rows > *max) {
        return Err(format!("{} rows of a full batch are more than the {max} that it takes", need.rows));
    }
    if let Some(max) = capabilities.max_buffer_bytes.filter(|max| need.rows_bytes > *max) {
        let (needs, max) = (size(need.rows_bytes), size(max));
        return Err(format!("the rows of a full batch take {needs}, one of its buffers holds at most {max}"));
    }
    if let Some(memory) = opened.info.memory_bytes.filter(|memory| need.bytes > *memory) {
        return Err(format!("a full batch takes {}, it has {} of memory", size(need.bytes), size(memory)));
    }
    let (bandwidth, launch) = capabilities.speed();
    let sizes = wish.sizes();
    let bytes: f64 = wish.ops.iter().map(|op| op.bytes(sizes, wish.dtype, sizes.typical_tokens)).sum();
    let moving = Duration::try_from_secs_f64(bytes / bandwidth).unwrap_or(Duration::MAX);
    Ok(moving.saturating_add(launch.saturating_mul(wish.ops.len() as u32)))
}

fn estimate<D>(candidate: &Candidate<D>, time: Duration) -> String {
    let Ok(opened) = &candidate.outcome else { return String::new() };
    let (bandwidth, _) = opened.capabilities.speed();
    let basis = match opened.capabilities.bandwidth {
        Some(_) => String::new(),
        None => format!(", as assumed of any {}", opened.capabilities.class.name()),
    };
    format!("about {time:.1?} a step at {:.0} GB/s{basis}", bandwidth / 1e9)
}

/// Why the required device cannot be used: the reasons of all candidates that the specification names.
fn unmet(spec: &crate::DeviceSpec, report: Box<Report>) -> OracleError {
    let asked = spec.to_string();
    let of = |name: &str| name == asked || name.split(':').next() == Some(spec.backend());
    let reasons: Vec<String> = report
        .entries
        .iter()
        .filter(|entry| of(&entry.name) && entry.verdict == Verdict::Rejected)
        .filter(|entry| spec.index().is_none() || entry.name == asked || !entry.name.contains(':'))
        .map(|entry| entry.reason.clone())
        .collect();
    let why = match reasons.is_empty() {
        true => format!("there is no backend {:?} in this program", spec.backend()),
        false => reasons.join("; "),
    };
    OracleError::Unmet { asked, why, report }
}
