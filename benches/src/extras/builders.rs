//! Other ways to a plan than ids, and what is read off a plan.

use super::{Entry, Family, Run};
use crate::Result;
use crate::cases::{Case, RoutingKind, Rows};
use crate::routing::Ids;
use crate::work::filled;
use moe_core::half::bf16;
use moe_core::{Limits, PermuteBackend, PlanSpec, Queue, RoutePlan, Routing, Workspace};

/// Entries that share an expert in the block table.
const BLOCK: usize = 64;
/// Ranks of the all-to-all.
const RANKS: usize = 8;

pub(super) fn family<B: PermuteBackend>() -> Family<B> {
    Family { ops: &["plan_mask", "mask_grad", "chunk_sort", "block_table", "split_sizes"], make }
}

fn make<B: PermuteBackend>(
    queue: &mut Queue<'_, B>,
    op: &'static str,
    case: &Case,
    ids: &Ids,
) -> Result<Option<Entry<B>>> {
    // Rows have a part in the chunk sort alone.
    if case.rows != Rows::Bf16 || case.routing == RoutingKind::Ep8 {
        return Ok(None);
    }
    let (tokens, top_k, experts) = (case.tokens, case.model.top_k, case.model.experts);
    let index_arrays = 4 * (2 * case.routes() + 2 * experts + 1);
    let (dtype, bytes, run): (_, usize, Run<B>) = match op {
        "plan_mask" | "mask_grad" => {
            let mut mask = vec![0u8; tokens * experts];
            ids.ids.iter().enumerate().for_each(|(x, id)| mask[x / top_k * experts + *id as usize] = 1);
            let mask = queue.upload(&mask)?;
            let probs = filled(queue, tokens * experts, |x| x)?;
            let mut workspace = Workspace::new(queue, Limits::new(tokens, top_k, experts))?;
            let spec = PlanSpec::mask(tokens, experts).max_routes(top_k).with_probs::<f32>();
            let mut plan = RoutePlan::alloc(queue, spec)?;
            let routing = Routing::mask(mask.rows(experts)?).probs(probs.rows(experts)?);
            plan.build_into(queue, &mut workspace, spec, routing)?;
            if op == "plan_mask" {
                let run = move |queue: &mut Queue<'_, B>| {
                    let routing = Routing::mask(mask.rows(experts)?).probs(probs.rows(experts)?);
                    Ok(plan.build_into(queue, &mut workspace, spec, routing)?)
                };
                // The whole mask, and of the probabilities those of its set elements, in and out.
                ("mask", tokens * experts + 8 * case.routes() + index_arrays, Box::new(run))
            } else {
                let values = filled(queue, case.routes(), |x| x)?;
                let mut out = queue.zeros::<f32>(tokens * experts)?;
                let run = move |queue: &mut Queue<'_, B>| {
                    Ok(plan.mask_grad(values.view()).run_into(queue, out.rows_mut(experts)?)?)
                };
                ("f32", 8 * case.routes() + 4 * tokens * experts, Box::new(run))
            }
        }
        "chunk_sort" => {
            // As after an all-to-all: a chunk for each expert from each rank, to be brought together by expert.
            let (rows, chunks, h) = (case.routes(), experts * RANKS, case.model.hidden);
            let mut sizes = vec![(rows / chunks) as i32; chunks];
            sizes[0] += (rows % chunks) as i32;
            let order: Vec<i32> = (0..chunks).map(|i| (i % RANKS * experts + i / RANKS) as i32).collect();
            let (sizes, order) = (queue.upload(&sizes)?, queue.upload(&order)?);
            let x = filled(queue, rows * h, bf16::from_f32)?;
            let mut out = queue.zeros::<bf16>(rows * h)?;
            let mut workspace = Workspace::new(queue, Limits::new(rows, 1, chunks))?;
            let spec = PlanSpec::chunks(rows, chunks);
            let mut plan = RoutePlan::alloc(queue, spec)?;
            let run = move |queue: &mut Queue<'_, B>| {
                let routing = Routing::chunks(sizes.view(), Some(order.view()));
                Ok(plan.permute_into(queue, &mut workspace, spec, routing, x.rows(h)?, out.rows_mut(h)?)?)
            };
            ("bf16", 4 * rows * h, Box::new(run))
        }
        _ => {
            let topk_ids = queue.upload(&ids.ids)?;
            let mut workspace = Workspace::new(queue, Limits::new(tokens, top_k, experts))?;
            let spec = PlanSpec::new(tokens, top_k, experts);
            let plan = RoutePlan::new(queue, &mut workspace, spec, Routing::top_k(topk_ids.view()))?;
            if op == "split_sizes" {
                let mut out = queue.zeros::<i32>(RANKS)?;
                let run =
                    move |queue: &mut Queue<'_, B>| Ok(plan.split_sizes(RANKS).run_into(queue, out.view_mut())?);
                ("i32", 4 * (experts + 1 + RANKS), Box::new(run))
            } else {
                let mut table = plan.block_table(BLOCK).run(queue)?;
                let len = table.sorted_token_ids.len();
                let run = move |queue: &mut Queue<'_, B>| {
                    let (sorted, experts) = (table.sorted_token_ids.view_mut(), table.expert_ids.view_mut());
                    let number = table.num_tokens_post_padded.view_mut();
                    Ok(plan.block_table(BLOCK).run_into(queue, sorted, experts, number)?)
                };
                ("i32", 4 * (case.routes() + experts + 1 + len + len / BLOCK + 1), Box::new(run))
            }
        }
    };
    queue.synchronize()?;
    Ok(Some(Entry { dtype, bytes, run }))
}
