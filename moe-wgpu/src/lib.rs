//! The wgpu backend of the Mixture-of-Experts routing library: Vulkan, Metal and DX12.
//!
//! A device is a logical device of wgpu: [opened](moe_core::Dev::open) from a specification ("wgpu" and "wgpu:0" name
//! the first adapter), or the caller's own ([`WgpuDevice::adopt`]), whose buffers are lent, not copied
//! ([`WgpuDevice::view`]). Operations are recorded: into an encoder of the queue, which submits it when results are
//! asked for, or into the caller's ([`WgpuDevice::record`]), so that a whole layer is one submission.
//!
//! Every dtype works on every adapter: 16- and 8-bit floats are unpacked by integer operations, f16 natively where the
//! adapter has it; subgroups and immediate data are used where it has them ([`WgpuOptions`]). A thread owns whole 32-bit
//! words of an output, so that rows of any length at any base are right and bytes between rows keep their values. Data
//! larger than a binding may be is worked on in windows; what cannot be split is refused with
//! [`Error::Unsupported`](moe_core::Error::Unsupported), which names the limit.
//!
//! Plans and gathers have the same bits as those of the other backends. Sums may differ from theirs, because WGSL does
//! not promise fused multiply-adds, by 1 ulp of the output + K·2⁻²³·Σ|w·y|; subnormals may become zero.
//!
//! The order of work is that of submission. Queues of one device share one stream: wgpu runs what is submitted in
//! order, so a workspace serves all of them. What a queue has recorded runs at the latest when the queue is dropped.
//!
//! ```no_run
//! use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! use moe_wgpu::Wgpu;
//!
//! let mut queue = Dev::<Wgpu>::open(&"wgpu".parse()?)?.queue()?;
//! let mut workspace = Workspace::new(&mut queue, Limits::new(2, 1, 2))?;
//! let ids = queue.upload(&[1, 0])?;
//! let x = queue.upload(&[1.0f32, 2.0, 3.0, 4.0])?;
//! let spec = PlanSpec::new(2, 1, 2);
//! let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(ids.view()))?;
//! let y = plan.gather(x.rows(2)?).run(&mut queue)?;
//! assert_eq!(queue.download(y.view())?, [3.0, 4.0, 1.0, 2.0]);
//! # Ok::<(), moe_core::Error>(())
//! ```

mod adapters;
mod bind_groups;
mod buffer;
mod combine;
mod combine_grad;
mod device;
mod dispatch;
mod error;
mod gather;
mod kernels;
mod plan;
mod queue;
mod routes;
mod template;
mod tuning;
mod window;

pub use buffer::{WgpuBuffer, WgpuRegion, WgpuRegionMut};
pub use device::{WgpuDevice, WgpuOptions};
pub use queue::WgpuQueue;
pub use wgpu;

use moe_core::raw::{
    BlockTableArgs, BuildArgs, ChunkArgs, CombineArgs, CombineGradArgs, GatherArgs, MaskArgs, PlanMut, PlanRef,
    ScatterMaskArgs, Section, SplitSizesArgs, ZeroTailArgs,
};
use moe_core::{Backend, Capacity, Limits, PermuteBackend, Result};

/// The wgpu backend.
#[derive(Clone, Copy, Debug)]
pub struct Wgpu;

/// Shows that this crate made something; only it can make one.
#[derive(Debug)]
pub struct WgpuMint(());

impl Backend for Wgpu {
    const NAME: &'static str = "wgpu";
    type Mint = WgpuMint;
    type Device = WgpuDevice;
    type Buffer = WgpuBuffer;
    type Region<'a> = WgpuRegion<'a>;
    type RegionMut<'a> = WgpuRegionMut<'a>;
    type Queue<'q> = WgpuQueue<'q>;

    fn shorten<'long: 'short, 'short>(region: WgpuRegion<'long>) -> WgpuRegion<'short> {
        region
    }

    fn shorten_mut<'long: 'short, 'short>(region: WgpuRegionMut<'long>) -> WgpuRegionMut<'short> {
        region
    }
}

// SAFETY: wgpu checks each access of a kernel against its binding, and bindings cover the regions given, widened to
// whole words and to the adapter's alignment; inside them the kernels write bytes of the outputs alone, because they
// compare every slot, source and offset with the shapes before they address with it. `plan::build` writes each array of
// the plan to its full length.
unsafe impl PermuteBackend for Wgpu {
    fn scratch_bytes(_queue: &WgpuQueue<'_>, limits: &Limits) -> usize {
        plan::scratch_bytes(limits)
    }

    fn supports_capacity(capacity: &Capacity) -> bool {
        matches!(capacity, Capacity::ByRoute(_) | Capacity::ByWeight(_))
    }

    fn supports_replicas() -> bool {
        true
    }

    unsafe fn build(queue: &mut WgpuQueue<'_>, plan: PlanMut<'_, Self>, args: BuildArgs<'_, Self>) -> Result<()> {
        plan::build(queue, plan, args)
    }

    unsafe fn gather(queue: &mut WgpuQueue<'_>, args: GatherArgs<'_, Self>) -> Result<()> {
        gather::gather(queue, "gather", args)
    }

    unsafe fn combine(queue: &mut WgpuQueue<'_>, args: CombineArgs<'_, Self>) -> Result<()> {
        combine::combine(queue, args)
    }

    unsafe fn combine_grad(queue: &mut WgpuQueue<'_>, args: CombineGradArgs<'_, Self>) -> Result<()> {
        combine_grad::combine_grad(queue, args)
    }

    unsafe fn zero_tail(queue: &mut WgpuQueue<'_>, args: ZeroTailArgs<'_, Self>) -> Result<()> {
        gather::zero_tail(queue, args)
    }

    unsafe fn expand_mask(queue: &mut WgpuQueue<'_>, args: MaskArgs<'_, Self>) -> Result<()> {
        routes::expand_mask(queue, args)
    }

    unsafe fn scatter_mask(queue: &mut WgpuQueue<'_>, args: ScatterMaskArgs<'_, Self>) -> Result<()> {
        routes::scatter_mask(queue, args)
    }

    unsafe fn expand_chunks(queue: &mut WgpuQueue<'_>, args: ChunkArgs<'_, Self>) -> Result<()> {
        routes::expand_chunks(queue, args)
    }

    unsafe fn block_table(queue: &mut WgpuQueue<'_>, args: BlockTableArgs<'_, Self>) -> Result<()> {
        routes::block_table(queue, args)
    }

    unsafe fn split_sizes(queue: &mut WgpuQueue<'_>, args: SplitSizesArgs<'_, Self>) -> Result<()> {
        routes::split_sizes(queue, args)
    }

    unsafe fn add_load(
        queue: &mut WgpuQueue<'_>,
        plan: PlanRef<'_, Self>,
        sums: &mut WgpuBuffer,
        at: Section,
    ) -> Result<()> {
        routes::add_load(queue, plan, sums, at)
    }
}
