//! Timing the CPU backend by the wall clock, beside two parallel copies and one on the calling thread.

use crate::Result;
use crate::machine;
use crate::stats::{Effort, Job, interleave};
use crate::target::{Measured, Target, Task};
use moe_core::{Dev, DeviceSpec, Queue};
use moe_cpu::{Cpu, CpuDevice, floor};
use std::time::Duration;

/// Bytes to which the two sides of a copy are aligned.
const ALIGN: usize = 64;

/// An opened thread pool.
pub struct CpuTarget {
    device: CpuDevice,
    id: String,
    queue: Queue<'static, Cpu>,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl CpuTarget {
    /// Opens it.
    ///
    /// # Errors
    /// If the specification names no CPU device.
    pub fn open(spec: &DeviceSpec) -> Result<Self> {
        let device = Dev::<Cpu>::open(spec)?;
        let (id, queue) = (device.id().to_string(), device.queue()?);
        Ok(Self { device: device.raw().clone(), id, queue, from: Vec::new(), to: Vec::new() })
    }
}

fn aligned(bytes: &mut [u8], len: usize) -> &mut [u8] {
    let start = bytes.as_ptr().align_offset(ALIGN);
    &mut bytes[start..start + len]
}

impl Target for CpuTarget {
    type Backend = Cpu;

    fn name(&self) -> &'static str {
        "moe-cpu"
    }

    fn device(&self) -> String {
        self.id.clone()
    }

    fn device_name(&self) -> String {
        machine::cpu_name()
    }

    fn method(&self) -> &'static str {
        "wall clock, median, taking turns with the copies and the peers"
    }

    fn memory_limit(&self) -> usize {
        machine::available_memory().unwrap_or(4 << 30) / 2
    }

    fn queue(&mut self) -> &mut Queue<'static, Cpu> {
        &mut self.queue
    }

    fn prepare_copies(&mut self, bytes: usize) -> Result<()> {
        // Written here, so that no copy meets a page for the first time.
        (self.from, self.to) = (Vec::new(), Vec::new());
        (self.from, self.to) = (vec![1; bytes + ALIGN], vec![2; bytes + ALIGN]);
        Ok(())
    }

    fn raw(&self) -> &CpuDevice {
        &self.device
    }

    fn sample(&mut self, task: &mut Task<'_, Cpu>) -> Result<f64> {
        let effort = Effort { rounds: 1, budget: Duration::ZERO, sample: Duration::from_millis(1) };
        let samples = interleave(&mut [Job::new(|| task.run(&mut self.queue))], effort)?;
        Ok(samples[0].median())
    }

    fn measure(&mut self, task: &mut Task<'_, Cpu>, peers: Vec<Job<'_>>, effort: Effort) -> Result<Measured> {
        let Self { device, queue, from, to, .. } = self;
        let len = task.copy_len();
        let (from, to) = (&*aligned(from, len), std::cell::RefCell::new(aligned(to, len)));
        let mut jobs = vec![
            Job::new(|| task.run(queue)),
            Job::new(|| {
                floor::copy_memcpy(device, from, &mut to.borrow_mut());
                Ok(())
            }),
            Job::new(|| {
                floor::copy_streaming(device, from, &mut to.borrow_mut());
                Ok(())
            }),
            Job::new(|| {
                to.borrow_mut().copy_from_slice(from); // the floor of what is too small to share
                Ok(())
            }),
        ];
        jobs.extend(peers);
        let mut samples = interleave(&mut jobs, effort)?.into_iter();
        let mut next = || samples.next().unwrap_or_default();
        Ok(Measured {
            ours: next(),
            copies: vec![("memcpy", next()), ("streaming", next()), ("serial", next())],
            peers: samples.collect(),
            clock: None,
        })
    }
}
