//! The route plan.

mod routing;
mod spec;
mod validate;

pub use routing::{Routing, Status};
pub(crate) use spec::MAX_INDEX;
pub use spec::{Capacity, Layout, PlanSpec};

use crate::check::{Check, span, spans};
use crate::raw::{BuildArgs, PlanArrays, PlanMut, PlanRef, PlanShape, Section};
use crate::tag::{Tag, Untagged};
use crate::{
    Backend, Buf, Buffer, Combine, CombineGrad, CombineInput, DeviceId, Element, Error, Float, Gather, Limits,
    PermuteBackend, Queue, Region, Result, Rows, RowsMut, View, Workspace,
};
use std::marker::PhantomData;

/// Says at which row each route of a batch lands. Lives on a device and owns its index arrays.
///
/// Order: by local expert, then by route number. Always; stable; the same on every backend and in every run. Only a
/// builder makes one, and nothing has to be read back from the device to use it.
///
/// ```
/// use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
/// use moe_cpu::Cpu;
///
/// let (num_tokens, top_k, num_experts, hidden_size) = (3, 2, 4, 8);
/// let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
/// let mut workspace = Workspace::new(&mut queue, Limits::new(num_tokens, top_k, num_experts))?;
/// let hidden_states = queue.upload(&vec![1.0f32; num_tokens * hidden_size])?;
/// let topk_ids = queue.upload(&[0, 2, 3, 2, 0, 1])?;
/// let topk_weights = queue.upload(&[0.5f32; 6])?;
///
/// let spec = PlanSpec::new(num_tokens, top_k, num_experts);
/// let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(topk_ids.view()))?;
/// let rows = plan.gather(hidden_states.rows(hidden_size)?).run(&mut queue)?; // by expert
/// // … the experts' matrix products …
/// let out = plan.combine(rows.rows(hidden_size)?).weights(topk_weights.view()).run::<f32>(&mut queue)?;
///
/// assert_eq!(queue.download(plan.expert_offsets())?, [0, 2, 3, 5, 6]);
/// assert_eq!(queue.download(out.view())?, vec![1.0f32; num_tokens * hidden_size]);
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Debug)]
pub struct RoutePlan<B: Backend, G: Tag = Untagged> {
    buffer: B::Buffer,
    arrays: PlanArrays,
    built: bool,
    tag: PhantomData<G>,
}

impl<B: Backend, G: Tag> RoutePlan<B, G> {
    /// Memory for a plan of this shape, to be [built](Self::build_into) later. No operation takes it before, and its
    /// index arrays mean nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a shape out of range, [`Error::OutOfMemory`], or what the driver says.
    pub fn alloc(queue: &mut Queue<'_, B, G>, spec: PlanSpec) -> Result<Self> {
        let arrays = spec.check("RoutePlan::alloc")?;
        let buffer = queue.alloc_bytes(arrays.byte_len)?;
        Ok(Self { buffer, arrays, built: false, tag: PhantomData })
    }

    /// Leaves the tag behind, so that the plan can leave a branded scope.
    pub fn unbrand(self) -> RoutePlan<B> {
        self.retag()
    }

    pub(crate) fn retag<H: Tag>(self) -> RoutePlan<B, H> {
        let Self { buffer, arrays, built, .. } = self;
        RoutePlan { buffer, arrays, built, tag: PhantomData }
    }

    /// Where it lives.
    pub fn device_id(&self) -> DeviceId<B> {
        self.buffer.device_id()
    }

    /// The numbers that shape it.
    pub fn shape(&self) -> &PlanShape {
        &self.arrays.shape
    }

    /// R, its rows: what a buffer for [`gather`](Self::gather)'s result needs.
    pub fn num_rows(&self) -> usize {
        self.arrays.shape.rows
    }

    /// `[R]`: row → route; -1 on padding rows and past the end. Others call it `permuted_idx` or `sorted_token_ids`.
    #[doc(alias = "permuted_idx")]
    #[doc(alias = "row_id_map")]
    pub fn source(&self) -> View<'_, B, i32, G> {
        self.array(self.arrays.source)
    }

    /// `[T, K]`: route → row; -1 where the route is not placed. Others call it `inv_permuted_idx`.
    #[doc(alias = "inv_permuted_idx")]
    pub fn slot(&self) -> View<'_, B, i32, G> {
        self.array(self.arrays.slot)
    }

    /// `[E_local + 1]`: the first row of each local expert, padding included; the last entry is the number of rows in
    /// use.
    pub fn expert_offsets(&self) -> View<'_, B, i32, G> {
        self.array(self.arrays.expert_offsets)
    }

    /// `[E_local]`: the placed routes of each local expert.
    pub fn tokens_per_expert(&self) -> View<'_, B, i32, G> {
        self.array(self.arrays.tokens_per_expert)
    }

    /// `[R]`: row → local expert; -1 on padding rows and past the end. There if the spec asked for it.
    pub fn m_indices(&self) -> Option<View<'_, B, i32, G>> {
        Some(self.array(self.arrays.m_indices?))
    }

    /// `[E]`: routes of each global expert, before any map or capacity. There if the spec asked for it.
    pub fn logical_load(&self) -> Option<View<'_, B, i32, G>> {
        Some(self.array(self.arrays.logical_load?))
    }

    /// `[5]`: the counters of [`Status`], on the device.
    pub fn status_counters(&self) -> View<'_, B, u32, G> {
        self.array(self.arrays.status)
    }

    /// Reads the counters back; waits for the build.
    ///
    /// # Errors
    /// [`Error::PlanNotBuilt`], [`Error::DeviceMismatch`], or what the driver says.
    pub fn status(&self, queue: &mut Queue<'_, B, G>) -> Result<Status> {
        self.built("RoutePlan::status")?;
        let mut counters = [0; PlanArrays::STATUS_LEN];
        queue.read(self.status_counters(), &mut counters)?;
        Ok(Status::from_counters(counters))
    }

    fn array<T: Element>(&self, section: Section) -> View<'_, B, T, G> {
        View::new(self.device_id(), self.buffer.region().slice(section.bytes()), section.len)
    }

    pub(crate) fn built(&self, op: &'static str) -> Result<PlanRef<'_, B>> {
        if self.built {
            return Ok(PlanRef { buffer: &self.buffer, arrays: &self.arrays });
        }
        Err(Error::PlanNotBuilt { op })
    }
}

#[allow(unsafe_code)] // calls the backends' checked operations
impl<B: PermuteBackend, G: Tag> RoutePlan<B, G> {
    /// Builds a plan in memory of its own.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc) and [`build_into`](Self::build_into).
    pub fn new(
        queue: &mut Queue<'_, B, G>,
        workspace: &mut Workspace<B, G>,
        spec: PlanSpec,
        routing: Routing<'_, B, G>,
    ) -> Result<Self> {
        let mut plan = Self::alloc(queue, spec)?;
        plan.build_into(queue, workspace, spec, routing)?;
        Ok(plan)
    }

    /// Builds a plan of any shape that fits this one's memory, and allocates nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] or [`Error::Shape`] for numbers and lengths, [`Error::DeviceMismatch`] and
    /// [`Error::StreamMismatch`] for devices and streams, [`Error::TooSmall`] for this plan's memory or the workspace.
    /// After an error of these the plan is as it was.
    pub fn build_into(
        &mut self,
        queue: &mut Queue<'_, B, G>,
        workspace: &mut Workspace<B, G>,
        spec: PlanSpec,
        routing: Routing<'_, B, G>,
    ) -> Result<()> {
        let (arrays, args) = self.check_build("build_into", queue, workspace, spec, routing)?;
        let plan = PlanMut { buffer: &mut self.buffer, arrays: &arrays };
        self.built = false; // until it is enqueued
        // SAFETY: `check_build` checked the devices, lengths and dtypes of all arguments, and that nothing overlaps
        // the plan, whose memory holds `arrays`.
        unsafe { B::build(queue.raw_mut(), plan, args) }?;
        (self.arrays, self.built) = (arrays, true);
        Ok(())
    }

    /// Builds a plan and gathers rows with it, in one launch where the backend has one:
    /// [`new`](Self::new), then [`gather`](Self::gather).
    ///
    /// # Errors
    /// Those of both.
    pub fn permute<T: Element>(
        queue: &mut Queue<'_, B, G>,
        workspace: &mut Workspace<B, G>,
        spec: PlanSpec,
        routing: Routing<'_, B, G>,
        rows: Rows<'_, B, T, G>,
    ) -> Result<(Self, Buf<B, T, G>)> {
        let mut plan = Self::alloc(queue, spec)?;
        let mut out = queue.zeros(plan.num_rows() * rows.cols())?;
        let cols = rows.cols();
        plan.permute_into(queue, workspace, spec, routing, rows, out.rows_mut(cols)?)?;
        Ok((plan, out))
    }

    /// Like [`permute`](Self::permute), into this plan's memory and the caller's rows `[R, H]`; allocates nothing. Rows
    /// past the last expert offset are not touched.
    ///
    /// # Errors
    /// Those of [`build_into`](Self::build_into) and [`Gather::run_into`].
    pub fn permute_into<T: Element>(
        &mut self,
        queue: &mut Queue<'_, B, G>,
        workspace: &mut Workspace<B, G>,
        spec: PlanSpec,
        routing: Routing<'_, B, G>,
        rows: Rows<'_, B, T, G>,
        out: RowsMut<'_, B, T, G>,
    ) -> Result<()> {
        let op = "permute_into";
        let (arrays, args) = self.check_build(op, queue, workspace, spec, routing)?;
        let check = Check { op, device: self.buffer.device_id() };
        check.device("rows", rows.device_id())?;
        check.device("out", out.device_id())?;
        let hidden = rows.cols();
        check.shape("rows", [arrays.shape.num_tokens, hidden], [rows.num_rows(), hidden])?;
        check.shape("out", [arrays.shape.rows, hidden], [out.num_rows(), out.cols()])?;
        let (rows, out) = (rows.into_raw().shorten(), out.into_raw().shorten());
        let inputs = [
            ("rows", span(&rows.region)),
            ("ids", span(&args.ids.region)),
            ("log2phy", args.replicas.as_ref().and_then(|r| span(&r.log2phy.region))),
            ("logcnt", args.replicas.as_ref().and_then(|r| span(&r.logcnt.region))),
            ("expert_map", args.expert_map.as_ref().and_then(|v| span(&v.region))),
            ("capacity_weights", args.capacity_weights.as_ref().and_then(|v| span(&v.region))),
            ("valid_tokens", args.valid_tokens.as_ref().and_then(|v| span(&v.region))),
            ("plan", span(&self.buffer.region())),
        ];
        for input in spans(inputs) {
            check.apart(("out", out.region.span()), input)?;
        }
        let plan = PlanMut { buffer: &mut self.buffer, arrays: &arrays };
        self.built = false; // until it is enqueued
        // SAFETY: `check_build` checked the builder's part; rows and out are on the device, `[T, H]` and `[R, H]` of
        // one dtype, and out overlaps nothing.
        unsafe { B::permute(queue.raw_mut(), plan, args, rows, out) }?;
        (self.arrays, self.built) = (arrays, true);
        Ok(())
    }

    fn check_build<'a, 'r: 'a>(
        &self,
        op: &'static str,
        queue: &Queue<'_, B, G>,
        workspace: &'a mut Workspace<B, G>,
        spec: PlanSpec,
        routing: Routing<'r, B, G>,
    ) -> Result<(PlanArrays, BuildArgs<'a, B>)> {
        let arrays = spec.check(op)?;
        let check = Check { op, device: queue.device_id() };
        check.device("plan", self.device_id())?;
        if self.buffer.byte_len() < arrays.byte_len {
            let (expected, got) = (arrays.byte_len, self.buffer.byte_len());
            return Err(Error::TooSmall { op, arg: "plan", unit: "bytes", expected, got });
        }
        if let Some(capacity) = arrays.shape.capacity.filter(|capacity| !B::supports_capacity(capacity)) {
            let reason = format!("{capacity:?}; a capacity by route would work");
            return Err(Error::Unsupported { op, backend: B::NAME, reason });
        }
        if routing.has_replicas() && !B::supports_replicas() {
            let reason = "copies of experts; eplb::map_ids makes physical ids on the host".to_owned();
            return Err(Error::Unsupported { op, backend: B::NAME, reason });
        }
        let routing = routing.check(&check, &arrays.shape)?;
        let needed = Limits {
            max_routes: arrays.shape.num_routes(),
            max_experts: arrays.shape.num_experts.max(arrays.shape.num_physical_experts),
        };
        let scratch = workspace.scratch(op, queue, needed)?;
        let routing::CheckedRouting { ids, replicas, expert_map, capacity_weights, valid_tokens } = routing;
        Ok((arrays, BuildArgs { ids, replicas, expert_map, capacity_weights, valid_tokens, scratch }))
    }

    /// `out[slot[t, k], :] = rows[t, :]`: rows `[T, H]` of any dtype, by expert. Padding rows become zero.
    pub fn gather<'a, 'r: 'a, T: Element>(&'a self, rows: Rows<'r, B, T, G>) -> Gather<'a, B, T, G> {
        Gather::new(self, rows.shorten())
    }

    /// `out[t, :] = Σ_k weights[t, k] * rows[slot[t, k], :]`: rows `[R, H]` brought home, weighted and summed in f32.
    pub fn combine<'a, 'r: 'a, T: CombineInput>(&'a self, rows: Rows<'r, B, T, G>) -> Combine<'a, B, T, G> {
        Combine::new(self, rows.shorten())
    }

    /// The gradients of [`combine`](Self::combine) for its rows and weights, from the gradient `[T, H]` of its output.
    pub fn combine_grad<'a, 'r: 'a, T: Float>(&'a self, grad_out: Rows<'r, B, T, G>) -> CombineGrad<'a, B, T, G> {
        CombineGrad::new(self, grad_out.shorten())
    }
}
