//! What operations are enqueued on.

use super::{Backend, Region};
use crate::{DeviceId, Readback, Result};
use std::fmt::Debug;

/// What operations are enqueued on.
///
/// "Ok" means enqueued. Errors of enqueued work come from [`check`](Self::check) and
/// [`synchronize`](Self::synchronize), which name the first operation that can have failed.
///
/// Work on one queue runs in order. Two queues of a device that share a buffer have to be ordered by their user; only
/// freeing a buffer is always ordered behind all work that uses it.
///
/// # Safety
/// `device_id` is truthful; `stream_key` differs between queues whose work can overlap in time, and is not used again
/// while memory that was allocated through a queue with it lives; a buffer from `alloc_zeroed` has the length asked for; `upload` has read and `download` has written all of the host memory when they return.
pub unsafe trait CommandQueue: Debug {
    /// The family.
    type Backend: Backend;

    /// The device that it feeds.
    fn device_id(&self) -> DeviceId<Self::Backend>;

    /// Tells streams of one device apart: work on one stream runs in order.
    fn stream_key(&self) -> u64;

    /// New memory, all zero for operations enqueued here from now on. May be 0 bytes.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    fn alloc_zeroed(&mut self, bytes: usize) -> Result<<Self::Backend as Backend>::Buffer>;

    /// Copies host bytes to the device.
    ///
    /// # Safety
    /// The region is on this device, has the length of `src`, and is not empty.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn upload(&mut self, src: &[u8], dst: <Self::Backend as Backend>::RegionMut<'_>) -> Result<()>;

    /// Runs what is enqueued, waits for it, and copies device bytes to the host.
    ///
    /// # Safety
    /// The region is on this device, has the length of `dst`, and is not empty.
    ///
    /// # Errors
    /// What the driver says, of this copy or of anything that was enqueued before.
    unsafe fn download(&mut self, src: <Self::Backend as Backend>::Region<'_>, dst: &mut [u8]) -> Result<()>;

    /// Enqueues a copy of device bytes to the host and does not wait for it: what is enqueued later may overwrite them.
    /// The default waits, as [`download`](Self::download) does; a backend with streams overrides it.
    ///
    /// # Safety
    /// The region is on this device.
    ///
    /// # Errors
    /// What the driver says; failures of the copy itself come from the [`Readback`].
    unsafe fn start_download(&mut self, src: <Self::Backend as Backend>::Region<'_>) -> Result<Readback> {
        let mut bytes = vec![0; src.byte_len()];
        if !bytes.is_empty() {
            // SAFETY: the caller promises the device; the length is the region's.
            unsafe { self.download(src, &mut bytes) }?;
        }
        Ok(Readback::ready(bytes))
    }

    /// Sets every byte.
    ///
    /// # Safety
    /// The region is on this device and not empty.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn fill(&mut self, dst: <Self::Backend as Backend>::RegionMut<'_>, byte: u8) -> Result<()>;

    /// Reports failures of enqueued work that are known by now, without waiting.
    ///
    /// # Errors
    /// The failure.
    fn check(&mut self) -> Result<()>;

    /// Runs what is enqueued, waits for it, and reports failures.
    ///
    /// # Errors
    /// The failure.
    fn synchronize(&mut self) -> Result<()>;
}
