//! The CPU backend of the Mixture-of-Experts routing library: the reference that the others are compared with, and
//! fast.
//!
//! A device is a thread pool: "cpu" and "cpu:0" name the one with a thread for each core; a further ordinal makes a
//! pool of its own, and [`CpuDevice::adopt_pool`] takes a caller's. Operations run at once, so a queue holds nothing
//! and "Ok" means done. Results depend neither on the number of threads nor on the instruction set (AVX-512, AVX2 or
//! plain Rust, picked at run time), bit for bit. See `moe-core` for the operations.
//!
//! ```
//! use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! use moe_cpu::{Cpu, CpuDevice};
//!
//! let device = Dev::<Cpu>::open(&"cpu".parse()?)?;
//! let mut queue = device.queue()?;
//! let mut workspace = Workspace::new(&mut queue, Limits::new(2, 1, 2))?;
//!
//! // A caller's own slices are lent, not copied.
//! let (ids, x) = ([1, 0], [1.0f32, 2.0, 3.0, 4.0]);
//! let routing = Routing::top_k(device.raw().lend(&ids));
//! let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::new(2, 1, 2), routing)?;
//! let mut y = [0.0f32; 4];
//! plan.gather(device.raw().lend(&x).rows(2)?).run_into(&mut queue, device.raw().lend_mut(&mut y).rows(2)?)?;
//! assert_eq!(y, [3.0, 4.0, 1.0, 2.0]);
//! # Ok::<(), moe_core::Error>(())
//! ```

mod buffer;
mod combine;
mod combine_grad;
mod device;
pub mod floor;
mod gather;
mod kernels;
#[cfg(feature = "gemm")]
pub mod matmul;
mod plan;
mod quant;
mod queue;
mod router;
mod routes;

pub use buffer::{CpuBuffer, CpuRegion, CpuRegionMut};
pub use device::CpuDevice;
pub use queue::CpuQueue;

use moe_core::raw::{
    BlockTableArgs, BuildArgs, ChunkArgs, CombineArgs, CombineGradArgs, GatherArgs, MaskArgs, PlanMut, RawRows,
    RawRowsMut, ScatterMaskArgs, SplitSizesArgs, ZeroTailArgs,
};
use moe_core::{Backend, Capacity, Limits, PermuteBackend, Result};

/// The CPU backend.
#[derive(Clone, Copy, Debug)]
pub struct Cpu;

/// Shows that this crate made something; only it can make one.
#[derive(Debug)]
pub struct CpuMint(());

impl Backend for Cpu {
    const NAME: &'static str = "cpu";
    type Mint = CpuMint;
    type Device = CpuDevice;
    type Buffer = CpuBuffer;
    type Region<'a> = CpuRegion<'a>;
    type RegionMut<'a> = CpuRegionMut<'a>;
    type Queue<'q> = CpuQueue;

    fn shorten<'long: 'short, 'short>(region: CpuRegion<'long>) -> CpuRegion<'short> {
        region
    }

    fn shorten_mut<'long: 'short, 'short>(region: CpuRegionMut<'long>) -> CpuRegionMut<'short> {
        region
    }
}

// SAFETY: the kernels write through slices and bounds-checked rows of the outputs alone, whatever the index arrays say;
// `plan::build` writes each array of the plan to its full length.
unsafe impl PermuteBackend for Cpu {
    fn scratch_bytes(queue: &CpuQueue, limits: &Limits) -> usize {
        plan::scratch_bytes(queue, limits)
    }

    fn supports_capacity(_: &Capacity) -> bool {
        true
    }

    fn supports_replicas() -> bool {
        true
    }

    unsafe fn build(queue: &mut CpuQueue, plan: PlanMut<'_, Self>, args: BuildArgs<'_, Self>) -> Result<()> {
        plan::build(queue, plan, args);
        Ok(())
    }

    unsafe fn gather(queue: &mut CpuQueue, args: GatherArgs<'_, Self>) -> Result<()> {
        gather::gather(queue, args);
        Ok(())
    }

    unsafe fn permute(
        queue: &mut CpuQueue,
        plan: PlanMut<'_, Self>,
        args: BuildArgs<'_, Self>,
        rows: RawRows<'_, Self>,
        out: RawRowsMut<'_, Self>,
    ) -> Result<()> {
        gather::permute(queue, plan, args, rows, out);
        Ok(())
    }

    unsafe fn combine(queue: &mut CpuQueue, args: CombineArgs<'_, Self>) -> Result<()> {
        combine::combine(queue, args);
        Ok(())
    }

    unsafe fn combine_grad(queue: &mut CpuQueue, args: CombineGradArgs<'_, Self>) -> Result<()> {
        combine_grad::combine_grad(queue, args);
        Ok(())
    }

    unsafe fn zero_tail(queue: &mut CpuQueue, args: ZeroTailArgs<'_, Self>) -> Result<()> {
        gather::zero_tail(queue, args);
        Ok(())
    }

    unsafe fn expand_mask(queue: &mut CpuQueue, args: MaskArgs<'_, Self>) -> Result<()> {
        routes::expand_mask(queue, args);
        Ok(())
    }

    unsafe fn scatter_mask(queue: &mut CpuQueue, args: ScatterMaskArgs<'_, Self>) -> Result<()> {
        routes::scatter_mask(queue, args);
        Ok(())
    }

    unsafe fn expand_chunks(queue: &mut CpuQueue, args: ChunkArgs<'_, Self>) -> Result<()> {
        routes::expand_chunks(queue, args);
        Ok(())
    }

    unsafe fn block_table(queue: &mut CpuQueue, args: BlockTableArgs<'_, Self>) -> Result<()> {
        routes::block_table(queue, args);
        Ok(())
    }

    unsafe fn split_sizes(queue: &mut CpuQueue, args: SplitSizesArgs<'_, Self>) -> Result<()> {
        routes::split_sizes(queue, args);
        Ok(())
    }
}
