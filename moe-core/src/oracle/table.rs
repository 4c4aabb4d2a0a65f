//! The measured table, as text.

use super::knob::{Knob, Tuned};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// One line of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TuningEntry {
    /// The value, as written.
    pub value: String,
    /// What was measured; may be empty.
    pub measurement: String,
}

/// Measured values, by backend and device name.
///
/// The text has a section for each device, and a line for each key:
///
/// ```text
/// # anything
/// [cpu: 2 threads]
/// stream_bytes 1048576  # 4.4 ms; 262144: 4.6 ms; 4194304: 4.9 ms
/// ```
///
/// ```
/// use moe_core::oracle::{Knob, TuningTable};
/// const STREAM_BYTES: Knob = Knob::number("stream_bytes", "bytes", (0, usize::MAX), 1 << 20, &[1 << 18, 1 << 20]);
/// let table: TuningTable = "[cpu: 2 threads]\nstream_bytes 4096  # 1.2 ms".parse()?;
/// assert_eq!(table.tuned("cpu", "2 threads", &[STREAM_BYTES])?.get(&STREAM_BYTES), 4096);
/// assert_eq!(table.tuned("cpu", "64 threads", &[STREAM_BYTES])?.get(&STREAM_BYTES), 1 << 20); // built in
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TuningTable {
    sections: BTreeMap<(String, String), BTreeMap<String, TuningEntry>>,
}

/// One line of text: control characters become spaces, and spaces at the ends go.
fn line_of(text: &str) -> String {
    let one = text.replace(|c: char| c.is_control(), " ");
    one.trim().to_owned()
}

/// A word that can be a key or a value.
fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#' || c == '[')
}

impl TuningTable {
    /// A table without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.sections.values().all(BTreeMap::is_empty)
    }

    /// Sets the value of a knob on a device, and says what was measured.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the knob does not take the value.
    pub fn set(&mut self, backend: &str, device: &str, knob: &Knob, value: usize, measurement: &str) -> Result<()> {
        let value = knob.format(value);
        knob.parse(&value)?;
        let entry = TuningEntry { value, measurement: line_of(measurement) };
        self.section(backend, device).insert(knob.key.to_owned(), entry);
        Ok(())
    }

    fn section(&mut self, backend: &str, device: &str) -> &mut BTreeMap<String, TuningEntry> {
        self.sections.entry((line_of(backend), line_of(device))).or_default()
    }

    /// The entry of a key on a device.
    pub fn entry(&self, backend: &str, device: &str, key: &str) -> Option<&TuningEntry> {
        self.sections.get(&(line_of(backend), line_of(device)))?.get(key)
    }

    /// Takes all entries of another table, over those that are here.
    pub fn merge(&mut self, newer: Self) {
        for (section, entries) in newer.sections {
            self.sections.entry(section).or_default().extend(entries);
        }
    }

    /// The values of a device's knobs: those measured for this device name, and the built-in ones of the keys that are
    /// not here.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the device's section has a key that is none of the knobs, or a value that its knob
    /// does not take. The message names it.
    pub fn tuned(&self, backend: &str, device: &str, knobs: &[Knob]) -> Result<Tuned> {
        let mut tuned = Tuned::built_in(knobs);
        let Some(section) = self.sections.get(&(line_of(backend), line_of(device))) else { return Ok(tuned) };
        for (key, entry) in section {
            let Some((knob, value, measured)) = tuned.values.iter_mut().find(|(knob, ..)| knob.key == key) else {
                let keys: Vec<&str> = knobs.iter().map(|knob| knob.key).collect();
                let expected = match keys.is_empty() {
                    true => format!("no key: {backend} has nothing to tune"),
                    false => format!("a key of {backend}: {}", keys.join(", ")),
                };
                return Err(Error::InvalidArgument { op: "tune", arg: "key", expected, got: key.clone() });
            };
            *value = knob.parse(&entry.value)?;
            *measured = true;
        }
        Ok(tuned)
    }
}

impl FromStr for TuningTable {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut table = Self::new();
        let mut section = None;
        for (i, line) in text.lines().enumerate() {
            let error = |expected: &str| Error::InvalidArgument {
                op: "TuningTable::from_str",
                arg: "line",
                expected: expected.to_owned(),
                got: format!("{:?} in line {}", line.trim(), i + 1),
            };
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            if let Some(rest) = trimmed.strip_prefix('[') {
                let names = rest.strip_suffix(']').and_then(|rest| rest.split_once(':'));
                let (backend, device) = names.ok_or_else(|| error("[backend: device name]"))?;
                section = Some((line_of(backend), line_of(device)));
                continue;
            }
            let (words, measurement) = trimmed.split_once('#').unwrap_or((trimmed, ""));
            let mut words = words.split_whitespace();
            let (Some(key), Some(value), None) = (words.next(), words.next(), words.next()) else {
                return Err(error("key value  # measurement"));
            };
            let Some((backend, device)) = &section else { return Err(error("[backend: device name] before any key")) };
            if !is_word(key) || !is_word(value) {
                return Err(error("key value  # measurement"));
            }
            let entry = TuningEntry { value: value.to_owned(), measurement: line_of(measurement) };
            if table.section(backend, device).insert(key.to_owned(), entry).is_some() {
                return Err(error("each key once for a device"));
            }
        }
        Ok(table)
    }
}

/// The text that [`FromStr`] reads.
impl fmt::Display for TuningTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ((backend, device), entries)) in self.sections.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            writeln!(f, "[{backend}: {device}]")?;
            for (key, TuningEntry { value, measurement }) in entries {
                match measurement.is_empty() {
                    true => writeln!(f, "{key} {value}")?,
                    false => writeln!(f, "{key} {value}  # {measurement}")?,
                }
            }
        }
        Ok(())
    }
}
