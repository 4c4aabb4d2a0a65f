//! The CPU figures that have a bar: measured alone, and said of each whether it is met.

use crate::Result;
use crate::args::Args;
use crate::report::{Kind, Record, Report};
use crate::suite;
use std::fmt;

/// A bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// At most this many times the fastest copy of the same bytes.
    OverCopy(f64),
    /// At least this many times faster than the best peer.
    OverPeer(f64),
}

/// A figure that has a bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// The bar.
    pub bar: Bar,
    /// What came out: the ratio or the speed-up. `None` where the peer or the copy is missing.
    pub got: Option<f64>,
}

impl Figure {
    /// Whether the bar is met.
    pub fn met(&self) -> bool {
        match (self.bar, self.got) {
            (Bar::OverCopy(bar), Some(got)) => got <= bar,
            (Bar::OverPeer(bar), Some(got)) => got >= bar,
            (_, None) => false,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.met() { "met   " } else { "MISSED" };
        let got = self.got.map_or("not measured".to_owned(), |got| format!("{got:.2}×"));
        match self.bar {
            Bar::OverCopy(bar) => write!(f, "{verdict}  {}: {got} the copy, bar at most {bar:.2}×", self.what),
            Bar::OverPeer(bar) => write!(f, "{verdict}  {}: {got} faster, bar at least {bar:.0}×", self.what),
        }
    }
}

/// The figures that a report holds the measurements of.
pub fn judge(report: &Report) -> Vec<Figure> {
    let ours = report.records.iter().filter(|r| r.kind == Kind::Ours && r.class() == "cpu" && r.dtype == "bf16");
    ours.filter(|r| r.routing == "uniform")
        .flat_map(|r| bars(r).into_iter().map(|bar| figure(report, r, bar)))
        .collect()
}

/// The bars that a measurement has to meet.
fn bars(r: &Record) -> Vec<Bar> {
    let large = matches!(r.model.as_str(), "dsv3" | "qwen3-30b");
    match (r.op.as_str(), r.tokens) {
        ("gather", 4096) if large => vec![Bar::OverCopy(1.15)],
        ("combine", 4096) if large => vec![Bar::OverCopy(1.25), Bar::OverPeer(15.0)],
        ("combine", 1024) if large => vec![Bar::OverPeer(15.0)],
        ("permute", 1024 | 4096) if large => vec![Bar::OverPeer(12.0)],
        ("plan", PLAN_TOKENS) if r.model == "dsv3" => vec![Bar::OverPeer(8.0)],
        _ => vec![],
    }
}

/// 131,072 tokens of 8 routes: 1,048,576 ids of 256 experts.
const PLAN_TOKENS: usize = 131_072;

/// The faster of the two copies that share the work between the threads: what the bars are relative to.
fn shared_copy(r: &Record) -> Option<f64> {
    ["memcpy", "streaming"].iter().filter_map(|name| r.copies.get(*name).copied()).reduce(f64::min)
}

fn figure(report: &Report, r: &Record, bar: Bar) -> Figure {
    let got = match bar {
        Bar::OverCopy(_) => shared_copy(r).map(|copy| r.us / copy),
        Bar::OverPeer(_) => report.best_peer(r).map(|(_, times)| times),
    };
    let versus = match (bar, report.best_peer(r)) {
        (Bar::OverPeer(_), Some((peer, _))) => {
            format!(" against {} {}", peer.contender, peer.way.as_deref().unwrap_or_default())
        }
        _ => String::new(),
    };
    Figure { what: format!("{} {} T={}{versus}", r.op, r.model, r.tokens), bar, got }
}

/// The runs that measure all figures.
///
/// # Errors
/// As [`suite::run`].
pub fn run(args: &Args) -> Result<Report> {
    let part = |line: &str| -> Result<Report> {
        let parsed = Args::parse(line.split_whitespace().map(str::to_owned))?;
        suite::run(&Args { quick: args.quick, peers: args.peers, commit: args.commit.clone(), ..parsed })
    };
    let mut report = part("--backend cpu --models dsv3,qwen3-30b --tokens 1024,4096 --ops gather,permute,combine")?;
    report.merge(part("--backend cpu --models dsv3 --tokens 131072 --ops plan")?);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{record, report};

    #[test]
    fn a_bar_is_missed_by_a_hair_and_by_an_absent_peer() {
        let mut report = report();
        report.records = vec![record("moe-cpu", Kind::Ours, 4096, 11.6), record("candle", Kind::Peer, 1024, 116.0)];
        let figures = judge(&report);
        assert_eq!(figures.len(), 1);
        assert!(!figures[0].met(), "{}", figures[0]);
        report.records[0].us = 11.5;
        assert!(judge(&report)[0].met());
        report.records[0].op = "permute".into();
        assert!(!judge(&report)[0].met());
        assert!(judge(&report)[0].to_string().contains("not measured"));
    }

    #[test]
    fn peers_and_other_devices_have_no_bars() {
        let mut report = report();
        let mut gpu = record("moe-cuda", Kind::Ours, 4096, 1.0);
        gpu.device = "cuda:0".into();
        report.records = vec![gpu, record("candle", Kind::Peer, 4096, 1.0)];
        assert!(judge(&report).is_empty());
    }
}
