//! Timing the wgpu backend: submissions of 20 calls, by the GPU's clock where the adapter has timestamp queries and by
//! the wall clock, beside wgpu's own copy.

use crate::stats::{Effort, Job, Samples, interleave};
use crate::target::{Clock, Measured, Target, Task};
use crate::{Error, Result, machine};
use moe_core::{Dev, DeviceSpec, Queue};
use moe_wgpu::wgpu::{
    self, Buffer, BufferDescriptor, BufferUsages, COPY_BUFFER_ALIGNMENT, CommandEncoder, CommandEncoderDescriptor,
    Features, MapMode, PollType, QuerySet, QuerySetDescriptor, QueryType,
};
use moe_wgpu::{Wgpu, WgpuDevice};
use std::sync::mpsc;
use std::time::Duration;

/// Calls in a submission.
const CALLS: usize = 20;

/// An opened adapter.
pub struct WgpuTarget {
    device: Dev<Wgpu>,
    id: String,
    name: String,
    queue: Queue<'static, Wgpu>,
    copy: Option<(Buffer, Buffer)>,
    clock: Option<GpuClock>,
}

impl WgpuTarget {
    /// Opens it.
    ///
    /// # Errors
    /// If there is no such adapter.
    pub fn open(spec: &DeviceSpec) -> Result<Self> {
        let device = Dev::<Wgpu>::open(spec)?;
        let (id, name, queue) = (device.id().to_string(), device.info().name, device.queue()?);
        let clock = GpuClock::new(device.raw().device(), device.raw().wgpu_queue());
        Ok(Self { device, id, name, queue, copy: None, clock })
    }

    /// Microseconds per call by the GPU's clock: ours, and the copy's if there is one. They take turns.
    fn gpu_times(&mut self, task: &mut Task<'_, Wgpu>, effort: Effort) -> Result<Option<(Samples, Samples)>> {
        let Self { device, copy, clock: Some(clock), .. } = self else { return Ok(None) };
        let len = rounded(task.copy_len());
        let (mut ours, mut copies) = (Samples::default(), Samples::default());
        for round in 0..=effort.rounds {
            let us = clock.time(|encoder| {
                let mut queue = device.adopt_queue(device.raw().record(encoder))?;
                (0..CALLS).try_for_each(|_| task.run(&mut queue))
            })?;
            let copy_us = match copy {
                Some((from, to)) => Some(clock.time(|encoder| {
                    (0..CALLS).for_each(|_| encoder.copy_buffer_to_buffer(from, 0, to, 0, len));
                    Ok(())
                })?),
                None => None,
            };
            // The first round compiles kernels and touches memory.
            if round > 0 {
                ours.0.push(us / CALLS as f64);
                copies.0.extend(copy_us.map(|us| us / CALLS as f64));
            }
        }
        Ok(Some((ours, copies)))
    }

    /// Microseconds per call by the wall clock, recording included.
    fn wall_times(&mut self, task: &mut Task<'_, Wgpu>, effort: Effort) -> Result<(Samples, Samples)> {
        let Self { device, queue, copy, .. } = self;
        let (device, len) = (device.raw(), rounded(task.copy_len()));
        let mut jobs = vec![Job::new(|| {
            (0..CALLS).try_for_each(|_| task.run(queue))?;
            Ok(queue.synchronize()?)
        })];
        if let Some((from, to)) = copy {
            jobs.push(Job::new(move || {
                let mut encoder = device.device().create_command_encoder(&CommandEncoderDescriptor::default());
                (0..CALLS).for_each(|_| encoder.copy_buffer_to_buffer(from, 0, to, 0, len));
                device.wgpu_queue().submit([encoder.finish()]);
                device.device().poll(PollType::Wait { submission_index: None, timeout: None })?;
                Ok(())
            }));
        }
        let mut samples = interleave(&mut jobs, effort)?.into_iter().map(|mut s| {
            s.0.iter_mut().for_each(|us| *us /= CALLS as f64);
            s
        });
        Ok((samples.next().unwrap_or_default(), samples.next().unwrap_or_default()))
    }
}

fn rounded(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(COPY_BUFFER_ALIGNMENT)
}

/// Times what a submission does, from a timestamp before it to one after it.
struct GpuClock {
    device: wgpu::Device,
    queue: wgpu::Queue,
    stamps: QuerySet,
    resolved: Buffer,
    read: Buffer,
}

impl GpuClock {
    const BYTES: u64 = 16;

    /// `None` where the device has no timestamps outside of passes.
    fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Option<Self> {
        let needed = Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        if !device.features().contains(needed) {
            return None;
        }
        let descriptor = QuerySetDescriptor { label: Some("bench"), ty: QueryType::Timestamp, count: 2 };
        let buffer = |usage| {
            let (label, size) = (Some("bench"), Self::BYTES);
            device.create_buffer(&BufferDescriptor { label, size, usage, mapped_at_creation: false })
        };
        Some(Self {
            stamps: device.create_query_set(&descriptor),
            resolved: buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
            read: buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST),
            device: device.clone(),
            queue: queue.clone(),
        })
    }

    /// Microseconds.
    fn time(&self, record: impl FnOnce(&mut CommandEncoder) -> Result<()>) -> Result<f64> {
        let mut encoder = self.device.create_command_encoder(&CommandEncoderDescriptor::default());
        encoder.write_timestamp(&self.stamps, 0);
        record(&mut encoder)?;
        encoder.write_timestamp(&self.stamps, 1);
        encoder.resolve_query_set(&self.stamps, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.read, 0, Self::BYTES);
        self.queue.submit([encoder.finish()]);
        let (send, receive) = mpsc::channel();
        self.read.map_async(MapMode::Read, .., move |result| drop(send.send(result)));
        self.device.poll(PollType::Wait { submission_index: None, timeout: None })?;
        receive.recv()??;
        let stamps: Vec<u64> = {
            let view = self.read.get_mapped_range(..).map_err(|e| Error::from(e.to_string()))?;
            view.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
        };
        self.read.unmap();
        let ticks = stamps[1].wrapping_sub(stamps[0]);
        Ok(ticks as f64 * f64::from(self.queue.get_timestamp_period()) / 1e3)
    }
}

impl Target for WgpuTarget {
    type Backend = Wgpu;

    fn name(&self) -> &'static str {
        "moe-wgpu"
    }

    fn device(&self) -> String {
        self.id.clone()
    }

    fn device_name(&self) -> String {
        self.name.clone()
    }

    fn method(&self) -> &'static str {
        match self.clock {
            Some(_) => {
                "GPU time of submissions of 20 calls, by timestamps, taking turns with the copy; wall clock apart"
            }
            None => "wall clock of submissions of 20 calls, recording included, taking turns with the copy",
        }
    }

    fn memory_limit(&self) -> usize {
        machine::available_memory().unwrap_or(4 << 30) / 4
    }

    fn queue(&mut self) -> &mut Queue<'static, Wgpu> {
        &mut self.queue
    }

    fn prepare_copies(&mut self, bytes: usize) -> Result<()> {
        self.copy = None;
        let (device, size) = (self.device.raw().device(), rounded(bytes));
        if size > device.limits().max_buffer_size {
            return Ok(()); // no copy of that length here
        }
        let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let descriptor = BufferDescriptor { label: Some("copy"), size, usage, mapped_at_creation: false };
        self.copy = Some((device.create_buffer(&descriptor), device.create_buffer(&descriptor)));
        Ok(())
    }

    fn raw(&self) -> &WgpuDevice {
        self.device.raw()
    }

    fn sample(&mut self, task: &mut Task<'_, Wgpu>) -> Result<f64> {
        let effort = Effort { rounds: 1, budget: Duration::ZERO, sample: Duration::from_millis(1) };
        let copy = self.copy.take();
        let gpu = self.gpu_times(task, effort);
        let samples = match gpu {
            Ok(Some((ours, _))) => Ok(ours),
            Ok(None) => self.wall_times(task, effort).map(|(ours, _)| ours),
            Err(error) => Err(error),
        };
        self.copy = copy;
        Ok(samples?.median())
    }

    fn measure(&mut self, task: &mut Task<'_, Wgpu>, _peers: Vec<Job<'_>>, effort: Effort) -> Result<Measured> {
        self.queue.synchronize()?;
        let gpu = self.gpu_times(task, effort)?;
        let wall = self.wall_times(task, effort)?;
        let copies = |copy: Samples| if copy.is_empty() { vec![] } else { vec![("copy", copy)] };
        Ok(match gpu {
            Some((ours, copy)) => {
                let clock = Some(Clock::Gpu { wall: wall.0 });
                Measured { ours, copies: copies(copy), clock, ..Measured::default() }
            }
            None => Measured { ours: wall.0, copies: copies(wall.1), clock: Some(Clock::Wall), ..Measured::default() },
        })
    }
}
