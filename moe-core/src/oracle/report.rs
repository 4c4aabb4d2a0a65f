//! Why the choice was made.

use super::wish::Ask;
use std::fmt;
use std::time::Duration;

/// A kernel that a device would run, and why that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// What is decided: "gather: stores".
    pub what: &'static str,
    /// The kernel or setting that is taken: "streaming".
    pub taken: String,
    /// Why, with the number that decided and where it comes from.
    pub why: String,
}

/// What became of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the choice.
    Taken,
    /// It could do the work, but another is the choice.
    PassedOver,
    /// It cannot do the work.
    Rejected,
}

/// One candidate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// "cuda:0", or "cuda" where no device was found.
    pub name: String,
    /// What the device calls itself; empty where no device was found.
    pub description: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why, in words.
    pub reason: String,
    /// Estimated time of a step of the typical size, where it can do the work.
    pub estimate: Option<Duration>,
    /// Which kernels it would run.
    pub paths: Vec<Path>,
}

/// Every candidate, in the order in which they were given, and what became of it.
#[derive(Clone, Debug)]
pub struct Report {
    pub(super) wish: String,
    pub(super) ask: Ask,
    pub(super) entries: Vec<Entry>,
}

impl Report {
    /// The candidates.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The one that was taken.
    pub fn taken(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.verdict == Verdict::Taken)
    }

    /// Whether the backend or device that was preferred or required is the choice; `None` where none was named.
    pub fn wish_met(&self) -> Option<bool> {
        let spec = self.ask.spec()?.to_string();
        let taken = self.taken().map(|entry| entry.name.as_str());
        Some(taken.is_some_and(|name| name == spec || name.split(':').next() == Some(spec.as_str())))
    }

    /// The names of those that could do the work.
    pub(super) fn would_work(&self) -> Vec<&str> {
        let able = self.entries.iter().filter(|entry| entry.verdict != Verdict::Rejected);
        able.map(|entry| entry.name.as_str()).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "wanted: {}", self.wish)?;
        if let (Ask::Prefer(spec), Some(false)) = (&self.ask, self.wish_met()) {
            writeln!(f, "{spec} was preferred but cannot be used: see below")?;
        }
        let width = self.entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
        for entry in &self.entries {
            let verdict = match entry.verdict {
                Verdict::Taken => "taken",
                Verdict::PassedOver => "not taken",
                Verdict::Rejected => "rejected",
            };
            write!(f, "  {verdict:<9}  {:<width$}  ", entry.name)?;
            if !entry.description.is_empty() {
                write!(f, "({}) ", entry.description)?;
            }
            writeln!(f, "{}", entry.reason)?;
            for path in entry.paths.iter().filter(|_| entry.verdict == Verdict::Taken) {
                writeln!(f, "      {}: {}: {}", path.what, path.taken, path.why)?;
            }
        }
        Ok(())
    }
}

/// A number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
