//! What can be tuned, and the values in use.

use crate::{Error, Result};

/// What values a [`Knob`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnobKind {
    /// A number within bounds, both included.
    Number {
        /// The smallest.
        min: usize,
        /// The largest.
        max: usize,
    },
    /// One of these words. The value is the word's place in the list.
    Choice(&'static [&'static str]),
}

/// A threshold or a choice between kernels that a backend lets be measured. No knob changes a result: every setting
/// gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knob {
    /// The key in the table.
    pub key: &'static str,
    /// What it decides, with its unit.
    pub about: &'static str,
    /// What values it takes.
    pub kind: KnobKind,
    /// The value of the built-in table.
    pub built_in: usize,
    /// Values worth measuring.
    pub candidates: &'static [usize],
}

impl Knob {
    /// A number within bounds.
    pub const fn number(
        key: &'static str,
        about: &'static str,
        bounds: (usize, usize),
        built_in: usize,
        candidates: &'static [usize],
    ) -> Self {
        let kind = KnobKind::Number { min: bounds.0, max: bounds.1 };
        Self { key, about, kind, built_in, candidates }
    }

    /// One of a list of words; all of them are worth measuring, so `candidates` is `0..words.len()` or a part of it.
    pub const fn choice(
        key: &'static str,
        about: &'static str,
        words: &'static [&'static str],
        built_in: usize,
        candidates: &'static [usize],
    ) -> Self {
        Self { key, about, kind: KnobKind::Choice(words), built_in, candidates }
    }

    /// A value as the table writes it.
    pub fn format(&self, value: usize) -> String {
        match self.kind {
            KnobKind::Number { .. } => value.to_string(),
            KnobKind::Choice(words) => words.get(value).map_or_else(|| value.to_string(), |word| (*word).to_owned()),
        }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], which names the key and the values it takes.
    pub fn parse(&self, text: &str) -> Result<usize> {
        let value = match self.kind {
            KnobKind::Number { min, max } => text.parse().ok().filter(|value| (min..=max).contains(value)),
            KnobKind::Choice(words) => words.iter().position(|word| *word == text),
        };
        value.ok_or_else(|| {
            let expected = match self.kind {
                KnobKind::Number { min, max } => format!("a number from {min} to {max}"),
                KnobKind::Choice(words) => words.join(" or "),
            };
            Error::InvalidArgument { op: "tune", arg: self.key, expected, got: text.to_owned() }
        })
    }
}

/// The values of all knobs of a device: those of a table, and the built-in ones of the keys that it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuned {
    pub(super) values: Vec<(Knob, usize, bool)>,
}

impl Tuned {
    /// The built-in table.
    pub fn built_in(knobs: &[Knob]) -> Self {
        Self { values: knobs.iter().map(|knob| (*knob, knob.built_in, false)).collect() }
    }

    /// The value of a knob; its built-in value if it is none of these.
    pub fn get(&self, knob: &Knob) -> usize {
        self.values.iter().find(|(k, ..)| k.key == knob.key).map_or(knob.built_in, |(_, value, _)| *value)
    }

    /// Whether the value was measured, rather than built in.
    pub fn is_measured(&self, knob: &Knob) -> bool {
        self.values.iter().any(|(k, _, measured)| k.key == knob.key && *measured)
    }

    /// All knobs and their values.
    pub fn iter(&self) -> impl Iterator<Item = (&Knob, usize)> {
        self.values.iter().map(|(knob, value, _)| (knob, *value))
    }
}
