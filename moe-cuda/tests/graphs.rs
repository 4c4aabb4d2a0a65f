//! Bug 22: CUDA graphs. Captured once, replayed with other ids, compared with the same work done without a graph.

mod common;

use common::{Batch, Rng, device, layer, read};
use half::bf16;
use moe_core::{Buf, Dev, Error, Queue, RoutePlan, Routing, Workspace};
use moe_cuda::cudarc::driver::CudaContext;
use moe_cuda::{Capture, Cuda, CudaDevice};

struct Layer {
    batch: Batch,
    workspace: Workspace<Cuda>,
    plan: RoutePlan<Cuda>,
    ids: Buf<Cuda, i32>,
    x: Buf<Cuda, bf16>,
    weights: Buf<Cuda, f32>,
    rows: Buf<Cuda, bf16>,
    out: Buf<Cuda, bf16>,
}

impl Layer {
    fn new(queue: &mut Queue<'_, Cuda>, batch: Batch) -> Self {
        let n = batch.tokens * batch.top_k;
        let plan = RoutePlan::alloc(queue, batch.spec()).unwrap();
        Self {
            batch,
            workspace: Workspace::new(queue, batch.limits()).unwrap(),
            ids: queue.zeros(n).unwrap(),
            x: queue.zeros(batch.tokens * batch.hidden).unwrap(),
            weights: queue.zeros(n).unwrap(),
            rows: queue.zeros(plan.num_rows() * batch.hidden).unwrap(),
            out: queue.zeros(batch.tokens * batch.hidden).unwrap(),
            plan,
        }
    }

    fn enqueue(&mut self, queue: &mut Queue<'_, Cuda>) -> moe_core::Result<()> {
        let h = self.batch.hidden;
        let routing = Routing::top_k(self.ids.view());
        let rows = self.rows.rows_mut(h)?;
        self.plan.permute_into(queue, &mut self.workspace, self.batch.spec(), routing, self.x.rows(h)?, rows)?;
        let rows = self.rows.rows(h)?;
        self.plan.combine(rows).weights(self.weights.view()).run_into(queue, self.out.rows_mut(h)?)
    }

    fn fill(&mut self, queue: &mut Queue<'_, Cuda>, seed: u64) -> (Vec<i32>, Vec<bf16>, Vec<f32>) {
        let mut rng = Rng(seed);
        let n = self.batch.tokens * self.batch.top_k;
        let ids = rng.ids(n, self.batch.experts);
        let (x, weights) = (rng.floats(self.batch.tokens * self.batch.hidden), rng.floats(n));
        queue.write(&ids, self.ids.view_mut()).unwrap();
        queue.write(&x, self.x.view_mut()).unwrap();
        queue.write(&weights, self.weights.view_mut()).unwrap();
        (ids, x, weights)
    }
}

fn batches() -> Vec<Batch> {
    let mut batches = vec![Batch { tokens: 16, top_k: 8, experts: 256, hidden: 256 }];
    if !common::sanitized() {
        // The kernels with a barrier of the whole grid.
        batches.push(Batch { tokens: 4_097, top_k: 8, experts: 256, hidden: 128 });
    }
    batches
}

fn replayed_equals_direct(device: &Dev<Cuda>, queue: &mut Queue<'_, Cuda>, batch: Batch) {
    let mut work = Layer::new(queue, batch);
    let mut graph = queue.capture(|queue, _| work.enqueue(queue)).unwrap();
    for seed in 1..4 {
        let (ids, x, weights) = work.fill(queue, seed);
        queue.fill(work.rows.view_mut(), 0).unwrap(); // as an allocating permute starts
        graph.replay().unwrap();
        let replayed = read(queue, &work.plan, &work.rows, &work.out);
        let direct = layer(&mut device.queue().unwrap(), batch, batch.spec(), &ids, &x, &weights);
        assert!(replayed == direct, "{batch:?}, seed {seed}");
    }
}

#[test]
fn bug_22_a_graph_replays_with_other_ids() {
    let Some(device) = device("cuda") else { return };
    for batch in batches() {
        replayed_equals_direct(&device, &mut device.queue().unwrap(), batch);
    }
}

#[test]
fn a_graph_keeps_the_buffers_that_it_uses() {
    let Some(device) = device("cuda") else { return };
    let mut queue = device.queue().unwrap();
    let batch = batches()[0];
    let mut work = Layer::new(&mut queue, batch);
    let (ids, x, weights) = work.fill(&mut queue, 9);
    let mut graph = queue.capture(|queue, _| work.enqueue(queue)).unwrap();
    let Layer { plan, rows, mut out, .. } = work; // everything else is dropped
    for _ in 0..8 {
        // Memory that was freed would be given out again, and overwritten.
        let mut other = queue.zeros::<f32>(1 << 16).unwrap();
        queue.fill(other.view_mut(), 0xff).unwrap();
    }
    queue.fill(out.view_mut(), 0).unwrap();
    graph.replay().unwrap();
    let replayed = read(&mut queue, &plan, &rows, &out);
    assert!(replayed == layer(&mut queue, batch, batch.spec(), &ids, &x, &weights));
    drop((plan, rows, out));
    graph.replay().unwrap();
    drop(graph);
    queue.synchronize().unwrap();
}

/// cudarc's event tracking: no event from outside may be waited for inside of a capture.
#[test]
fn a_callers_slices_are_captured_with_event_tracking_on() {
    if device("cuda").is_none() {
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    assert!(context.is_managing_stream_synchronization());
    let raw = CudaDevice::adopt(context).unwrap();
    let dev = Dev::<Cuda>::from_raw(raw.clone());
    let mut queue = dev.adopt_queue(raw.adopt_stream(stream.clone()).unwrap()).unwrap();
    let batch = batches()[0];
    let mut work = Layer::new(&mut queue, batch);
    let (ids, x, weights) = work.fill(&mut queue, 4);
    // Written on another stream, so that there are events to wait for.
    let x_words: Vec<u16> = x.iter().map(|v| v.to_bits()).collect();
    let slice = other.clone_htod(&x_words).unwrap();
    let mut result = other.alloc_zeros::<f32>(batch.tokens * batch.hidden).unwrap();
    let weights_slice = other.clone_htod(&weights).unwrap();
    {
        let mut graph = queue
            .capture(|queue, graph| {
                let weights = graph.lend::<f32>(&weights_slice)?;
                let out = graph.lend_mut::<f32>(&mut result)?;
                work.enqueue(queue)?;
                let rows = work.rows.rows(batch.hidden)?;
                work.plan.combine(rows).weights(weights).run_into(queue, out.rows(batch.hidden)?)
            })
            .unwrap();
        graph.replay().unwrap();
        graph.replay().unwrap();
    }
    let wide = other.clone_dtoh(&result).unwrap(); // ordered after the replay by the event that it recorded
    let direct = layer(&mut queue, batch, batch.spec(), &ids, &x, &weights);
    let rounded: Vec<bf16> = wide.iter().map(|v| bf16::from_f32(*v)).collect();
    assert!(rounded == direct.out);
    drop(slice);
}

#[test]
fn two_streams_of_one_graph_fork_and_join() {
    let Some(device) = device("cuda") else { return };
    let mut queue = device.queue().unwrap();
    let batch = batches()[0];
    let (mut a, mut b) = (Layer::new(&mut queue, batch), Layer::new(&mut queue, batch));
    let input_a = a.fill(&mut queue, 1);
    let input_b = b.fill(&mut queue, 2);
    let mut graph = queue
        .capture(|queue, graph| {
            let mut side = device.adopt_queue(graph.fork(queue)?)?;
            // A workspace belongs to the stream it was made on, so the plans are built there, and the rows move here.
            a.enqueue(queue)?;
            b.enqueue(queue)?;
            graph.join(&side, queue)?;
            let h = batch.hidden;
            a.plan.gather(a.x.rows(h)?).run_into(&mut side, a.rows.rows_mut(h)?)?;
            b.plan.gather(b.x.rows(h)?).run_into(queue, b.rows.rows_mut(h)?)?;
            graph.join(queue, &side)?;
            a.plan.combine(a.rows.rows(h)?).weights(a.weights.view()).run_into(queue, a.out.rows_mut(h)?)
        })
        .unwrap();
    for _ in 0..3 {
        graph.replay().unwrap();
    }
    for (work, (ids, x, weights)) in [(&a, input_a), (&b, input_b)] {
        let replayed = read(&mut queue, &work.plan, &work.rows, &work.out);
        assert!(replayed == layer(&mut device.queue().unwrap(), batch, batch.spec(), &ids, &x, &weights));
    }
}

#[test]
fn what_a_graph_cannot_hold_is_a_typed_error_and_leaves_the_stream_usable() {
    let Some(device) = device("cuda") else { return };
    let mut queue = device.queue().unwrap();
    let ids = queue.upload(&[0i32, 1]).unwrap();
    type Try = fn(&mut Queue<'static, Cuda>, &Buf<Cuda, i32>) -> moe_core::Result<()>;
    let tries: [Try; 4] = [
        |queue, _| queue.zeros::<f32>(8).map(|_| ()),
        |queue, _| queue.upload(&[1i32]).map(|_| ()),
        |queue, ids| queue.download(ids.view()).map(|_| ()),
        |queue, _| queue.synchronize(),
    ];
    for attempt in tries {
        let error = queue.capture(|queue, _| attempt(queue, &ids)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { backend: "cuda", .. }), "{error}");
        assert_eq!(queue.download(ids.view()).unwrap(), [0, 1]);
    }
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = queue.capture(|_, _| panic!("inside of a capture"));
    }));
    assert!(panicked.is_err());
    assert_eq!(queue.download(ids.view()).unwrap(), [0, 1]);
}
