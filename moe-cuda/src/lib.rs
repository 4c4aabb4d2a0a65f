//! The CUDA backend of the Mixture-of-Experts routing library.
//!
//! The kernels are PTX inside the crate: it builds on a machine without CUDA, needs NVIDIA's driver to run and nothing
//! else, and says what is missing where it cannot. Operations are enqueued on a stream, the device's own or a caller's;
//! none of them synchronises, allocates or reads back, so all can be [captured](Capture) in a CUDA graph. Results equal
//! those of `moe-cpu` bit for bit.
//!
//! ```
//! use moe_core::{Dev, Error, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! use moe_cuda::Cuda;
//!
//! # fn main() -> moe_core::Result<()> {
//! let device = match Dev::<Cuda>::open(&"cuda".parse()?) {
//!     Err(Error::BackendUnavailable { reason, .. }) => {
//!         println!("no CUDA here: {reason}");
//!         return Ok(());
//!     }
//!     other => other?,
//! };
//! let mut queue = device.queue()?;
//! let mut workspace = Workspace::new(&mut queue, Limits::new(2, 1, 2))?;
//! let (ids, x) = (queue.upload(&[1, 0])?, queue.upload(&[1.0f32, 2.0, 3.0, 4.0])?);
//! let routing = Routing::top_k(ids.view());
//! let (_plan, rows) = RoutePlan::permute(&mut queue, &mut workspace, PlanSpec::new(2, 1, 2), routing, x.rows(2)?)?;
//! assert_eq!(queue.download(rows.view())?, [3.0, 4.0, 1.0, 2.0]);
//! # Ok(())
//! # }
//! ```
//!
//! # Streams and memory of a caller
//! [`CudaDevice::adopt`] takes a `CudaContext`, [`CudaDevice::adopt_stream`] a `CudaStream`, [`CudaDevice::lend`] and
//! [`CudaDevice::lend_mut`] borrow a `CudaSlice` or a view of one, and [`CudaQueue::adopt_slice`] takes a slice until
//! [`CudaBuffer::into_slice`] gives it back. Where cudarc tracks events, lent memory is ordered with other streams by
//! them, each way; our own buffers are not: two queues that share one have to be ordered by their user. Freeing is
//! always ordered: it waits for every stream that used the memory.
//!
//! Operations on a stream that somebody else captures are refused, because the graph could outlive the memory: record
//! them with [`Capture::capture`], or promise with [`CudaDevice::adopt_capturing_stream`] that it does not.

mod abi;
mod buffer;
mod capture;
mod combine;
mod combine_grad;
mod device;
mod error;
mod gather;
mod health;
mod keep;
mod launch;
mod lend;
mod load;
mod memory;
mod modules;
mod plan;
mod probe;
mod ptx;
mod quant;
mod queue;
mod readback;
mod router;
mod routes;
mod thresholds;

pub use buffer::{CudaBuffer, CudaRegion, CudaRegionMut};
pub use capture::{Capture, Captured, Recording};
pub use cudarc;
pub use device::CudaDevice;
pub use error::CudaError;
pub use launch::kernels_launched;
pub use lend::{Lend, LendMut, Refused};
pub use ptx::SHA256SUMS;
pub use queue::CudaQueue;

use moe_core::quant::QuantFormat;
use moe_core::raw::{
    BlockTableArgs, BuildArgs, ChunkArgs, CombineArgs, CombineGradArgs, GatherArgs, GatherQuantArgs, MaskArgs, PlanMut,
    PlanRef, RawRows, RawRowsMut, ScatterMaskArgs, Section, SplitSizesArgs, SwigluArgs, SwigluQuantArgs, ZeroTailArgs,
};
use moe_core::{Backend, Capacity, Limits, PermuteBackend, QuantBackend, Result};

/// The CUDA backend.
#[derive(Clone, Copy, Debug)]
pub struct Cuda;

/// Shows that this crate made something; only it can make one.
#[derive(Debug)]
pub struct CudaMint(());

impl Backend for Cuda {
    const NAME: &'static str = "cuda";
    type Mint = CudaMint;
    type Device = CudaDevice;
    type Buffer = CudaBuffer;
    type Region<'a> = CudaRegion<'a>;
    type RegionMut<'a> = CudaRegionMut<'a>;
    type Queue<'q> = CudaQueue;

    fn shorten<'long: 'short, 'short>(region: CudaRegion<'long>) -> CudaRegion<'short> {
        region
    }

    fn shorten_mut<'long: 'short, 'short>(region: CudaRegionMut<'long>) -> CudaRegionMut<'short> {
        region
    }
}

// SAFETY: the kernels compare every id, map entry, slot and offset with its range before they use it as an address, and
// the plan kernels write each array of a plan to its full length (kernels/ABI.md).
unsafe impl PermuteBackend for Cuda {
    fn scratch_bytes(queue: &CudaQueue, limits: &Limits) -> usize {
        plan::scratch_bytes(queue, limits)
    }

    fn supports_capacity(capacity: &Capacity) -> bool {
        matches!(capacity, Capacity::ByRoute(_) | Capacity::ByWeight(_))
    }

    fn supports_replicas() -> bool {
        true
    }

    unsafe fn build(queue: &mut CudaQueue, plan: PlanMut<'_, Self>, args: BuildArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { plan::build(queue, plan, args) }
    }

    unsafe fn gather(queue: &mut CudaQueue, args: GatherArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { gather::gather(queue, args) }
    }

    unsafe fn combine(queue: &mut CudaQueue, args: CombineArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { combine::combine(queue, args) }
    }

    unsafe fn combine_grad(queue: &mut CudaQueue, args: CombineGradArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { combine_grad::combine_grad(queue, args) }
    }

    unsafe fn zero_tail(queue: &mut CudaQueue, args: ZeroTailArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { gather::zero_tail(queue, args) }
    }

    unsafe fn expand_mask(queue: &mut CudaQueue, args: MaskArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { routes::expand_mask(queue, args) }
    }

    unsafe fn scatter_mask(queue: &mut CudaQueue, args: ScatterMaskArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { routes::scatter_mask(queue, args) }
    }

    unsafe fn expand_chunks(queue: &mut CudaQueue, args: ChunkArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { routes::expand_chunks(queue, args) }
    }

    unsafe fn block_table(queue: &mut CudaQueue, args: BlockTableArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { routes::block_table(queue, args) }
    }

    unsafe fn split_sizes(queue: &mut CudaQueue, args: SplitSizesArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { routes::split_sizes(queue, args) }
    }

    unsafe fn add_load(
        queue: &mut CudaQueue,
        plan: PlanRef<'_, Self>,
        sums: &mut CudaBuffer,
        at: Section,
    ) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { load::add_load(queue, plan, sums, at) }
    }

    unsafe fn permute(
        queue: &mut CudaQueue,
        plan: PlanMut<'_, Self>,
        args: BuildArgs<'_, Self>,
        rows: RawRows<'_, Self>,
        out: RawRowsMut<'_, Self>,
    ) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { plan::permute(queue, plan, args, rows, out) }
    }
}

// SAFETY: the kernels compare every slot and offset with its range before they use it as an address, and write values
// and scales of rows below the plan's last offset alone.
unsafe impl QuantBackend for Cuda {
    fn supports_quant(format: &QuantFormat) -> bool {
        quant::supports(format)
    }

    unsafe fn gather_quant(queue: &mut CudaQueue, args: GatherQuantArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { quant::gather_quant(queue, args) }
    }

    unsafe fn swiglu(queue: &mut CudaQueue, args: SwigluArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { quant::swiglu(queue, args) }
    }

    unsafe fn swiglu_quant(queue: &mut CudaQueue, args: SwigluQuantArgs<'_, Self>) -> Result<()> {
        // SAFETY: the caller's promises are passed on.
        unsafe { quant::swiglu_quant(queue, args) }
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
