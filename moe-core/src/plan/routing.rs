//! What a plan is built from, and what it counted.

use super::memory::RouteArrays;
use super::source::{CheckedSource, Source};
use crate::check::{Check, span, spans};
use crate::raw::{PlanShape, RawReplicas, RawRows, RawView};
use crate::tag::{Tag, Untagged};
use crate::{Backend, Capacity, DType, DeviceId, Error, Float, MaskElement, Result, RouteId, Rows, Span, View};
use std::marker::PhantomData;

/// `log2phy` and `logcnt`.
type Replicas<'a, B, G> = (Rows<'a, B, i32, G>, View<'a, B, i32, G>);

/// The routes of a batch: expert ids, a mask map, or chunks of rows, and how they are to be read.
///
/// ```
/// # use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
/// # use moe_cpu::Cpu;
/// # let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
/// # let mut workspace = Workspace::new(&mut queue, Limits::new(3, 2, 4))?;
/// // Experts 2 and 3 live here, as local experts 0 and 1.
/// let ids = queue.upload(&[0, 2, 3, 2, 1, 3])?;
/// let expert_map = queue.upload(&[-1, -1, 0, 1])?;
/// let routing = Routing::top_k(ids.view()).expert_map(expert_map.view());
/// let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::new(3, 2, 4).local_experts(2), routing)?;
/// assert_eq!(queue.download(plan.tokens_per_expert())?, [2, 2]);
/// assert_eq!(plan.status(&mut queue)?.non_local, 2);
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Routing<'a, B: Backend, G: Tag = Untagged> {
    source: Source<'a, B>,
    probs: Option<(DeviceId<B>, RawRows<'a, B>)>,
    replicas: Option<Replicas<'a, B, G>>,
    expert_map: Option<View<'a, B, i32, G>>,
    capacity_weights: Option<(DeviceId<B>, RawView<'a, B>)>,
    valid_tokens: Option<View<'a, B, i32, G>>,
    tag: PhantomData<G>,
}

impl<'a, B: Backend, G: Tag> Routing<'a, B, G> {
    /// Expert ids `[T, K]` as a router's top-k gives them. -1 (`u32::MAX` for u32) is a masked route; any other id
    /// outside `0..E` is dropped and counted as invalid.
    pub fn top_k<I: RouteId>(ids: View<'a, B, I, G>) -> Self {
        Self::new(Source::TopK(ids.device_id(), ids.into_raw()))
    }

    /// A mask map `[T, E]`, u8 (bool) or i32: an element that is not 0 sends the token of its row to the expert of its
    /// column. The plan's spec is [`PlanSpec::mask`](crate::PlanSpec::mask).
    ///
    /// ```
    /// # use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
    /// # use moe_cpu::Cpu;
    /// # let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
    /// # let mut workspace = Workspace::new(&mut queue, Limits::new(2, 2, 3))?;
    /// let mask = queue.upload(&[1u8, 0, 1, /* token 1: */ 1, 1, 1])?;
    /// let probs = queue.upload(&[0.75f32, 0.0, 0.25, 0.5, 0.3, 0.2])?;
    /// let spec = PlanSpec::mask(2, 3).max_routes(2).with_probs::<f32>();
    /// let routing = Routing::mask(mask.rows(3)?).probs(probs.rows(3)?);
    /// let plan = RoutePlan::new(&mut queue, &mut workspace, spec, routing)?;
    /// assert_eq!(queue.download(plan.tokens_per_expert())?, [2, 1, 1]);
    /// assert_eq!(queue.download(plan.probs::<f32>()?)?, [0.75, 0.25, 0.5, 0.3]); // by route, as combine's weights
    /// assert_eq!(plan.status(&mut queue)?.over_max_routes, 1); // token 1 to expert 2
    /// # Ok::<(), moe_core::Error>(())
    /// ```
    #[doc(alias = "routing_map")]
    pub fn mask<M: MaskElement>(mask: Rows<'a, B, M, G>) -> Self {
        Self::new(Source::Mask(mask.device_id(), mask.into_raw()))
    }

    /// Rows in C chunks, one after the other: `sizes` `[C]` gives the rows of each, `order` `[C]` the chunk at each
    /// place of the output (without it, chunks stay where they are). The plan's spec is
    /// [`PlanSpec::chunks`](crate::PlanSpec::chunks).
    ///
    /// Negative sizes count as 0, and sizes that reach past the last row end there. Rows past the last chunk are not
    /// placed and count as invalid, as do those of a chunk that `order` does not name; a chunk that it names twice goes
    /// to the first of its places, and numbers that are no chunk leave their place empty.
    ///
    /// ```
    /// # use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
    /// # use moe_cpu::Cpu;
    /// # let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
    /// # let mut workspace = Workspace::new(&mut queue, Limits::new(4, 1, 3))?;
    /// let (sizes, order) = (queue.upload(&[1, 2, 1])?, queue.upload(&[2, 0, 1])?);
    /// let routing = Routing::chunks(sizes.view(), Some(order.view()));
    /// let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::chunks(4, 3), routing)?;
    /// let rows = queue.upload(&[10.0f32, 20.0, 21.0, 30.0])?;
    /// let sorted = plan.gather(rows.rows(1)?).run(&mut queue)?;
    /// assert_eq!(queue.download(sorted.view())?, [30.0, 10.0, 20.0, 21.0]);
    /// let back = plan.combine(sorted.rows(1)?).run::<f32>(&mut queue)?; // also the gradient
    /// assert_eq!(queue.download(back.view())?, [10.0, 20.0, 21.0, 30.0]);
    /// # Ok::<(), moe_core::Error>(())
    /// ```
    #[doc(alias = "sort_chunks_by_index")]
    pub fn chunks(sizes: View<'a, B, i32, G>, order: Option<View<'a, B, i32, G>>) -> Self {
        let order = order.map(|order| (order.device_id(), order.into_raw()));
        Self::new(Source::Chunks(sizes.device_id(), sizes.into_raw(), order))
    }

    fn new(source: Source<'a, B>) -> Self {
        Self {
            source,
            probs: None,
            replicas: None,
            expert_map: None,
            capacity_weights: None,
            valid_tokens: None,
            tag: PhantomData,
        }
    }

    /// The probabilities `[T, E]` of a mask map; the spec names their type
    /// ([`PlanSpec::with_probs`](crate::PlanSpec::with_probs)). Only those of set experts are used.
    pub fn probs<'m: 'a, P: Float>(self, probs: Rows<'m, B, P, G>) -> Self {
        Self { probs: Some((probs.device_id(), probs.shorten().into_raw())), ..self }
    }

    /// Copies of experts, as [`eplb`](crate::eplb) places them: `log2phy` `[E, X]` and `logcnt` `[E]`. The k-th route of
    /// token t to expert e goes to physical expert `log2phy[e, (t + k) mod logcnt[e]]`; the plan's spec names their
    /// number ([`PlanSpec::physical_experts`](crate::PlanSpec::physical_experts)). A map that cannot be followed makes
    /// its routes invalid.
    pub fn replicas<'m: 'a>(self, log2phy: Rows<'m, B, i32, G>, logcnt: View<'m, B, i32, G>) -> Self {
        Self { replicas: Some((log2phy.shorten(), logcnt.shorten())), ..self }
    }

    /// `[E]` (`[P]` with replicas): the local index of each expert, -1 where it lives elsewhere. Any other value outside `0..E_local` makes
    /// its routes invalid.
    pub fn expert_map<'m: 'a>(self, map: View<'m, B, i32, G>) -> Self {
        Self { expert_map: Some(map.shorten()), ..self }
    }

    /// `[T, K]`: what [`Capacity::ByWeight`] goes by; only with it. A mask map with probabilities goes by those where
    /// this is not given.
    pub fn capacity_weights<'m: 'a, W: Float>(self, weights: View<'m, B, W, G>) -> Self {
        Self { capacity_weights: Some((weights.device_id(), weights.shorten().into_raw())), ..self }
    }

    /// `[1]`, on the device: only tokens below this number are routed. The others are not placed and count nowhere, so
    /// that a captured graph of T tokens can serve fewer.
    pub fn valid_tokens<'m: 'a>(self, count: View<'m, B, i32, G>) -> Self {
        Self { valid_tokens: Some(count.shorten()), ..self }
    }

    pub(crate) fn has_replicas(&self) -> bool {
        self.replicas.is_some()
    }

    pub(crate) fn check<'s>(
        mut self,
        check: &Check<B>,
        shape: &PlanShape,
        routes: &RouteArrays,
    ) -> Result<CheckedRouting<'s, B>>
    where
        'a: 's,
    {
        let probs = self.check_probs(check, shape, routes.parts.probs.map(|part| part.dtype))?;
        let source = self.source.check(check, shape, routes.origin, probs)?;
        let physical = shape.num_physical_experts;
        if let Some((log2phy, logcnt)) = &self.replicas {
            check.device("log2phy", log2phy.device_id())?;
            check.device("logcnt", logcnt.device_id())?;
            check.shape("log2phy", [shape.num_experts, log2phy.cols()], [log2phy.num_rows(), log2phy.cols()])?;
            check.number(
                "log2phy stride",
                log2phy.stride() == log2phy.cols(),
                "rows without gaps",
                log2phy.stride(),
            )?;
            check.len("logcnt", shape.num_experts, logcnt.len())?;
        } else if physical != shape.num_experts {
            let expected = format!("{} (num_experts) without replicas", shape.num_experts);
            check.number("num_physical_experts", false, &expected, physical)?;
        }
        if let Some(map) = &self.expert_map {
            check.device("expert_map", map.device_id())?;
            check.len("expert_map", physical, map.len())?;
        } else if shape.num_local_experts != physical {
            let expected = format!("{physical} (num_physical_experts) without an expert map");
            check.number("num_local_experts", false, &expected, shape.num_local_experts)?;
        }
        let by_weight = matches!(shape.capacity, Some(Capacity::ByWeight(_)));
        let by_probs = by_weight && self.capacity_weights.is_none() && routes.parts.probs.is_some();
        if by_weight != (self.capacity_weights.is_some() || by_probs) {
            let words = |there| if there { "weights" } else { "nothing" };
            return Err(Error::InvalidArgument {
                op: check.op,
                arg: "capacity_weights",
                expected: format!("{} for this capacity", words(by_weight)),
                got: words(!by_weight).into(),
            });
        }
        if let Some((device, weights)) = &self.capacity_weights {
            check.device("capacity_weights", *device)?;
            check.len("capacity_weights", shape.num_routes(), weights.len)?;
        }
        if let Some(count) = &self.valid_tokens {
            check.device("valid_tokens", count.device_id())?;
            check.len("valid_tokens", 1, count.len())?;
        }
        Ok(CheckedRouting {
            source,
            replicas: self.replicas.map(|(log2phy, logcnt)| RawReplicas {
                width: log2phy.cols(),
                log2phy: log2phy.into_raw().into_view().shorten(),
                logcnt: logcnt.into_raw().shorten(),
            }),
            expert_map: self.expert_map.map(|view| view.into_raw().shorten()),
            capacity_weights: self.capacity_weights.map(|(_, weights)| weights.shorten()),
            valid_tokens: self.valid_tokens.map(|view| view.into_raw().shorten()),
        })
    }

    /// The probabilities are those that the spec names, if any.
    fn check_probs<'s>(
        &mut self,
        check: &Check<B>,
        shape: &PlanShape,
        expected: Option<DType>,
    ) -> Result<Option<RawRows<'s, B>>>
    where
        'a: 's,
    {
        let words = |dtype: Option<DType>| dtype.map_or("nothing (PlanSpec::with_probs)".into(), |d| d.to_string());
        let got = self.probs.as_ref().map(|(_, probs)| probs.dtype);
        if got != expected {
            let (op, expected, got) = (check.op, words(expected), words(got));
            return Err(Error::InvalidArgument { op, arg: "probs", expected, got });
        }
        let Some((device, probs)) = self.probs.take() else { return Ok(None) };
        check.device("probs", device)?;
        check.shape("probs", [shape.num_tokens, shape.num_experts], [probs.rows, probs.cols])?;
        Ok(Some(probs.shorten()))
    }
}

pub(crate) struct CheckedRouting<'a, B: Backend> {
    pub(crate) source: CheckedSource<'a, B>,
    pub(crate) replicas: Option<RawReplicas<'a, B>>,
    pub(crate) expert_map: Option<RawView<'a, B>>,
    pub(crate) capacity_weights: Option<RawView<'a, B>>,
    pub(crate) valid_tokens: Option<RawView<'a, B>>,
}

impl<B: Backend> CheckedRouting<'_, B> {
    /// Where all of it lies.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (&'static str, Span)> {
        let source = match &self.source {
            CheckedSource::TopK(ids) => [("ids", span(&ids.region)), ("ids", None)],
            CheckedSource::Mask { mask, probs } => {
                [("mask", span(&mask.region)), ("probs", probs.as_ref().and_then(|p| span(&p.region)))]
            }
            CheckedSource::Chunks { sizes, order } => {
                [("sizes", span(&sizes.region)), ("order", order.as_ref().and_then(|o| span(&o.region)))]
            }
        };
        let view = |view: &Option<RawView<'_, B>>| view.as_ref().and_then(|v| span(&v.region));
        let rest = [
            ("log2phy", self.replicas.as_ref().and_then(|r| span(&r.log2phy.region))),
            ("logcnt", self.replicas.as_ref().and_then(|r| span(&r.logcnt.region))),
            ("expert_map", view(&self.expert_map)),
            ("capacity_weights", view(&self.capacity_weights)),
            ("valid_tokens", view(&self.valid_tokens)),
        ];
        spans(source).chain(spans(rest))
    }
}
