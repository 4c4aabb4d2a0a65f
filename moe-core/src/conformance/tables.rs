//! What is derived from a plan beside the primitives: block tables, split sizes, values by route.

use super::axes::{Axes, Case, Map};
use super::compare::same;
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx, ensure};
use super::naive::{self, Plan};
use super::rng::Rng;
use super::route;
use super::values::values;
use crate::{DType, Element, Layout, PermuteBackend};
use half::bf16;

/// Block tables of plans of all kinds.
pub(super) fn block_tables<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let axes =
        Axes { tokens: &[0, 1, 7, 33, 100, 513, 1000], ids: &[DType::I32], logical_load: &[false], ..Axes::PLAN };
    for case in axes.cover(&mut ctx.rng(), false, 1 << 18, |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| check_table(ctx, &case, rng));
    }
}

fn check_table<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let (plan, want_plan, _inputs) = route::build(ctx, case, rng)?;
    let block = [1, 2, 13, 16, 64, 128][rng.below(6)];
    let queue = &mut ctx.queue;
    let routes = case.tokens * case.top_k;
    let len = plan.block_table(block).len()?;
    let aligned = (routes + case.local_experts().min(routes) * (block - 1)).next_multiple_of(block);
    ensure(len == aligned, || format!("a table of {len} entries, expected {aligned}"))?;
    let mut place = || Place::random(rng, case.offset, 0);
    let mut sorted = Guarded::<B, i32>::poisoned(queue, 1, len, place())?;
    let mut experts = Guarded::<B, i32>::poisoned(queue, 1, len / block, place())?;
    let mut used = Guarded::<B, i32>::poisoned(queue, 1, 1, place())?;
    plan.block_table(block).run_into(queue, sorted.view_mut()?, experts.view_mut()?, used.view_mut()?)?;
    let (want_sorted, want_experts, want_used) = naive::block_table(&want_plan, len, block);
    same("num_tokens_post_padded", &used.read(queue, "num_tokens_post_padded")?, &[want_used], 0)?;
    same("expert_ids", &experts.read(queue, "expert_ids")?, &want_experts, 0)?;
    same("sorted_token_ids", &sorted.read(queue, "sorted_token_ids")?, &want_sorted, block)?;

    let blocks = plan.block_table(block).run(queue)?;
    same("sorted_token_ids of run", &queue.download(blocks.sorted_token_ids.view())?, &want_sorted, block)?;
    same("expert_ids of run", &queue.download(blocks.expert_ids.view())?, &want_experts, 0)?;
    same("length of run", &queue.download(blocks.num_tokens_post_padded.view())?, &[want_used], 0)
}

/// Rows for each rank, for all divisors of the number of experts.
pub(super) fn split_sizes_by_rank<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for layout in [Layout::Packed, Layout::Aligned(16), Layout::Padded(5)] {
        for (tokens, top_k, experts, map) in [
            (0, 2, 6, Map::Absent),
            (33, 4, 60, Map::Absent),
            (100, 8, 256, Map::Permuted),
            (100, 8, 256, Map::EveryFourth),
            (257, 2, 1025, Map::Absent),
        ] {
            let case = Case { tokens, top_k, experts, map, layout, ..Case::PLAIN };
            ctx.case(format!("{case:?}"), |ctx, rng| {
                let (plan, want_plan, _inputs) = route::build(ctx, &case, rng)?;
                let (queue, local) = (&mut ctx.queue, case.local_experts());
                for ranks in (1..=local).filter(|ranks| local.is_multiple_of(*ranks)) {
                    let mut out = Guarded::<B, i32>::poisoned(queue, 1, ranks, Place::random(rng, 1, 0))?;
                    plan.split_sizes(ranks).run_into(queue, out.view_mut()?)?;
                    let want = naive::split_sizes(&want_plan, ranks);
                    same("split_sizes", &out.read(queue, "split_sizes")?, &want, 0)?;
                    let allocated = plan.split_sizes(ranks).run(queue)?;
                    same("split_sizes of run", &queue.download(allocated.view())?, &want, 0)?;
                }
                Ok(())
            });
        }
    }
}

/// Values by route into the order of the rows, and back: one for each route, and rows of them.
pub(super) fn values_by_route<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let dtype = &[DType::F32, DType::BF16, DType::I32, DType::U8];
    let axes = Axes { dtype, hidden: &[1, 7, 64, 1025], ..Axes::ROWS };
    for case in axes.cover(&mut ctx.rng(), false, ctx.options.element_limit(), |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| match case.dtype {
            DType::F32 => check_values::<B, f32>(ctx, &case, rng),
            DType::I32 => check_values::<B, i32>(ctx, &case, rng),
            DType::U8 => check_values::<B, u8>(ctx, &case, rng),
            _ => check_values::<B, bf16>(ctx, &case, rng),
        });
    }
}

fn check_values<B: PermuteBackend, T: Element>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let (plan, want_plan, _inputs) = route::build(ctx, case, rng)?;
    let (hidden, routes, queue) = (case.hidden, case.tokens * case.top_k, &mut ctx.queue);
    let by_route = Plan { top_k: 1, ..want_plan };
    let data: Vec<T> = values(rng, routes * hidden, case.wild);
    let rows = Guarded::matrix(queue, &data, hidden, Place::random(rng, case.offset, case.gap))?;
    let place = Place::random(rng, (case.offset + 1) % 4, case.gap / 2);
    let mut out = Guarded::<B, T>::poisoned(queue, plan.num_rows(), hidden, place)?;
    plan.gather_routes(rows.rows()?).run_into(queue, out.rows_mut()?)?;
    let mut want = vec![out.poison(); plan.num_rows() * hidden];
    naive::gather(&by_route, &data, hidden, &mut want);
    same("gather_routes", &out.read(queue, "out")?, &want, hidden)?;

    let data: Vec<f32> = super::combine::expert_rows(&by_route, hidden, false, rng);
    let rows = Guarded::matrix(queue, &data, hidden, Place::random(rng, case.offset, case.gap))?;
    let mut out = Guarded::<B, f32>::poisoned(queue, routes, hidden, place)?;
    plan.combine_routes(rows.rows()?).run_into(queue, out.rows_mut()?)?;
    let want = naive::combine::<f32, f32>(&by_route, &data, None, None, None, hidden);
    same("combine_routes", &out.read(queue, "out")?, &want, hidden)
}
