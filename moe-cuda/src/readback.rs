//! Copies to the host that nobody waits for.

use crate::CudaDevice;
use crate::capture::relaxed;
use cudarc::driver::{CudaEvent, CudaStream, DriverError, PinnedHostSlice, sys};
use moe_core::{PendingReadback, Result};
use std::fmt;
use std::sync::Arc;

/// A copy to page-locked memory, and the event after it. Dropping it waits for the copy.
pub(crate) struct Pending {
    device: CudaDevice,
    op: &'static str,
    bytes: PinnedHostSlice<u8>,
    done: CudaEvent,
}

impl Pending {
    /// Enqueues the copy.
    ///
    /// # Safety
    /// `len` bytes of the stream's device are at `ptr`, until what is enqueued on the stream by now is done.
    pub(crate) unsafe fn start(
        device: &CudaDevice,
        stream: &Arc<CudaStream>,
        op: &'static str,
        ptr: u64,
        len: usize,
    ) -> Result<Self> {
        let error = |error| device.error(op, error);
        let done = stream.context().new_event(None).map_err(error)?;
        // SAFETY: the copy writes all of the memory, and nothing reads it before.
        let mut bytes = unsafe { stream.context().alloc_pinned_with_flags::<u8>(len, 0) }.map_err(error)?;
        let to = bytes.as_mut_ptr().map_err(error)?;
        // SAFETY: `len` bytes at `to` were just allocated, and are not freed before the copy is done; the caller promises
        // those at `ptr`.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), ptr, len, stream.cu_stream()) }.result();
        if let Err(failed) = copied.and_then(|()| done.record(stream)) {
            // A part may be on its way.
            if stream.synchronize().is_err() {
                std::mem::forget(bytes);
            }
            return Err(error(failed));
        }
        Ok(Self { device: device.clone(), op, bytes, done })
    }

    fn error(&self, error: DriverError) -> moe_core::Error {
        self.device.error(self.op, error)
    }
}

impl PendingReadback for Pending {
    fn poll(&mut self) -> Result<Option<Vec<u8>>> {
        match relaxed(|| self.done.try_is_complete()) {
            Ok(true) => self.wait().map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }

    fn wait(&mut self) -> Result<Vec<u8>> {
        relaxed(|| self.done.synchronize()).map_err(|error| self.error(error))?;
        self.bytes.as_slice().map(<[u8]>::to_vec).map_err(|error| self.error(error))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // If it fails the device is lost, and nothing is copied any more.
        let _ = relaxed(|| self.done.synchronize());
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes from {:?}", self.op, self.bytes.len(), self.device)
    }
}
