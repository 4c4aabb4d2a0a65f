//! The checks that operations share. Each names the operation and the argument.

use crate::{Backend, DeviceId, Error, Region, Result, Span};
use std::fmt::Display;

/// One operation's checks, all against the device of its plan or queue.
pub(crate) struct Check<B: Backend> {
    pub(crate) op: &'static str,
    pub(crate) device: DeviceId<B>,
}

impl<B: Backend> Check<B> {
    /// `arg` is on the device.
    pub(crate) fn device(&self, arg: &'static str, got: DeviceId<B>) -> Result<()> {
        if got == self.device {
            return Ok(());
        }
        Err(Error::DeviceMismatch { op: self.op, arg, expected: self.device.erase(), got: got.erase() })
    }

    /// `arg` is a matrix of the shape.
    pub(crate) fn shape(&self, arg: &'static str, expected: [usize; 2], got: [usize; 2]) -> Result<()> {
        if expected == got {
            return Ok(());
        }
        let text = |[rows, cols]: [usize; 2]| format!("{rows} rows of {cols} elements");
        Err(Error::Shape { op: self.op, arg, expected: text(expected), got: text(got) })
    }

    /// `arg` has `expected` elements.
    pub(crate) fn len(&self, arg: &'static str, expected: usize, got: usize) -> Result<()> {
        if expected == got {
            return Ok(());
        }
        let text = |n| format!("{n} elements");
        Err(Error::Shape { op: self.op, arg, expected: text(expected), got: text(got) })
    }

    /// The output shares no memory with the other argument.
    pub(crate) fn apart(&self, out: (&'static str, Span), other: (&'static str, Span)) -> Result<()> {
        if out.1.overlaps(&other.1) {
            return Err(Error::Overlap { op: self.op, arg: out.0, other: other.0 });
        }
        Ok(())
    }

    /// `arg` is in the range that `expected` describes, which is put into words only for an error.
    pub(crate) fn number(&self, arg: &'static str, ok: bool, expected: impl Display, got: usize) -> Result<()> {
        if ok {
            return Ok(());
        }
        Err(Error::InvalidArgument { op: self.op, arg, expected: expected.to_string(), got: got.to_string() })
    }
}

/// The spans of the inputs that are there.
pub(crate) fn spans<const N: usize>(
    inputs: [(&'static str, Option<Span>); N],
) -> impl Iterator<Item = (&'static str, Span)> {
    inputs.into_iter().filter_map(|(arg, span)| Some((arg, span?)))
}

/// The span of a region, for [`spans`].
pub(crate) fn span(region: &impl Region) -> Option<Span> {
    Some(region.span())
}
