//! Outputs that share memory with another argument, and memory that is not aligned, are refused before any launch.
//! Safe slices cannot overlap, so a toy backend lends addresses.

#[path = "support/toy.rs"]
mod toy;

use moe_core::float8::F8E4M3;
use moe_core::half::f16;
use moe_core::quant::{PerToken, ScaleLayout};
use moe_core::{Dev, Limits, PlanSpec, Queue, Result, RoutePlan, Routing, Workspace};
use toy::Toy;

/// T = 4, K = 2, H = 8, all f32: rows `[R, H]` take 256 bytes, `[T, H]` 128, `[T, K]` 32.
type Setup = (Dev<Toy>, Queue<'static, Toy>, Workspace<Toy>, RoutePlan<Toy>);

fn setup() -> Result<Setup> {
    let dev = Dev::<Toy>::open(&"toy".parse()?)?;
    let mut queue = dev.queue()?;
    let mut workspace = Workspace::new(&mut queue, Limits::new(4, 2, 3))?;
    let ids = queue.zeros::<i32>(8)?;
    let plan = RoutePlan::new(&mut queue, &mut workspace, spec(), Routing::top_k(ids.view()))?;
    Ok((dev, queue, workspace, plan))
}

fn spec() -> PlanSpec {
    PlanSpec::new(4, 2, 3)
}

#[track_caller]
fn refused(result: Result<()>, message: &str) {
    assert_eq!(result.expect_err("the overlap was accepted").to_string(), message);
}

const FAR: u64 = 1 << 40;

#[test]
fn an_output_that_overlaps_is_refused_before_any_launch() -> Result<()> {
    let (dev, mut queue, mut workspace, mut plan) = setup()?;
    let (queue, dev) = (&mut queue, dev.raw());
    let launches = toy::launches();
    let r = |start, n: usize| dev.lend::<f32>(start, n * 8)?.rows(8);
    let rm = |start, n: usize| dev.lend_mut::<f32>(start, n * 8)?.rows(8);
    let w = |start| dev.lend::<f32>(start, 8);

    // The last byte of one is the first of the other.
    refused(plan.gather(r(FAR, 4)?).run_into(queue, rm(FAR + 124, 8)?), "gather: out overlaps rows");
    refused(plan.gather(r(FAR + 252, 4)?).run_into(queue, rm(FAR, 8)?), "gather: out overlaps rows");
    let op = plan.gather(r(0, 4)?).weights(w(FAR + 28)?);
    refused(op.run_into(queue, rm(FAR + 56, 8)?), "gather: out overlaps weights");

    refused(plan.combine(r(FAR, 8)?).run_into(queue, rm(FAR + 252, 4)?), "combine: out overlaps rows");
    let op = plan.combine(r(0, 8)?).weights(w(FAR)?);
    refused(op.run_into(queue, rm(FAR, 4)?), "combine: out overlaps weights");
    let op = plan.combine(r(0, 8)?).residual(r(FAR, 4)?);
    refused(op.run_into(queue, rm(FAR, 4)?), "combine: out overlaps residual");
    let op = plan.combine(dev.lend::<moe_core::float8::F8E4M3>(0, 64)?.rows(8)?).scales(r(FAR, 8)?, 1);
    refused(op.run_into(queue, rm(FAR, 4)?), "combine: out overlaps scales");

    let grad = || -> Result<_> { Ok(plan.combine_grad(r(0, 4)?).weights(w(1024)?).rows(r(2048, 8)?)) };
    let dw = |start| dev.lend_mut::<f32>(start, 8);
    let into = |queue: &mut _, rows, weights| -> Result<()> {
        grad()?.run_into::<f32>(queue, Some(rm(rows, 8)?), Some(dw(weights)?))
    };
    refused(into(queue, 124, FAR), "combine_grad: grad_rows overlaps grad_out");
    refused(into(queue, 1028, FAR), "combine_grad: grad_rows overlaps weights");
    refused(into(queue, 2048, FAR), "combine_grad: grad_rows overlaps rows");
    refused(into(queue, FAR, FAR + 252), "combine_grad: grad_rows overlaps grad_weights");
    refused(into(queue, FAR, 124), "combine_grad: grad_weights overlaps grad_out");
    refused(into(queue, FAR, 1024), "combine_grad: grad_weights overlaps weights");
    refused(into(queue, FAR, 2048), "combine_grad: grad_weights overlaps rows");

    let ids = |start| dev.lend::<i32>(start, 8);
    let permute = |plan: &mut RoutePlan<Toy>, queue: &mut _, workspace: &mut _, routing, out| -> Result<()> {
        plan.permute_into(queue, workspace, spec(), routing, r(0, 4)?, rm(out, 8)?)
    };
    let ws = &mut workspace;
    let plain = || Ok::<_, moe_core::Error>(Routing::top_k(ids(FAR)?));
    refused(permute(&mut plan, queue, ws, plain()?, 124), "permute_into: out overlaps rows");
    refused(permute(&mut plan, queue, ws, plain()?, FAR + 28), "permute_into: out overlaps ids");
    let routing = plain()?.expert_map(dev.lend(FAR + 4096, 3)?);
    refused(permute(&mut plan, queue, ws, routing, FAR + 4096), "permute_into: out overlaps expert_map");
    let routing = plain()?.valid_tokens(dev.lend(FAR + 4096, 1)?);
    refused(permute(&mut plan, queue, ws, routing, FAR + 4096), "permute_into: out overlaps valid_tokens");

    assert_eq!(toy::launches(), launches, "something was launched");
    // One byte after the other is no overlap, and the plan is still built.
    plan.gather(r(FAR, 4)?).run_into(queue, rm(FAR + 128, 8)?)?;
    permute(&mut plan, queue, ws, plain()?, FAR + 32)?;
    assert_eq!(toy::launches(), launches + 3, "build and gather of permute, and a gather");
    Ok(())
}

#[test]
fn quantised_rows_activations_and_products_that_overlap_are_refused_before_any_launch() -> Result<()> {
    let (dev, mut queue, mut workspace, mut plan) = setup()?;
    let (queue, dev) = (&mut queue, dev.raw());
    let launches = toy::launches();
    let r = |start, n: usize, cols| dev.lend::<f32>(start, n * cols)?.rows(cols);
    let rm = |start, n: usize, cols| dev.lend_mut::<f32>(start, n * cols)?.rows(cols);

    // Values take 64 bytes, scales 32.
    let gather = |queue: &mut _, rows, values, scales| -> Result<()> {
        let (values, scales) = (dev.lend_mut(values, 64)?.rows(8)?, dev.lend_mut(scales, 8)?);
        plan.gather_quant(r(rows, 4, 8)?, PerToken).run_into(queue, values, scales)
    };
    refused(gather(queue, FAR, FAR + 124, 0), "gather_quant: values overlaps rows");
    refused(gather(queue, FAR, 0, FAR + 124), "gather_quant: scales overlaps rows");
    refused(gather(queue, FAR, 0, 60), "gather_quant: values overlaps scales");

    // Gate and up overlap nothing but each other, which they may.
    let swiglu = |queue: &mut _, up, out| plan.swiglu_of(r(FAR, 8, 8)?, r(up, 8, 8)?).run_into(queue, rm(out, 8, 8)?);
    refused(swiglu(queue, 0, FAR + 252), "swiglu: out overlaps gate");
    refused(swiglu(queue, 0, 252), "swiglu: out overlaps up");
    let fused = |queue: &mut _, out| plan.swiglu(r(FAR, 8, 16)?)?.run_into(queue, rm(out, 8, 8)?);
    refused(fused(queue, FAR + 512 - 36), "swiglu: out overlaps gate");
    refused(fused(queue, FAR + 512 - 4), "swiglu: out overlaps up");
    let quant = |queue: &mut _, values, scales| -> Result<()> {
        let (values, scales) = (dev.lend_mut(values, 64)?.rows(8)?, dev.lend_mut(scales, 8)?);
        plan.swiglu(r(FAR, 8, 16)?)?.quantized(PerToken).run_into(queue, values, scales)
    };
    refused(quant(queue, FAR, 0), "swiglu_quant: values overlaps gate");
    refused(quant(queue, 0, FAR + 508), "swiglu_quant: scales overlaps up");

    let mut matmul = toy::ToyMatmul;
    let mut product = |queue: &mut _, out| -> Result<()> {
        let (rows, weights) = (dev.lend::<F8E4M3>(FAR, 64)?.rows(8)?, dev.lend::<F8E4M3>(4096, 24 * 8)?.rows(8)?);
        let op = plan.grouped_matmul(rows, weights).row_scales(dev.lend(8192, 8)?, 8, ScaleLayout::RowMajor);
        op.weight_scales(dev.lend(12_288, 24)?, [1, 8]).run_into(queue, &mut matmul, rm(out, 8, 8)?)
    };
    refused(product(queue, FAR + 60), "grouped_matmul: out overlaps rows");
    refused(product(queue, 4096 + 188), "grouped_matmul: out overlaps weights");
    refused(product(queue, 8192), "grouped_matmul: out overlaps row_scales");
    refused(product(queue, 12_288 + 92), "grouped_matmul: out overlaps weight_scales");
    assert_eq!(toy::launches(), launches, "something was launched");
    fused(queue, FAR + 512)?;
    product(queue, FAR + 64)?;
    assert_eq!(toy::launches(), launches + 2, "what does not overlap runs");

    let mut permute = |queue: &mut _, out, scales_out| {
        let routing = Routing::top_k(dev.lend::<i32>(FAR, 8)?);
        let (rows, scales, scales_out) = (r(4096, 4, 8)?, r(8192, 4, 1)?, rm(scales_out, 8, 1)?);
        plan.permute_with_scales(queue, &mut workspace, spec(), routing, rows, rm(out, 8, 8)?, scales, scales_out)
    };
    refused(permute(queue, FAR + 28, 0), "permute_with_scales: out overlaps ids");
    refused(permute(queue, 0, FAR + 28), "permute_with_scales: scales_out overlaps ids");
    refused(permute(queue, 0, 252), "permute_with_scales: out overlaps scales_out");
    refused(permute(queue, 8192, 0), "permute_with_scales: out overlaps scales");
    refused(permute(queue, 0, 4096), "permute_with_scales: scales_out overlaps rows");
    permute(queue, FAR + 32, FAR + 4096)
}

#[test]
fn outputs_of_tables_and_routes_that_overlap_are_refused_before_any_launch() -> Result<()> {
    let (dev, mut queue, mut workspace, plan) = setup()?;
    let (queue, dev, ws) = (&mut queue, dev.raw(), &mut workspace);
    let mask = || dev.lend::<i32>(FAR, 12)?.rows(3);
    let probs = || dev.lend::<f32>(FAR + 4096, 12)?.rows(3);
    let mask_spec = PlanSpec::mask(4, 3).max_routes(2).with_probs::<f32>();
    let mut of_mask = RoutePlan::new(queue, ws, mask_spec, Routing::mask(mask()?).probs(probs()?))?;
    let launches = toy::launches();

    // 8 routes in blocks of 4 of 3 experts: 20 entries, 5 blocks.
    let table = |queue: &mut _, sorted, experts, number| -> Result<()> {
        let (sorted, experts) = (dev.lend_mut(sorted, 20)?, dev.lend_mut(experts, 5)?);
        plan.block_table(4).run_into(queue, sorted, experts, dev.lend_mut(number, 1)?)
    };
    refused(table(queue, FAR, FAR + 76, 0), "block_table: expert_ids overlaps sorted_token_ids");
    refused(table(queue, FAR, 0, FAR + 76), "block_table: num_tokens_post_padded overlaps sorted_token_ids");
    refused(table(queue, FAR, 0, 16), "block_table: num_tokens_post_padded overlaps expert_ids");

    let values = |start, n: usize| dev.lend::<f32>(start, n)?.rows(1);
    let out = |start, n: usize| dev.lend_mut::<f32>(start, n)?.rows(1);
    let op = plan.gather_routes(values(FAR, 8)?);
    refused(op.run_into(queue, out(FAR + 28, 8)?), "gather: out overlaps rows");
    let op = plan.combine_routes(values(FAR, 8)?);
    refused(op.run_into::<f32>(queue, out(FAR + 28, 8)?), "combine: out overlaps rows");
    let op = of_mask.mask_grad(dev.lend::<f32>(FAR, 8)?);
    refused(op.run_into(queue, dev.lend_mut(FAR + 28, 12)?.rows(3)?), "mask_grad: out overlaps values");
    for (start, arg) in [(4096, "rows"), (FAR, "grad")] {
        let op = plan.gather_grad_weights(values(4096, 4)?, values(FAR, 8)?);
        let message = format!("gather_grad_weights: out overlaps {arg}");
        refused(op.run_into::<f32>(queue, dev.lend_mut(start, 8)?), &message);
    }

    let mut permute = |queue: &mut _, start| {
        let routing = Routing::mask(mask()?).probs(probs()?);
        of_mask.permute_into(queue, ws, mask_spec, routing, values(0, 4)?, out(start, 8)?)
    };
    refused(permute(queue, FAR + 44), "permute_into: out overlaps mask");
    refused(permute(queue, FAR + 4096 + 44), "permute_into: out overlaps probs");
    let mut of_chunks = RoutePlan::alloc(queue, PlanSpec::chunks(4, 3))?;
    let mut permute = |queue: &mut _, start| {
        let routing = Routing::chunks(dev.lend(FAR, 3)?, Some(dev.lend(FAR + 64, 3)?));
        of_chunks.permute_into(queue, ws, PlanSpec::chunks(4, 3), routing, values(0, 4)?, out(start, 4)?)
    };
    refused(permute(queue, FAR + 8), "permute_into: out overlaps sizes");
    refused(permute(queue, FAR + 72), "permute_into: out overlaps order");
    assert_eq!(toy::launches(), launches, "something was launched");
    Ok(())
}

#[test]
fn a_plan_stays_as_it_was_where_mask_maps_are_not_supported() -> Result<()> {
    let (dev, mut queue, mut workspace, _) = setup()?;
    let (queue, dev, ws) = (&mut queue, dev.raw(), &mut workspace);
    let mask_spec = PlanSpec::mask(4, 3);
    let routing = || Ok::<_, moe_core::Error>(Routing::mask(dev.lend::<u8>(FAR, 12)?.rows(3)?));
    ws.grow(queue, Limits::new(4, 3, 3))?;
    let mut plan = RoutePlan::alloc(queue, mask_spec)?;
    toy::know_masks(false);
    refused(plan.build_into(queue, ws, mask_spec, routing()?), "expand_mask: not supported by toy: not now");
    let error = plan.status(queue).unwrap_err().to_string();
    assert_eq!(error, "RoutePlan::status: the route plan was allocated but not built yet");
    toy::know_masks(true);
    plan.build_into(queue, ws, mask_spec, routing()?)?;
    toy::know_masks(false);
    refused(plan.build_into(queue, ws, mask_spec, routing()?), "expand_mask: not supported by toy: not now");
    plan.status(queue)?; // still built
    toy::know_masks(true);
    Ok(())
}

#[test]
fn misaligned_or_short_memory_cannot_become_a_view() -> Result<()> {
    let dev = Dev::<Toy>::open(&"toy:1".parse()?)?;
    for (start, ok) in [(4096, true), (4097, false), (4098, false), (4100, true)] {
        assert_eq!(dev.raw().lend::<f32>(start, 3).is_ok(), ok, "{start}");
    }
    let error = dev.raw().lend::<f16>(4097, 3).expect_err("odd address").to_string();
    assert_eq!(error, "View::from_raw: memory is not aligned to the 2 bytes of its elements");
    let error = dev.raw().lend_mut::<i64>(4100, 3).expect_err("address of 4").to_string();
    assert_eq!(error, "ViewMut::from_raw: memory is not aligned to the 8 bytes of its elements");
    Ok(())
}

#[test]
fn a_workspace_of_another_stream_is_refused_by_name() -> Result<()> {
    let (dev, _, mut workspace, _) = setup()?;
    let mut other = dev.queue()?;
    let ids = other.zeros::<i32>(8)?;
    let result = RoutePlan::new(&mut other, &mut workspace, spec(), Routing::top_k(ids.view()));
    assert_eq!(result.unwrap_err().to_string(), "build_into: workspace belongs to another stream of toy:0");
    let result = workspace.grow(&mut other, Limits::new(99, 2, 3));
    assert_eq!(result.unwrap_err().to_string(), "Workspace::grow: workspace belongs to another stream of toy:0");
    Ok(())
}
