//! What the primitives do on the way: a weight on the input, a residual, zeros in the tail.

use super::{Entry, Family, Run};
use crate::Result;
use crate::cases::{Case, Rows};
use crate::routing::Ids;
use crate::work::filled;
use moe_core::half::{bf16, f16};
use moe_core::{CombineInput, Float, Limits, PermuteBackend, PlanSpec, Queue, RoutePlan, Routing, Workspace};

pub(super) fn family<B: PermuteBackend>() -> Family<B> {
    Family { ops: &["gather_weighted", "combine_residual", "zero_tail"], make }
}

fn make<B: PermuteBackend>(
    queue: &mut Queue<'_, B>,
    op: &'static str,
    case: &Case,
    ids: &Ids,
) -> Result<Option<Entry<B>>> {
    match case.rows {
        Rows::Bf16 => entry::<B, bf16>(queue, op, case, ids),
        Rows::F16 => entry::<B, f16>(queue, op, case, ids),
        Rows::F32 => entry::<B, f32>(queue, op, case, ids),
        Rows::F8 => Ok(None),
    }
}

fn entry<B: PermuteBackend, T: Float + CombineInput>(
    queue: &mut Queue<'_, B>,
    op: &'static str,
    case: &Case,
    ids: &Ids,
) -> Result<Option<Entry<B>>> {
    let (h, tokens, routes) = (case.model.hidden, case.tokens, case.routes());
    let row = h * case.rows.size();
    let spec = PlanSpec::new(tokens, case.model.top_k, case.model.experts).local_experts(case.local_experts());
    let mut workspace = Workspace::new(queue, Limits::new(tokens, case.model.top_k, case.model.experts))?;
    let topk_ids = queue.upload(&ids.ids)?;
    let map = ids.expert_map.as_ref().map(|map| queue.upload(map)).transpose()?;
    let routing = Routing::top_k(topk_ids.view());
    let routing = match &map {
        Some(map) => routing.expert_map(map.view()),
        None => routing,
    };
    let plan = RoutePlan::new(queue, &mut workspace, spec, routing)?;
    let weights = queue.upload(&vec![1.0 / case.model.top_k as f32; routes])?;
    // Values matter to nothing here but to the power that a processor takes.
    let one = |x: f32| T::from_f32(x);
    let placed = ids.local_routes * row;
    let (bytes, run): (usize, Run<B>) = match op {
        "gather_weighted" => {
            let (x, mut y) = (filled(queue, tokens * h, one)?, queue.zeros::<T>(routes * h)?);
            let run = move |queue: &mut Queue<'_, B>| {
                Ok(plan.gather(x.rows(h)?).weights(weights.view()).run_into(queue, y.rows_mut(h)?)?)
            };
            (ids.local_tokens * row + placed, Box::new(run))
        }
        "combine_residual" => {
            let (y, residual) = (filled(queue, routes * h, one)?, filled(queue, tokens * h, one)?);
            let mut out = queue.zeros::<T>(tokens * h)?;
            let run = move |queue: &mut Queue<'_, B>| {
                let combine = plan.combine(y.rows(h)?).weights(weights.view()).residual(residual.rows(h)?);
                Ok(combine.run_into(queue, out.rows_mut(h)?)?)
            };
            (placed + 2 * tokens * row, Box::new(run))
        }
        _ => {
            let tail = (routes - ids.local_routes) * row;
            // Where all routes are placed only the offsets are read.
            let bytes = tail + 4 * (case.local_experts() + 1);
            let mut y = queue.zeros::<T>(routes * h)?;
            let run = move |queue: &mut Queue<'_, B>| Ok(plan.zero_tail(queue, y.rows_mut(h)?)?);
            (bytes, Box::new(run))
        }
    };
    queue.synchronize()?;
    Ok(Some(Entry { dtype: case.rows.name(), bytes, run }))
}
