//! A CUDA stream that operations are enqueued on.

use crate::buffer::{CudaBuffer, CudaRegion, CudaRegionMut};
use crate::capture::{Mode, Recorder, capture_status, is_capturing, relaxed};
use crate::health::Track;
use crate::launch::Launch;
use crate::memory::Allocation;
use crate::modules::Kernels;
use crate::readback::Pending;
use crate::thresholds::Thresholds;
use crate::{Cuda, CudaDevice};
use cudarc::driver::{CudaEvent, CudaStream, DriverError, result, sys};
use moe_core::{AnyDeviceId, CommandQueue, Device, DeviceId, Error, Readback, Result};
use std::fmt;
use std::sync::Arc;

/// A stream: the device's own, or a caller's. Operations are enqueued in order and run whatever context is current on
/// the calling thread.
pub struct CudaQueue {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    /// What on the stream can have failed.
    track: Arc<Track>,
    /// The capture that this queue records into, or has.
    pub(crate) recorder: Option<Arc<Recorder>>,
    /// Whether the caller promised what a graph of somebody else needs; see [`CudaDevice::adopt_capturing_stream`].
    pub(crate) promised: bool,
}

impl CudaQueue {
    /// Loads the kernels, so that no operation does.
    pub(crate) fn new(device: CudaDevice, stream: Arc<CudaStream>) -> Result<Self> {
        if stream.cu_stream() as usize == PER_THREAD {
            let reason = "the per-thread default stream is a different stream on each thread: use a stream of your own";
            return Err(Error::Unsupported { op: "adopt_stream", backend: "cuda", reason: reason.into() });
        }
        device.kernels()?;
        let track = device.health().track(key(&stream));
        let queue = Self { device, stream, track, recorder: None, promised: false };
        queue.sweep();
        Ok(queue)
    }

    /// The device it feeds.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(crate) fn erased_id(&self) -> AnyDeviceId {
        self.device.id().erase()
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        self.device.kernels().expect("loaded when the queue was made")
    }

    /// What choices between kernels depend on, as it is now.
    pub(crate) fn thresholds(&self) -> Thresholds {
        self.device.thresholds()
    }

    /// Notes that an operation was enqueued, and so can fail from now on.
    pub(crate) fn enqueued(&self, op: &'static str) {
        if self.recording().is_none() {
            self.device.health().enqueued(&self.track, op);
        }
    }

    fn succeeded(&self) {
        self.track.succeeded();
        self.sweep();
    }

    /// Forgets what dropped queues have left and is done by now.
    fn sweep(&self) {
        let health = self.device.health();
        if health.has_left() {
            relaxed(|| health.sweep(CudaEvent::is_complete));
        }
    }

    /// The capture that operations are recorded into, while it lasts.
    pub(crate) fn recording(&self) -> Option<&Arc<Recorder>> {
        self.recorder.as_ref().filter(|recorder| !recorder.has_ended())
    }

    /// What becomes of an operation that is enqueued now. Makes the context current on this thread, whatever was.
    pub(crate) fn mode(&self, op: &'static str) -> Result<Mode<'_>> {
        self.device.health().check(op, self.erased_id())?;
        self.stream.context().bind_to_thread().map_err(|error| self.error(op, error))?;
        // First the recorder: it ends before the capture does.
        let recording = self.recording();
        let capturing = capture_status(&self.stream).map_err(|error| self.error(op, error))?;
        Mode::of(recording, capturing, self.promised).ok_or_else(|| {
            let reason = "somebody else is capturing the stream, and the graph could outlive the memory: record it with \
                          `Capture::capture`, or use `CudaDevice::adopt_capturing_stream`";
            Error::Unsupported { op, backend: "cuda", reason: reason.into() }
        })
    }

    /// What a graph must not hold: allocations, transfers to or from the host, waiting.
    pub(crate) fn not_capturing(&self, op: &'static str) -> Result<()> {
        if matches!(self.mode(op)?, Mode::Direct) {
            return Ok(());
        }
        let reason = "not while a graph is captured: allocate, copy and wait before or after".into();
        Err(Error::Unsupported { op, backend: "cuda", reason })
    }

    fn error(&self, op: &'static str, error: DriverError) -> Error {
        self.device.error(op, error)
    }
}

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD` as handles.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// See [`CommandQueue::stream_key`].
fn key(stream: &CudaStream) -> u64 {
    match stream.cu_stream() as usize {
        LEGACY => 0,
        handle => handle as u64,
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        if self.recording().is_some() || !self.track.is_pending() || is_capturing(&self.stream) {
            return;
        }
        // SAFETY: the stream is alive.
        let state = relaxed(|| unsafe { sys::cuStreamQuery(self.stream.cu_stream()) });
        if state == sys::CUresult::CUDA_SUCCESS {
            self.track.succeeded();
        } else if state != sys::CUresult::CUDA_ERROR_NOT_READY {
            let _ = self.error("check", DriverError(state)); // noted, if the device is lost
        } else if Arc::strong_count(&self.track) == 1 {
            // Its work may be running still: an event shows when it is done, also after the stream is gone.
            if let Ok(done) = self.stream.record_event(None) {
                self.device.health().leave(&self.track, done);
            }
        }
    }
}

impl fmt::Debug for CudaQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaQueue({}, stream {:#x})", self.device.id(), self.stream_key())
    }
}

// SAFETY: the id is the device's, whose context the stream was checked to belong to. The key is the stream's handle,
// which is unique among the context's living streams (and the stream lives as long as this queue, and as long as memory
// that was allocated on it); the per-thread stream, one handle for several streams, is refused. `Allocation::zeroed`
// gives the length asked for. Both copies are followed by waiting for the stream.
unsafe impl CommandQueue for CudaQueue {
    type Backend = Cuda;

    fn device_id(&self) -> DeviceId<Cuda> {
        self.device.id()
    }

    fn stream_key(&self) -> u64 {
        key(&self.stream)
    }

    fn alloc_zeroed(&mut self, bytes: usize) -> Result<CudaBuffer> {
        self.not_capturing("alloc_zeroed")?;
        Ok(CudaBuffer::new(Allocation::zeroed(&self.device, &self.stream, bytes)?))
    }

    unsafe fn upload(&mut self, src: &[u8], mut dst: CudaRegionMut<'_>) -> Result<()> {
        let op = "upload";
        self.not_capturing(op)?;
        let mut launch = Launch::new(self, op)?;
        let ptr = launch.write(&mut dst)?;
        // SAFETY: the destination is as long as the source (the caller checked) and stays until the stream is done,
        // because it is waited for below.
        let done = unsafe { result::memcpy_htod_async(ptr, src, self.stream.cu_stream()) };
        drop(launch);
        done.map_err(|error| self.error(op, error))?;
        self.enqueued(op);
        // Page-locked memory is read after the call returns, so only waiting makes sure that it has been read.
        self.synchronize()
    }

    unsafe fn download(&mut self, src: CudaRegion<'_>, dst: &mut [u8]) -> Result<()> {
        let op = "download";
        self.not_capturing(op)?;
        let mut launch = Launch::new(self, op)?;
        let ptr = launch.read(&src)?;
        // SAFETY: the source is as long as the destination (the caller checked), which is not looked at before the
        // stream was waited for.
        let done = unsafe { result::memcpy_dtoh_async(dst, ptr, self.stream.cu_stream()) };
        drop(launch);
        // Also after an error: a part may be on its way into `dst`.
        let waited = self.synchronize();
        done.map_err(|error| self.error(op, error))?;
        waited
    }

    unsafe fn start_download(&mut self, src: CudaRegion<'_>) -> Result<Readback> {
        let op = "start_download";
        self.not_capturing(op)?;
        if src.len == 0 {
            return Ok(Readback::ready(Vec::new()));
        }
        let mut launch = Launch::new(self, op)?;
        let ptr = launch.read(&src)?;
        // SAFETY: the region is on this device (the caller's promise) and has `len` bytes from `ptr` on.
        let pending = unsafe { Pending::start(&self.device, &self.stream, op, ptr, src.len) }?;
        self.enqueued(op);
        Ok(Readback::pending(pending))
    }

    unsafe fn fill(&mut self, mut dst: CudaRegionMut<'_>, byte: u8) -> Result<()> {
        let op = "fill";
        let len = dst.len;
        let mut launch = Launch::new(self, op)?;
        let ptr = launch.write(&mut dst)?;
        // SAFETY: the region has `len` bytes from `ptr` on and is borrowed mutably.
        let done = unsafe { result::memset_d8_async(ptr, byte, len, self.stream.cu_stream()) };
        done.map_err(|error| self.error(op, error))?;
        self.enqueued(op);
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        let op = "check";
        self.device.health().check(op, self.erased_id())?;
        if self.recording().is_some() || is_capturing(&self.stream) {
            return Ok(()); // asking would break the capture; nothing runs
        }
        self.stream.context().bind_to_thread().map_err(|error| self.error(op, error))?;
        // SAFETY: the stream is alive.
        match relaxed(|| unsafe { sys::cuStreamQuery(self.stream.cu_stream()) }) {
            sys::CUresult::CUDA_SUCCESS => {
                self.succeeded();
                Ok(())
            }
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(()),
            error => Err(self.error(op, DriverError(error))),
        }
    }

    fn synchronize(&mut self) -> Result<()> {
        let op = "synchronize";
        self.not_capturing(op)?;
        self.stream.synchronize().map_err(|error| self.error(op, error))?;
        self.succeeded();
        Ok(())
    }
}
