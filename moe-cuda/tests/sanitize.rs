//! Every kernel on at most 64 tokens, with tails and canaries: small enough for compute-sanitizer, under which it is run
//! as `compute-sanitizer --tool memcheck|racecheck|initcheck|synccheck sanitize`.

mod common;

use common::routes::{self, MaskValue, Work, equal};
use common::{Rng, cpu, device};
use half::{bf16, f16};
use moe_core::eplb::LoadRecorder;
use moe_core::float8::{F8E4M3, F8E5M2};
use moe_core::quant::{Block128, ExponentRounding, Mxfp8, Nvfp4, PerToken, Quantization, ScaleLayout};
use moe_core::{
    Buf, Capacity, CombineInput, Device, Element, Float, Layout, Limits, PlanSpec, Queue, RoutePlan, Router, Routing,
    Rows, Scoring, Workspace,
};
use moe_cpu::Cpu;
use moe_cuda::{Cuda, CudaDevice, kernels_launched};

const CANARY: usize = 32;

/// Memory with canary elements on both sides.
struct Guarded<T: Element> {
    buf: Buf<Cuda, T>,
    len: usize,
    canary: Vec<T>,
}

impl<T: Element> Guarded<T> {
    fn new(queue: &mut Queue<'_, Cuda>, len: usize) -> Self {
        let mut buf = queue.zeros(len + 2 * CANARY).unwrap();
        queue.fill(buf.view_mut(), 0x3c).unwrap();
        let canary = queue.download(buf.view().slice(0..CANARY).unwrap()).unwrap();
        Self { buf, len, canary }
    }

    fn view(&mut self, shift: usize) -> moe_core::ViewMut<'_, Cuda, T> {
        self.buf.view_mut().slice(CANARY + shift..CANARY + self.len).unwrap()
    }

    fn check(&self, queue: &mut Queue<'_, Cuda>) {
        let all = queue.download(self.buf.view()).unwrap();
        assert!(all[..CANARY] == self.canary && all[CANARY + self.len..] == self.canary, "a canary was overwritten");
    }
}

#[derive(Clone, Copy)]
struct Case {
    tokens: usize,
    top_k: usize,
    experts: usize,
    hidden: usize,
    layout: Layout,
    /// Elements by which the rows are moved off their alignment.
    shift: usize,
}

fn plan(queue: &mut Queue<'_, Cuda>, case: Case) -> RoutePlan<Cuda> {
    let Case { tokens, top_k, experts, .. } = case;
    let mut workspace = Workspace::new(queue, Limits::new(tokens, top_k, experts)).unwrap();
    let spec = PlanSpec::new(tokens, top_k, experts).layout(case.layout).with_m_indices().with_logical_load();
    let ids = queue.upload(&Rng(1).ids(tokens * top_k, experts)).unwrap();
    let plan = RoutePlan::new(queue, &mut workspace, spec, Routing::top_k(ids.view())).unwrap();
    plan.validate(queue).unwrap();
    plan
}

fn floats<T: Float>(queue: &mut Queue<'_, Cuda>, case: Case) {
    let Case { tokens, top_k, experts, hidden: h, shift, .. } = case;
    let mut rng = Rng(2);
    let mut workspace = Workspace::new(queue, Limits::new(tokens, top_k, experts)).unwrap();
    let ids = queue.upload(&rng.ids(tokens * top_k, experts)).unwrap();
    let x = queue.upload(&rng.floats::<T>(tokens * h + shift)).unwrap();
    let x = || x.view().slice(shift..tokens * h + shift).unwrap().rows(h).unwrap();
    let weights = queue.upload(&rng.floats::<f32>(tokens * top_k)).unwrap();
    let mut plan = plan(queue, case);
    let spec = PlanSpec::new(tokens, top_k, experts).layout(case.layout);
    let mut rows = Guarded::<T>::new(queue, plan.num_rows() * h + shift);
    let out = rows.view(shift).rows(h).unwrap();
    plan.permute_into(queue, &mut workspace, spec, Routing::top_k(ids.view()), x(), out).unwrap();
    let out = rows.view(shift).rows(h).unwrap();
    plan.gather(x()).weights(weights.view()).run_into(queue, out).unwrap();
    plan.gather(x()).run_into(queue, rows.view(shift).rows(h).unwrap()).unwrap();
    plan.zero_tail(queue, rows.view(shift).rows(h).unwrap()).unwrap();
    rows.check(queue);
    let end = CANARY + plan.num_rows() * h + shift;
    let y = || rows.buf.view().slice(CANARY + shift..end).unwrap().rows(h).unwrap();
    let (mut same, mut wide) = (Guarded::<T>::new(queue, tokens * h), Guarded::<f32>::new(queue, tokens * h));
    plan.combine(y()).weights(weights.view()).run_into(queue, same.view(0).rows(h).unwrap()).unwrap();
    plan.combine(y()).run_into(queue, wide.view(0).rows(h).unwrap()).unwrap();
    same.check(queue);
    wide.check(queue);
    let (mut dy, mut dw) = (Guarded::<T>::new(queue, plan.num_rows() * h), Guarded::<f32>::new(queue, tokens * top_k));
    let grad = plan.combine_grad(x()).weights(weights.view()).rows(y());
    grad.run_into(queue, Some(dy.view(0).rows(h).unwrap()), Some(dw.view(0))).unwrap();
    dy.check(queue);
    dw.check(queue);
}

fn eights<T: CombineInput>(queue: &mut Queue<'_, Cuda>, case: Case) {
    fn one<T: CombineInput, O: Float>(queue: &mut Queue<'_, Cuda>, plan: &RoutePlan<Cuda>, case: Case) {
        let h = case.hidden;
        let rows = queue.zeros::<T>(plan.num_rows() * h).unwrap();
        let block = 16;
        let scales = queue.upload(&Rng(3).floats::<f32>(plan.num_rows() * h.div_ceil(block))).unwrap();
        let mut out = Guarded::<O>::new(queue, case.tokens * h);
        let scales = scales.rows(h.div_ceil(block)).unwrap();
        plan.combine(rows.rows(h).unwrap())
            .scales(scales, block)
            .run_into(queue, out.view(0).rows(h).unwrap())
            .unwrap();
        out.check(queue);
    }
    let plan = plan(queue, case);
    one::<T, f32>(queue, &plan, case);
    one::<T, f16>(queue, &plan, case);
    one::<T, bf16>(queue, &plan, case);
}

/// Copies of experts, of which some cannot be followed, a capacity by weight with many ties, and a sum of the load.
fn builders<T: Float>(queue: &mut Queue<'_, Cuda>, case: Case, capacity: usize) {
    let Case { tokens, top_k, experts, hidden: h, .. } = case;
    let (mut rng, width, n) = (Rng(4), 3, tokens * top_k);
    let physical = experts + 2;
    let mut workspace = Workspace::new(queue, Limits::new(tokens, top_k, physical)).unwrap();
    let spec = PlanSpec::new(tokens, top_k, experts).physical_experts(physical).layout(case.layout);
    let spec = spec.capacity(Capacity::ByWeight(capacity)).with_m_indices().with_logical_load();
    let log2phy: Vec<i32> = (0..experts * width).map(|_| rng.below(physical + 2) as i32 - 1).collect();
    let logcnt: Vec<i32> = (0..experts).map(|_| rng.below(width + 2) as i32).collect();
    let weights: Vec<T> = (0..n).map(|_| T::from_f32([0.5, 0.25, -0.0, f32::NAN][rng.below(4)])).collect();
    let ids = queue.upload(&rng.ids(n, experts)).unwrap();
    let (log2phy, logcnt) = (queue.upload(&log2phy).unwrap(), queue.upload(&logcnt).unwrap());
    let (weights, x) = (queue.upload(&weights).unwrap(), queue.upload(&rng.floats::<T>(tokens * h)).unwrap());
    let routing = || {
        let copies = log2phy.rows(width).unwrap();
        Routing::top_k(ids.view()).replicas(copies, logcnt.view()).capacity_weights(weights.view())
    };
    let mut plan = RoutePlan::new(queue, &mut workspace, spec, routing()).unwrap();
    plan.validate(queue).unwrap();
    let mut rows = Guarded::<T>::new(queue, plan.num_rows() * h);
    let out = rows.view(0).rows(h).unwrap();
    plan.permute_into(queue, &mut workspace, spec, routing(), x.rows(h).unwrap(), out).unwrap();
    plan.validate(queue).unwrap();
    rows.check(queue);
    let mut recorder = LoadRecorder::new(queue, 3, experts, 1).unwrap();
    recorder.record(queue, 1, &plan).unwrap();
    recorder.end_step(queue).unwrap();
    let sums = recorder.wait().unwrap().unwrap();
    let load = queue.download(plan.logical_load().unwrap()).unwrap();
    let expected = std::iter::repeat_n(0, experts).chain(load.iter().map(|n| *n as u64)).chain(vec![0; experts]);
    assert!(sums.sums().iter().copied().eq(expected), "sums of layers beside it are touched");
}

const MASK: routes::Case = routes::Case {
    tokens: 33,
    experts: 14,
    max_routes: 14,
    one_in: 3,
    capacity: None,
    chunks: 5,
    block: 3,
    ranks: 7,
    hidden: 8,
    shift: 0,
    gap: 0,
};

/// Masks, chunks and tables, with outputs between canaries, which the CPU's results have too.
fn routes<M: MaskValue, P: Float>(queue: &mut Queue<'_, Cuda>, case: routes::Case) {
    let (mut reference, contents) = (cpu(), case.contents(&mut Rng(5)));
    let mut ours = Work::<Cuda, M, P>::new(queue, case);
    ours.write(queue, &contents).unwrap();
    ours.enqueue(queue).unwrap();
    let mut theirs = Work::<Cpu, M, P>::new(&mut reference, case);
    theirs.write(&mut reference, &contents).unwrap();
    theirs.enqueue(&mut reference).unwrap();
    equal(&ours.read(queue).unwrap(), &theirs.read(&mut reference).unwrap(), &case);
}

/// Routing, losses and gradient, each with everything that is optional, and with ids that are no experts.
fn router<T: Float>(queue: &mut Queue<'_, Cuda>, router: Router) {
    let (tokens, experts, top_k) = (5, router.num_experts(), router.top_k());
    let mut rng = Rng(5);
    // A gap behind each row.
    let logits = queue.upload(&rng.floats::<T>(tokens * (experts + 1))).unwrap();
    fn rows<T: Float>(logits: &Buf<Cuda, T>, tokens: usize, experts: usize) -> Rows<'_, Cuda, T> {
        logits.view().rows_strided(tokens, experts, experts + 1).unwrap()
    }
    macro_rules! x {
        () => {
            rows(&logits, tokens, experts)
        };
    }
    let bias = queue.upload(&rng.floats::<f32>(experts)).unwrap();
    let (load, valid) = (queue.upload(&vec![3; experts]).unwrap(), queue.upload(&[tokens as i32 - 1]).unwrap());
    let (mut ids, mut weights) = (Guarded::<i32>::new(queue, tokens * top_k), Guarded::<T>::new(queue, tokens * top_k));
    let mut probs = Guarded::<f32>::new(queue, tokens * experts);
    let op = router.route(x!()).correction_bias(bias.view()).valid_tokens(valid.view());
    op.probs(probs.view(0).rows(experts).unwrap()).run_into(queue, ids.view(0), weights.view(0)).unwrap();
    router.route(x!()).run_into(queue, ids.view(0), weights.view(0)).unwrap();
    router.route(x!()).correction_bias(bias.view()).run_into(queue, ids.view(0), weights.view(0)).unwrap();
    ids.check(queue);
    weights.check(queue);
    probs.check(queue);
    let (mut terms, mut losses) = (Guarded::<f32>::new(queue, tokens * 2), Guarded::<f32>::new(queue, 2));
    let op = router.losses(x!()).balance(load.view(), 0.1).z(0.1).valid_tokens(valid.view());
    op.run_into(queue, terms.view(0), losses.view(0)).unwrap();
    terms.check(queue);
    losses.check(queue);
    let wild: Vec<i32> = (0..tokens * top_k).map(|i| [-1, experts as i32, i32::MIN, 0][i % 4]).collect();
    let wild = queue.upload(&wild).unwrap();
    let grad_weights = queue.upload(&rng.floats::<T>(tokens * top_k)).unwrap();
    let grad_probs = queue.upload(&rng.floats::<f32>(tokens * experts)).unwrap();
    let mut grad = Guarded::<T>::new(queue, tokens * experts);
    let op = router.grad(x!()).weights(wild.view(), grad_weights.view()).probs(grad_probs.rows(experts).unwrap());
    let op = op.balance(load.view(), 0.1).z(0.1).valid_tokens(valid.view());
    op.run_into(queue, grad.view(0).rows(experts).unwrap()).unwrap();
    grad.check(queue);
}

/// Gathering and activating in one format: rows that are padded and rows past the end, values and scales with canaries.
fn quantised<T: Float, Q: Quantization>(queue: &mut Queue<'_, Cuda>, case: Case, format: Q) {
    let Case { tokens, hidden: h, shift, .. } = case;
    let plan = plan(queue, case);
    let rows = plan.num_rows();
    let cols = format.format().value_cols(h).unwrap();
    let scale_len = format.format().scale_shape(rows, h).unwrap().len();
    let x = queue.upload(&Rng(5).floats::<T>(tokens * h + shift)).unwrap();
    let both = queue.upload(&Rng(6).floats::<T>(rows * 2 * h)).unwrap();
    let (mut values, mut scales) =
        (Guarded::<Q::Value>::new(queue, rows * cols + shift), Guarded::<Q::Scale>::new(queue, scale_len));
    let tokens = x.view().slice(shift..tokens * h + shift).unwrap().rows(h).unwrap();
    let gather = plan.gather_quant(tokens, format);
    gather.run_into(queue, values.view(shift).rows(cols).unwrap(), scales.view(0)).unwrap();
    let activation = plan.swiglu(both.rows(2 * h).unwrap()).unwrap();
    activation.quantized(format).run_into(queue, values.view(shift).rows(cols).unwrap(), scales.view(0)).unwrap();
    values.check(queue);
    scales.check(queue);
    let mut out = Guarded::<bf16>::new(queue, rows * h);
    plan.swiglu(both.rows(2 * h).unwrap()).unwrap().run_into(queue, out.view(0).rows(h).unwrap()).unwrap();
    out.check(queue);
}

fn formats<T: Float>(queue: &mut Queue<'_, Cuda>, case: Case) {
    quantised::<T, _>(queue, case, PerToken);
    quantised::<T, _>(queue, case, Block128(ScaleLayout::ColumnMajor));
    quantised::<T, _>(queue, case, Mxfp8 { rounding: ExponentRounding::Ceil, layout: ScaleLayout::Swizzled });
    quantised::<T, _>(queue, case, Nvfp4 { global_scale: 2.0, layout: ScaleLayout::Swizzled });
}

fn tune(device: &CudaDevice, values: &str) {
    device.tune(&format!("[cuda: {}]\n{values}", device.info().name).parse().unwrap()).unwrap();
}

#[test]
fn every_kernel_stays_inside_of_its_memory() {
    let Some(device) = device("cuda") else { return };
    let mut queue = device.queue().unwrap();
    let base = Case { tokens: 33, top_k: 4, experts: 7, hidden: 64, layout: Layout::Aligned(4), shift: 0 };
    let cases = [
        base,
        Case { hidden: 61, layout: Layout::Packed, ..base }, // no row is aligned to more than an element
        Case { shift: 1, layout: Layout::Padded(40), ..base }, // nor is any address
        Case { tokens: 64, top_k: 33, experts: 40, ..base }, // the permute with a barrier
        Case { tokens: 64, top_k: 257, experts: 300, hidden: 16, ..base }, // and the plan
        Case { top_k: 8, layout: Layout::Packed, ..base },   // the permute that compares keys, and 8 rows at a time
        Case { top_k: 9, tokens: 64, experts: 40, layout: Layout::Packed, ..base }, // by long blocks
        Case { top_k: 8, tokens: 64, hidden: 2_048, layout: Layout::Packed, ..base }, // 8 rows in few registers
        Case { top_k: 2, hidden: 72, ..base },               // two rows
        Case { tokens: 1, top_k: 1, experts: 1, hidden: 2_056, ..base }, // rows that several blocks share
    ];
    for case in cases {
        floats::<f32>(&mut queue, case);
        floats::<f16>(&mut queue, case);
        floats::<bf16>(&mut queue, case);
    }
    // Paths of many tokens, as few as they are here.
    let many = Case { tokens: 64, top_k: 33, experts: 40, ..base };
    tune(device.raw(), "gather_ahead_bytes 0");
    floats::<f32>(&mut queue, Case { layout: Layout::Packed, ..many });
    tune(device.raw(), "permute_grid_routes 0\nlisted_routes 1024\nlisted_row_bytes 0");
    floats::<f32>(&mut queue, many);
    floats::<bf16>(&mut queue, Case { hidden: 68, layout: Layout::Padded(8), ..many });
    tune(device.raw(), "");
    builders::<f32>(&mut queue, base, 3);
    builders::<f16>(&mut queue, Case { top_k: 33, layout: Layout::Packed, ..base }, 40); // more than a batch of routes
    builders::<bf16>(&mut queue, Case { tokens: 64, top_k: 33, experts: 40, layout: Layout::Padded(8), ..base }, 20);
    routes::<u8, f32>(&mut queue, MASK);
    routes::<i32, bf16>(&mut queue, routes::Case { shift: 1, gap: 3, max_routes: 3, capacity: Some(2), ..MASK });
    routes::<u8, f16>(&mut queue, routes::Case { experts: 131, ranks: 1, max_routes: 140, chunks: 40, ..MASK });
    formats::<f32>(&mut queue, base);
    formats::<f16>(&mut queue, Case { hidden: 130, shift: 1, ..base }); // elements that fill no unit
    formats::<bf16>(&mut queue, Case { hidden: 8_208, tokens: 3, ..base }); // more than a block has threads for
    eights::<F8E4M3>(&mut queue, base);
    eights::<F8E5M2>(&mut queue, base);
    let sigmoid = |experts, top_k| Router::new(experts, top_k).scoring(Scoring::Sigmoid).renormalize();
    router::<f32>(&mut queue, Router::new(60, 4));
    router::<bf16>(&mut queue, sigmoid(1000, 8));
    router::<f16>(&mut queue, sigmoid(100, 9));
    router::<f16>(&mut queue, Router::new(60, 9)); // more than the kernels with a block for each token take
    router::<f32>(&mut queue, Router::new(250, 20).scoring(Scoring::SoftmaxOfTopK));
    router::<bf16>(&mut queue, sigmoid(256, 30).groups(8, 4));
    router::<f16>(&mut queue, sigmoid(256, 8).groups(8, 4));
    router::<bf16>(&mut queue, sigmoid(510, 32).groups(30, 7));
    router::<f32>(&mut queue, Router::new(1025, 40).renormalize());
    router::<bf16>(&mut queue, sigmoid(520, 9).groups(65, 3));
    router::<f32>(&mut queue, Router::new(12_100, 3)); // keys that do not fit
    queue.synchronize().unwrap();
    let launched = kernels_launched();
    launched.iter().filter(|(_, launched)| *launched).for_each(|(name, _)| println!("covered: {name}"));
    let missing: Vec<_> = launched.iter().filter(|(_, launched)| !launched).collect();
    assert!(missing.is_empty(), "kernels that were not launched: {missing:?}");
}
