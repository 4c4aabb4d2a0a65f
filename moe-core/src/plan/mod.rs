//! The route plan.

mod build;
mod memory;
mod permute_scales;
mod routing;
mod source;
mod spec;
mod status;
mod validate;

pub use routing::Routing;
pub(crate) use spec::MAX_INDEX;
pub use spec::{Capacity, Layout, PlanSpec};
pub use status::Status;

use crate::raw::{PlanArrays, PlanRef, PlanShape, RawView, Section};
use crate::tag::{Tag, Untagged};
use crate::{
    Backend, BlockTable, Buffer, Combine, CombineGrad, CombineInput, DeviceId, Element, Error, Float, Gather,
    GatherGradWeights, MaskGrad, PermuteBackend, Queue, Region, Result, Rows, SplitSizes, View,
};
use memory::{Origin, Part, Parts, RouteArrays};
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
///
/// # Without moving rows
/// A product that gathers its rows itself needs the plan's index arrays and nothing else: row r of the product takes the
/// token `source[r] / top_k`, and the expert `m_indices[r]`; -1 is padding. Its result is combined as any other.
///
/// ```
/// # use moe_core::{Dev, Layout, Limits, PlanSpec, RoutePlan, Routing, Workspace};
/// # use moe_cpu::Cpu;
/// # let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
/// # let mut workspace = Workspace::new(&mut queue, Limits::new(3, 2, 4))?;
/// let (top_k, scale_of_expert, hidden_states) = (2, [1.0, 10.0, 100.0, 1000.0], [1.0f32, 2.0, 3.0]);
/// let topk_ids = queue.upload(&[0, 2, 3, 2, 0, 1])?;
/// let spec = PlanSpec::new(3, top_k, 4).layout(Layout::Aligned(2)).with_m_indices();
/// let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(topk_ids.view()))?;
///
/// // What a kernel does, here on the host: each "expert" is a number that multiplies.
/// let source = queue.download(plan.source())?;
/// let experts = queue.download(plan.m_indices().expect("the spec asks for them"))?;
/// let product = |(route, expert): (&i32, &i32)| match route {
///     -1 => f32::NAN, // no primitive reads a row of padding
///     route => hidden_states[*route as usize / top_k] * scale_of_expert[*expert as usize],
/// };
/// let rows = queue.upload(&source.iter().zip(&experts).map(product).collect::<Vec<_>>())?;
/// let out = plan.combine(rows.rows(1)?).run::<f32>(&mut queue)?;
/// assert_eq!(queue.download(out.view())?, [101.0, 2200.0, 33.0]);
///
/// // Kernels that work in blocks of one expert take a table of them.
/// let blocks = plan.block_table(2).run(&mut queue)?;
/// assert_eq!(queue.download(blocks.expert_ids.view())?, [0, 1, 2, 3, -1]);
/// assert_eq!(queue.download(blocks.sorted_token_ids.view())?, [0, 4, 5, 6, 1, 3, 2, 6, 6, 6]);
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Debug)]
pub struct RoutePlan<B: Backend, G: Tag = Untagged> {
    buffer: B::Buffer,
    arrays: PlanArrays,
    /// The routes that the builder makes itself; a plan of expert ids has none.
    routes: Parts<B::Buffer>,
    route_arrays: RouteArrays,
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
        let route_arrays = spec.route_arrays(&arrays.shape);
        let buffer = queue.alloc_bytes(arrays.byte_len)?;
        let routes = route_arrays.parts.alloc(queue)?;
        Ok(Self { buffer, arrays, routes, route_arrays, built: false, tag: PhantomData })
    }

    /// Leaves the tag behind, so that the plan can leave a branded scope.
    pub fn unbrand(self) -> RoutePlan<B> {
        self.retag()
    }

    pub(crate) fn retag<H: Tag>(self) -> RoutePlan<B, H> {
        let Self { buffer, arrays, routes, route_arrays, built, .. } = self;
        RoutePlan { buffer, arrays, routes, route_arrays, built, tag: PhantomData }
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

    /// `[T, K]`: the expert ids that the builder made from a mask map or from chunks, -1 where a token has no further
    /// route. Not there for plans of expert ids, which the caller has.
    pub fn route_ids(&self) -> Option<View<'_, B, i32, G>> {
        self.part(self.route_arrays.parts.ids, &self.routes.ids)
    }

    /// `[T, K]`: the probabilities of the routes of a mask map, 0 where a token has no further route. What
    /// [`combine`](Self::combine) takes as weights, and what [`gather_routes`](Self::gather_routes) brings into the
    /// order of the rows.
    ///
    /// # Errors
    /// [`Error::PlanNotBuilt`], [`Error::InvalidArgument`] if the plan has none or they are of another type.
    pub fn probs<P: Float>(&self) -> Result<View<'_, B, P, G>> {
        let op = "RoutePlan::probs";
        self.built(op)?;
        let probs = self.route_arrays.parts.probs;
        if let Some(view) = self.part(probs.filter(|part| part.dtype == P::DTYPE), &self.routes.probs) {
            return Ok(view);
        }
        let expected = probs.map_or("a plan with probabilities (PlanSpec::with_probs)".into(), |p| p.dtype.to_string());
        Err(Error::InvalidArgument { op, arg: "P", expected, got: P::DTYPE.to_string() })
    }

    fn part<'a, T: Element>(&self, part: Option<Part>, memory: &'a Option<B::Buffer>) -> Option<View<'a, B, T, G>> {
        let RawView { region, len, .. } = memory::view::<B>(part, memory)?;
        Some(View::new(self.device_id(), region, len))
    }

    fn array<T: Element>(&self, section: Section) -> View<'_, B, T, G> {
        View::new(self.device_id(), self.buffer.region().slice(section.bytes()), section.len)
    }

    pub(crate) fn arrays(&self) -> PlanArrays {
        self.arrays
    }

    /// The mask map's ids and their shape, for what needs a plan of a mask.
    pub(crate) fn mask_ids(&self, op: &'static str) -> Result<View<'_, B, i32, G>> {
        self.built(op)?;
        let Some(ids) = self.route_ids().filter(|_| self.route_arrays.origin == Origin::Mask) else {
            let (expected, got) = (Origin::Mask.words(), self.route_arrays.origin.words());
            return Err(Error::InvalidArgument { op, arg: "plan", expected: expected.into(), got: got.into() });
        };
        Ok(ids)
    }

    pub(crate) fn built(&self, op: &'static str) -> Result<PlanRef<'_, B>> {
        if self.built {
            return Ok(PlanRef { buffer: &self.buffer, arrays: &self.arrays });
        }
        Err(Error::PlanNotBuilt { op })
    }
}

impl<B: PermuteBackend, G: Tag> RoutePlan<B, G> {
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

    /// `out[slot[t, k], :] = values[t * K + k, :]`: a value or a row for each route, `[N, H]`, into the order of the
    /// rows, `[R, H]`; padding rows become zero. With [`probs`](Self::probs) or weights as `[N, 1]` this gives the
    /// probability of each row.
    ///
    /// ```
    /// # use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
    /// # use moe_cpu::Cpu;
    /// # let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
    /// # let mut workspace = Workspace::new(&mut queue, Limits::new(2, 2, 3))?;
    /// let ids = queue.upload(&[2, 0, 0, 1])?;
    /// let weights = queue.upload(&[0.75f32, 0.25, 0.5, 0.125])?;
    /// let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::new(2, 2, 3), Routing::top_k(ids.view()))?;
    /// let by_row = plan.gather_routes(weights.rows(1)?).run(&mut queue)?;
    /// assert_eq!(queue.download(by_row.view())?, [0.25, 0.5, 0.125, 0.75]);
    /// let by_route = plan.combine_routes(by_row.rows(1)?).run::<f32>(&mut queue)?; // also the gradient
    /// assert_eq!(queue.download(by_route.view())?, [0.75, 0.25, 0.5, 0.125]);
    /// # Ok::<(), moe_core::Error>(())
    /// ```
    pub fn gather_routes<'a, 'r: 'a, T: Element>(&'a self, values: Rows<'r, B, T, G>) -> Gather<'a, B, T, G> {
        Gather::by_route(self, values.shorten())
    }

    /// `out[t * K + k, :] = rows[slot[t, k], :]`, zero where the route is not placed: rows `[R, H]` back to a value or a
    /// row for each route, `[N, H]`. The way back of [`gather_routes`](Self::gather_routes), and its gradient.
    pub fn combine_routes<'a, 'r: 'a, T: CombineInput>(&'a self, rows: Rows<'r, B, T, G>) -> Combine<'a, B, T, G> {
        Combine::by_route(self, rows.shorten())
    }

    /// The gradient of a weighted [`gather`](Self::gather) for its weights, `[T, K]`, from the rows `[T, H]` that it
    /// gathered and the gradient `[R, H]` of its output. The gradient for the rows is
    /// `plan.combine(grad).weights(weights)`.
    pub fn gather_grad_weights<'a, 'r: 'a, T: Float>(
        &'a self,
        rows: Rows<'r, B, T, G>,
        grad: Rows<'r, B, T, G>,
    ) -> GatherGradWeights<'a, B, T, G> {
        GatherGradWeights::new(self, rows.shorten(), grad.shorten())
    }

    /// A value for each route of a mask map, `[T, K]`, back to `[T, E]`, zero where the mask is not set: the gradient of
    /// the map's probabilities from that of [`probs`](Self::probs).
    pub fn mask_grad<'a, 'r: 'a, T: Float>(&'a self, values: View<'r, B, T, G>) -> MaskGrad<'a, B, T, G> {
        MaskGrad::new(self, values.shorten())
    }

    /// The placed routes in blocks of `block` routes of one expert each, for kernels that take a block's expert from a
    /// table: what others call `moe_align_block_size`. Whatever the plan's layout.
    #[doc(alias = "moe_align_block_size")]
    pub fn block_table(&self, block: usize) -> BlockTable<'_, B, G> {
        BlockTable::new(self, block)
    }

    /// The rows of the plan for each of `ranks` ranks, where rank r has `E_local / ranks` experts one after the other:
    /// what an all-to-all sends.
    pub fn split_sizes(&self, ranks: usize) -> SplitSizes<'_, B, G> {
        SplitSizes::new(self, ranks)
    }
}
