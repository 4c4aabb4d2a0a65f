//! The thresholds between ways of doing the same work. Each setting gives the same bits.

use moe_core::oracle::{Knob, Tuned};

/// More than any buffer: a threshold that is never reached.
const NEVER: usize = 1 << 48;

/// Outputs of at least this many bytes are written past the cache: a plain store reads the line it replaces.
pub(crate) const STREAM_BYTES: Knob = Knob::number(
    "stream_bytes",
    "bytes of an output from which it is written past the cache",
    (0, NEVER),
    1 << 20,
    &[1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22, 1 << 24, NEVER],
);

/// Rows shorter than this are stored plainly: too few whole lines to gain from streaming.
pub(crate) const STREAM_ROW: Knob = Knob::number(
    "stream_row",
    "bytes of a row from which rows of such an output are written past the cache",
    (0, NEVER),
    256,
    &[64, 128, 256, 512, 1024],
);

/// Large enough to be worth a task's start, small enough to balance.
pub(crate) const TASK_BYTES: Knob =
    Knob::number("task_bytes", "bytes that a task moves", (1, NEVER), 1 << 20, &[1 << 16, 1 << 18, 1 << 20, 1 << 22]);

/// Vectors of 512 bits lower the clock of some processors.
pub(crate) const INSTRUCTIONS: Knob = Knob::choice(
    "instructions",
    "the instruction set of the row kernels",
    &["widest", "scalar", "avx2", "avx512"],
    0,
    &[0, 1, 2, 3],
);

/// All that can be tuned.
pub(crate) const KNOBS: &[Knob] = &[STREAM_BYTES, STREAM_ROW, TASK_BYTES, INSTRUCTIONS];

/// The thresholds in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thresholds {
    stream_bytes: usize,
    stream_row: usize,
    task_bytes: usize,
}

impl Thresholds {
    /// Those of the built-in table.
    pub(crate) const BUILT_IN: Self =
        Self { stream_bytes: STREAM_BYTES.built_in, stream_row: STREAM_ROW.built_in, task_bytes: TASK_BYTES.built_in };

    /// Everything past the cache, in small tasks: for tests, whose rows are few.
    #[cfg(test)]
    pub(crate) const EAGER: Self = Self { stream_bytes: 0, stream_row: 0, task_bytes: 1 << 13 };

    /// Those of a measured table.
    pub(crate) fn new(tuned: &Tuned) -> Self {
        Self {
            stream_bytes: tuned.get(&STREAM_BYTES),
            stream_row: tuned.get(&STREAM_ROW),
            task_bytes: tuned.get(&TASK_BYTES),
        }
    }

    /// Whether to stream rows of `row` bytes of an output of `total` bytes.
    pub(crate) fn streams(&self, total: usize, row: usize) -> bool {
        total >= self.stream_bytes && row >= self.stream_row
    }

    /// Work of at most so many bytes is not split.
    pub(crate) fn task_bytes(&self) -> usize {
        self.task_bytes
    }

    /// Items of `bytes` each that make a task.
    pub(crate) fn grain_for(&self, bytes: usize) -> usize {
        (self.task_bytes / bytes.max(1)).max(1)
    }
}
