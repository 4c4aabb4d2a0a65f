//! The measurements as JSON: saved, read again, merged with those of other programs. The README describes the schema.

use crate::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The number that a file carries, so that an old program refuses a new file.
pub const SCHEMA: u32 = 1;

/// All measurements of one or more runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What measured, and where. Records point into it.
    pub runs: Vec<Run>,
    /// One for each contender, case and operation.
    pub records: Vec<Record>,
}

/// A program's run on a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// "moe-bench" or "peers.py".
    pub program: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// UTC, "2026-11-24T16:00:00Z".
    pub date: String,
    /// The commit of the working tree, "-dirty" where it differs from it.
    #[serde(default)]
    pub commit: Option<String>,
    /// Operating system and architecture.
    pub machine: String,
    /// The processor.
    pub cpu: String,
    /// Cores that the run may use.
    pub cores: usize,
    /// Name → version of what was measured and of what it runs on.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
    /// Device → facts.
    #[serde(default)]
    pub devices: BTreeMap<String, BTreeMap<String, String>>,
    /// What was not measured, and why.
    #[serde(default)]
    pub skipped: Vec<String>,
}

/// Whose measurement it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A backend of this library.
    Ours,
    /// Another implementation.
    Peer,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Index into [`Report::runs`].
    pub run: usize,
    /// "moe-cpu", "moe-cuda", "candle", "torch", "vllm".
    pub contender: String,
    /// Whose it is.
    pub kind: Kind,
    /// "cpu:0", "cuda:0".
    pub device: String,
    /// The device's own name; results are compared where it and the part of `device` before the colon agree.
    pub device_name: String,
    /// "dsv3".
    pub model: String,
    /// "permute".
    pub op: String,
    /// "bf16".
    pub dtype: String,
    /// "uniform".
    pub routing: String,
    /// T.
    pub tokens: usize,
    /// "hot", or "cold" where the device's cache was overwritten before each call.
    pub cache: String,
    /// Median, microseconds per call.
    pub us: f64,
    /// The fastest sample.
    pub us_min: f64,
    /// By which clock, for a backend that has two: "gpu", the work alone, or "wall".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<String>,
    /// Beside a time of the GPU: the median of the same calls by the wall clock, recording and submission included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_us: Option<f64>,
    /// How many samples.
    pub samples: usize,
    /// The bytes that the operation reads and writes.
    pub bytes: usize,
    /// Copies of the same bytes in the same run: name → median, microseconds.
    #[serde(default)]
    pub copies: BTreeMap<String, f64>,
    /// Which of its ways a peer took, where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<String>,
    /// Its other ways, slower: name → median, microseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub other_ways: BTreeMap<String, f64>,
}

impl Record {
    /// The part of the device before its index.
    pub fn class(&self) -> &str {
        self.device.split(':').next().unwrap_or_default()
    }

    /// The fastest copy of the same bytes.
    pub fn copy(&self) -> Option<f64> {
        self.copies.values().copied().reduce(f64::min)
    }

    /// Time over that of the fastest copy.
    pub fn ratio(&self) -> Option<f64> {
        self.copy().map(|copy| self.us / copy)
    }

    /// What the host adds to a call: the time by the wall clock less that of the GPU.
    pub fn overhead(&self) -> Option<f64> {
        self.wall_us.map(|wall| (wall - self.us).max(0.0))
    }

    /// Whether both did the same work on the same device.
    pub fn same_work(&self, other: &Self) -> bool {
        self.same_group(other) && self.tokens == other.tokens
    }

    /// Whether both belong into one table: the same but for the batch size and the contender.
    pub fn same_group(&self, other: &Self) -> bool {
        let key = |r: &Self| [&r.model, &r.op, &r.dtype, &r.routing, &r.cache, &r.device_name].map(|s| s.to_owned());
        key(self) == key(other) && self.class() == other.class()
    }
}

impl Default for Report {
    fn default() -> Self {
        Self { schema: SCHEMA, runs: Vec::new(), records: Vec::new() }
    }
}

impl Report {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or has another schema.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::from_json(&text).map_err(|e| format!("{}: {e}", path.display()).into())
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// If it is not of this schema, or a record points to a run that is not there.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        let schema = value.get("schema").and_then(|s| s.as_u64());
        if schema != Some(u64::from(SCHEMA)) {
            return Err(
                format!("expected schema {SCHEMA}, got {}", schema.map_or("none".into(), |s| s.to_string())).into()
            );
        }
        let report: Self = serde_json::from_value(value)?;
        match report.records.iter().find(|r| r.run >= report.runs.len()) {
            Some(r) => Err(format!("a record points to run {} of {}", r.run, report.runs.len()).into()),
            None => Ok(report),
        }
    }

    /// As JSON.
    ///
    /// # Errors
    /// None that is known; serde's.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// Takes over the runs and records of another.
    pub fn merge(&mut self, other: Self) {
        let first = self.runs.len();
        self.runs.extend(other.runs);
        self.records.extend(other.records.into_iter().map(|r| Record { run: r.run + first, ..r }));
    }

    /// The fastest peer that did the same work on the same device, and how many times slower it was.
    pub fn best_peer(&self, ours: &Record) -> Option<(&Record, f64)> {
        let peers = self.records.iter().filter(|r| r.kind == Kind::Peer && r.same_work(ours));
        let best = peers.min_by(|a, b| a.us.total_cmp(&b.us))?;
        Some((best, best.us / ours.us))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(contender: &str, kind: Kind, tokens: usize, us: f64) -> Record {
        Record {
            run: 0,
            contender: contender.into(),
            kind,
            device: "cpu:0".into(),
            device_name: "a processor".into(),
            model: "dsv3".into(),
            op: "gather".into(),
            dtype: "bf16".into(),
            routing: "uniform".into(),
            tokens,
            cache: "hot".into(),
            us,
            us_min: us,
            clock: None,
            wall_us: None,
            samples: 7,
            bytes: 1 << 20,
            copies: [("memcpy".to_owned(), 12.0), ("streaming".to_owned(), 10.0)].into(),
            way: None,
            other_ways: BTreeMap::new(),
        }
    }

    pub(crate) fn report() -> Report {
        let run = Run { program: "moe-bench".into(), cores: 2, ..Run::default() };
        let records = vec![
            record("moe-cpu", Kind::Ours, 32, 11.0),
            record("candle", Kind::Peer, 32, 220.0),
            record("torch", Kind::Peer, 32, 33.0),
            record("moe-cpu", Kind::Ours, 1024, 300.0),
        ];
        Report { runs: vec![run], records, ..Report::default() }
    }

    #[test]
    fn json_comes_back_as_it_was_written() {
        let mut report = report();
        report.records[1].way = Some("index_select".into());
        report.records[1].other_ways.insert("slow".into(), 1e4);
        assert_eq!(Report::from_json(&report.to_json().unwrap()).unwrap(), report);
    }

    #[test]
    fn a_merged_record_still_points_to_its_own_run() {
        let (mut ours, mut other) = (report(), report());
        other.runs[0].program = "peers.py".into();
        other.runs.insert(0, Run::default());
        other.records.iter_mut().for_each(|r| r.run = 1);
        ours.merge(other);
        assert_eq!(ours.records.len(), 8);
        assert_eq!(ours.runs[ours.records[7].run].program, "peers.py");
        assert_eq!(ours.runs[ours.records[3].run].program, "moe-bench");
    }

    #[test]
    fn files_of_another_schema_and_dangling_runs_are_refused() {
        let mut report = report();
        report.records[0].run = 1;
        assert!(Report::from_json(&report.to_json().unwrap()).unwrap_err().to_string().contains("run 1 of 1"));
        report.schema = 2;
        assert!(Report::from_json(&report.to_json().unwrap()).unwrap_err().to_string().contains("schema 1, got 2"));
        assert!(Report::from_json("{}").is_err());
    }

    #[test]
    fn the_speed_up_is_over_the_fastest_peer_of_the_same_work_only() {
        let mut report = report();
        let (best, times) = report.best_peer(&report.records[0]).unwrap();
        assert_eq!((best.contender.as_str(), times), ("torch", 3.0));
        assert!(report.best_peer(&report.records[3]).is_none(), "no peer at that batch size");
        report.records[2].device_name = "another processor".into();
        assert_eq!(report.best_peer(&report.records[0]).unwrap().0.contender, "candle");
    }

    #[test]
    fn the_ratio_is_to_the_faster_copy() {
        assert_eq!(record("moe-cpu", Kind::Ours, 1, 15.0).ratio(), Some(1.5));
    }
}
