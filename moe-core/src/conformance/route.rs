//! Plans: built on the device, and compared array by array.

use super::axes::{Axes, Case, Dist, Map, Valid};
use super::compare::same_plan;
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx, ensure};
use super::naive::{self, Plan};
use super::rng::Rng;
use crate::{DType, PermuteBackend, Queue, Result, RouteId, RoutePlan, Routing, View};

/// What a plan is built from, on the device.
pub(super) struct Inputs<B: PermuteBackend> {
    ids: Ids<B>,
    pub(super) map: Option<Guarded<B, i32>>,
    pub(super) valid: Option<Guarded<B, i32>>,
}

enum Ids<B: PermuteBackend> {
    I32(Guarded<B, i32>),
    U32(Guarded<B, u32>),
    I64(Guarded<B, i64>),
}

impl<B: PermuteBackend> Inputs<B> {
    /// Uploads ids, narrowed to the type; a masked id is -1.
    pub(super) fn new(
        queue: &mut Queue<'_, B>,
        dtype: DType,
        ids: &[i64],
        map: Option<&[i32]>,
        valid: Option<i32>,
        place: Place,
    ) -> Result<Self> {
        let ids = match dtype {
            DType::U32 => Ids::U32(Guarded::vector(queue, &ids.iter().map(|x| *x as u32).collect::<Vec<_>>(), place)?),
            DType::I64 => Ids::I64(Guarded::vector(queue, ids, place)?),
            _ => Ids::I32(Guarded::vector(queue, &ids.iter().map(|x| *x as i32).collect::<Vec<_>>(), place)?),
        };
        let map = map.map(|map| Guarded::vector(queue, map, place)).transpose()?;
        let valid = valid.map(|n| Guarded::vector(queue, &[n], place)).transpose()?;
        Ok(Self { ids, map, valid })
    }

    pub(super) fn routing(&self) -> Result<Routing<'_, B>> {
        let mut routing = match &self.ids {
            Ids::I32(ids) => top_k(ids.view()?),
            Ids::U32(ids) => top_k(ids.view()?),
            Ids::I64(ids) => top_k(ids.view()?),
        };
        if let Some(map) = &self.map {
            routing = routing.expert_map(map.view()?);
        }
        if let Some(valid) = &self.valid {
            routing = routing.valid_tokens(valid.view()?);
        }
        Ok(routing)
    }

    /// Looks at the canaries around all of it.
    pub(super) fn check(&self, queue: &mut Queue<'_, B>) -> Checked {
        match &self.ids {
            Ids::I32(ids) => ids.read(queue, "ids").map(drop),
            Ids::U32(ids) => ids.read(queue, "ids").map(drop),
            Ids::I64(ids) => ids.read(queue, "ids").map(drop),
        }?;
        for (what, array) in [("expert_map", &self.map), ("valid_tokens", &self.valid)] {
            array.as_ref().map(|a| a.read(queue, what)).transpose()?;
        }
        Ok(())
    }
}

fn top_k<B: PermuteBackend, I: RouteId>(ids: View<'_, B, I>) -> Routing<'_, B> {
    Routing::top_k(ids)
}

/// The random contents of a case: ids as the device sees them, widened; the map; the count.
pub(super) fn contents(case: &Case, rng: &mut Rng) -> (Vec<i64>, Option<Vec<i32>>, Option<i32>) {
    let experts = case.experts;
    let one = rng.below(experts) as i64;
    let id = |rng: &mut Rng| match case.dist {
        Dist::Uniform => rng.below(experts) as i64,
        Dist::Skewed => {
            let below = 1 + rng.below(experts);
            rng.below(below) as i64
        }
        Dist::AllToOne => one,
        Dist::AllMasked => -1,
        Dist::Mixed => match rng.below(8) {
            0 | 1 => -1,
            2 => odd_id(case.ids, experts, rng),
            3 => experts as i64 - 1,
            _ => rng.below(experts) as i64,
        },
    };
    let ids = (0..case.tokens * case.top_k).map(|_| id(rng)).collect();
    let local = case.local_experts();
    let map = match case.map {
        Map::Absent => None,
        Map::EveryFourth => Some((0..experts).map(|e| if e % 4 == 0 { e as i32 / 4 } else { -1 }).collect()),
        Map::NoneLocal => Some(vec![-1; experts]),
        Map::Permuted => {
            let mut map: Vec<i32> = (0..experts as i32).collect();
            (1..experts).for_each(|i| map.swap(i, rng.below(i + 1)));
            Some(map)
        }
        Map::Invalid => {
            let odd = [-1, -2, -7, i32::MIN, i32::MAX, local as i32, local as i32 + 1];
            Some((0..experts).map(|e| if e % 2 == 0 { e as i32 / 2 } else { odd[rng.below(odd.len())] }).collect())
        }
    };
    let valid = match case.valid {
        Valid::Absent => None,
        Valid::Zero => Some(0),
        Valid::Some => Some(rng.below(case.tokens + 1) as i32),
        Valid::All => Some(case.tokens as i32),
        Valid::TooMany => Some([case.tokens as i32 + 1, i32::MAX][rng.below(2)]),
        Valid::Negative => Some([-1, i32::MIN][rng.below(2)]),
    };
    (ids, map, valid)
}

/// An id that is neither masked nor an expert.
fn odd_id(dtype: DType, experts: usize, rng: &mut Rng) -> i64 {
    let e = experts as i64;
    let low = rng.below(experts) as i64;
    match dtype {
        DType::I32 => [-2, -3, i64::from(i32::MIN), e, e + 1, i64::from(i32::MAX)][rng.below(6)],
        DType::U32 => [e, e + 1, 1 << 31, (1 << 31) + low, i64::from(u32::MAX) - 1][rng.below(5)],
        // 2^32 - 1 is -1 in its low half, and masked only for u32.
        _ => {
            [-2, i64::MIN, i64::MAX, e, (1 << 32) + low, (1 << 32) - 1, (7 << 40) + low, low - (1 << 32)][rng.below(8)]
        }
    }
}

/// All arrays of a plan, read back.
pub(super) fn download<B: PermuteBackend>(queue: &mut Queue<'_, B>, plan: &RoutePlan<B>) -> Checked<Plan> {
    let optional = |queue: &mut Queue<'_, B>, view: Option<View<'_, B, i32>>| {
        Ok::<_, crate::Error>(view.map(|v| queue.download(v)).transpose()?.unwrap_or_default())
    };
    let status = queue.download(plan.status_counters())?;
    Ok(Plan {
        top_k: plan.shape().top_k,
        source: queue.download(plan.source())?,
        slot: queue.download(plan.slot())?,
        expert_offsets: queue.download(plan.expert_offsets())?,
        tokens_per_expert: queue.download(plan.tokens_per_expert())?,
        status: status.try_into().expect("five counters"),
        m_indices: optional(queue, plan.m_indices())?,
        logical_load: optional(queue, plan.logical_load())?,
    })
}

/// Builds the plan of a case and compares it. Gives both.
pub(super) fn build<B: PermuteBackend>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    rng: &mut Rng,
) -> Checked<(RoutePlan<B>, Plan, Inputs<B>)> {
    let spec = case.spec();
    let (ids, map, valid) = contents(case, rng);
    let place = Place::random(rng, case.offset, 0);
    let inputs = Inputs::new(&mut ctx.queue, case.ids, &ids, map.as_deref(), valid, place)?;
    let dirty_tokens = if case.dirty { case.tokens + 37 } else { case.tokens };
    let mut workspace = ctx.workspace(dirty_tokens, case.top_k, case.experts)?;
    let plan = if case.dirty {
        let large = spec.with_num_tokens(dirty_tokens).with_m_indices().with_logical_load();
        let large_ids: Vec<i32> = (0..dirty_tokens * case.top_k).map(|_| rng.below(case.experts) as i32).collect();
        let large_ids = ctx.queue.upload(&large_ids)?;
        let mut routing = Routing::top_k(large_ids.view());
        if let Some(map) = &inputs.map {
            routing = routing.expert_map(map.view()?);
        }
        let mut plan = RoutePlan::new(&mut ctx.queue, &mut workspace, large, routing)?;
        plan.build_into(&mut ctx.queue, &mut workspace, spec, inputs.routing()?)?;
        plan
    } else {
        RoutePlan::new(&mut ctx.queue, &mut workspace, spec, inputs.routing()?)?
    };
    let mut want = naive::plan(plan.shape(), &ids, map.as_deref(), valid);
    without_absent(&mut want, case);
    let got = download(&mut ctx.queue, &plan)?;
    same_plan(&got, &want)?;
    Ok((plan, want, inputs))
}

/// Leaves out what the case does not ask for.
pub(super) fn without_absent(want: &mut Plan, case: &Case) {
    if !case.m_indices {
        want.m_indices.clear();
    }
    if !case.logical_load {
        want.logical_load.clear();
    }
}

/// Plans of all shapes and contents.
pub(super) fn plan_arrays<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let (full, limit) = (ctx.options.full, ctx.options.element_limit());
    for case in Axes::PLAN.cover(&mut ctx.rng(), full, limit, |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| check_plan(ctx, &case, rng));
    }
}

/// Builds and compares, and looks at everything that reads a plan back.
pub(super) fn check_plan<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let (plan, want, inputs) = build(ctx, case, rng)?;
    inputs.check(&mut ctx.queue)?;
    plan.validate(&mut ctx.queue)?;
    let status = plan.status(&mut ctx.queue)?;
    let counters = [status.masked, status.invalid, status.non_local, status.over_capacity, status.over_max_routes];
    ensure(counters == want.status, || format!("status() gives {status:?}, expected {:?}", want.status))
}
