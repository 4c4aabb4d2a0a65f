//! The traits that a backend implements.
//!
//! [`Backend`] has no methods, only associated types, so that mixing two backends is a type error. Arguments are
//! checked once, in this crate; a backend gets checked input through the `unsafe` methods of [`PermuteBackend`], whose
//! contract is written there. What lies *in* ids and index arrays is on the device and is never trusted.
#![allow(unsafe_code)]

use crate::oracle::{Capabilities, Knob, Path, TuningTable, Wish};
use crate::raw::{
    BuildArgs, CombineArgs, CombineGradArgs, GatherArgs, PlanMut, PlanRef, RawRows, RawRowsMut, Section, ZeroTailArgs,
};
use crate::{Capacity, DeviceId, DeviceSpec, Error, Limits, Readback, Result};
use std::fmt::Debug;
use std::ops::Range;

/// A family of devices: names its types. Nothing of it runs.
pub trait Backend: Copy + Debug + Send + Sync + 'static {
    /// The name in specifications and identities: "cpu", "cuda", "wgpu".
    const NAME: &'static str;
    /// The proof that this backend made something. Its constructor is private to the backend's crate, so that nobody
    /// else can mint identities, buffers or views.
    type Mint;
    /// An opened device.
    type Device: Device<Backend = Self>;
    /// Memory on a device, without an element type.
    type Buffer: Buffer<Backend = Self>;
    /// Borrowed memory to read.
    type Region<'a>: Region + Clone;
    /// Borrowed memory to write.
    type RegionMut<'a>: Region;
    /// What operations are enqueued on: a stream, a command encoder, or for the CPU nothing. `'q` is the time for
    /// which the caller lends it.
    type Queue<'q>: CommandQueue<Backend = Self>;

    /// The same region for a shorter time. Always written `region`: the compiler sees that it holds where the type is
    /// known, but not for any backend.
    fn shorten<'long: 'short, 'short>(region: Self::Region<'long>) -> Self::Region<'short>;

    /// Like [`shorten`](Self::shorten), for a region to write.
    fn shorten_mut<'long: 'short, 'short>(region: Self::RegionMut<'long>) -> Self::RegionMut<'short>;
}

/// What a device says of itself, for people.
#[derive(Clone, Debug, Default)]
pub struct DeviceInfo {
    /// The name that the maker or the driver gives it.
    pub name: String,
    /// Its memory in bytes, where that is known.
    pub memory_bytes: Option<u64>,
    /// Facts worth showing, such as instruction sets, driver versions or limits.
    pub details: Vec<(&'static str, String)>,
}

/// An opened device. Cheap to clone; a clone is the same device.
///
/// # Safety
/// `id` is the same for the whole life of the device and differs from that of any device whose memory this one cannot
/// address.
pub unsafe trait Device: Clone + Debug + Send + Sync + 'static {
    /// The family.
    type Backend: Backend<Device = Self>;

    /// Opens the device that a specification asks for. Opening it twice gives the same device.
    ///
    /// # Errors
    /// `WrongBackend`, `BackendUnavailable` or `NoSuchDevice`.
    fn open(spec: &DeviceSpec) -> Result<Self>;

    /// How many devices this machine has. They can be opened by ordinal; a backend may open further ordinals, as the
    /// CPU does for more thread pools.
    ///
    /// # Errors
    /// `BackendUnavailable`, with the reason.
    fn count() -> Result<usize>;

    /// The canonical identity.
    fn id(&self) -> DeviceId<Self::Backend>;

    /// What to tell people about it.
    fn info(&self) -> DeviceInfo;

    /// A queue that the device makes itself.
    ///
    /// # Errors
    /// What the driver says.
    fn queue(&self) -> Result<<Self::Backend as Backend>::Queue<'static>>;

    /// What it can do, and how fast it is expected to be; for the choice at set-up. The default claims everything.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// What can be tuned on it, each with its built-in value and the values that are worth measuring.
    fn knobs(&self) -> &'static [Knob] {
        &[]
    }

    /// Takes measured values, from the section of a table that bears this backend's and device's names; keys that the
    /// section lacks get their built-in values. Results keep their bits.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is nothing to tune, [`Error::InvalidArgument`] for a key or a value that does
    /// not exist; nothing has changed then.
    fn tune(&self, table: &TuningTable) -> Result<()> {
        let _ = table;
        let reason = "it has no knobs".into();
        Err(Error::Unsupported { op: "tune", backend: Self::Backend::NAME, reason })
    }

    /// Which of its kernels a wish would run, and why.
    fn paths(&self, wish: &Wish) -> Vec<Path> {
        let _ = wish;
        Vec::new()
    }
}

/// Owned memory on a device. Frees on drop and keeps its device alive. No `Clone`: cloning can fail.
///
/// # Safety
/// `device_id` and `byte_len` are truthful, and the regions cover exactly the `byte_len` bytes, which stay valid for
/// as long as the borrow. The memory is initialised and aligned to at least 256 bytes on a GPU, 64 on the CPU.
pub unsafe trait Buffer: Debug + Send + 'static {
    /// The family.
    type Backend: Backend<Buffer = Self>;
    /// Where it lives.
    fn device_id(&self) -> DeviceId<Self::Backend>;
    /// Its length in bytes.
    fn byte_len(&self) -> usize;
    /// All of it, to read.
    fn region(&self) -> <Self::Backend as Backend>::Region<'_>;
    /// All of it, to write.
    fn region_mut(&mut self) -> <Self::Backend as Backend>::RegionMut<'_>;
}

/// Where memory lies, for the checks of overlap and alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What `start` counts from: two spans with different values never overlap. 0 where addresses are absolute.
    pub allocation: u64,
    /// The first byte.
    pub start: u64,
    /// The number of bytes.
    pub len: u64,
}

impl Span {
    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Span) -> bool {
        self.allocation == other.allocation
            && self.len > 0
            && other.len > 0
            && self.start < other.start + other.len
            && other.start < self.start + self.len
    }
}

/// Borrowed memory on a device, without an element type.
///
/// # Safety
/// `span` tells the truth, and `slice` gives a region of exactly the bytes asked for.
pub unsafe trait Region: Debug + Sized {
    /// Where it lies, and its length.
    fn span(&self) -> Span;

    /// A part of it. The caller made sure that the range is inside; a backend may panic if it is not.
    fn slice(self, bytes: Range<usize>) -> Self;

    /// Its length in bytes.
    fn byte_len(&self) -> usize {
        self.span().len as usize
    }
}

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

/// The operations of a backend.
///
/// # Safety
/// Implementations write only to the outputs they are given, inside their bounds, whatever the ids, slots, sources and
/// offsets on the device say; and on `Ok` (once the work has run) every index array of a plan that was built has been
/// written to its full length.
///
/// # What a caller promises to the `unsafe` methods
/// All regions and the queue are on one device; lengths, shapes, strides and dtypes are those that the argument
/// structs' docs state; no output overlaps another argument; element alignment holds. [`crate::RoutePlan`] checks all
/// of it. Contents are not promised.
pub unsafe trait PermuteBackend: Backend {
    /// Bytes of scratch that the operations need within these limits.
    fn scratch_bytes(queue: &Self::Queue<'_>, limits: &Limits) -> usize;

    /// Whether [`build`](Self::build) knows this capacity. It is asked before anything is enqueued. By default the first
    /// routes by number, and nothing else.
    fn supports_capacity(capacity: &Capacity) -> bool {
        matches!(capacity, Capacity::ByRoute(_))
    }

    /// Whether [`build`](Self::build) sends routes to copies of experts. It is asked before anything is enqueued.
    fn supports_replicas() -> bool {
        false
    }

    /// Builds a route plan from expert ids: writes every index array of the plan to its full length.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says; nothing of the arguments, which are checked.
    unsafe fn build(queue: &mut Self::Queue<'_>, plan: PlanMut<'_, Self>, args: BuildArgs<'_, Self>) -> Result<()>;

    /// `Y = P X` or `diag(w) P X`.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn gather(queue: &mut Self::Queue<'_>, args: GatherArgs<'_, Self>) -> Result<()>;

    /// `X = Pᵀ diag(w) Y (+ X0)`.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn combine(queue: &mut Self::Queue<'_>, args: CombineArgs<'_, Self>) -> Result<()>;

    /// `dY = diag(w) P dX` and `dw = rowdot(Y, P dX)`.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn combine_grad(queue: &mut Self::Queue<'_>, args: CombineGradArgs<'_, Self>) -> Result<()>;

    /// Zeroes the rows from the last expert offset to the end.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn zero_tail(queue: &mut Self::Queue<'_>, args: ZeroTailArgs<'_, Self>) -> Result<()>;

    /// Adds a plan's `logical_load` (i32 `[E]`) to u32 sums: `sums[at]`, of which each stays below 2³².
    /// The default adds on the host and waits for the device; a backend with streams overrides it, so that nothing
    /// waits and a graph can capture it.
    ///
    /// # Safety
    /// See the trait. The plan has a `logical_load`, of `at.len` elements; `at` is inside `sums`.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn add_load(
        queue: &mut Self::Queue<'_>,
        plan: PlanRef<'_, Self>,
        sums: &mut Self::Buffer,
        at: Section,
    ) -> Result<()> {
        let Some(load) = plan.arrays.logical_load else { return Ok(()) };
        let (mut add, mut bytes) = (vec![0; at.len * 4], vec![0; at.len * 4]);
        // SAFETY: both are on the queue's device, of these lengths, and an expert has a counter at least.
        unsafe { queue.download(plan.region(load), &mut add) }?;
        // SAFETY: likewise.
        unsafe { queue.download(sums.region().slice(at.bytes()), &mut bytes) }?;
        for (sum, add) in bytes.as_chunks_mut().0.iter_mut().zip(add.as_chunks().0) {
            *sum = u32::from_ne_bytes(*sum).wrapping_add(u32::from_ne_bytes(*add)).to_ne_bytes();
        }
        // SAFETY: likewise.
        unsafe { queue.upload(&bytes, sums.region_mut().slice(at.bytes())) }
    }

    /// Builds a plan and gathers rows with it. `rows` and `out` are as in [`GatherArgs`]; the gather is unweighted.
    /// The default is [`build`](Self::build), then [`gather`](Self::gather); a backend overrides it where one launch
    /// for both pays. The bits are the same.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn permute(
        queue: &mut Self::Queue<'_>,
        mut plan: PlanMut<'_, Self>,
        args: BuildArgs<'_, Self>,
        rows: RawRows<'_, Self>,
        out: RawRowsMut<'_, Self>,
    ) -> Result<()> {
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { Self::build(queue, plan.reborrow(), args) }?;
        // SAFETY: likewise; the plan is the one that was just built.
        unsafe {
            Self::gather(
                queue,
                GatherArgs { plan: plan.as_ref(), rows: rows.shorten(), weights: None, out: out.shorten() },
            )
        }
    }
}
