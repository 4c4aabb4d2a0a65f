//! The one error type of the library.

use crate::{AnyDeviceId, DType};
use std::error::Error as StdError;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the operation, the argument, what was expected and what came.
///
/// Everything that the host can see is checked before anything is enqueued, so an error of that kind leaves every
/// buffer as it was. [`Error::Backend`] and [`Error::DeviceLost`] can come from work that was enqueued earlier: GPU
/// backends report those from [`Queue::check`](crate::Queue::check) and
/// [`Queue::synchronize`](crate::Queue::synchronize).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device specification that cannot be read.
    #[error("cannot read device specification {input:?}: {reason}")]
    InvalidSpec {
        /// What was written.
        input: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A specification for one backend was given to another.
    #[error("device specification {spec} names another backend than {backend}")]
    WrongBackend {
        /// What was asked for, as written.
        spec: String,
        /// The backend that was asked.
        backend: &'static str,
    },
    /// The backend is compiled in but cannot run on this machine.
    #[error("backend {backend} cannot run here: {reason}")]
    BackendUnavailable {
        /// The backend.
        backend: &'static str,
        /// Why, in words, and what would help.
        reason: String,
    },
    /// The backend runs here but has no such device.
    #[error("{spec}: no such device, {backend} has {found}")]
    NoSuchDevice {
        /// What was asked for, as written.
        spec: String,
        /// The backend.
        backend: &'static str,
        /// How many devices it has.
        found: usize,
    },
    /// Two things that must live on one device do not.
    #[error("{op}: {arg} is on {got}, expected {expected}")]
    DeviceMismatch {
        /// The operation.
        op: &'static str,
        /// The argument that lives elsewhere.
        arg: &'static str,
        /// Where it should live.
        expected: AnyDeviceId,
        /// Where it lives.
        got: AnyDeviceId,
    },
    /// A workspace was used on a stream other than its own.
    #[error("{op}: {arg} belongs to another stream of {device}")]
    StreamMismatch {
        /// The operation.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// The device both streams belong to.
        device: AnyDeviceId,
    },
    /// A length or a shape that does not fit the others.
    #[error("{op}: {arg} has {got}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// What it should have been, with its unit.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A number out of its range.
    #[error("{op}: {arg} is {got}, expected {expected}")]
    InvalidArgument {
        /// The operation.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// What it should have been.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A dtype that the operation does not take here.
    #[error("{op}: {arg} is {got}, expected {expected}")]
    UnsupportedDType {
        /// The operation.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// What it takes.
        expected: &'static str,
        /// What came.
        got: DType,
    },
    /// A buffer, plan or workspace that is too small for the work.
    #[error("{op}: {arg} holds {got} {unit}, needs {expected}")]
    TooSmall {
        /// The operation.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// The unit of both numbers.
        unit: &'static str,
        /// What the work needs.
        expected: usize,
        /// What is there.
        got: usize,
    },
    /// An output shares memory with another argument.
    #[error("{op}: {arg} overlaps {other}")]
    Overlap {
        /// The operation.
        op: &'static str,
        /// The output.
        arg: &'static str,
        /// The argument it overlaps.
        other: &'static str,
    },
    /// Memory that is not aligned to its element type.
    #[error("{op}: {arg} is not aligned to the {expected} bytes of its elements")]
    Misaligned {
        /// The operation.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// The alignment it needs, in bytes.
        expected: usize,
    },
    /// A model's file that cannot be loaded as what it should be.
    #[error("cannot load the model: {what} is {got}, expected {expected}")]
    InvalidModel {
        /// The tensor, or the key of the configuration.
        what: String,
        /// What it should have been.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A plan that was allocated but never built.
    #[error("{op}: the route plan was allocated but not built yet")]
    PlanNotBuilt {
        /// The operation.
        op: &'static str,
    },
    /// A plan whose arrays contradict each other, found by `validate`.
    #[error("invalid route plan: {array}[{index}] is {got}, expected {expected}")]
    InvalidPlan {
        /// The array.
        array: &'static str,
        /// The index into it.
        index: usize,
        /// What should stand there.
        expected: String,
        /// What stands there.
        got: i64,
    },
    /// A static device tag is held by another device.
    #[error("device tag {tag} was claimed for {expected} and cannot be claimed for {got}")]
    TagClaimed {
        /// The tag's type name.
        tag: &'static str,
        /// The device that has it.
        expected: AnyDeviceId,
        /// The device that asked for it.
        got: AnyDeviceId,
    },
    /// Something this backend does not do on this device.
    #[error("{op}: not supported by {backend}: {reason}")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// The backend.
        backend: &'static str,
        /// Why, and what would work.
        reason: String,
    },
    /// The device has no memory left for an allocation.
    #[error("{op}: {device} is out of memory, {bytes} bytes were asked for")]
    OutOfMemory {
        /// The operation.
        op: &'static str,
        /// The device.
        device: AnyDeviceId,
        /// The size of the allocation.
        bytes: usize,
    },
    /// The device failed for good; nothing on it can be used any more.
    #[error("{op}: {device} is lost: {reason} (first operation that can have caused it: {first_op})")]
    DeviceLost {
        /// The operation that noticed.
        op: &'static str,
        /// The device.
        device: AnyDeviceId,
        /// The first operation that can have caused the failure.
        first_op: &'static str,
        /// What the driver says.
        reason: String,
    },
    /// A driver's error.
    #[error("{op}: {backend} failed: {source}")]
    Backend {
        /// The operation that reports it.
        op: &'static str,
        /// The backend.
        backend: &'static str,
        /// The driver's own error.
        source: Box<dyn StdError + Send + Sync>,
    },
}
