//! What shapes a plan.

use super::memory::{Origin, RouteArrays};
use crate::raw::{PlanArrays, PlanShape};
use crate::{DType, Error, Float, Result};

/// The largest number of routes, rows or experts: indices are i32.
pub(crate) const MAX_INDEX: usize = i32::MAX as usize;

/// How the rows of the local experts lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// One expert right after the other.
    Packed,
    /// Each non-empty expert's rows padded to a multiple of this many; an empty expert takes none. At least 1.
    Aligned(usize),
    /// Each local expert has exactly this many rows, whatever it gets; implies a capacity of as many. At least 1.
    Padded(usize),
}

/// How many routes a local expert takes, applied after the expert map. Survivors stay in route order.
///
/// With [`Layout::Padded`] this is "drop and pad": a static shape, and the routes with the largest probabilities in it.
///
/// ```
/// # use moe_core::{Capacity, Dev, Layout, Limits, PlanSpec, RoutePlan, Routing, Workspace};
/// # use moe_cpu::Cpu;
/// # let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
/// # let mut workspace = Workspace::new(&mut queue, Limits::new(3, 1, 2))?;
/// let mask = queue.upload(&[1u8, 0, 1, 0, 1, 0])?; // three tokens to expert 0
/// let probs = queue.upload(&[0.5f32, 0.0, 0.25, 0.0, 0.75, 0.0])?;
/// let spec = PlanSpec::mask(3, 2).max_routes(1).with_probs::<f32>();
/// let spec = spec.layout(Layout::Padded(2)).capacity(Capacity::ByWeight(2));
/// let routing = Routing::mask(mask.rows(2)?).probs(probs.rows(2)?);
/// let plan = RoutePlan::new(&mut queue, &mut workspace, spec, routing)?;
/// assert_eq!(queue.download(plan.source())?, [0, 2, -1, -1]); // tokens 0 and 2; expert 1 has two rows of padding
/// assert_eq!(plan.status(&mut queue)?.over_capacity, 1);
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capacity {
    /// The first routes, by route number.
    ByRoute(usize),
    /// The routes with the largest [weights](crate::Routing::capacity_weights), ties to the lower route, NaN lowest.
    ByWeight(usize),
}

/// The shape of a route plan and which arrays it has.
///
/// ```
/// use moe_core::{Layout, PlanSpec};
/// let spec = PlanSpec::new(4096, 8, 256).layout(Layout::Aligned(128)).with_m_indices();
/// assert_eq!(spec.num_rows()?, 65280); // round_up(4096 * 8 + 256 * 127, 128): known without looking at the ids
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanSpec {
    num_tokens: usize,
    top_k: usize,
    num_experts: usize,
    num_physical_experts: usize,
    num_local_experts: usize,
    layout: Layout,
    capacity: Option<Capacity>,
    m_indices: bool,
    logical_load: bool,
    origin: Origin,
    max_routes: Option<usize>,
    probs: Option<DType>,
}

impl PlanSpec {
    /// A packed plan for `num_tokens` tokens of `top_k` routes each over `num_experts` experts, all of them local.
    pub fn new(num_tokens: usize, top_k: usize, num_experts: usize) -> Self {
        Self {
            origin: Origin::TopK,
            max_routes: None,
            probs: None,
            num_tokens,
            top_k,
            num_experts,
            num_physical_experts: num_experts,
            num_local_experts: num_experts,
            layout: Layout::Packed,
            capacity: None,
            m_indices: false,
            logical_load: false,
        }
    }

    /// A packed plan whose routes come from a [mask map](crate::Routing::mask) `[T, E]`: the k-th route of a token is
    /// its k-th set expert, in ascending order. A token has room for `num_experts` routes, unless
    /// [`max_routes`](Self::max_routes) follows. `num_tokens * num_experts` is at most `i32::MAX`.
    pub fn mask(num_tokens: usize, num_experts: usize) -> Self {
        Self { origin: Origin::Mask, ..Self::new(num_tokens, num_experts, num_experts) }
    }

    /// A packed plan that sorts `num_tokens` rows in `num_chunks` [chunks](crate::Routing::chunks): K is 1, and the
    /// "expert" of a row is the place of its chunk in the output.
    pub fn chunks(num_tokens: usize, num_chunks: usize) -> Self {
        Self { origin: Origin::Chunks, ..Self::new(num_tokens, 1, num_chunks) }
    }

    /// The routes that a token of a mask map has room for: the plan's `top_k`. Set experts past them are not placed and
    /// count as `over_max_routes` alone, whatever an expert map says of them.
    pub fn max_routes(self, max_routes: usize) -> Self {
        Self { top_k: max_routes, max_routes: Some(max_routes), ..self }
    }

    /// The mask map comes with [probabilities](crate::Routing::probs) of this type; the plan then holds those of its
    /// routes ([`RoutePlan::probs`](crate::RoutePlan::probs)).
    pub fn with_probs<P: Float>(self) -> Self {
        Self { probs: Some(P::DTYPE), ..self }
    }

    /// The number of experts when each counts with all of its copies; the builder then needs
    /// [replicas](crate::Routing::replicas). All of them are local, unless
    /// [`local_experts`](Self::local_experts) follows.
    pub fn physical_experts(self, num_physical_experts: usize) -> Self {
        Self { num_physical_experts, num_local_experts: num_physical_experts, ..self }
    }

    /// The number of experts that live here; the builder then needs an expert map.
    pub fn local_experts(self, num_local_experts: usize) -> Self {
        Self { num_local_experts, ..self }
    }

    /// How the rows lie.
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// How many routes a local expert takes.
    pub fn capacity(self, capacity: Capacity) -> Self {
        Self { capacity: Some(capacity), ..self }
    }

    /// Also writes the local expert of each row.
    pub fn with_m_indices(self) -> Self {
        Self { m_indices: true, ..self }
    }

    /// Also counts the routes of each global expert, before any map or capacity.
    pub fn with_logical_load(self) -> Self {
        Self { logical_load: true, ..self }
    }

    /// The same for another number of tokens.
    pub fn with_num_tokens(self, num_tokens: usize) -> Self {
        Self { num_tokens, ..self }
    }

    /// R, the rows of the plan: packed N; aligned `round_up(N + min(E_local, N) * (n - 1), n)`; padded `E_local * c`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a number is out of its range.
    pub fn num_rows(&self) -> Result<usize> {
        Ok(self.check("PlanSpec")?.shape.rows)
    }

    /// Checks the numbers and lays the arrays out.
    pub(crate) fn check(&self, op: &'static str) -> Result<PlanArrays> {
        let error =
            |arg, expected: String, got: usize| Error::InvalidArgument { op, arg, expected, got: got.to_string() };
        let index = |arg, got: usize| match got {
            1..=MAX_INDEX => Ok(()),
            _ => Err(error(arg, format!("1 to {MAX_INDEX}"), got)),
        };
        index("top_k", self.top_k)?;
        index("num_experts", self.num_experts)?;
        let (physical, local) = (self.num_physical_experts, self.num_local_experts);
        index("num_physical_experts", physical)?;
        if local == 0 || local > physical {
            return Err(error("num_local_experts", format!("1 to {physical} (num_physical_experts)"), local));
        }
        if self.origin != Origin::Mask {
            for (arg, there) in [("max_routes", self.max_routes.is_some()), ("probs", self.probs.is_some())] {
                if there {
                    let (expected, got) = ("not named without a mask map".into(), "named".into());
                    return Err(Error::InvalidArgument { op, arg, expected, got });
                }
            }
        } else if self.num_tokens.checked_mul(self.num_experts).is_none_or(|n| n > MAX_INDEX) {
            let expected =
                format!("at most {} for a mask of {} experts", MAX_INDEX / self.num_experts, self.num_experts);
            return Err(error("num_tokens", expected, self.num_tokens));
        }
        let routes = self.num_tokens.checked_mul(self.top_k).filter(|n| *n <= MAX_INDEX);
        let Some(routes) = routes else {
            let expected = format!("at most {} (routes are i32)", MAX_INDEX / self.top_k);
            return Err(error("num_tokens", expected, self.num_tokens));
        };
        let mut capacity = self.capacity;
        if let Some(Capacity::ByRoute(c) | Capacity::ByWeight(c)) = capacity {
            index("capacity", c)?;
        }
        let rows = match self.layout {
            Layout::Packed => Some(routes),
            Layout::Aligned(n) => {
                index("alignment", n)?;
                let padding = local.min(routes).checked_mul(n - 1);
                padding.and_then(|p| p.checked_add(routes)?.checked_next_multiple_of(n))
            }
            Layout::Padded(c) => {
                index("rows per expert", c)?;
                capacity = Some(match capacity {
                    Some(Capacity::ByRoute(least)) => Capacity::ByRoute(least.min(c)),
                    Some(Capacity::ByWeight(least)) => Capacity::ByWeight(least.min(c)),
                    None => Capacity::ByRoute(c),
                });
                local.checked_mul(c)
            }
        };
        let Some(rows) = rows.filter(|r| *r <= MAX_INDEX) else {
            return Err(error("layout", format!("at most {MAX_INDEX} rows"), rows.unwrap_or(usize::MAX)));
        };
        let shape = PlanShape {
            num_tokens: self.num_tokens,
            top_k: self.top_k,
            num_experts: self.num_experts,
            num_physical_experts: physical,
            num_local_experts: local,
            layout: self.layout,
            capacity,
            rows,
        };
        Ok(PlanArrays::new(shape, self.m_indices, self.logical_load))
    }

    /// What the plan keeps beside its arrays, for a shape that was checked.
    pub(crate) fn route_arrays(&self, shape: &PlanShape) -> RouteArrays {
        RouteArrays::new(self.origin, self.probs, shape)
    }
}
