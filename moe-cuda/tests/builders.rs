//! What a plan can be built from, beyond ids and a map: equal to the CPU, bit for bit, alone and in a graph that is
//! replayed with other contents.

mod common;

use common::{Outputs, Rng, cpu, device, read, sanitized};
use half::{bf16, f16};
use moe_core::eplb::LoadRecorder;
use moe_core::{
    Buf, Capacity, Element, Float, Layout, Limits, PermuteBackend, PlanSpec, Queue, RoutePlan, Routing, Workspace,
};
use moe_cuda::{Capture, Cuda};

/// Copies of experts.
#[derive(Clone, Debug)]
struct Copies {
    width: usize,
    log2phy: Vec<i32>,
    logcnt: Vec<i32>,
}

impl Copies {
    /// Of which a few cannot be followed.
    fn new(rng: &mut Rng, experts: usize) -> Self {
        let (physical, width) = (experts + experts / 2 + 1, 3);
        let log2phy = (0..experts * width).map(|_| match rng.below(20) {
            0 => [-1, i32::MIN, physical as i32, i32::MAX][rng.below(4)],
            _ => rng.below(physical) as i32,
        });
        let log2phy = log2phy.collect();
        let logcnt = (0..experts).map(|_| match rng.below(20) {
            0 => [0, -1, i32::MIN, width as i32 + 1, i32::MAX][rng.below(5)],
            _ => 1 + rng.below(width) as i32,
        });
        Self { width, log2phy, logcnt: logcnt.collect() }
    }
}

/// A plan to be built, and rows of 16 bytes and up to be moved with it.
#[derive(Clone, Copy, Debug)]
struct Case {
    tokens: usize,
    top_k: usize,
    experts: usize,
    hidden: usize,
    layout: Layout,
    copies: bool,
    map: bool,
    capacity: Option<usize>,
    one_expert: bool,
}

const CASE: Case = Case {
    tokens: 5,
    top_k: 8,
    experts: 16,
    hidden: 8,
    layout: Layout::Packed,
    copies: false,
    map: false,
    capacity: None,
    one_expert: false,
};

/// What the arrays on a device hold.
struct Contents<W> {
    ids: Vec<i32>,
    copies: Option<Copies>,
    map: Option<Vec<i32>>,
    weights: Option<Vec<W>>,
    valid: i32,
    x: Vec<bf16>,
}

impl Case {
    fn physical(&self) -> usize {
        if self.copies { self.experts + self.experts / 2 + 1 } else { self.experts }
    }

    fn local(&self) -> usize {
        if self.map { self.physical().div_ceil(2) } else { self.physical() }
    }

    fn spec(&self) -> PlanSpec {
        let spec = PlanSpec::new(self.tokens, self.top_k, self.experts).layout(self.layout);
        let spec = spec.physical_experts(self.physical()).local_experts(self.local());
        let spec = spec.with_m_indices().with_logical_load();
        self.capacity.map_or(spec, |c| spec.capacity(Capacity::ByWeight(c)))
    }

    fn limits(&self) -> Limits {
        Limits::new(self.tokens, self.top_k, self.physical())
    }

    fn contents<W: Float>(&self, rng: &mut Rng) -> Contents<W> {
        let n = self.tokens * self.top_k;
        let local = self.local();
        Contents {
            ids: if self.one_expert { vec![self.experts as i32 - 1; n] } else { rng.ids(n, self.experts) },
            copies: self.copies.then(|| Copies::new(rng, self.experts)),
            map: self.map.then(|| (0..self.physical()).map(|_| rng.below(local + 2) as i32 - 1).collect()),
            weights: self.capacity.map(|_| (0..n).map(|_| weight(rng)).collect()),
            valid: (self.tokens - self.tokens / 8) as i32,
            x: rng.floats(self.tokens * self.hidden),
        }
    }
}

/// Weights with ties, both zeros, infinities, numbers near zero, and NaN of several kinds.
fn weight<W: Float>(rng: &mut Rng) -> W {
    let odd = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, 1e-7, -1e-7, 0.5, -0.5];
    match rng.below(3) {
        0 => W::from_f32(odd[rng.below(odd.len())]),
        _ => rng.float(),
    }
}

/// `log2phy`, `logcnt` and the width.
type DeviceCopies<B> = (Buf<B, i32>, Buf<B, i32>, usize);

/// The contents on a device.
struct OnDevice<B: PermuteBackend, W: Float> {
    ids: Buf<B, i32>,
    copies: Option<DeviceCopies<B>>,
    map: Option<Buf<B, i32>>,
    weights: Option<Buf<B, W>>,
    valid: Buf<B, i32>,
    x: Buf<B, bf16>,
}

impl<B: PermuteBackend, W: Float> OnDevice<B, W> {
    fn new(queue: &mut Queue<'_, B>, contents: &Contents<W>) -> Self {
        Self {
            ids: queue.upload(&contents.ids).unwrap(),
            copies: contents
                .copies
                .as_ref()
                .map(|c| (queue.upload(&c.log2phy).unwrap(), queue.upload(&c.logcnt).unwrap(), c.width)),
            map: contents.map.as_ref().map(|map| queue.upload(map).unwrap()),
            weights: contents.weights.as_ref().map(|weights| queue.upload(weights).unwrap()),
            valid: queue.upload(&[contents.valid]).unwrap(),
            x: queue.upload(&contents.x).unwrap(),
        }
    }

    fn write(&mut self, queue: &mut Queue<'_, B>, contents: &Contents<W>) {
        queue.write(&contents.ids, self.ids.view_mut()).unwrap();
        if let (Some((log2phy, logcnt, _)), Some(copies)) = (&mut self.copies, &contents.copies) {
            queue.write(&copies.log2phy, log2phy.view_mut()).unwrap();
            queue.write(&copies.logcnt, logcnt.view_mut()).unwrap();
        }
        if let (Some(map), Some(contents)) = (&mut self.map, &contents.map) {
            queue.write(contents, map.view_mut()).unwrap();
        }
        if let (Some(weights), Some(contents)) = (&mut self.weights, &contents.weights) {
            queue.write(contents, weights.view_mut()).unwrap();
        }
        queue.write(&[contents.valid], self.valid.view_mut()).unwrap();
        queue.write(&contents.x, self.x.view_mut()).unwrap();
    }

    fn routing(&self) -> Routing<'_, B> {
        let mut routing = Routing::top_k(self.ids.view()).valid_tokens(self.valid.view());
        if let Some((log2phy, logcnt, width)) = &self.copies {
            routing = routing.replicas(log2phy.rows(*width).unwrap(), logcnt.view());
        }
        if let Some(map) = &self.map {
            routing = routing.expert_map(map.view());
        }
        if let Some(weights) = &self.weights {
            routing = routing.capacity_weights(weights.view());
        }
        routing
    }
}

/// Built twice: alone, and together with a permute.
fn outputs<B: PermuteBackend, W: Float>(
    queue: &mut Queue<'_, B>,
    case: &Case,
    contents: &Contents<W>,
) -> [Outputs<bf16>; 2] {
    let device = OnDevice::new(queue, contents);
    let mut workspace = Workspace::new(queue, case.limits()).unwrap();
    let mut plan = RoutePlan::new(queue, &mut workspace, case.spec(), device.routing()).unwrap();
    plan.validate(queue).unwrap();
    let rows = plan.gather(device.x.rows(case.hidden).unwrap()).run(queue).unwrap();
    let out = plan.combine(rows.rows(case.hidden).unwrap()).run(queue).unwrap();
    let alone = read(queue, &plan, &rows, &out);
    let mut rows = queue.zeros(rows.len()).unwrap();
    let x = device.x.rows(case.hidden).unwrap();
    let into = rows.rows_mut(case.hidden).unwrap();
    plan.permute_into(queue, &mut workspace, case.spec(), device.routing(), x, into).unwrap();
    [alone, read(queue, &plan, &rows, &out)]
}

fn equal<T: Element>(ours: &Outputs<T>, reference: &Outputs<T>, what: &dyn std::fmt::Debug) {
    let names = ["source", "slot", "expert_offsets", "tokens_per_expert", "m_indices", "logical_load"];
    for ((name, a), b) in names.iter().zip(&ours.arrays).zip(&reference.arrays) {
        let differ = a.iter().zip(b).position(|(a, b)| a != b);
        assert!(a.len() == b.len() && differ.is_none(), "{name} differs at {differ:?}: {what:?}");
    }
    assert!(ours == reference, "status {:?} and {:?}, or rows: {what:?}", ours.status, reference.status);
}

fn same<W: Float>(case: Case) {
    let Some(device) = device("cuda") else { return };
    let mut rng = Rng((case.tokens * 31 + case.top_k * 7 + case.experts) as u64);
    let contents = case.contents::<W>(&mut rng);
    let ours = outputs(&mut device.queue().unwrap(), &case, &contents);
    let reference = outputs(&mut cpu(), &case, &contents);
    for (way, (ours, reference)) in ["build", "permute"].iter().zip(ours.iter().zip(&reference)) {
        equal(ours, reference, &(way, W::DTYPE, case));
    }
}

/// A batch for each kernel that reads ids.
fn cases() -> Vec<Case> {
    let padded = Layout::Padded(24);
    let mut cases = vec![
        CASE,                                                                // by keys
        Case { tokens: 33, layout: Layout::Aligned(4), ..CASE },             // small
        Case { tokens: 7, top_k: 33, experts: 40, hidden: 5, ..CASE },       // the plan apart
        Case { tokens: 64, top_k: 33, experts: 40, layout: padded, ..CASE }, // the grid
    ];
    if !sanitized() {
        cases.extend([
            Case { tokens: 0, ..CASE },
            Case { tokens: 128, experts: 256, ..CASE },
            Case { tokens: 999, experts: 256, layout: Layout::Aligned(16), ..CASE },
            Case { tokens: 1_000, top_k: 1, experts: 2_700, layout: padded, ..CASE },
            Case { tokens: 4_099, experts: 64, layout: Layout::Padded(300), hidden: 4_096, ..CASE }, // listed
            Case { tokens: 30_011, experts: 160, ..CASE },
            Case { tokens: 3_000, top_k: 70, experts: 3, ..CASE },
        ]);
    }
    cases
}

#[test]
fn copies_of_experts_take_the_same_turns_as_on_the_cpu() {
    for case in cases() {
        same::<f32>(Case { copies: true, ..case });
        same::<f32>(Case { copies: true, map: true, ..case });
    }
}

#[test]
fn a_capacity_by_weight_keeps_the_same_routes_as_the_cpu() {
    for case in cases() {
        same::<f32>(Case { capacity: Some(1), ..case });
        same::<f16>(Case { capacity: Some(7), map: true, ..case });
        same::<bf16>(Case { capacity: Some(40), copies: true, map: true, ..case });
        same::<f32>(Case { capacity: Some(1 << 20), ..case });
    }
    if !sanitized() {
        // A list as long as the batch.
        for capacity in [1, 1_000, 99_999, 189_999] {
            let case = Case { tokens: 190_001, top_k: 1, one_expert: true, ..CASE };
            same::<f32>(Case { capacity: Some(capacity), ..case });
            same::<bf16>(Case { capacity: Some(capacity), experts: 1, ..case });
        }
    }
}

/// A workspace of a capacity by weight, of other batches in turn, and of the list of rows.
#[test]
fn marks_and_lists_leave_the_exchange_of_counts_alone() {
    if sanitized() {
        return; // no kernel that others do not launch
    }
    let Some(device) = device("cuda") else { return };
    let (mut queue, mut reference) = (device.queue().unwrap(), cpu());
    let mut workspace = Workspace::new(&mut queue, Limits { max_routes: 40_000, max_experts: 400 }).unwrap();
    let mut rng = Rng(77);
    for (tokens, capacity) in [(5_000, Some(90)), (5_000, None), (700, Some(9)), (3, Some(1)), (4_999, Some(200))] {
        let case = Case { tokens, experts: 64, hidden: 4_096, capacity, copies: true, ..CASE };
        let contents = case.contents::<f32>(&mut rng);
        let on_device = OnDevice::new(&mut queue, &contents);
        let x = on_device.x.rows(case.hidden).unwrap();
        let (plan, rows) = RoutePlan::permute(&mut queue, &mut workspace, case.spec(), on_device.routing(), x).unwrap();
        let out = plan.combine(rows.rows(case.hidden).unwrap()).run(&mut queue).unwrap();
        let ours = read(&mut queue, &plan, &rows, &out);
        equal(&ours, &outputs(&mut reference, &case, &contents)[1], &case);
    }
}

#[test]
fn a_graph_of_copies_and_capacity_replays_with_other_contents() {
    let Some(device) = device("cuda") else { return };
    let mut queue = device.queue().unwrap();
    let mut rng = Rng(22);
    for tokens in if sanitized() { vec![16] } else { vec![16, 700, 5_000] } {
        let case = Case { tokens, experts: 64, capacity: Some(9), copies: true, map: true, ..CASE };
        let mut on_device = OnDevice::new(&mut queue, &case.contents::<f16>(&mut rng));
        let mut workspace = Workspace::new(&mut queue, case.limits()).unwrap();
        let mut plan = RoutePlan::<Cuda>::alloc(&mut queue, case.spec()).unwrap();
        let mut rows = queue.zeros::<bf16>(plan.num_rows() * case.hidden).unwrap();
        let mut out = queue.zeros::<bf16>(tokens * case.hidden).unwrap();
        let mut recorder = LoadRecorder::new(&mut queue, 1, case.experts, 3).unwrap();
        let mut graph = queue
            .capture(|queue, _| {
                let (x, to) = (on_device.x.rows(case.hidden)?, rows.rows_mut(case.hidden)?);
                plan.permute_into(queue, &mut workspace, case.spec(), on_device.routing(), x, to)?;
                recorder.record(queue, 0, &plan)?;
                plan.combine(rows.rows(case.hidden)?).run_into(queue, out.rows_mut(case.hidden)?)
            })
            .unwrap();
        let mut load = vec![0; case.experts];
        for _ in 0..3 {
            let contents = case.contents::<f16>(&mut rng);
            on_device.write(&mut queue, &contents);
            queue.fill(rows.view_mut(), 0).unwrap();
            graph.replay().unwrap();
            let replayed = read(&mut queue, &plan, &rows, &out);
            equal(&replayed, &outputs(&mut cpu(), &case, &contents)[1], &case);
            load.iter_mut().zip(replayed.arrays.last().unwrap()).for_each(|(sum, n)| *sum += *n as u64);
            recorder.end_step(&mut queue).unwrap();
        }
        let totals = recorder.wait().unwrap().expect("the third step ended the window");
        assert_eq!(totals.sums(), load, "{case:?}");
    }
}
