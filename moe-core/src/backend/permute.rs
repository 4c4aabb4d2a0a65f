//! The route plan and the three primitives.

use super::{Backend, Buffer, CommandQueue, Region};
use crate::raw::{
    BlockTableArgs, BuildArgs, ChunkArgs, CombineArgs, CombineGradArgs, GatherArgs, MaskArgs, PlanMut, PlanRef,
    RawRows, RawRowsMut, ScatterMaskArgs, Section, SplitSizesArgs, ZeroTailArgs,
};
use crate::{Capacity, Error, Limits, Result};

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

    /// Turns a mask map into the expert ids that [`build`](Self::build) takes.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says, or [`Error::Unsupported`] before anything is enqueued, as the default does.
    unsafe fn expand_mask(queue: &mut Self::Queue<'_>, args: MaskArgs<'_, Self>) -> Result<()> {
        let _ = (queue, args);
        Err(missing::<Self>("expand_mask", "mask maps"))
    }

    /// Brings a value for each route of a mask back to `[T, E]`.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says, or [`Error::Unsupported`] before anything is enqueued, as the default does.
    unsafe fn scatter_mask(queue: &mut Self::Queue<'_>, args: ScatterMaskArgs<'_, Self>) -> Result<()> {
        let _ = (queue, args);
        Err(missing::<Self>("scatter_mask", "mask maps"))
    }

    /// Turns chunk sizes into the ids that [`build`](Self::build) takes.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says, or [`Error::Unsupported`] before anything is enqueued, as the default does.
    unsafe fn expand_chunks(queue: &mut Self::Queue<'_>, args: ChunkArgs<'_, Self>) -> Result<()> {
        let _ = (queue, args);
        Err(missing::<Self>("expand_chunks", "chunk sorts"))
    }

    /// Lists the placed routes of a plan in blocks of one expert each.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says, or [`Error::Unsupported`] before anything is enqueued, as the default does.
    unsafe fn block_table(queue: &mut Self::Queue<'_>, args: BlockTableArgs<'_, Self>) -> Result<()> {
        let _ = (queue, args);
        Err(missing::<Self>("block_table", "block tables"))
    }

    /// Counts the rows of a plan for each rank.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says, or [`Error::Unsupported`] before anything is enqueued, as the default does.
    unsafe fn split_sizes(queue: &mut Self::Queue<'_>, args: SplitSizesArgs<'_, Self>) -> Result<()> {
        let _ = (queue, args);
        Err(missing::<Self>("split_sizes", "split sizes"))
    }

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

/// A backend without an operation.
fn missing<B: Backend>(op: &'static str, what: &str) -> Error {
    Error::Unsupported { op, backend: B::NAME, reason: format!("it has no kernel for {what} yet") }
}
