//! Checks of the arguments of masks, chunks, and what is derived from a plan.

use super::errors::{refuses, refuses_and_keeps};
use super::harness::Ctx;
use crate::{PermuteBackend, PlanSpec, RoutePlan, Routing};
use half::f16;

/// Specs and sources that do not fit each other, and their shapes; nothing is built.
pub(super) fn errors_of_mask_and_chunk_arguments<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let number = "InvalidArgument";
    let specs: &[(&str, PlanSpec)] = &[
        ("top_k", PlanSpec::mask(1, 4).max_routes(0)),
        ("num_experts", PlanSpec::mask(1, 0).max_routes(1)),
        ("num_tokens", PlanSpec::mask(1 << 24, 256).max_routes(8)),
        ("max_routes", PlanSpec::new(1, 2, 4).max_routes(2)),
        ("max_routes", PlanSpec::chunks(1, 4).max_routes(1)),
        ("probs", PlanSpec::new(1, 2, 4).with_probs::<f32>()),
        ("probs", PlanSpec::chunks(1, 4).with_probs::<f32>()),
        ("num_experts", PlanSpec::chunks(1, 0)),
    ];
    for (arg, spec) in specs {
        ctx.case(format!("{spec:?}"), |ctx, _| {
            refuses(spec.num_rows(), number, &[arg])?;
            refuses(RoutePlan::alloc(&mut ctx.queue, *spec), number, &["RoutePlan::alloc", arg])
        });
    }
    ctx.case("build_into", |ctx, _| {
        let mut workspace = ctx.workspace(4, 8, 8)?;
        let queue = &mut ctx.queue;
        let (ids, mask, probs) = (queue.zeros::<i32>(32)?, queue.zeros::<u8>(32)?, queue.zeros::<f16>(32)?);
        let (sizes, five) = (queue.zeros::<i32>(8)?, queue.zeros::<i32>(5)?);
        let (top_k, with_mask, chunks) = (PlanSpec::new(4, 8, 8), PlanSpec::mask(4, 8), PlanSpec::chunks(4, 8));
        let with_probs = with_mask.with_probs::<f16>();
        let by_mask = || Ok::<_, crate::Error>(Routing::mask(mask.rows(8)?));
        let by_chunks = || Routing::chunks(sizes.view(), None);
        type Make<'a, B> = (&'a str, [&'a str; 3], PlanSpec, Routing<'a, B>);
        let cases: Vec<Make<'_, B>> = vec![
            (number, ["routing", "mask map", "expert ids"], with_mask, Routing::top_k(ids.view())),
            (number, ["routing", "chunks", "mask map"], chunks, by_mask()?),
            (number, ["routing", "expert ids", "chunks"], top_k, by_chunks()),
            ("Shape", ["mask", "4 rows of 8", "8 rows of 4"], with_mask, Routing::mask(mask.rows(4)?)),
            (number, ["probs", "f16", "nothing"], with_probs, by_mask()?),
            (number, ["probs", "f16", "nothing"], with_mask, by_mask()?.probs(probs.rows(8)?)),
            (number, ["probs", "f32", "f16"], with_mask.with_probs::<f32>(), by_mask()?.probs(probs.rows(8)?)),
            ("Shape", ["probs", "4 rows of 8", "8 rows of 4"], with_probs, by_mask()?.probs(probs.rows(4)?)),
            ("Shape", ["sizes", "5", "8"], chunks, Routing::chunks(five.view(), None)),
            ("Shape", ["order", "5", "8"], chunks, Routing::chunks(sizes.view(), Some(five.view()))),
        ];
        // Memory for any of them.
        for (variant, parts, spec, routing) in cases {
            let mut plan = RoutePlan::alloc(queue, spec)?;
            let result = plan.build_into(queue, &mut workspace, spec, routing);
            refuses(result, variant, &["build_into", parts[0], parts[1], parts[2]])?;
        }
        let mut plan = RoutePlan::alloc(queue, PlanSpec::new(64, 8, 8))?;
        let result = plan.build_into(queue, &mut workspace, with_mask, by_mask()?);
        refuses(result, "TooSmall", &["build_into", "plan", "bytes"])?;
        let x = queue.zeros::<f32>(4)?;
        refuses_and_keeps(queue, 31, "Shape", &["permute_into", "out", "32 rows of 1"], |queue, out| {
            let mut plan = RoutePlan::alloc(queue, with_mask)?;
            plan.permute_into(queue, &mut workspace, with_mask, by_mask()?, x.rows(1)?, out.rows_mut(1)?)
        })
    });
}

/// Block tables, split sizes, values by route, and gradients of masks and gathers.
pub(super) fn errors_of_table_arguments<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("a plan of 4 tokens", |ctx, _| {
        let mut workspace = ctx.workspace(4, 2, 6)?;
        let queue = &mut ctx.queue;
        let spec = PlanSpec::new(4, 2, 6);
        let ids = queue.upload(&[0i32, 1, 2, 3, 4, 5, 0, 1])?;
        let plan = RoutePlan::new(queue, &mut workspace, spec, Routing::top_k(ids.view()))?;
        let unbuilt = RoutePlan::alloc(queue, spec)?;
        let (mut b, mut c) = (queue.zeros::<i32>(7)?, queue.zeros::<i32>(2)?);
        refuses(plan.block_table(0).run(queue), "InvalidArgument", &["block_table", "block", "0"])?;
        refuses(plan.block_table(1 << 30).run(queue), "InvalidArgument", &["block_table", "block", "1073741824"])?;
        // 8 routes in blocks of 4 of 6 experts: 28 entries.
        for (lens, parts) in [
            ([27, 7, 1], ["sorted_token_ids", "27", "28"]),
            ([28, 6, 1], ["expert_ids", "6", "7"]),
            ([28, 7, 2], ["num_tokens_post_padded", "2", "1"]),
        ] {
            refuses_and_keeps(queue, 28, "Shape", &["block_table", parts[0], parts[1], parts[2]], |queue, out| {
                let sorted = out.view_mut().slice(0..lens[0])?;
                let (experts, number) = (b.view_mut().slice(0..lens[1])?, c.view_mut().slice(0..lens[2])?);
                plan.block_table(4).run_into(queue, sorted, experts, number)
            })?;
        }
        refuses(unbuilt.block_table(4).run(queue), "PlanNotBuilt", &["block_table"])?;

        for ranks in [0, 4, 7, 12] {
            refuses(plan.split_sizes(ranks).run(queue), "InvalidArgument", &["split_sizes", "ranks", "divisor of 6"])?;
        }
        refuses_and_keeps(queue, 2, "Shape", &["split_sizes", "out", "2", "3"], |queue, out| {
            plan.split_sizes(3).run_into(queue, out.view_mut())
        })?;
        refuses(unbuilt.split_sizes(3).run(queue), "PlanNotBuilt", &["split_sizes"])?;

        let values = queue.zeros::<f32>(9)?;
        refuses_and_keeps(queue, 8, "Shape", &["gather", "rows", "9 rows of 1", "8 rows of 1"], |queue, out| {
            plan.gather_routes(values.rows(1)?).run_into(queue, out.rows_mut(1)?)
        })?;
        refuses_and_keeps(queue, 9, "Shape", &["combine", "out", "9 rows of 1", "8 rows of 1"], |queue, out| {
            let rows = values.view().slice(0..8)?.rows(1)?;
            plan.combine_routes(rows).run_into::<f32>(queue, out.rows_mut(1)?)
        })?;
        let probs = plan.probs::<f32>().map(drop);
        refuses(probs, "InvalidArgument", &["RoutePlan::probs", "with_probs", "f32"])?;
        refuses(unbuilt.probs::<f32>().map(drop), "PlanNotBuilt", &["RoutePlan::probs"])?;
        refuses_and_keeps(
            queue,
            24,
            "InvalidArgument",
            &["mask_grad", "plan", "mask map", "expert ids"],
            |queue, out| plan.mask_grad(values.view().slice(0..8)?).run_into(queue, out.rows_mut(6)?),
        )?;
        refuses_and_keeps(queue, 24, "Shape", &["mask_grad", "values", "9", "8"], |queue, out| {
            plan.mask_grad(values.view()).run_into(queue, out.rows_mut(6)?)
        })?;
        let rows = |n: usize| values.view().slice(0..n)?.rows(1);
        for (lens, parts) in [([5, 8], ["rows", "5 rows", "4 rows"]), ([4, 7], ["grad", "7 rows", "8 rows"])] {
            let parts = &["gather_grad_weights", parts[0], parts[1], parts[2]];
            refuses_and_keeps(queue, 8, "Shape", parts, |queue, out| {
                plan.gather_grad_weights(rows(lens[0])?, rows(lens[1])?).run_into::<f32>(queue, out.view_mut())
            })?;
        }
        refuses_and_keeps(
            queue,
            4,
            "InvalidArgument",
            &["combine", "residual_scale", "without", "2"],
            |queue, out| plan.combine(rows(8)?).residual_scale(2.0).run_into::<f32>(queue, out.rows_mut(1)?),
        )?;
        Ok(())
    });
}
