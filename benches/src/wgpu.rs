//! Timing the wgpu backend by the wall clock: submissions of 20 calls, beside wgpu's own copy.

use crate::cases::Op;
use crate::stats::{Effort, Job, interleave};
use crate::target::{Measured, Target};
use crate::work::Work;
use crate::{Result, machine};
use moe_core::{Dev, DeviceSpec, Queue};
use moe_wgpu::wgpu::{
    Buffer, BufferDescriptor, BufferUsages, COPY_BUFFER_ALIGNMENT, CommandEncoderDescriptor, PollType,
};
use moe_wgpu::{Wgpu, WgpuDevice};

/// Calls in a submission.
const CALLS: usize = 20;

/// An opened adapter.
pub struct WgpuTarget {
    device: WgpuDevice,
    id: String,
    name: String,
    queue: Queue<'static, Wgpu>,
    copy: Option<(Buffer, Buffer)>,
}

impl WgpuTarget {
    /// Opens it.
    ///
    /// # Errors
    /// If there is no such adapter.
    pub fn open(spec: &DeviceSpec) -> Result<Self> {
        let device = Dev::<Wgpu>::open(spec)?;
        let (id, name, queue) = (device.id().to_string(), device.info().name, device.queue()?);
        Ok(Self { device: device.raw().clone(), id, name, queue, copy: None })
    }
}

fn rounded(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(COPY_BUFFER_ALIGNMENT)
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
        "wall clock of submissions of 20 calls, recording included, taking turns with the copy"
    }

    fn memory_limit(&self) -> usize {
        machine::available_memory().unwrap_or(4 << 30) / 4
    }

    fn queue(&mut self) -> &mut Queue<'static, Wgpu> {
        &mut self.queue
    }

    fn prepare_copies(&mut self, bytes: usize) -> Result<()> {
        self.copy = None;
        let size = rounded(bytes);
        if size > self.device.device().limits().max_buffer_size {
            return Ok(()); // no copy of that length here
        }
        let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let descriptor = BufferDescriptor { label: Some("copy"), size, usage, mapped_at_creation: false };
        let buffer = || self.device.device().create_buffer(&descriptor);
        self.copy = Some((buffer(), buffer()));
        Ok(())
    }

    fn measure(&mut self, work: &mut Work<Wgpu>, op: Op, _peers: Vec<Job<'_>>, effort: Effort) -> Result<Measured> {
        let Self { device, queue, copy, .. } = self;
        let len = rounded(work.copy_len(op));
        let mut jobs = vec![Job::new(|| {
            (0..CALLS).try_for_each(|_| work.run(op, queue))?;
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
        let ours = samples.next().unwrap_or_default();
        Ok(Measured { ours, copies: samples.map(|copy| ("copy", copy)).collect(), peers: Vec::new() })
    }
}
