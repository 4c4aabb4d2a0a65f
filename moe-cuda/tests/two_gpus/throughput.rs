//! Both GPUs together against one.

use crate::both;
use crate::common::{Batch, Rng};
use half::bf16;
use moe_core::{Buf, Dev, PlanSpec, Queue, Result, RoutePlan, Routing, Workspace};
use moe_cuda::{Capture, Captured, Cuda};
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

/// DeepSeek-V3's layer.
const BATCH: Batch = Batch { tokens: 16_384, top_k: 8, experts: 256, hidden: 7_168 };
/// Permutes and unpermutes of a graph, and replays of a sample.
const CALLS: usize = 10;
const REPLAYS: usize = 4;
const ROUNDS: usize = 11;

struct Layer {
    workspace: Workspace<Cuda>,
    plan: RoutePlan<Cuda>,
    ids: Buf<Cuda, i32>,
    x: Buf<Cuda, bf16>,
    weights: Buf<Cuda, f32>,
    rows: Buf<Cuda, bf16>,
    out: Buf<Cuda, bf16>,
}

fn spec() -> PlanSpec {
    PlanSpec::new(BATCH.tokens, BATCH.top_k, BATCH.experts)
}

/// Uniform, without repeats within a token.
fn ids() -> Vec<i32> {
    let mut rng = Rng(1);
    let mut experts: Vec<i32> = (0..BATCH.experts as i32).collect();
    let mut ids = Vec::new();
    for _ in 0..BATCH.tokens {
        for k in 0..BATCH.top_k {
            let other = k + rng.below(BATCH.experts - k);
            experts.swap(k, other);
        }
        ids.extend_from_slice(&experts[..BATCH.top_k]);
    }
    ids
}

impl Layer {
    fn new(queue: &mut Queue<'_, Cuda>, ids: &[i32], x: &[bf16]) -> Result<Self> {
        let plan = RoutePlan::alloc(queue, spec())?;
        Ok(Self {
            workspace: Workspace::new(queue, BATCH.limits())?,
            ids: queue.upload(ids)?,
            x: queue.upload(x)?,
            weights: queue.upload(&vec![1.0 / BATCH.top_k as f32; ids.len()])?,
            rows: queue.zeros(plan.num_rows() * BATCH.hidden)?,
            out: queue.zeros(BATCH.tokens * BATCH.hidden)?,
            plan,
        })
    }

    fn enqueue(&mut self, queue: &mut Queue<'_, Cuda>) -> Result<()> {
        let h = BATCH.hidden;
        let (routing, rows) = (Routing::top_k(self.ids.view()), self.rows.rows_mut(h)?);
        self.plan.permute_into(queue, &mut self.workspace, spec(), routing, self.x.rows(h)?, rows)?;
        let combine = self.plan.combine(self.rows.rows(h)?).weights(self.weights.view());
        combine.run_into(queue, self.out.rows_mut(h)?)
    }
}

/// A GPU with its graph.
struct Side {
    queue: Queue<'static, Cuda>,
    graph: Captured<'static>,
    layer: Layer,
}

impl Side {
    fn new(device: &Dev<Cuda>, ids: &[i32], x: &[bf16]) -> Self {
        let mut queue = device.queue().unwrap();
        let mut layer = Layer::new(&mut queue, ids, x).unwrap();
        let graph = queue.capture(|queue, _| (0..CALLS).try_for_each(|_| layer.enqueue(queue))).unwrap();
        Self { queue, graph, layer }
    }

    fn sample(&mut self) {
        for _ in 0..REPLAYS {
            self.graph.replay().unwrap();
        }
        self.queue.synchronize().unwrap();
    }

    /// Milliseconds of a permute and unpermute.
    fn alone(&mut self) -> f64 {
        let start = Instant::now();
        self.sample();
        start.elapsed().as_secs_f64() * 1e3 / (CALLS * REPLAYS) as f64
    }
}

/// Milliseconds of a permute and unpermute on each side, from the common start to the later end.
fn together(sides: &mut [Side; 2]) -> f64 {
    let barrier = Barrier::new(2);
    let ends = thread::scope(|scope| {
        let handles = sides.each_mut().map(|side| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                let start = Instant::now();
                side.sample();
                (start, Instant::now())
            })
        });
        handles.map(|handle| handle.join().unwrap())
    });
    let (start, end) = (ends[0].0.min(ends[1].0), ends[0].1.max(ends[1].1));
    (end - start).as_secs_f64() * 1e3 / (CALLS * REPLAYS) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn two_gpus_do_at_least_1_95_times_the_work_of_one() {
    let Some(devices) = both() else { return };
    let mut rng = Rng(2);
    let (ids, x) = (ids(), rng.floats::<bf16>(BATCH.tokens * BATCH.hidden));
    let mut sides = devices.each_ref().map(|device| Side::new(device, &ids, &x));
    sides.iter_mut().for_each(Side::sample);
    together(&mut sides);
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let [first, second] = &mut sides;
        times[0].push(first.alone());
        times[1].push(second.alone());
        times[2].push(together(&mut sides));
    }
    let [first, second, both] = times.map(median);
    let ratio = 2.0 * first.min(second) / both;
    let rate = |tokens: usize, ms: f64| tokens as f64 / ms / 1e3;
    println!("permute and unpermute, dsv3, bf16, T = {} on each GPU, median of {ROUNDS}:", BATCH.tokens);
    println!("  cuda:0 alone  {first:.3} ms, {:.2} million tokens/s", rate(BATCH.tokens, first));
    println!("  cuda:1 alone  {second:.3} ms, {:.2} million tokens/s", rate(BATCH.tokens, second));
    println!("  both together {both:.3} ms, {:.2} million tokens/s", rate(2 * BATCH.tokens, both));
    println!("fact: throughput: both GPUs do {ratio:.3} times the work of the faster one");

    // The weights of a token add up to one, exactly.
    for Side { queue, layer, .. } in &mut sides {
        assert!(queue.download(layer.out.view()).unwrap() == x, "what was timed was wrong");
    }
    assert!(ratio >= 1.95, "{ratio:.3} times the work of one");
}
