//! How a backend's operations are timed.

use crate::Result;
use crate::cases::Op;
use crate::stats::{Effort, Job, Samples};
use crate::work::Work;
use moe_core::{PermuteBackend, Queue};

/// Copies of the same bytes, by name.
pub type Copies = Vec<(&'static str, Samples)>;

/// By which clock an operation of a backend that has two was timed.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The device's own: the work alone. `wall` is what the same calls took by the wall clock, recording and submission
    /// included.
    Gpu {
        /// Microseconds of each repeat.
        wall: Samples,
    },
    /// The wall clock, because the device has no other.
    Wall,
}

/// What came of measuring an operation.
#[derive(Debug, Default)]
pub struct Measured {
    /// The operation.
    pub ours: Samples,
    /// Copies of the same bytes, in the same run.
    pub copies: Copies,
    /// The peers that were handed in, in their order.
    pub peers: Vec<Samples>,
    /// Where a backend has two clocks, the one of `ours` and `copies`.
    pub clock: Option<Clock>,
}

/// An opened device, and its way of measuring.
pub trait Target {
    /// The backend.
    type Backend: PermuteBackend;

    /// The name in tables: "moe-cpu".
    fn name(&self) -> &'static str;

    /// The canonical identity: "cpu:0".
    fn device(&self) -> String;

    /// The device's own name. Results are compared with each other where class and name agree.
    fn device_name(&self) -> String;

    /// How times are taken, in a few words.
    fn method(&self) -> &'static str;

    /// Bytes of memory that a case may take.
    fn memory_limit(&self) -> usize;

    /// Queue to set a case up with.
    fn queue(&mut self) -> &mut Queue<'static, Self::Backend>;

    /// Makes room for copies of this many bytes.
    ///
    /// # Errors
    /// What the device says.
    fn prepare_copies(&mut self, bytes: usize) -> Result<()>;

    /// Times an operation, the copies of the same bytes beside it, and peers where they run on the same device.
    ///
    /// # Errors
    /// What the library says.
    fn measure(
        &mut self,
        work: &mut Work<Self::Backend>,
        op: Op,
        peers: Vec<Job<'_>>,
        effort: Effort,
    ) -> Result<Measured>;

    /// Times an operation with a cold cache, where the device can: every call after its cache was overwritten.
    ///
    /// # Errors
    /// What the library says.
    fn measure_cold(&mut self, work: &mut Work<Self::Backend>, op: Op, effort: Effort) -> Result<Option<Measured>> {
        let _ = (work, op, effort);
        Ok(None)
    }
}
