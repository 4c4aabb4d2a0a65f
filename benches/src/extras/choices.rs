//! What a plan can be told beside ids and a map: a capacity by weight, copies of experts; and sums of the load.

use super::{Entry, Family, Run};
use crate::Result;
use crate::cases::{Case, RoutingKind, Rows};
use crate::routing::Ids;
use moe_core::eplb::LoadRecorder;
use moe_core::{Capacity, Limits, PermuteBackend, PlanSpec, Queue, RoutePlan, Routing, Workspace};

pub(super) fn family<B: PermuteBackend>() -> Family<B> {
    Family { ops: &["plan_by_weight", "plan_copies", "add_load"], make }
}

fn make<B: PermuteBackend>(
    queue: &mut Queue<'_, B>,
    op: &'static str,
    case: &Case,
    ids: &Ids,
) -> Result<Option<Entry<B>>> {
    // Rows have no part in any of them.
    if case.rows != Rows::Bf16 || case.routing == RoutingKind::Ep8 {
        return Ok(None);
    }
    let (tokens, top_k, experts, routes) = (case.tokens, case.model.top_k, case.model.experts, case.routes());
    let arrays = |experts: usize| 4 * (3 * routes + 2 * experts + 1);
    let topk_ids = queue.upload(&ids.ids)?;
    let spec = PlanSpec::new(tokens, top_k, experts);
    let (dtype, bytes, run): (_, usize, Run<B>) = match op {
        "plan_by_weight" => {
            // As much as every expert would get of an even load.
            let spec = spec.capacity(Capacity::ByWeight(routes.div_ceil(experts)));
            let weights: Vec<f32> = (0..routes).map(|x| (x * 7919 % 65_521) as f32 / 65_521.0).collect();
            let weights = queue.upload(&weights)?;
            let mut workspace = Workspace::new(queue, Limits::new(tokens, top_k, experts))?;
            let mut plan = RoutePlan::alloc(queue, spec)?;
            let run = move |queue: &mut Queue<'_, B>| {
                let routing = Routing::top_k(topk_ids.view()).capacity_weights(weights.view());
                Ok(plan.build_into(queue, &mut workspace, spec, routing)?)
            };
            ("f32", arrays(experts) + 4 * routes, Box::new(run))
        }
        "plan_copies" => {
            // A second copy of every eighth expert.
            let (width, second) = (2, |e: usize| e.is_multiple_of(8));
            let physical = experts + experts.div_ceil(8);
            let log2phy = |e: usize| [e as i32, if second(e) { (experts + e / 8) as i32 } else { -1 }];
            let log2phy: Vec<i32> = (0..experts).flat_map(log2phy).collect();
            let logcnt: Vec<i32> = (0..experts).map(|e| 1 + i32::from(second(e))).collect();
            let (log2phy, logcnt) = (queue.upload(&log2phy)?, queue.upload(&logcnt)?);
            let spec = spec.physical_experts(physical);
            let mut workspace = Workspace::new(queue, Limits::new(tokens, top_k, physical))?;
            let mut plan = RoutePlan::alloc(queue, spec)?;
            let run = move |queue: &mut Queue<'_, B>| {
                let routing = Routing::top_k(topk_ids.view()).replicas(log2phy.rows(width)?, logcnt.view());
                Ok(plan.build_into(queue, &mut workspace, spec, routing)?)
            };
            ("i32", arrays(physical) + 4 * 3 * experts, Box::new(run))
        }
        _ => {
            // Of one token: a window takes the routes of as many calls as there will be.
            let spec = spec.with_num_tokens(1).with_logical_load();
            let mut workspace = Workspace::new(queue, Limits::new(1, top_k, experts))?;
            let first = topk_ids.view().slice(0..top_k)?;
            let plan = RoutePlan::new(queue, &mut workspace, spec, Routing::top_k(first))?;
            let mut recorder = LoadRecorder::new(queue, 1, experts, 1)?;
            let run = move |queue: &mut Queue<'_, B>| Ok(recorder.record(queue, 0, &plan)?);
            ("u32", 3 * 4 * experts, Box::new(run))
        }
    };
    queue.synchronize()?;
    Ok(Some(Entry { dtype, bytes, run }))
}
