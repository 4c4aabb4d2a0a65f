//! Enqueuing work: the one place where kernels are launched.
//!
//! An operation takes the addresses of its regions from a [`Launch`], which orders the work with what other streams do
//! to that memory, launches its kernels, and drops the `Launch`, which tells the other streams in turn.

use crate::CudaQueue;
use crate::abi::Params;
use crate::buffer::{CudaRegion, CudaRegionMut, Memory, MemoryMut};
use crate::capture::Mode;
use crate::memory::Allocation;
use crate::ptx::Kernel;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop, result};
use moe_core::{Error, Result};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLockReadGuard};

/// The shape of a launch: one-dimensional blocks in a one-dimensional grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) grid: u32,
    pub(crate) block: u32,
    /// Bytes of dynamic shared memory.
    pub(crate) shared: u32,
    /// Whether all blocks must run at once, because they wait for each other.
    pub(crate) cooperative: bool,
}

/// Whether this process has launched each kernel.
static LAUNCHED: [AtomicBool; Kernel::ALL.len()] = [const { AtomicBool::new(false) }; Kernel::ALL.len()];

/// Every kernel that operations can pick, and whether this process has launched it: what a test run has covered.
pub fn kernels_launched() -> Vec<(&'static str, bool)> {
    Kernel::ALL
        .iter()
        .zip(&LAUNCHED)
        .map(|(kernel, launched)| (kernel.name(), launched.load(Ordering::Relaxed)))
        .collect()
}

/// An operation that is being enqueued.
pub(crate) struct Launch<'r> {
    queue: &'r CudaQueue,
    op: &'static str,
    /// What becomes of the operation: it runs, or goes into a graph.
    mode: Mode<'r>,
    /// Keeps the capture open meanwhile.
    _recording: Option<RwLockReadGuard<'r, ()>>,
    /// cudarc's guards: each records an event when it is dropped, after the launches.
    guards: Vec<SyncOnDrop<'r>>,
    /// Streams of lent memory that cudarc does not order: they wait for this one afterwards.
    joined: Vec<Arc<CudaStream>>,
}

impl<'r> Launch<'r> {
    /// Makes the queue's context current on this thread, whatever was. Refuses where the device is lost, and where the
    /// operation would go into a graph of somebody else that nobody answers for.
    pub(crate) fn new(queue: &'r CudaQueue, op: &'static str) -> Result<Self> {
        let recording = queue.recorder.as_ref().map(|recorder| recorder.hold());
        let mode = queue.mode(op)?;
        Ok(Self { queue, op, mode, _recording: recording, guards: Vec::new(), joined: Vec::new() })
    }

    /// Notes that an allocation is used by the operation.
    fn uses(&self, memory: &Arc<Allocation>) {
        match self.mode {
            Mode::Recorded(recorder) => recorder.keep(memory),
            Mode::Direct | Mode::Promised => memory.used_on(self.queue.stream()),
        }
    }

    /// The address of a region that the operation reads.
    pub(crate) fn read(&mut self, region: &'r CudaRegion<'_>) -> Result<u64> {
        match &region.memory {
            Memory::Owned(memory) => self.uses(memory),
            Memory::Captured(capture) => self.expect_capture(*capture)?,
            Memory::Lent(view) => {
                if self.order(view.stream())? {
                    let (_, guard) = view.device_ptr(self.queue.stream());
                    self.guards.push(guard);
                }
            }
        }
        Ok(region.ptr)
    }

    /// The address of a region that the operation writes.
    pub(crate) fn write(&mut self, region: &'r mut CudaRegionMut<'_>) -> Result<u64> {
        match &mut region.memory {
            MemoryMut::Owned(memory) => self.uses(memory),
            MemoryMut::Captured(capture) => self.expect_capture(*capture)?,
            MemoryMut::Lent(view) => {
                let own = Arc::clone(view.stream());
                if self.order(&own)? {
                    let (_, guard) = view.device_ptr_mut(self.queue.stream());
                    self.guards.push(guard);
                }
            }
        }
        Ok(region.ptr)
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// `params` is the block that this kernel takes. Its addresses come from this launch's `read` and `write`, or are 0
    /// where `kernels/ABI.md` lets them be absent, and its numbers describe the memory behind them, as moe-core
    /// checked them.
    pub(crate) unsafe fn launch<P: Params>(&mut self, kernel: Kernel, shape: Shape, params: P) -> Result<()> {
        let queue = self.queue;
        let function = queue.kernels().function(kernel);
        let (grid, block) = ((shape.grid, 1, 1), (shape.block, 1, 1));
        let stream = queue.stream().cu_stream();
        let mut params = params;
        let mut pointers = [(&raw mut params).cast::<c_void>()];
        let done = if shape.cooperative {
            // SAFETY: the function is of a module of this context that is never unloaded; the driver copies the one
            // parameter, a block of the size the kernel declares, before it returns; the rest is the caller's promise.
            unsafe { result::launch_cooperative_kernel(function, grid, block, shape.shared, stream, &mut pointers) }
        } else {
            // SAFETY: as above.
            unsafe { result::launch_kernel(function, grid, block, shape.shared, stream, &mut pointers) }
        };
        done.map_err(|error| queue.device().error(self.op, error))?;
        queue.enqueued(self.op);
        LAUNCHED[kernel as usize].store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Zeroes memory.
    ///
    /// # Safety
    /// `address` is from this launch's `write`, or inside of such a region, which has `bytes` bytes from there.
    pub(crate) unsafe fn zero(&mut self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise; the region stays until the stream is done with it, as for a kernel.
        let done = unsafe { result::memset_d8_async(address, 0, bytes, self.queue.stream().cu_stream()) };
        done.map_err(|error| self.queue.device().error(self.op, error))?;
        self.queue.enqueued(self.op);
        Ok(())
    }

    /// Multiprocessors of the device.
    pub(crate) fn multiprocessors(&self) -> u32 {
        self.queue.kernels().multiprocessors
    }

    /// Orders this queue's stream after what `own` has done to memory that is lent, where cudarc would not. Gives
    /// whether cudarc's events are to be used. In a capture of ours lent memory is refused: the graph could outlive it.
    fn order(&mut self, own: &Arc<CudaStream>) -> Result<bool> {
        let stream = self.queue.stream();
        match self.mode {
            Mode::Direct => {}
            // Events of outside must not be waited for; the caller sees to the order.
            Mode::Promised => return Ok(false),
            Mode::Recorded(_) => {
                let reason = "memory that is lent outside of the capture: lend it with Recording::lend".into();
                return Err(Error::Unsupported { op: self.op, backend: "cuda", reason });
            }
        }
        if needs_join(own, stream) {
            stream.join(own).map_err(|error| self.queue.device().error(self.op, error))?;
            self.joined.push(Arc::clone(own));
        }
        Ok(true)
    }

    fn expect_capture(&self, capture: u64) -> Result<()> {
        if matches!(self.mode, Mode::Recorded(recorder) if recorder.number() == capture) {
            return Ok(());
        }
        let reason = "memory that was lent to a capture is used outside of it".into();
        Err(Error::Unsupported { op: self.op, backend: "cuda", reason })
    }
}

/// Whether two streams need ordering that cudarc does not give: it tracks events, but does not know of a second stream.
pub(crate) fn needs_join(own: &CudaStream, other: &CudaStream) -> bool {
    let context = own.context();
    own.cu_stream() != other.cu_stream() && context.is_event_tracking() && !context.is_in_multi_stream_mode()
}

impl Drop for Launch<'_> {
    fn drop(&mut self) {
        self.guards.clear();
        for own in self.joined.drain(..) {
            own.context().record_err(own.join(self.queue.stream()));
        }
    }
}
