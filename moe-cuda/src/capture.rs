//! CUDA graphs: operations recorded once and replayed.

use crate::buffer::{CudaRegion, CudaRegionMut, Memory, MemoryMut};
use crate::launch::needs_join;
use crate::lend::{Lend, LendMut};
use crate::memory::{Allocation, sweep};
use crate::{Cuda, CudaDevice, CudaMint, CudaQueue};
use cudarc::driver::sys::{self, CUstreamCaptureMode, CUstreamCaptureStatus};
use cudarc::driver::{
    CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice, DriverError, SyncOnDrop, result,
};
use moe_core::{Device, Element, Error, Queue, Result, Tag, View, ViewMut};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

/// Whether a stream is being captured, by whomever. The legacy stream, while a capture forbids its use, counts as one.
pub(crate) fn capture_status(stream: &CudaStream) -> std::result::Result<bool, DriverError> {
    // SAFETY: the stream is alive.
    match unsafe { result::stream::is_capturing(stream.cu_stream()) } {
        Ok(status) => Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE),
        Err(DriverError(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Like [`capture_status`]; a stream that cannot be asked counts as being captured.
pub(crate) fn is_capturing(stream: &CudaStream) -> bool {
    capture_status(stream).unwrap_or(true)
}

/// Asks the driver for something that has nothing to do with a capture, which a thread that captures may not ask
/// otherwise: whether another stream or event is done.
pub(crate) fn relaxed<R>(ask: impl FnOnce() -> R) -> R {
    let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the pointer is to a live mode, which is exchanged with the thread's.
    let exchanged = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }.result().is_ok();
    let answer = ask();
    if exchanged {
        // SAFETY: as above; the thread gets its mode back.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
    }
    answer
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode<'r> {
    /// It runs.
    Direct,
    /// It goes into a graph of ours, which keeps the memory.
    Recorded(&'r Arc<Recorder>),
    /// It goes into a graph of somebody who promised that the memory outlives it.
    Promised,
}

impl<'r> Mode<'r> {
    /// `None` if the operation would go into a graph that nobody answers for.
    pub(crate) fn of(recording: Option<&'r Arc<Recorder>>, capturing: bool, promised: bool) -> Option<Self> {
        match (recording, capturing) {
            (Some(recorder), _) => Some(Mode::Recorded(recorder)),
            (None, false) => Some(Mode::Direct),
            (None, true) => promised.then_some(Mode::Promised),
        }
    }
}

/// What a capture collects while operations are recorded.
#[derive(Debug)]
pub(crate) struct Recorder {
    number: u64,
    /// The stream that the graph will run on.
    stream: Arc<CudaStream>,
    /// Set when the capture ends, before the driver is told: what is enqueued from then on is not recorded.
    ended: AtomicBool,
    /// Held while an operation is recorded, which can be on another thread than the one that ends the capture.
    busy: RwLock<()>,
    kept: Mutex<Vec<Arc<Allocation>>>,
}

impl Recorder {
    fn new(stream: &Arc<CudaStream>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            number,
            stream: Arc::clone(stream),
            ended: AtomicBool::new(false),
            busy: RwLock::new(()),
            kept: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The capture does not end before this is dropped.
    pub(crate) fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.busy.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn end(&self) {
        let _alone = self.busy.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.ended.store(true, Ordering::Release);
    }

    /// Keeps an allocation as long as the graph.
    pub(crate) fn keep(&self, memory: &Arc<Allocation>) {
        memory.used_on(&self.stream);
        let mut kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !kept.iter().any(|other| Arc::ptr_eq(other, memory)) {
            kept.push(Arc::clone(memory));
        }
    }

    fn take(&self) -> Vec<Arc<Allocation>> {
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Never frees what the graph uses, because the graph is in hands that we do not know.
    fn give_up(&self) {
        self.take().into_iter().for_each(std::mem::forget);
    }
}

/// A caller's memory in a graph.
enum Lent<'a> {
    Read(CudaView<'a, u8>),
    Write(CudaViewMut<'a, u8>),
}

/// A capture in progress: lends a caller's memory to the graph, and adds streams to it.
pub struct Recording<'a> {
    device: CudaDevice,
    recorder: Arc<Recorder>,
    lent: Vec<Lent<'a>>,
    /// Streams that have to come together again.
    forks: Vec<Arc<CudaStream>>,
}

impl<'a> Recording<'a> {
    /// Lends a caller's memory to the graph, which borrows it: it can neither be freed nor written through cudarc for
    /// as long as the graph is there. What has to change between replays belongs in a [`moe_core::Buf`], which the graph
    /// keeps alive without borrowing it.
    ///
    /// # Errors
    /// As [`CudaDevice::lend`].
    pub fn lend<T: Element>(&mut self, memory: &'a impl Lend<T>) -> Result<View<'a, Cuda, T>> {
        let view = memory.bytes();
        let (ptr, len) = self.device.resolve("lend", view.stream().context(), &view)?;
        self.lent.push(Lent::Read(view));
        let region = CudaRegion { ptr, len, memory: Memory::Captured(self.recorder.number) };
        View::from_raw(CudaMint(()), self.device.id(), region, len / size_of::<T>())
    }

    /// Lends a caller's memory to be written by the graph.
    ///
    /// # Errors
    /// As [`lend`](Self::lend).
    pub fn lend_mut<T: Element>(&mut self, memory: &'a mut impl LendMut<T>) -> Result<ViewMut<'a, Cuda, T>> {
        let view = memory.bytes_mut();
        let (ptr, len) = self.device.resolve("lend_mut", view.stream().context(), &view.as_view())?;
        self.lent.push(Lent::Write(view));
        let region = CudaRegionMut { ptr, len, memory: MemoryMut::Captured(self.recorder.number) };
        ViewMut::from_raw(CudaMint(()), self.device.id(), region, len / size_of::<T>())
    }

    /// A second stream of the graph: what is enqueued on it can run beside what is enqueued on `queue` from here on.
    /// It is joined again with [`join`](Self::join), or at the end of the capture. Afterwards it is a queue like any
    /// other.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] or [`Error::Unsupported`] if `queue` does not record into this capture, or what the
    /// driver says.
    pub fn fork<G: Tag>(&mut self, queue: &Queue<'_, Cuda, G>) -> Result<CudaQueue> {
        let op = "fork";
        self.expect(op, "queue", queue.raw())?;
        let error = |error| self.device.error(op, error);
        let stream = queue.raw().stream().fork().map_err(error)?;
        self.forks.push(Arc::clone(&stream));
        let mut side = CudaQueue::new(self.device.clone(), stream)?;
        side.recorder = Some(Arc::clone(&self.recorder));
        Ok(side)
    }

    /// What is enqueued on `queue` from here on comes after all that `side` has.
    ///
    /// # Errors
    /// As [`fork`](Self::fork), for both queues.
    pub fn join<G: Tag, H: Tag>(&mut self, queue: &Queue<'_, Cuda, G>, side: &Queue<'_, Cuda, H>) -> Result<()> {
        let op = "join";
        self.expect(op, "queue", queue.raw())?;
        self.expect(op, "side", side.raw())?;
        let (stream, side) = (queue.raw().stream(), side.raw().stream());
        stream.join(side).map_err(|error| self.device.error(op, error))
    }

    /// Whether a queue records into this very capture.
    fn expect(&self, op: &'static str, arg: &'static str, queue: &CudaQueue) -> Result<()> {
        let (expected, got) = (self.device.id().erase(), queue.erased_id());
        if expected != got {
            return Err(Error::DeviceMismatch { op, arg, expected, got });
        }
        if queue.recording().is_some_and(|recorder| Arc::ptr_eq(recorder, &self.recorder)) {
            return Ok(());
        }
        let reason = format!("{arg} does not record into this capture: use the queue that is captured, or fork it");
        Err(Error::Unsupported { op, backend: "cuda", reason })
    }
}

impl fmt::Debug for Recording<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recording({}, {} streams)", self.device.id(), 1 + self.forks.len())
    }
}

/// Capturing operations into a graph.
pub trait Capture<G: Tag> {
    /// Records the operations that `record` enqueues, without running them. Allocating, copying to or from the host and
    /// waiting are typed errors inside.
    ///
    /// ```no_run
    /// use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
    /// use moe_cuda::{Capture, Cuda};
    ///
    /// let mut queue = Dev::<Cuda>::open(&"cuda".parse()?)?.queue()?;
    /// let mut workspace = Workspace::new(&mut queue, Limits::new(4, 2, 8))?;
    /// let mut ids = queue.upload(&[0, 1, 2, 3, 4, 5, 6, 7])?;
    /// let spec = PlanSpec::new(4, 2, 8);
    /// let mut plan = RoutePlan::alloc(&mut queue, spec)?;
    ///
    /// let mut graph = queue.capture(|queue, _| {
    ///     plan.build_into(queue, &mut workspace, spec, Routing::top_k(ids.view()))
    /// })?;
    /// graph.replay()?;
    /// queue.write(&[7, 6, 5, 4, 3, 2, 1, 0], ids.view_mut())?; // other ids, the same graph
    /// graph.replay()?;
    /// # Ok::<(), moe_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// What `record` says, [`Error::Unsupported`] for a stream that is being captured already or cannot be (the default
    /// stream), or what the driver says. The stream is as it was then.
    fn capture<'a>(&mut self, record: impl FnOnce(&mut Self, &mut Recording<'a>) -> Result<()>)
    -> Result<Captured<'a>>;
}

impl<G: Tag> Capture<G> for Queue<'_, Cuda, G> {
    fn capture<'a>(
        &mut self,
        record: impl FnOnce(&mut Self, &mut Recording<'a>) -> Result<()>,
    ) -> Result<Captured<'a>> {
        let op = "capture";
        let raw = self.raw_mut();
        let (device, stream) = (raw.device().clone(), Arc::clone(raw.stream()));
        device.health().check(op, raw.erased_id())?;
        let unsupported = |reason: &str| Error::Unsupported { op, backend: "cuda", reason: reason.into() };
        if stream.cu_stream() as usize <= 1 {
            return Err(unsupported("the default stream cannot be captured: use a stream of your own"));
        }
        if is_capturing(&stream) {
            return Err(unsupported("the stream is being captured already"));
        }
        // Only this thread is held to calls that a capture allows.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(|error| device.error(op, error))?;
        let recorder = Recorder::new(&stream);
        raw.recorder = Some(Arc::clone(&recorder));
        let mut recording = Recording { device, recorder: Arc::clone(&recorder), lent: Vec::new(), forks: Vec::new() };
        // Ends the capture whatever happens inside, a panic included, and whichever queue is behind `self` then.
        let mut open = Open { recorder, stream, done: false, graph: std::ptr::null_mut() };
        record(self, &mut recording)?;
        if !Arc::ptr_eq(&recording.recorder, &open.recorder) {
            return Err(unsupported("its recording was swapped for that of another capture"));
        }
        let ended = open.end(&recording.forks);
        let Recording { device, recorder, lent, .. } = recording;
        ended.map_err(|error| device.error(op, error))?;
        let stream = Arc::clone(&open.stream);
        // SAFETY: the graph was just captured and is not null; `open` destroys it afterwards, which the executable
        // graph does not mind.
        let exec = relaxed(|| unsafe { result::graph::instantiate(open.graph, sys::CUgraphInstantiate_flags(0)) });
        let exec = exec.map_err(|error| device.error(op, error))?;
        drop(open);
        let kept = recorder.take();
        let queue = CudaQueue::new(device, stream)?;
        Ok(Captured { exec, queue, lent, _kept: kept })
    }
}

/// A capture that has to be ended, on the thread that began it.
struct Open {
    recorder: Arc<Recorder>,
    stream: Arc<CudaStream>,
    done: bool,
    graph: sys::CUgraph,
}

impl Open {
    fn end(&mut self, forks: &[Arc<CudaStream>]) -> std::result::Result<(), DriverError> {
        self.done = true;
        self.recorder.end();
        self.stream.context().bind_to_thread()?;
        if !capture_status(&self.stream)? {
            self.recorder.give_up(); // somebody else ended it, and has the graph
            return Err(DriverError(sys::CUresult::CUDA_ERROR_ILLEGAL_STATE));
        }
        let joined = forks.iter().try_for_each(|fork| self.stream.join(fork));
        // SAFETY: the stream is alive and its capture was begun by us on this thread.
        self.graph = unsafe { result::stream::end_capture(self.stream.cu_stream()) }?;
        joined?;
        if self.graph.is_null() {
            return Err(DriverError(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
        }
        Ok(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.end(&[]); // left early: the graph is of no use
        }
        if !self.graph.is_null() {
            // SAFETY: ours, and destroyed once.
            self.stream.context().record_err(unsafe { result::graph::destroy(self.graph) });
        }
    }
}

/// Recorded operations, to be run any number of times. Keeps all buffers, plans and workspaces that they use alive, and
/// borrows for `'a` the memory that a caller [lent](Recording::lend) to it.
pub struct Captured<'a> {
    exec: sys::CUgraphExec,
    queue: CudaQueue,
    lent: Vec<Lent<'a>>,
    _kept: Vec<Arc<Allocation>>,
}

// SAFETY: a graph may be launched and destroyed from any thread, one at a time, and the methods take `&mut self`.
unsafe impl Send for Captured<'_> {}

impl Captured<'_> {
    /// Enqueues all of it, on the stream that it was captured on.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Unsupported`] while the stream is being captured, or what the driver says.
    pub fn replay(&mut self) -> Result<()> {
        let op = "replay";
        let (device, stream) = (self.queue.device(), self.queue.stream());
        self.queue.not_capturing(op)?; // a graph inside of a graph would not keep the memory
        let apart: Vec<Arc<CudaStream>> =
            self.lent.iter().map(Lent::stream).filter(|own| needs_join(own, stream)).map(Arc::clone).collect();
        apart.iter().try_for_each(|own| stream.join(own)).map_err(|error| device.error(op, error))?;
        let guards: Vec<SyncOnDrop<'_>> = self.lent.iter_mut().map(|lent| lent.order(stream)).collect();
        // SAFETY: the graph is alive, and so is the memory that it uses: our own is kept, a caller's borrowed.
        let launched = unsafe { result::graph::launch(self.exec, stream.cu_stream()) };
        drop(guards);
        apart.iter().for_each(|own| own.context().record_err(own.join(stream)));
        launched.map_err(|error| device.error(op, error))?;
        self.queue.enqueued(op);
        Ok(())
    }
}

impl Lent<'_> {
    fn stream(&self) -> &Arc<CudaStream> {
        match self {
            Lent::Read(view) => view.stream(),
            Lent::Write(view) => view.stream(),
        }
    }

    fn order<'s>(&'s mut self, stream: &'s CudaStream) -> SyncOnDrop<'s> {
        match self {
            Lent::Read(view) => view.device_ptr(stream).1,
            Lent::Write(view) => view.device_ptr_mut(stream).1,
        }
    }
}

impl Drop for Captured<'_> {
    fn drop(&mut self) {
        let context = self.queue.stream().context();
        context.record_err(context.bind_to_thread());
        // SAFETY: ours, and destroyed once; the driver lets a run that is under way end first.
        context.record_err(unsafe { result::graph::exec_destroy(self.exec) });
        sweep(self.queue.device());
    }
}

impl fmt::Debug for Captured<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Captured({:?}, {} buffers)", self.queue, self.lent.len() + self._kept.len())
    }
}
