//! How a backend's operations are timed.

use crate::Result;
use crate::extras::Measurable;
use crate::stats::{Effort, Job, Samples};
use moe_core::{Backend, DeviceSpec, Queue};

/// One call.
type Call<'w, B> = dyn FnMut(&mut Queue<'_, B>) -> Result<()> + 'w;

/// Work that is timed: it enqueues the same operation each time it is called.
pub struct Task<'w, B: Backend> {
    copy_len: usize,
    run: Box<Call<'w, B>>,
}

impl<'w, B: Backend> Task<'w, B> {
    /// Beside a copy of `copy_len` bytes: it reads as many and writes as many.
    pub fn new(copy_len: usize, run: impl FnMut(&mut Queue<'_, B>) -> Result<()> + 'w) -> Self {
        Self { copy_len, run: Box::new(run) }
    }

    /// The length of the copy beside it.
    pub fn copy_len(&self) -> usize {
        self.copy_len
    }

    /// Enqueues it.
    ///
    /// # Errors
    /// What the library says.
    pub fn run(&mut self, queue: &mut Queue<'_, B>) -> Result<()> {
        (self.run)(queue)
    }
}

/// Copies of the same bytes, by name.
pub type Copies = Vec<(&'static str, Samples)>;

/// By which clock an operation of a backend that has two was timed.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The device's own: the work alone. `wall` is what the same calls took by the wall clock, recording and submission
    /// included.
    Gpu {
        /// Microseconds of each repeat.
        wall: Samples,
    },
    /// The wall clock, because the device has no other.
    Wall,
}

/// What came of measuring an operation.
#[derive(Debug, Default)]
pub struct Measured {
    /// The operation.
    pub ours: Samples,
    /// Copies of the same bytes, in the same run.
    pub copies: Copies,
    /// The peers that were handed in, in their order.
    pub peers: Vec<Samples>,
    /// Where a backend has two clocks, the one of `ours` and `copies`.
    pub clock: Option<Clock>,
}

/// An opened device, and its way of measuring.
pub trait Target {
    /// The backend.
    type Backend: Measurable;

    /// The name in tables: "moe-cpu".
    fn name(&self) -> &'static str;

    /// The canonical identity: "cpu:0".
    fn device(&self) -> String;

    /// The device's own name. Results are compared with each other where class and name agree.
    fn device_name(&self) -> String;

    /// How times are taken, in a few words.
    fn method(&self) -> &'static str;

    /// The device itself.
    fn raw(&self) -> &<Self::Backend as Backend>::Device;

    /// Bytes of memory that a case may take.
    fn memory_limit(&self) -> usize;

    /// Queue to set a case up with.
    fn queue(&mut self) -> &mut Queue<'static, Self::Backend>;

    /// Makes room for copies of this many bytes.
    ///
    /// # Errors
    /// What the device says.
    fn prepare_copies(&mut self, bytes: usize) -> Result<()>;

    /// Times a task, the copies of the same bytes beside it, and peers where they run on the same device.
    ///
    /// # Errors
    /// What the library says.
    fn measure(&mut self, task: &mut Task<'_, Self::Backend>, peers: Vec<Job<'_>>, effort: Effort) -> Result<Measured>;

    /// Times a task with a cold cache, where the device can: every call after its cache was overwritten.
    ///
    /// # Errors
    /// What the library says.
    fn measure_cold(&mut self, task: &mut Task<'_, Self::Backend>, effort: Effort) -> Result<Option<Measured>> {
        let _ = (task, effort);
        Ok(None)
    }

    /// Microseconds per call of one sample of a task alone, by the same method. What the task does can have changed
    /// since it was last timed.
    ///
    /// # Errors
    /// What the library says.
    fn sample(&mut self, task: &mut Task<'_, Self::Backend>) -> Result<f64>;
}

/// Work on the target of any backend.
pub trait TargetVisitor {
    /// Does it on this one.
    ///
    /// # Errors
    /// What the work says.
    fn visit<T: Target>(&mut self, target: T) -> Result<()>;
}

/// Opens the device that a specification names, and hands it to a visitor.
///
/// # Errors
/// If no such backend is compiled in, the device cannot be opened, or the visitor fails.
pub fn with_target(spec: &DeviceSpec, visitor: &mut impl TargetVisitor) -> Result<()> {
    match spec.backend() {
        "cpu" => visitor.visit(crate::cpu::CpuTarget::open(spec)?),
        #[cfg(feature = "cuda")]
        "cuda" => visitor.visit(crate::cuda::CudaTarget::open(spec)?),
        #[cfg(feature = "wgpu")]
        "wgpu" => visitor.visit(crate::wgpu::WgpuTarget::open(spec)?),
        other => Err(format!("no backend '{other}' in this build; there are {}", compiled().join(", ")).into()),
    }
}

/// The backends that are compiled in.
pub fn compiled() -> Vec<&'static str> {
    let mut names = vec!["cpu"];
    if cfg!(feature = "cuda") {
        names.push("cuda");
    }
    if cfg!(feature = "wgpu") {
        names.push("wgpu");
    }
    names
}
