//! Timing the CUDA backend: graphs of 20 calls, by events, beside the driver's device-to-device copy.

use crate::stats::{Effort, Job, Samples};
use crate::target::{Measured, Target, Task};
use crate::{Error, Result};
use moe_core::{Buf, Dev, DeviceSpec, Queue};
use moe_cuda::cudarc::driver::sys::{CUdeviceptr, CUevent_flags};
use moe_cuda::cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};
use moe_cuda::{Capture, Captured, Cuda, CudaDevice};
use std::sync::Arc;

/// Calls in a graph.
const CALLS: usize = 20;
/// Bytes that are overwritten before a call that shall find a cold cache: more than twice the largest L2.
const FLUSH_BYTES: usize = 128 << 20;

/// An opened GPU.
pub struct CudaTarget {
    device: Dev<Cuda>,
    id: String,
    name: String,
    context: Arc<CudaContext>,
    queue: Queue<'static, Cuda>,
    from: Buf<Cuda, u8>,
    to: Buf<Cuda, u8>,
    flush: Buf<Cuda, u8>,
}

/// What a graph repeats.
enum Call<'t, 'w> {
    Task(&'t mut Task<'w, Cuda>),
    Copy(usize),
    Nothing,
}

/// Memory of a buffer here, as cudarc's copy takes it: address, length and the one stream that uses it. cudarc's own
/// slices carry events, and a graph must not wait for an event of the time before its capture.
struct Bytes(CUdeviceptr, usize, Arc<CudaStream>);

impl DeviceSlice<u8> for Bytes {
    fn len(&self) -> usize {
        self.1
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.2
    }
}

impl DevicePtr<u8> for Bytes {
    fn device_ptr<'a>(&'a self, _: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.0, SyncOnDrop::Record(None))
    }
}

impl DevicePtrMut<u8> for Bytes {
    fn device_ptr_mut<'a>(&'a mut self, _: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.0, SyncOnDrop::Record(None))
    }
}

impl CudaTarget {
    /// Opens it.
    ///
    /// # Errors
    /// If there is no such device, or its memory is taken.
    pub fn open(spec: &DeviceSpec) -> Result<Self> {
        let device = Dev::<Cuda>::open(spec)?;
        let context = Arc::clone(device.raw().context());
        let (id, name, mut queue) = (device.id().to_string(), device.info().name, device.queue()?);
        let (from, to, flush) = (queue.zeros(0)?, queue.zeros(0)?, queue.zeros(FLUSH_BYTES)?);
        Ok(Self { device, id, name, context, queue, from, to, flush })
    }

    /// Records 20 calls, each after the cache was overwritten where `cold`.
    fn capture(&mut self, mut call: Call<'_, '_>, cold: bool) -> Result<Captured<'static>> {
        let Self { queue, from, to, flush, .. } = self;
        let stream = Arc::clone(queue.raw().stream());
        let driver = |e| core_error(Box::new(e));
        Ok(queue.capture(|queue, _| {
            for _ in 0..CALLS {
                if cold {
                    queue.fill(flush.view_mut(), 0)?;
                }
                match &mut call {
                    Call::Task(task) => task.run(queue).map_err(core_error)?,
                    Call::Copy(len) => {
                        let side = |buf: &Buf<Cuda, u8>| Bytes(buf.raw().device_ptr(), *len, Arc::clone(&stream));
                        stream.memcpy_dtod(&side(from), &mut side(to)).map_err(driver)?;
                    }
                    Call::Nothing => {}
                }
            }
            Ok(())
        })?)
    }

    /// Microseconds per call of one replay.
    fn replay(&self, stream: &CudaStream, graph: &mut Captured<'_>) -> Result<f64> {
        let event = || self.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let (start, end) = (event()?, event()?);
        start.record(stream)?;
        graph.replay()?;
        end.record(stream)?;
        end.synchronize()?;
        Ok(f64::from(start.elapsed_ms(&end)?) * 1e3 / CALLS as f64)
    }

    /// Replays graphs in turns.
    fn times(&mut self, graphs: &mut [Captured<'static>], rounds: usize) -> Result<Vec<Samples>> {
        let stream = Arc::clone(self.queue.raw().stream());
        for graph in graphs.iter_mut() {
            graph.replay()?;
        }
        self.queue.synchronize()?;
        let mut samples = vec![Samples::default(); graphs.len()];
        for _ in 0..rounds {
            for (graph, samples) in graphs.iter_mut().zip(&mut samples) {
                samples.0.push(self.replay(&stream, graph)?);
            }
        }
        self.queue.synchronize()?;
        Ok(samples)
    }

    fn graphs(&mut self, task: &mut Task<'_, Cuda>, cold: bool) -> Result<Vec<Captured<'static>>> {
        let len = task.copy_len();
        assert!(len <= self.from.len().min(self.to.len()), "room was made for the longest copy");
        Ok(vec![self.capture(Call::Task(task), cold)?, self.capture(Call::Copy(len), cold)?])
    }
}

/// An error inside a capture, as moe-core's.
fn core_error(error: Error) -> moe_core::Error {
    match error.downcast() {
        Ok(error) => *error,
        Err(source) => moe_core::Error::Backend { op: "bench", backend: "cuda", source },
    }
}

fn measured(samples: Vec<Samples>) -> Measured {
    let mut samples = samples.into_iter();
    let ours = samples.next().unwrap_or_default();
    Measured { ours, copies: samples.map(|copy| ("copy", copy)).collect(), peers: Vec::new(), clock: None }
}

impl Target for CudaTarget {
    type Backend = Cuda;

    fn name(&self) -> &'static str {
        "moe-cuda"
    }

    fn device(&self) -> String {
        self.id.clone()
    }

    fn device_name(&self) -> String {
        self.name.clone()
    }

    fn method(&self) -> &'static str {
        "median of replays of a graph of 20 calls, by events, taking turns with the copy"
    }

    fn memory_limit(&self) -> usize {
        self.context.mem_get_info().map_or(0, |(free, _)| free / 10 * 9)
    }

    fn queue(&mut self) -> &mut Queue<'static, Cuda> {
        &mut self.queue
    }

    fn prepare_copies(&mut self, bytes: usize) -> Result<()> {
        (self.from, self.to) = (self.queue.zeros(0)?, self.queue.zeros(0)?);
        (self.from, self.to) = (self.queue.zeros(bytes)?, self.queue.zeros(bytes)?);
        Ok(())
    }

    fn raw(&self) -> &CudaDevice {
        self.device.raw()
    }

    fn sample(&mut self, task: &mut Task<'_, Cuda>) -> Result<f64> {
        let graph = self.capture(Call::Task(task), false)?;
        let samples = self.times(&mut [graph], 3)?;
        Ok(samples[0].median())
    }

    fn measure(&mut self, task: &mut Task<'_, Cuda>, _peers: Vec<Job<'_>>, effort: Effort) -> Result<Measured> {
        let mut graphs = self.graphs(task, false)?;
        Ok(measured(self.times(&mut graphs, effort.rounds)?))
    }

    fn measure_cold(&mut self, task: &mut Task<'_, Cuda>, effort: Effort) -> Result<Option<Measured>> {
        let mut graphs = self.graphs(task, true)?;
        graphs.push(self.capture(Call::Nothing, true)?);
        let mut samples = self.times(&mut graphs, effort.rounds)?;
        let flush = samples.pop().map_or(0.0, |flush| flush.median());
        samples.iter_mut().flat_map(|s| &mut s.0).for_each(|us| *us = (*us - flush).max(0.0));
        Ok(Some(measured(samples)))
    }
}
