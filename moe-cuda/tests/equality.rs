//! CUDA and the CPU agree bit for bit, at every size at which another kernel or another cut is chosen.

mod common;

use common::{Batch, Rng, cpu, device, layer, sanitized, wanted};
use half::{bf16, f16};
use moe_core::{Float, Layout, Limits, PlanSpec, RoutePlan, Routing, Workspace};

fn same<T: Float>(batch: Batch, layout: Layout) {
    let Some(device) = device(&wanted()) else { return };
    let mut rng = Rng(batch.tokens as u64 + 31 * batch.hidden as u64);
    let n = batch.tokens * batch.top_k;
    let (ids, x) = (rng.ids(n, batch.experts), rng.floats::<T>(batch.tokens * batch.hidden));
    let weights = rng.floats::<f32>(n);
    let spec = batch.spec().layout(layout);
    let ours = layer(&mut device.queue().unwrap(), batch, spec, &ids, &x, &weights);
    let reference = layer(&mut cpu(), batch, spec, &ids, &x, &weights);
    assert_eq!(ours.arrays, reference.arrays, "{batch:?} {layout:?}");
    assert_eq!(ours.status, reference.status, "{batch:?} {layout:?}");
    for (name, a, b) in [("rows", &ours.rows, &reference.rows), ("out", &ours.out, &reference.out)] {
        let differ = a.iter().zip(b).position(|(a, b)| a.to_f32().to_bits() != b.to_f32().to_bits());
        assert!(a.len() == b.len() && differ.is_none(), "{name} differ at {differ:?}: {batch:?} {layout:?}");
    }
}

#[test]
fn permute_and_unpermute_equal_the_cpu_at_every_change_of_kernel() {
    let tokens: &[usize] =
        if sanitized() { &[1, 7, 64] } else { &[0, 1, 7, 64, 65, 128, 129, 512, 513, 1_023, 1_024, 1_025, 4_097] };
    for &tokens in tokens {
        same::<bf16>(Batch { tokens, top_k: 8, experts: 256, hidden: 1_024 }, Layout::Packed);
        same::<f32>(Batch { tokens, top_k: 2, experts: 7, hidden: 512 }, Layout::Packed);
        same::<f32>(Batch { tokens, top_k: 2, experts: 7, hidden: 513 }, Layout::Aligned(16));
        same::<f16>(Batch { tokens, top_k: 4, experts: 64, hidden: 264 }, Layout::Aligned(16));
    }
    if !sanitized() {
        same::<f16>(Batch { tokens: 33, top_k: 1, experts: 4_096, hidden: 24 }, Layout::Packed);
        same::<bf16>(Batch { tokens: 511, top_k: 33, experts: 64, hidden: 128 }, Layout::Padded(300));
        same::<bf16>(Batch { tokens: 16_384, top_k: 8, experts: 256, hidden: 64 }, Layout::Aligned(128));
    }
}

/// Rows that are moved in the order of a list, and sizes just below that.
#[test]
fn permute_of_many_long_rows_equals_the_cpu() {
    if sanitized() {
        return; // `sanitize` has a smaller one
    }
    for tokens in [4_095, 4_096, 8_191, 8_192] {
        same::<bf16>(Batch { tokens, top_k: 8, experts: 256, hidden: 4_100 }, Layout::Padded(40));
        same::<bf16>(Batch { tokens, top_k: 8, experts: 256, hidden: 4_104 }, Layout::Padded(40));
    }
    same::<bf16>(Batch { tokens: 4_097, top_k: 8, experts: 256, hidden: 4_096 }, Layout::Packed);
    same::<f32>(Batch { tokens: 4_097, top_k: 8, experts: 64, hidden: 2_048 }, Layout::Aligned(128));
}

/// A call that takes for counts what an earlier one with other sizes left in scratch: all ways of making a plan, in
/// turn, with one workspace.
#[test]
fn one_workspace_serves_calls_of_all_sizes_in_turn() {
    if sanitized() {
        return; // no kernel that others do not launch
    }
    let Some(device) = device(&wanted()) else { return };
    let mut queue = device.queue().unwrap();
    let mut workspace = Workspace::new(&mut queue, Limits { max_routes: 65_536, max_experts: 4_096 }).unwrap();
    let mut rng = Rng(41);
    for round in 0..2 {
        for (tokens, top_k, experts, layout) in [
            (4_096, 8, 16, Layout::Padded(64)), // listed
            (3, 8, 256, Layout::Packed),        // by keys
            (1_000, 8, 256, Layout::Packed),    // the grid
            (8_192, 8, 16, Layout::Padded(64)), // listed, the longest
            (6_000, 1, 4_096, Layout::Packed),  // apart
            (1_024, 8, 4_096, Layout::Aligned(4)),
            (100, 8, 64, Layout::Aligned(4)), // small
        ] {
            let hidden = 4_096;
            let ids = rng.ids(tokens * top_k, experts);
            let x: Vec<bf16> = rng.floats(tokens * hidden);
            let spec = PlanSpec::new(tokens, top_k, experts).layout(layout).with_m_indices().with_logical_load();
            let on_device = (queue.upload(&ids).unwrap(), queue.upload(&x).unwrap());
            let routing = Routing::top_k(on_device.0.view());
            let input = on_device.1.rows(hidden).unwrap();
            let (plan, rows) = RoutePlan::permute(&mut queue, &mut workspace, spec, routing, input).unwrap();
            plan.validate(&mut queue).unwrap();
            let (rows, source) = (queue.download(rows.view()).unwrap(), queue.download(plan.source()).unwrap());
            for (row, source) in rows.chunks(hidden).zip(source) {
                if source >= 0 {
                    let from = source as usize / top_k * hidden;
                    let same = row.iter().zip(&x[from..from + hidden]).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "round {round}, {tokens} x {top_k}, {experts} experts: a row of route {source}");
                }
            }
        }
    }
}

/// Atomic orders that vary from run to run.
#[test]
fn a_hundred_repeats_are_bitwise_equal() {
    let Some(device) = device(&wanted()) else { return };
    let (batch, repeats) = if sanitized() {
        (Batch { tokens: 33, top_k: 16, experts: 128, hidden: 128 }, 3)
    } else {
        (Batch { tokens: 4_097, top_k: 16, experts: 128, hidden: 256 }, 100)
    };
    let mut rng = Rng(5);
    let n = batch.tokens * batch.top_k;
    let ids = rng.ids(n, batch.experts);
    let (x, weights) = (rng.floats::<bf16>(batch.tokens * batch.hidden), rng.floats::<f32>(n));
    let mut queue = device.queue().unwrap();
    let first = layer(&mut queue, batch, batch.spec(), &ids, &x, &weights);
    for repeat in 1..repeats {
        let again = layer(&mut queue, batch, batch.spec(), &ids, &x, &weights);
        assert!(again == first, "repeat {repeat} differs");
    }
}

/// Bug 23: shared memory that is assumed to be zero. A plan with other counts leaves its own there.
#[test]
fn bug_23_dirty_shared_memory_changes_nothing() {
    let Some(device) = device(&wanted()) else { return };
    let mut queue = device.queue().unwrap();
    let (tokens, top_k, experts) = (64, 8, 256);
    let mut workspace = Workspace::new(&mut queue, Limits::new(4_096, top_k, 4_096)).unwrap();
    let mut rng = Rng(23);
    let ids = rng.ids(tokens * top_k, experts);
    let on_device = queue.upload(&ids).unwrap();
    let spec = PlanSpec::new(tokens, top_k, experts);
    // Many blocks that fill all shared memory, on every multiprocessor, with counts of one expert.
    let skewed = queue.upload(&vec![4_095i32; 4_096 * top_k]).unwrap();
    let dirty = PlanSpec::new(4_096, top_k, 4_096);
    let mut slots = Vec::new();
    for round in 0..3 {
        if round > 0 {
            RoutePlan::new(&mut queue, &mut workspace, dirty, Routing::top_k(skewed.view())).unwrap();
        }
        let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(on_device.view())).unwrap();
        plan.validate(&mut queue).unwrap();
        slots.push(queue.download(plan.slot()).unwrap());
    }
    assert!(slots.windows(2).all(|w| w[0] == w[1]));
}
