//! The error type of the load balancer.

use std::time::Duration;

/// What can go wrong in expert-parallel load balancing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EplbError {
    /// An argument is out of its range or has the wrong length.
    #[error("{op}: {arg}: expected {expected}, got {got}")]
    Argument {
        /// Function that refused the argument.
        op: &'static str,
        /// Name of the argument.
        arg: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What came.
        got: String,
    },
    /// The worker thread could not be started.
    #[error("eplb worker: cannot start the thread: {reason}")]
    WorkerSpawn {
        /// The operating system's words.
        reason: String,
    },
    /// The worker thread panicked or ended; no further placement will come until it is restarted.
    #[error("eplb worker died: {reason}")]
    WorkerDied {
        /// The panic message, where there is one.
        reason: String,
    },
    /// The worker thread has been busy with one request for longer than its deadline.
    #[error("eplb worker hangs: busy for {busy:?}, deadline {deadline:?}")]
    WorkerHung {
        /// Time since the request was taken up (or handed in, if it was not taken up yet).
        busy: Duration,
        /// The configured deadline.
        deadline: Duration,
    },
    /// An offer was computed against a placement that is no longer the current one.
    #[error("eplb commit: offer is based on generation {base}, the current one is {current}")]
    StaleOffer {
        /// Generation the offer was computed against.
        base: u64,
        /// Generation in use.
        current: u64,
    },
}

/// Builds [`EplbError::Argument`].
pub(super) fn bad(op: &'static str, arg: &'static str, expected: impl Into<String>, got: impl ToString) -> EplbError {
    EplbError::Argument { op, arg, expected: expected.into(), got: got.to_string() }
}
