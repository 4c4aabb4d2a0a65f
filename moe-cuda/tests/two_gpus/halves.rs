//! Expert parallelism: each GPU has half of the experts and combines what it has, in f32.

use crate::both;
use crate::common::{Batch, Rng};
use moe_core::{Buf, Dev, RoutePlan, Routing, Workspace};
use moe_cuda::Cuda;
use std::thread;

struct Inputs {
    batch: Batch,
    ids: Vec<i32>,
    x: Vec<f32>,
    weights: Vec<f32>,
}

/// What stands for expert `e`, rounded once: it scales its rows.
fn expert(e: usize, x: f32) -> f32 {
    x * (1.0 + e as f32 / 7.0)
}

/// The layer with the experts that `map` makes local, in their order: its partial sums, and how many rows it had.
fn partial(device: &Dev<Cuda>, inputs: &Inputs, local: &[usize]) -> (Vec<f32>, usize) {
    let Inputs { batch, ids, x, weights } = inputs;
    let mut map = vec![-1; batch.experts];
    local.iter().enumerate().for_each(|(index, expert)| map[*expert] = index as i32);
    let mut queue = device.queue().unwrap();
    let mut workspace = Workspace::new(&mut queue, batch.limits()).unwrap();
    let (ids, x) = (queue.upload(ids).unwrap(), queue.upload(x).unwrap());
    let (weights, map) = (queue.upload(weights).unwrap(), queue.upload(&map).unwrap());
    let spec = batch.spec().local_experts(local.len());
    let routing = Routing::top_k(ids.view()).expert_map(map.view());
    let x = x.rows(batch.hidden).unwrap();
    let (plan, mut rows) = RoutePlan::permute(&mut queue, &mut workspace, spec, routing, x).unwrap();
    let offsets = queue.download(plan.expert_offsets()).unwrap();
    let mut values = queue.download(rows.view()).unwrap();
    for (range, e) in offsets.windows(2).zip(local) {
        let rows = &mut values[range[0] as usize * batch.hidden..range[1] as usize * batch.hidden];
        rows.iter_mut().for_each(|value| *value = expert(*e, *value));
    }
    queue.write(&values, rows.view_mut()).unwrap();
    let combine = plan.combine(rows.rows(batch.hidden).unwrap()).weights(weights.view());
    let out: Buf<Cuda, f32> = combine.run(&mut queue).unwrap();
    (queue.download(out.view()).unwrap(), offsets[local.len()] as usize)
}

fn halves_add_up(devices: &[Dev<Cuda>; 2], batch: Batch, first: Vec<usize>) {
    let mut rng = Rng(batch.tokens as u64);
    let n = batch.tokens * batch.top_k;
    let (ids, weights) = (rng.ids(n, batch.experts), rng.floats(n));
    let inputs = Inputs { batch, ids, weights, x: rng.floats(batch.tokens * batch.hidden) };
    let second: Vec<usize> = (0..batch.experts).filter(|e| !first.contains(e)).collect();
    let all: Vec<usize> = (0..batch.experts).collect();

    let (whole, rows) = partial(&devices[0], &inputs, &all);
    let [(a, rows_a), (b, rows_b)] = thread::scope(|scope| {
        let inputs = &inputs;
        let run = |device, local| scope.spawn(move || partial(device, inputs, local));
        [run(&devices[0], &first), run(&devices[1], &second)].map(|handle| handle.join().unwrap())
    });
    assert!(rows_a > 0 && rows_b > 0 && rows_a + rows_b == rows, "{rows_a} + {rows_b} of {rows} rows");
    for (i, whole) in whole.iter().enumerate() {
        let routes = i / batch.hidden * batch.top_k..(i / batch.hidden + 1) * batch.top_k;
        let terms = routes.filter(|x| (0..batch.experts as i32).contains(&inputs.ids[*x])).map(|x| {
            let y = expert(inputs.ids[x] as usize, inputs.x[i]);
            f64::from(inputs.weights[x]).abs() * f64::from(y).abs()
        });
        let bound = terms.sum::<f64>() * batch.top_k as f64 * 2f64.powi(-23);
        let ulp = f64::from(f32::from_bits(whole.abs().to_bits() + 1)) - f64::from(whole.abs());
        let error = (f64::from(a[i] + b[i]) - f64::from(*whole)).abs();
        assert!(error <= ulp + bound, "{batch:?}, element {i}: {} + {} is not {whole}", a[i], b[i]);
    }
}

#[test]
fn expert_parallel_halves_add_up_to_the_whole() {
    let Some(devices) = both() else { return };
    let small = Batch { tokens: 257, top_k: 8, experts: 64, hidden: 256 };
    halves_add_up(&devices, small, (0..32).collect());
    // Every other expert, and halves of different size, backwards.
    halves_add_up(&devices, small, (0..64).step_by(2).collect());
    let large = Batch { tokens: 2_049, top_k: 8, experts: 256, hidden: 1_031 };
    halves_add_up(&devices, large, (0..100).rev().collect());
}
