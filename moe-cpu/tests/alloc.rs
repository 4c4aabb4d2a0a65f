//! No `_into` form allocates after warm-up, on the calling thread or inside the pool.
//!
//! The calls are made from a thread of the device's pool: rayon's queue of jobs that come from outside takes a block
//! of memory for every 63 of them, whatever they are.

use moe_core::float8::F8E4M3;
use moe_core::half::bf16;
use moe_core::quant::PerToken;
use moe_core::{Dev, Layout, Limits, PlanSpec, Queue, Result, RoutePlan, Router, Routing, Scoring, Workspace};
use moe_cpu::Cpu;
use std::alloc::{GlobalAlloc, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts what all threads ask it for.
struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: std::alloc::Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: std::alloc::Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: std::alloc::Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs `op` until the pool's queues have their size, then counts. The work is large enough for every thread.
fn allocations(queue: &mut Queue<'_, Cpu>, mut op: impl FnMut(&mut Queue<'_, Cpu>) -> Result<()>) -> Result<usize> {
    for _ in 0..WARM_UP {
        op(queue)?;
    }
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for _ in 0..RUNS {
        op(queue)?;
    }
    Ok(ALLOCATIONS.load(Ordering::SeqCst) - before)
}

const WARM_UP: usize = 3;
const RUNS: usize = 50;

/// One test, so that no other allocates meanwhile.
#[test]
fn into_forms_allocate_nothing_after_warm_up() -> Result<()> {
    let device = Dev::<Cpu>::open(&"cpu".parse()?)?;
    device.raw().pool().install(|| check(&device))
}

fn check(device: &Dev<Cpu>) -> Result<()> {
    let (tokens, top_k, experts, hidden) = (4096, 8, 64, 64);
    let mut queue = device.queue()?;
    let q = &mut queue;
    let mut workspace = Workspace::new(q, Limits::new(tokens, top_k, experts))?;
    let id = |x: usize| (x * 7919 % 1009 % experts) as i32;
    let ids = q.upload(&(0..tokens * top_k).map(id).collect::<Vec<_>>())?;
    let map = q.upload(&(0..experts as i32).rev().collect::<Vec<_>>())?;
    let valid = q.upload(&[tokens as i32 - 5])?;
    let weights = q.upload(&vec![0.5f32; tokens * top_k])?;
    let mut found = Vec::new();
    for layout in [Layout::Packed, Layout::Aligned(16)] {
        let spec = PlanSpec::new(tokens, top_k, experts).layout(layout).with_m_indices().with_logical_load();
        let routing = || Routing::top_k(ids.view()).expert_map(map.view()).valid_tokens(valid.view());
        let mut plan = RoutePlan::new(q, &mut workspace, spec, routing())?;
        let r = plan.num_rows();
        let x = q.upload(&vec![bf16::ONE; tokens * hidden])?;
        let mut y = q.zeros::<bf16>(r * hidden)?;
        let mut out = q.zeros::<bf16>(tokens * hidden)?;
        let (y8, scales) = (q.zeros::<F8E4M3>(r * hidden)?, q.zeros::<f32>(r)?);
        let (mut z8, mut z8_scales) = (q.zeros::<F8E4M3>(r * hidden)?, q.zeros::<f32>(r)?);
        let mut act = q.zeros::<bf16>(r * hidden / 2)?;
        let (mut grad_rows, mut grad_weights) = (q.zeros::<bf16>(r * hidden)?, q.zeros::<f32>(tokens * top_k)?);

        let n = allocations(q, |q| plan.build_into(q, &mut workspace, spec, routing()))?;
        found.push((layout, "build_into", n));
        let n = allocations(q, |q| {
            plan.permute_into(q, &mut workspace, spec, routing(), x.rows(hidden)?, y.rows_mut(hidden)?)
        })?;
        found.push((layout, "permute_into", n));
        let n = allocations(q, |q| plan.gather(x.rows(hidden)?).run_into(q, y.rows_mut(hidden)?))?;
        found.push((layout, "gather", n));
        let weighted = || Ok::<_, moe_core::Error>(plan.gather(x.rows(hidden)?).weights(weights.view()));
        let n = allocations(q, |q| weighted()?.run_into(q, y.rows_mut(hidden)?))?;
        found.push((layout, "weighted gather", n));
        let n = allocations(q, |q| {
            let op = plan.combine(y.rows(hidden)?).weights(weights.view()).residual(x.rows(hidden)?);
            op.run_into(q, out.rows_mut(hidden)?)
        })?;
        found.push((layout, "combine", n));
        let n = allocations(q, |q| {
            let op = plan.combine(y8.rows(hidden)?).weights(weights.view()).scales(scales.rows(1)?, hidden);
            op.run_into(q, out.rows_mut(hidden)?)
        })?;
        found.push((layout, "combine of 8-bit floats", n));
        let n = allocations(q, |q| {
            let op = plan.combine_grad(x.rows(hidden)?).weights(weights.view()).rows(y.rows(hidden)?);
            op.run_into(q, Some(grad_rows.rows_mut(hidden)?), Some(grad_weights.view_mut()))
        })?;
        found.push((layout, "combine_grad", n));
        let op = || Ok::<_, moe_core::Error>(plan.gather_quant(x.rows(hidden)?, PerToken));
        let n = allocations(q, |q| op()?.run_into(q, z8.rows_mut(hidden)?, z8_scales.view_mut()))?;
        found.push((layout, "gather_quant", n));
        let op = || plan.swiglu(y.rows(hidden)?);
        let n = allocations(q, |q| op()?.run_into(q, act.rows_mut(hidden / 2)?))?;
        found.push((layout, "swiglu", n));
        let n = allocations(q, |q| {
            let (values, scales) = (z8.view_mut().slice(0..r * hidden / 2)?, z8_scales.view_mut());
            op()?.quantized(PerToken).run_into(q, values.rows(hidden / 2)?, scales)
        })?;
        found.push((layout, "swiglu_quant", n));
        let n = allocations(q, |q| plan.zero_tail(q, grad_rows.rows_mut(hidden)?))?;
        found.push((layout, "zero_tail", n));
    }
    found.extend(routes(q, &mut workspace)?);
    let router = Router::new(experts, top_k).scoring(Scoring::Sigmoid).renormalize().groups(8, 4);
    let (logits, bias) = (q.upload(&vec![bf16::ONE; tokens * experts])?, q.zeros::<f32>(experts)?);
    let (mut ids, mut weights) = (q.zeros::<i32>(tokens * top_k)?, q.zeros::<f32>(tokens * top_k)?);
    let (mut terms, mut losses) = (q.zeros::<f32>(tokens * 2)?, q.zeros::<f32>(2)?);
    let mut grad = q.zeros::<bf16>(tokens * experts)?;
    let n = allocations(q, |q| {
        let route = router.route(logits.rows(experts)?).correction_bias(bias.view());
        route.run_into(q, ids.view_mut(), weights.view_mut())
    })?;
    found.push((Layout::Packed, "route", n));
    let n = allocations(q, |q| {
        router.losses(logits.rows(experts)?).z(0.1).run_into(q, terms.view_mut(), losses.view_mut())
    })?;
    found.push((Layout::Packed, "router losses", n));
    let n = allocations(q, |q| {
        let op = router.grad(logits.rows(experts)?).weights(ids.view(), weights.view()).z(0.1);
        op.run_into(q, grad.rows_mut(experts)?)
    })?;
    found.push((Layout::Packed, "router grad", n));
    // The counter works: an allocating form is seen.
    let seen = allocations(q, |q| q.zeros::<u8>(1).map(drop))?;
    assert!(seen >= RUNS, "the counter saw {seen} of {RUNS} allocations");
    let guilty: Vec<_> = found.iter().filter(|(_, _, n)| *n > 0).collect();
    assert!(guilty.is_empty(), "allocations in {RUNS} runs: {guilty:?}");
    Ok(())
}

/// Plans of masks and chunks, and what is derived from a plan.
fn routes(q: &mut Queue<'_, Cpu>, workspace: &mut Workspace<Cpu>) -> Result<Vec<(Layout, &'static str, usize)>> {
    let (tokens, experts, top_k, block) = (4096, 64, 8, 16);
    let mut found = Vec::new();
    let mut count = |what, n| found.push((Layout::Packed, what, n));
    let set = |i: usize| u8::from((i * 7919 % 1009).is_multiple_of(9));
    let mask = q.upload(&(0..tokens * experts).map(set).collect::<Vec<_>>())?;
    let probs = q.upload(&vec![bf16::ONE; tokens * experts])?;
    let spec = PlanSpec::mask(tokens, experts).max_routes(top_k).with_probs::<bf16>();
    let routing = || Ok::<_, moe_core::Error>(Routing::mask(mask.rows(experts)?).probs(probs.rows(experts)?));
    let mut plan = RoutePlan::new(q, workspace, spec, routing()?)?;
    count("build_into of a mask", allocations(q, |q| plan.build_into(q, workspace, spec, routing()?))?);
    let mut by_row = q.zeros::<bf16>(plan.num_rows())?;
    let run =
        |q: &mut Queue<'_, Cpu>| plan.gather_routes(plan.probs::<bf16>()?.rows(1)?).run_into(q, by_row.rows_mut(1)?);
    count("gather_routes", allocations(q, run)?);
    let mut by_route = q.zeros::<bf16>(tokens * top_k)?;
    let run = |q: &mut Queue<'_, Cpu>| plan.combine_routes(by_row.rows(1)?).run_into(q, by_route.rows_mut(1)?);
    count("combine_routes", allocations(q, run)?);
    let mut grad = q.zeros::<bf16>(tokens * experts)?;
    let run = |q: &mut Queue<'_, Cpu>| plan.mask_grad(by_route.view()).run_into(q, grad.rows_mut(experts)?);
    count("mask_grad", allocations(q, run)?);
    let len = plan.block_table(block).len()?;
    let (mut sorted, mut ids, mut used) = (q.zeros(len)?, q.zeros(len / block)?, q.zeros(1)?);
    let run = |q: &mut Queue<'_, Cpu>| {
        plan.block_table(block).run_into(q, sorted.view_mut(), ids.view_mut(), used.view_mut())
    };
    count("block_table", allocations(q, run)?);
    let mut sizes = q.zeros(8)?;
    count("split_sizes", allocations(q, |q| plan.split_sizes(8).run_into(q, sizes.view_mut()))?);

    let (sizes, order) = (q.upload(&[1024; 4])?, q.upload(&[2, 0, 3, 1])?);
    let (spec, routing) = (PlanSpec::chunks(tokens, 4), || Routing::chunks(sizes.view(), Some(order.view())));
    let mut plan = RoutePlan::new(q, workspace, spec, routing())?;
    count("build_into of chunks", allocations(q, |q| plan.build_into(q, workspace, spec, routing()))?);
    Ok(found)
}
