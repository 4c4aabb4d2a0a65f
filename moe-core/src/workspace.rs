//! Scratch memory.

use crate::plan::MAX_INDEX;
use crate::tag::{Tag, Untagged};
use crate::{Backend, Buffer, CommandQueue, DeviceId, Error, PermuteBackend, Queue, Result};
use std::marker::PhantomData;

/// The largest work that a [`Workspace`] serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Routes of a batch: tokens times `top_k`.
    pub max_routes: usize,
    /// Experts before any expert map; with replicas, all copies count.
    pub max_experts: usize,
}

impl Limits {
    /// Limits for batches of up to `max_tokens` tokens of `top_k` routes each, over `num_experts` experts.
    pub fn new(max_tokens: usize, top_k: usize, num_experts: usize) -> Self {
        Self { max_routes: max_tokens.saturating_mul(top_k), max_experts: num_experts }
    }

    fn check(&self, op: &'static str) -> Result<()> {
        for (arg, got) in [("max_routes", self.max_routes), ("max_experts", self.max_experts)] {
            if got > MAX_INDEX {
                let expected = format!("at most {MAX_INDEX}");
                return Err(Error::InvalidArgument { op, arg, expected, got: got.to_string() });
            }
        }
        Ok(())
    }
}

/// Scratch for building plans, and nothing else: it keeps no result.
///
/// It is made from a queue of an opened device, so it always has a canonical identity; it belongs to that device and
/// stream. One serves all layers of a model: its size does not depend on the number of layers. It is taken `&mut`, so
/// two builds cannot share it at once.
#[derive(Debug)]
pub struct Workspace<B: Backend, G: Tag = Untagged> {
    buffer: B::Buffer,
    limits: Limits,
    stream: u64,
    tag: PhantomData<G>,
}

impl<B: Backend, G: Tag> Workspace<B, G> {
    pub(crate) fn retag<H: Tag>(self) -> Workspace<B, H> {
        let Self { buffer, limits, stream, .. } = self;
        Workspace { buffer, limits, stream, tag: PhantomData }
    }

    /// Where it lives.
    pub fn device_id(&self) -> DeviceId<B> {
        self.buffer.device_id()
    }

    /// Leaves the tag behind, so that the workspace can leave a branded scope.
    pub fn unbrand(self) -> Workspace<B> {
        self.retag()
    }
}

impl<B: PermuteBackend, G: Tag> Workspace<B, G> {
    /// Scratch for everything within the limits, on the queue's device and stream.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the limits are past `i32::MAX`, [`Error::OutOfMemory`], or what the driver says.
    pub fn new(queue: &mut Queue<'_, B, G>, limits: Limits) -> Result<Self> {
        limits.check("Workspace::new")?;
        let bytes = B::scratch_bytes(queue.raw(), &limits);
        let buffer = queue.alloc_bytes(bytes)?;
        Ok(Self { buffer, limits, stream: queue.raw().stream_key(), tag: PhantomData })
    }

    /// Makes room for larger limits; smaller ones leave it as it is. The old scratch is freed when the work that uses
    /// it is done.
    ///
    /// # Errors
    /// As [`new`](Self::new), [`Error::DeviceMismatch`] and [`Error::StreamMismatch`]; the workspace is as it was then.
    pub fn grow(&mut self, queue: &mut Queue<'_, B, G>, limits: Limits) -> Result<()> {
        self.check_queue("Workspace::grow", queue)?;
        let limits = Limits {
            max_routes: limits.max_routes.max(self.limits.max_routes),
            max_experts: limits.max_experts.max(self.limits.max_experts),
        };
        if limits != self.limits {
            *self = Self::new(queue, limits)?;
        }
        Ok(())
    }

    /// What it was sized for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Its size in bytes.
    pub fn byte_len(&self) -> usize {
        self.buffer.byte_len()
    }

    /// Its memory, after the checks of device, stream and size.
    pub(crate) fn scratch(
        &mut self,
        op: &'static str,
        queue: &Queue<'_, B, G>,
        needed: Limits,
    ) -> Result<B::RegionMut<'_>> {
        self.check_queue(op, queue)?;
        let pairs = [
            ("routes", needed.max_routes, self.limits.max_routes),
            ("experts", needed.max_experts, self.limits.max_experts),
        ];
        for (unit, expected, got) in pairs {
            if expected > got {
                return Err(Error::TooSmall { op, arg: "workspace", unit, expected, got });
            }
        }
        Ok(self.buffer.region_mut())
    }

    fn check_queue(&self, op: &'static str, queue: &Queue<'_, B, G>) -> Result<()> {
        let (expected, got) = (queue.device_id(), self.device_id());
        if expected != got {
            let (expected, got) = (expected.erase(), got.erase());
            return Err(Error::DeviceMismatch { op, arg: "workspace", expected, got });
        }
        if self.stream != queue.raw().stream_key() {
            return Err(Error::StreamMismatch { op, arg: "workspace", device: got.erase() });
        }
        Ok(())
    }
}
