//! What a plan is built from, and what it counted.

use crate::check::Check;
use crate::raw::{PlanArrays, PlanShape, RawReplicas, RawView};
use crate::tag::{Tag, Untagged};
use crate::{Backend, Capacity, DeviceId, Error, Float, Result, RouteId, Rows, View};
use std::marker::PhantomData;

/// `log2phy` and `logcnt`.
type Replicas<'a, B, G> = (Rows<'a, B, i32, G>, View<'a, B, i32, G>);

/// The routes of a batch: expert ids, and how they are to be read.
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
    ids: (DeviceId<B>, RawView<'a, B>),
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
        let ids = (ids.device_id(), ids.into_raw());
        Self { ids, replicas: None, expert_map: None, capacity_weights: None, valid_tokens: None, tag: PhantomData }
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

    /// `[T, K]`: what [`Capacity::ByWeight`] goes by; only with it.
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

    pub(crate) fn check<'s>(self, check: &Check<B>, shape: &PlanShape) -> Result<CheckedRouting<'s, B>>
    where
        'a: 's,
    {
        let (id, ids) = self.ids;
        check.device("ids", id)?;
        check.len("ids", shape.num_routes(), ids.len)?;
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
        if by_weight != self.capacity_weights.is_some() {
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
            ids: ids.shorten(),
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
}

pub(crate) struct CheckedRouting<'a, B: Backend> {
    pub(crate) ids: RawView<'a, B>,
    pub(crate) replicas: Option<RawReplicas<'a, B>>,
    pub(crate) expert_map: Option<RawView<'a, B>>,
    pub(crate) capacity_weights: Option<RawView<'a, B>>,
    pub(crate) valid_tokens: Option<RawView<'a, B>>,
}

/// Routes that were not placed, by reason. A route counts once, at the first reason that applies, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The id was -1, or `u32::MAX` for u32 ids.
    pub masked: u32,
    /// The id, or what the expert map says of it, is out of range.
    pub invalid: u32,
    /// The expert lives elsewhere.
    pub non_local: u32,
    /// The expert had no room left.
    pub over_capacity: u32,
    /// The token had more routes than the plan has room for.
    pub over_max_routes: u32,
}

impl Status {
    pub(crate) fn from_counters(c: [u32; PlanArrays::STATUS_LEN]) -> Self {
        let [masked, invalid, non_local, over_capacity, over_max_routes] = c;
        Self { masked, invalid, non_local, over_capacity, over_max_routes }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        [self.masked, self.invalid, self.non_local, self.over_capacity, self.over_max_routes]
            .iter()
            .map(|n| u64::from(*n))
            .sum()
    }
}
