//! What a run of the suite found.

use std::fmt::{self, Write};

/// A case that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What the case was.
    pub case: String,
    /// What was wrong.
    pub message: String,
}

/// What a group of cases found.
#[derive(Clone, Debug, Default)]
pub struct GroupReport {
    /// The group.
    pub name: &'static str,
    /// Cases that ran.
    pub cases: usize,
    /// Why the group, or a part of it, did not run.
    pub skipped: Vec<String>,
    /// The failures; after the first few only their number grows.
    pub failures: Vec<Failure>,
    /// All failures.
    pub failed: usize,
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The device, canonical, or what was asked for where it could not be opened.
    pub device: String,
    /// The seed; the same seed gives the same cases.
    pub seed: u64,
    /// Whether the full suite ran.
    pub full: bool,
    /// Group by group.
    pub groups: Vec<GroupReport>,
}

impl Report {
    /// Whether nothing failed.
    pub fn passed(&self) -> bool {
        self.groups.iter().all(|g| g.failed == 0)
    }

    /// Cases that ran.
    pub fn cases(&self) -> usize {
        self.groups.iter().map(|g| g.cases).sum()
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        let strings = |list: &[String]| list.iter().map(|s| json_string(s)).collect::<Vec<_>>().join(",");
        let groups = self.groups.iter().map(|g| {
            let failures = g
                .failures
                .iter()
                .map(|f| format!("{{\"case\":{},\"message\":{}}}", json_string(&f.case), json_string(&f.message)));
            format!(
                "{{\"name\":{},\"cases\":{},\"failed\":{},\"skipped\":[{}],\"failures\":[{}]}}",
                json_string(g.name),
                g.cases,
                g.failed,
                strings(&g.skipped),
                failures.collect::<Vec<_>>().join(",")
            )
        });
        format!(
            "{{\"device\":{},\"seed\":{},\"full\":{},\"cases\":{},\"passed\":{},\"groups\":[{}]}}",
            json_string(&self.device),
            self.seed,
            self.full,
            self.cases(),
            self.passed(),
            groups.collect::<Vec<_>>().join(",")
        )
    }
}

fn json_string(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if u32::from(c) < 0x20 => write!(out, "\\u{:04x}", u32::from(c)).expect("writing to a string"),
            c => out.push(c),
        }
    }
    out + "\""
}

impl fmt::Display for GroupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<56} {:>5} cases", self.name, self.cases)?;
        if self.failed > 0 {
            write!(f, ", {} FAILED", self.failed)?;
        }
        for reason in &self.skipped {
            write!(f, "\n    skipped: {reason}")?;
        }
        for failure in &self.failures {
            write!(f, "\n    {}\n        {}", failure.case, failure.message)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.full { "full" } else { "quick" };
        writeln!(f, "conformance of {} ({kind}, seed {})", self.device, self.seed)?;
        for group in &self.groups {
            writeln!(f, "{group}")?;
        }
        let failed: usize = self.groups.iter().map(|g| g.failed).sum();
        write!(f, "{} cases, {failed} failed", self.cases())
    }
}
