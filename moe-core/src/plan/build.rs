//! Building plans.

use super::RoutePlan;
use super::memory::{Origin, RouteArrays, view};
use super::routing::CheckedRouting;
use super::source::CheckedSource;
use crate::check::{Check, span, spans};
use crate::raw::{BuildArgs, PlanArrays, PlanMut, RawReplicas, RawView};
use crate::tag::Tag;
use crate::{
    Backend, Buf, Buffer, Capacity, Element, Error, Limits, PermuteBackend, PlanSpec, Queue, Region, Result, Routing,
    Rows, RowsMut, Span, Workspace,
};

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
        let checked = self.check_build("build_into", queue, workspace, spec, routing)?;
        self.enqueue(queue, checked, |queue, plan, args| {
            // SAFETY: `check_build` checked the devices, lengths and dtypes of all arguments, and that nothing overlaps
            // the plan, whose memory holds its arrays; the routes are memory of their own.
            unsafe { B::build(queue, plan, args) }
        })
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
    /// Those of [`build_into`](Self::build_into) and [`Gather::run_into`](crate::Gather::run_into).
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
        let checked = self.check_build(op, queue, workspace, spec, routing)?;
        let (shape, check) = (&checked.arrays.shape, Check { op, device: self.device_id() });
        check.device("rows", rows.device_id())?;
        check.device("out", out.device_id())?;
        let hidden = rows.cols();
        check.shape("rows", [shape.num_tokens, hidden], [rows.num_rows(), hidden])?;
        check.shape("out", [shape.rows, hidden], [out.num_rows(), out.cols()])?;
        let (rows, out) = (rows.into_raw(), out.into_raw());
        for input in spans([("rows", span(&rows.region))]).chain(self.spans()).chain(checked.routing.spans()) {
            check.apart(("out", out.region.span()), input)?;
        }
        self.enqueue(queue, checked, |queue, plan, args| {
            // SAFETY: as for a build; rows and out are on the device, `[T, H]` and `[R, H]` of one dtype, and out
            // overlaps nothing.
            unsafe { B::permute(queue, plan, args, rows.shorten(), out.shorten()) }
        })
    }

    /// Where the plan's memory lies. Its own routes are lent to nobody mutably, as is its buffer; a backend can lend
    /// any addresses.
    pub(super) fn spans(&self) -> impl Iterator<Item = (&'static str, Span)> + use<B, G> {
        let routes = |memory: &Option<B::Buffer>| memory.as_ref().and_then(|memory| span(&memory.region()));
        spans([
            ("plan", span(&self.buffer.region())),
            ("plan", routes(&self.routes.ids)),
            ("plan", routes(&self.routes.probs)),
        ])
    }

    pub(super) fn check_build<'a, 'r: 'a>(
        &self,
        op: &'static str,
        queue: &Queue<'_, B, G>,
        workspace: &'a mut Workspace<B, G>,
        spec: PlanSpec,
        routing: Routing<'r, B, G>,
    ) -> Result<CheckedBuild<'a, B>> {
        let arrays = spec.check(op)?;
        let routes = spec.route_arrays(&arrays.shape);
        let check = Check { op, device: queue.device_id() };
        check.device("plan", self.device_id())?;
        let own = [(arrays.byte_len, self.buffer.byte_len())];
        for (expected, got) in own.into_iter().chain(routes.parts.sizes(&self.routes)) {
            if got < expected {
                return Err(Error::TooSmall { op, arg: "plan", unit: "bytes", expected, got });
            }
        }
        if let Some(capacity) = arrays.shape.capacity.filter(|capacity| !B::supports_capacity(capacity)) {
            let reason = format!("{capacity:?}; a capacity by route would work");
            return Err(Error::Unsupported { op, backend: B::NAME, reason });
        }
        if routing.has_replicas() && !B::supports_replicas() {
            let reason = "copies of experts; eplb::map_ids makes physical ids on the host".to_owned();
            return Err(Error::Unsupported { op, backend: B::NAME, reason });
        }
        let routing = routing.check(&check, &arrays.shape, &routes)?;
        let needed = Limits {
            max_routes: arrays.shape.num_routes(),
            max_experts: arrays.shape.num_experts.max(arrays.shape.num_physical_experts),
        };
        let scratch = workspace.scratch(op, queue, needed)?;
        Ok(CheckedBuild { arrays, routes, routing, scratch })
    }

    /// Makes the ids, where they do not come from the caller, and enqueues what builds the plan with them.
    pub(super) fn enqueue(
        &mut self,
        queue: &mut Queue<'_, B, G>,
        checked: CheckedBuild<'_, B>,
        build: impl FnOnce(&mut B::Queue<'_>, PlanMut<'_, B>, BuildArgs<'_, B>) -> Result<()>,
    ) -> Result<()> {
        let CheckedBuild { arrays, routes, routing, scratch } = checked;
        let CheckedRouting { source, replicas, expert_map, capacity_weights, valid_tokens } = routing;
        let capacity_weights = capacity_weights.map(RawView::shorten);
        if routes.origin != Origin::TopK {
            let (memory, valid) = (&mut self.routes, valid_tokens.clone());
            // SAFETY: `check_build` checked the devices, lengths and dtypes of the source, and that `memory` holds
            // the arrays; it is the plan's own and overlaps nothing.
            let expanded = unsafe { source.expand(queue, &arrays.shape, &routes.parts, memory, valid) };
            // What is not supported was not enqueued, and the plan is as it was.
            self.built &= matches!(expanded, Err(Error::Unsupported { .. }));
            expanded?;
        }
        self.built = false; // until it is enqueued
        let (parts, memory) = (&routes.parts, &self.routes);
        let args = BuildArgs {
            ids: match source {
                CheckedSource::TopK(ids) => ids.shorten(),
                _ => view::<B>(parts.ids, &memory.ids).expect("check_build saw that there is memory for ids"),
            },
            replicas: replicas.map(RawReplicas::shorten),
            expert_map: expert_map.map(RawView::shorten),
            capacity_weights: match arrays.shape.capacity {
                Some(Capacity::ByWeight(_)) => capacity_weights.or_else(|| view::<B>(parts.probs, &memory.probs)),
                _ => None,
            },
            valid_tokens: valid_tokens.map(RawView::shorten),
            mask_overflow: view::<B>(parts.over_max_routes, &memory.over_max_routes),
            scratch: B::shorten_mut(scratch),
        };
        build(queue.raw_mut(), PlanMut { buffer: &mut self.buffer, arrays: &arrays }, args)?;
        (self.arrays, self.route_arrays, self.built) = (arrays, routes, true);
        Ok(())
    }
}

/// A build whose arguments were checked.
pub(super) struct CheckedBuild<'a, B: Backend> {
    pub(super) arrays: PlanArrays,
    routes: RouteArrays,
    pub(super) routing: CheckedRouting<'a, B>,
    scratch: B::RegionMut<'a>,
}
