//! Bugs that show with many routes, many rows or many runs. The number is that of the bug list.

use super::axes::{Case, Dist};
use super::combine::check_combine;
use super::combine_grad::check_grad;
use super::compare::{same, same_plan};
use super::gather::check_gather;
use super::harness::{Checked, Ctx, ensure};
use super::naive::{self, Widen};
use super::rng::Rng;
use super::route::{self, Inputs};
use super::values::values;
use crate::dtype::as_bytes;
use crate::{Buf, DType, Layout, Limits, PermuteBackend, PlanSpec, RoutePlan, Routing, Workspace};
use float8::F8E4M3;
use half::bf16;

/// Whether the group's memory is allowed; notes it where not.
fn allowed<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, bytes: u64) -> bool {
    let max = ctx.options.max_bytes;
    if bytes > max {
        ctx.skip(format!("takes {bytes} bytes of device memory, max_bytes is {max}"));
    }
    bytes <= max
}

/// Row times hidden past 2^31 elements: with H = 7168, more than 299,593 rows. The last tokens are compared, forward
/// and backward.
pub(super) fn bug_01_row_offsets_past_32_bits<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let (tokens, top_k, hidden) = (37_504, 8, 7168);
    if allowed(ctx, 14 << 30) {
        ctx.case("bf16, 300,032 rows of 7168", |ctx, rng| {
            let (plan, want, x) = large(ctx, rng, tokens, top_k, hidden)?;
            let rows = plan.gather(x.rows(hidden)?).run(&mut ctx.queue)?;
            check_rows(ctx, &want, &x, &rows, hidden)?;
            let w: Vec<f32> = values(rng, tokens * top_k, false);
            let weights = ctx.queue.upload(&w)?;
            let out = plan.combine(rows.rows(hidden)?).weights(weights.view()).run::<bf16>(&mut ctx.queue)?;
            check_tokens(ctx, &want, &x, &w, &out, hidden)?;
            drop(out);
            let grad = plan.combine_grad(x.rows(hidden)?).rows(rows.rows(hidden)?).run::<f32>(&mut ctx.queue)?;
            check_rows(ctx, &want, &x, &grad.0, hidden)?;
            // The rows are copies of x, so each weight's gradient is a token's product with itself.
            let dw = ctx.queue.download(grad.1.view())?;
            for t in [0, tokens / 2, tokens - 1] {
                let token = ctx.queue.download(x.view().slice(t * hidden..(t + 1) * hidden)?)?;
                let dot: f64 = token.iter().map(|v| f64::from(v.widen()).powi(2)).sum();
                for got in &dw[t * top_k..(t + 1) * top_k] {
                    let ok = (f64::from(*got) - dot).abs() <= dot * 1e-5;
                    ensure(ok, || format!("grad_weights of token {t} is {got}, expected {dot}"))?;
                }
            }
            Ok(())
        });
    }
}

/// Uniform routes over 256 experts, the plan built and compared, and random bf16 rows.
fn large<B: PermuteBackend>(
    ctx: &mut Ctx<'_, B>,
    rng: &mut Rng,
    tokens: usize,
    top_k: usize,
    hidden: usize,
) -> Checked<(RoutePlan<B>, naive::Plan, Buf<B, bf16>)> {
    let case = Case { tokens, top_k, experts: 256, ..Case::PLAIN };
    let (plan, want, _inputs) = route::build(ctx, &case, rng)?;
    let piece: Vec<bf16> = values(rng, 65_521, false); // a prime, so that no two rows are alike
    let data: Vec<bf16> = piece.iter().copied().cycle().take(tokens * hidden).collect();
    Ok((plan, want, ctx.queue.upload(&data)?))
}

/// The first and the last rows are copies of their tokens.
fn check_rows<B: PermuteBackend>(
    ctx: &mut Ctx<'_, B>,
    plan: &naive::Plan,
    x: &Buf<B, bf16>,
    rows: &Buf<B, bf16>,
    hidden: usize,
) -> Checked {
    for row in (0..3).chain(plan.source.len() - 40..plan.source.len()) {
        let t = plan.source[row] as usize / plan.top_k;
        let got = ctx.queue.download(rows.view().slice(row * hidden..(row + 1) * hidden)?)?;
        let want = ctx.queue.download(x.view().slice(t * hidden..(t + 1) * hidden)?)?;
        same(&format!("row {row}"), &got, &want, hidden)?;
    }
    Ok(())
}

/// The first and last tokens, and those of the last rows, hold the weighted sum of copies of themselves.
fn check_tokens<B: PermuteBackend>(
    ctx: &mut Ctx<'_, B>,
    plan: &naive::Plan,
    x: &Buf<B, bf16>,
    weights: &[f32],
    out: &Buf<B, bf16>,
    hidden: usize,
) -> Checked {
    let last_rows = plan.source[plan.source.len() - 20..].iter().map(|x| *x as usize / plan.top_k);
    for t in [0, plan.slot.len() / plan.top_k - 1].into_iter().chain(last_rows) {
        let token = ctx.queue.download(x.view().slice(t * hidden..(t + 1) * hidden)?)?;
        let got = ctx.queue.download(out.view().slice(t * hidden..(t + 1) * hidden)?)?;
        let slot: Vec<i32> = (0..plan.top_k as i32).collect();
        let rows: Vec<bf16> = token.repeat(plan.top_k);
        let one = naive::Plan { slot, ..plan.clone() };
        let w = &weights[t * plan.top_k..(t + 1) * plan.top_k];
        let want: Vec<bf16> = naive::combine(&one, &rows, Some(w), None, None, hidden);
        if ctx.exact() {
            same(&format!("token {t}"), &got, &want, hidden)?;
        } else {
            let far =
                got.iter().zip(&want).position(|(g, w)| (g.widen() - w.widen()).abs() > 0.02 * (1.0 + w.widen().abs()));
            ensure(far.is_none(), || format!("token {t} differs at {far:?}"))?;
        }
    }
    Ok(())
}

/// The same for the scales: one for each element makes their index as large.
pub(super) fn bug_02_scale_offsets_past_32_bits<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let (tokens, top_k, hidden) = (37_504, 8, 7168);
    if allowed(ctx, 13 << 30) {
        ctx.case("f8e4m3, 300,032 rows with a scale for each element", |ctx, rng| {
            let case = Case { tokens, top_k, experts: 256, ..Case::PLAIN };
            let (plan, want, _inputs) = route::build(ctx, &case, rng)?;
            let n = plan.num_rows() * hidden;
            let mut rows = ctx.queue.zeros::<F8E4M3>(n)?;
            ctx.queue.fill(rows.view_mut(), 0x38)?; // 1.0
            let mut scales = ctx.queue.zeros::<f32>(n)?;
            ctx.queue.fill(scales.view_mut(), 0x3f)?;
            let mut last: Vec<f32> = values(rng, 64 * hidden, false);
            ctx.queue.write(&last, scales.view_mut().slice(n - 64 * hidden..n)?)?;
            let out = plan.combine(rows.rows(hidden)?).scales(scales.rows(hidden)?, 1).run::<f32>(&mut ctx.queue)?;
            let fill = f32::from_bits(0x3f3f_3f3f);
            let first_of_last = plan.num_rows() - 64;
            let scale = |row: usize, h: usize| match row.checked_sub(first_of_last) {
                Some(r) => last[r * hidden + h],
                None => fill,
            };
            for row in first_of_last..plan.num_rows() {
                let t = want.source[row] as usize / top_k;
                let got = ctx.queue.download(out.view().slice(t * hidden..(t + 1) * hidden)?)?;
                for (h, got) in got.iter().enumerate() {
                    let slots = &want.slot[t * top_k..(t + 1) * top_k];
                    let sum = slots.iter().fold(0f32, |sum, slot| scale(*slot as usize, h).mul_add(1.0, sum));
                    ensure((got - sum).abs() <= 1e-5, || format!("out[{t}, {h}] is {got}, expected {sum}"))?;
                }
            }
            last.clear();
            Ok(())
        });
    }
}

/// 8192 tokens of 8 routes: 65,536 rows, one more than a grid dimension takes.
pub(super) fn bug_13_more_rows_than_a_grid_dimension<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for (tokens, top_k, layout) in
        [(8192, 8, Layout::Packed), (70_000, 1, Layout::Packed), (8192, 8, Layout::Aligned(64))]
    {
        let case = Case { tokens, top_k, experts: 64, hidden: 3, layout, ..Case::PLAIN };
        let weighted = Case { weights: Some(DType::F32), ..case };
        ctx.case(format!("gather of {case:?}"), |ctx, rng| check_gather(ctx, &case, rng));
        ctx.case(format!("gather of {weighted:?}"), |ctx, rng| check_gather(ctx, &weighted, rng));
        ctx.case(format!("combine of {weighted:?}"), |ctx, rng| check_combine(ctx, &weighted, rng));
        let one_lane = Case { hidden: 1, ..weighted };
        ctx.case(format!("combine_grad of {one_lane:?}"), |ctx, rng| check_grad(ctx, &one_lane, rng));
    }
}

/// A hundred runs give the same bits: plan, gather, combine, gradients. T = 4097, K = 16, E = 128.
pub(super) fn bug_14_repeats_are_bitwise_equal<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("100 runs of T=4097, K=16, E=128", |ctx, rng| {
        let (tokens, top_k, hidden) = (4097, 16, 3);
        let case =
            Case { tokens, top_k, experts: 128, dist: Dist::Mixed, m_indices: true, logical_load: true, ..Case::PLAIN };
        let (ids, ..) = route::contents(&case, rng);
        let inputs = Inputs::new(&mut ctx.queue, DType::I32, &ids, None, None, Default::default())?;
        let x = ctx.queue.upload(&values::<bf16>(rng, tokens * hidden, false))?;
        let w = ctx.queue.upload(&values::<f32>(rng, tokens * top_k, false))?;
        let mut workspace = ctx.workspace(tokens, top_k, 128)?;
        let mut first = None;
        for run in 0..100 {
            let queue = &mut ctx.queue;
            let plan = RoutePlan::new(queue, &mut workspace, case.spec(), inputs.routing()?)?;
            let rows = plan.gather(x.rows(hidden)?).weights(w.view()).run(queue)?;
            let out = plan.combine(rows.rows(hidden)?).weights(w.view()).run::<f32>(queue)?;
            let grads = plan.combine_grad(x.rows(hidden)?).weights(w.view()).rows(rows.rows(hidden)?);
            let (grad_rows, grad_weights) = grads.run::<f32>(queue)?;
            let arrays = route::download(queue, &plan)?;
            let mut bits = as_bytes(&queue.download(rows.view())?).to_vec();
            bits.extend_from_slice(as_bytes(&queue.download(out.view())?));
            bits.extend_from_slice(as_bytes(&queue.download(grad_rows.view())?));
            bits.extend_from_slice(as_bytes(&queue.download(grad_weights.view())?));
            let (want_arrays, want_bits) = first.get_or_insert_with(|| (arrays.clone(), bits.clone()));
            same_plan(&arrays, want_arrays)?;
            ensure(bits == *want_bits, || format!("run {run} gave other bits than the first"))?;
        }
        let (arrays, _) = first.expect("a hundred runs");
        let shape = *RoutePlan::alloc(&mut ctx.queue, case.spec())?.shape();
        same_plan(&arrays, &naive::plan(&shape, &ids, None, None))
    });
}

/// One workspace serves all layers, in turn, and does not grow with their number.
pub(super) fn bug_17_one_workspace_serves_all_layers<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("48 layers", |ctx, rng| {
        let (tokens, top_k, experts) = (65, 4, 60);
        let mut workspace: Workspace<B> = ctx.workspace(tokens, top_k, experts)?;
        let size = workspace.byte_len();
        let case = Case { tokens, top_k, experts, dist: Dist::Mixed, ..Case::PLAIN };
        for _layer in 0..48 {
            let (ids, ..) = route::contents(&case, rng);
            let inputs = Inputs::new(&mut ctx.queue, DType::I32, &ids, None, None, Default::default())?;
            let plan = RoutePlan::new(&mut ctx.queue, &mut workspace, case.spec(), inputs.routing()?)?;
            let mut want = naive::plan(plan.shape(), &ids, None, None);
            (want.m_indices, want.logical_load) = (Vec::new(), Vec::new());
            same_plan(&route::download(&mut ctx.queue, &plan)?, &want)?;
        }
        ensure(workspace.byte_len() == size, || "the workspace has grown".into())
    });
}

/// The worst skew at a large T: every route to one expert, and all but one.
pub(super) fn bug_25_all_routes_to_one_expert<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for (tokens, top_k, experts, hidden) in [(16_384, 8, 256, 4), (4096, 8, 128, 64), (20_000, 2, 8, 8)] {
        for layout in [Layout::Packed, Layout::Aligned(128)] {
            let case = Case { tokens, top_k, experts, hidden, dist: Dist::AllToOne, layout, ..Case::PLAIN };
            let weighted = Case { weights: Some(DType::F32), dtype: DType::BF16, ..case };
            ctx.case(format!("plan of {case:?}"), |ctx, rng| route::check_plan(ctx, &case, rng));
            ctx.case(format!("gather of {case:?}"), |ctx, rng| check_gather(ctx, &case, rng));
            ctx.case(format!("combine of {weighted:?}"), |ctx, rng| check_combine(ctx, &weighted, rng));
        }
    }
}

/// T * K = 1,048,576 routes and beyond.
pub(super) fn bug_26_a_million_routes<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for (tokens, top_k, experts) in [(131_072, 8, 256), (131_073, 8, 257), (1 << 20, 1, 4096), (300_007, 5, 60)] {
        for (ids, dist) in [(DType::I32, Dist::Uniform), (DType::I64, Dist::Mixed)] {
            let case = Case { tokens, top_k, experts, ids, dist, ..Case::PLAIN };
            ctx.case(format!("plan of {case:?}"), |ctx, rng| route::check_plan(ctx, &case, rng));
        }
    }
    let case = Case { tokens: 131_072, top_k: 8, experts: 256, hidden: 2, dtype: DType::BF16, ..Case::PLAIN };
    ctx.case(format!("gather of {case:?}"), |ctx, rng| check_gather(ctx, &case, rng));
    ctx.case(format!("combine of {case:?}"), |ctx, rng| check_combine(ctx, &case, rng));
    ctx.case("a workspace for it is bounded", |ctx, _| {
        let limits = Limits::new(131_072, 8, 256);
        let workspace = Workspace::new(&mut ctx.queue, limits)?;
        let (bytes, most) = (workspace.byte_len(), limits.max_routes * 64);
        ensure(bytes <= most, || format!("the workspace takes {bytes} bytes for {limits:?}"))?;
        let ids = ctx.queue.zeros::<i32>(limits.max_routes)?;
        let spec = PlanSpec::new(131_072, 8, 256);
        RoutePlan::new(&mut ctx.queue, &mut { workspace }, spec, Routing::top_k(ids.view()))?;
        Ok(())
    });
}
