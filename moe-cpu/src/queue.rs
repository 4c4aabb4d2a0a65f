//! The CPU's queue: operations run at once, so it only knows its device.

use crate::buffer::{CpuBuffer, CpuRegion, CpuRegionMut};
use crate::kernels::Tier;
use crate::{Cpu, CpuDevice};
use moe_core::{CommandQueue, Device, DeviceId, Error, Result};

/// Work of at most so many bytes is done by the calling thread: a pool takes tens of microseconds to wake up.
const SMALL: usize = 1 << 17;

/// Runs operations of a device at once, in its pool. Every queue of a device is the same stream: nothing overlaps.
#[derive(Clone, Debug)]
pub struct CpuQueue {
    device: CpuDevice,
}

impl CpuQueue {
    pub(crate) fn new(device: CpuDevice) -> Self {
        Self { device }
    }

    /// The device it belongs to.
    pub fn device(&self) -> &CpuDevice {
        &self.device
    }

    /// Runs a kernel that moves this many bytes in the device's pool, or here if handing it over would take longer than
    /// the work. Kernels do not split work of that size.
    pub(crate) fn run(&self, bytes: usize, kernel: impl FnOnce(Tier) + Send) {
        let tier = self.device.tier();
        if bytes <= SMALL.min(tier.thresholds().task_bytes()) {
            kernel(tier)
        } else {
            self.device.pool().install(|| kernel(tier))
        }
    }
}

// SAFETY: the id is the device's; there is one stream, on which everything is done when a call returns; `zeroed` gives
// the length asked for; the copies are the standard library's.
unsafe impl CommandQueue for CpuQueue {
    type Backend = Cpu;

    fn device_id(&self) -> DeviceId<Cpu> {
        self.device.id()
    }

    fn stream_key(&self) -> u64 {
        0
    }

    fn alloc_zeroed(&mut self, bytes: usize) -> Result<CpuBuffer> {
        let none = || Error::OutOfMemory { op: "alloc_zeroed", device: self.device.id().erase(), bytes };
        CpuBuffer::zeroed(self.device.id(), bytes).ok_or_else(none)
    }

    unsafe fn upload(&mut self, src: &[u8], dst: CpuRegionMut<'_>) -> Result<()> {
        dst.0.copy_from_slice(src);
        Ok(())
    }

    unsafe fn download(&mut self, src: CpuRegion<'_>, dst: &mut [u8]) -> Result<()> {
        dst.copy_from_slice(src.0);
        Ok(())
    }

    unsafe fn fill(&mut self, dst: CpuRegionMut<'_>, byte: u8) -> Result<()> {
        dst.0.fill(byte);
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}
