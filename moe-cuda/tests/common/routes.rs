//! Masks, chunks, block tables, split sizes and scaled residuals, all enqueued at once, on any backend.
#![allow(dead_code, reason = "no test program uses all of it")]

use super::Rng;
use moe_core::{
    Buf, Capacity, Float, Layout, Limits, MaskElement, PermuteBackend, PlanSpec, Queue, Result, RoutePlan, Routing,
    View, Workspace,
};

/// Elements on each side of an output, which nobody may touch.
const CANARY: usize = 16;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) tokens: usize,
    pub(crate) experts: usize,
    pub(crate) max_routes: usize,
    /// One element of the mask in so many is set.
    pub(crate) one_in: usize,
    pub(crate) capacity: Option<usize>,
    pub(crate) chunks: usize,
    pub(crate) block: usize,
    pub(crate) ranks: usize,
    pub(crate) hidden: usize,
    /// Elements by which matrices are moved off their alignment, and between their rows.
    pub(crate) shift: usize,
    pub(crate) gap: usize,
}

pub(crate) struct Contents {
    mask: Vec<bool>,
    probs: Vec<f32>,
    values: Vec<f32>,
    valid: i32,
    sizes: Vec<i32>,
    order: Vec<i32>,
    x: Vec<f32>,
}

impl Case {
    /// Elements of a matrix as it lies in memory, what is beside it included.
    fn len(&self, cols: usize) -> usize {
        self.shift + self.tokens * (cols + self.gap)
    }

    fn spec<P: Float>(&self) -> PlanSpec {
        let spec = PlanSpec::mask(self.tokens, self.experts).max_routes(self.max_routes).with_probs::<P>();
        let spec = spec.layout(Layout::Aligned(4)).with_m_indices().with_logical_load();
        self.capacity.map_or(spec, |c| spec.capacity(Capacity::ByWeight(c)))
    }

    fn chunk_spec(&self) -> PlanSpec {
        PlanSpec::chunks(self.tokens, self.chunks).with_m_indices()
    }

    /// Sizes that do not add up, and an order that names some chunks twice and some not at all.
    pub(crate) fn contents(&self, rng: &mut Rng) -> Contents {
        let chunks = self.chunks;
        let mean = 2 * self.tokens / chunks + 2;
        let size = |rng: &mut Rng| match rng.below(12) {
            0 => [-1, i32::MIN][rng.below(2)],
            1 if rng.below(chunks) == 0 => i32::MAX,
            _ => rng.below(mean) as i32,
        };
        let place = |rng: &mut Rng| match rng.below(12) {
            0 => [-1, i32::MIN, chunks as i32, i32::MAX][rng.below(4)],
            _ => rng.below(chunks) as i32,
        };
        Contents {
            mask: (0..self.len(self.experts)).map(|_| rng.below(self.one_in) == 0).collect(),
            probs: rng.floats(self.len(self.experts)),
            values: rng.floats(self.tokens * self.max_routes),
            valid: (self.tokens - self.tokens / 9) as i32,
            sizes: (0..chunks).map(|_| size(rng)).collect(),
            order: (0..chunks).map(|_| place(rng)).collect(),
            x: rng.floats(self.tokens * self.hidden),
        }
    }
}

/// What a set element of a mask can be.
pub(crate) trait MaskValue: MaskElement {
    fn set(which: usize) -> Self;
}

impl MaskValue for u8 {
    fn set(which: usize) -> Self {
        [1, 255, 128, 2][which % 4]
    }
}

impl MaskValue for i32 {
    fn set(which: usize) -> Self {
        [1, -1, 256, i32::MIN][which % 4]
    }
}

/// A matrix, moved and strided as the case says.
macro_rules! matrix {
    ($case:expr, $view:expr, $cols:expr) => {{
        let (view, case) = ($view, $case);
        let end = view.len();
        view.slice(case.shift..end)?.rows_strided(case.tokens, $cols, $cols + case.gap)?
    }};
}

/// Everything that is read and written, on one device.
pub(crate) struct Work<B: PermuteBackend, M: MaskElement, P: Float> {
    case: Case,
    workspace: Workspace<B>,
    mask: Buf<B, M>,
    probs: Buf<B, P>,
    values: Buf<B, P>,
    valid: Buf<B, i32>,
    sizes: Buf<B, i32>,
    order: Buf<B, i32>,
    x: Buf<B, P>,
    plan: RoutePlan<B>,
    chunk_plan: RoutePlan<B>,
    rows: Buf<B, P>,
    chunk_rows: Buf<B, P>,
    grad: Buf<B, P>,
    out: Buf<B, P>,
    tables: [Buf<B, i32>; 4],
}

impl<B: PermuteBackend, M: MaskValue, P: Float> Work<B, M, P> {
    pub(crate) fn new(queue: &mut Queue<'_, B>, case: Case) -> Self {
        let limits = Limits::new(case.tokens, case.max_routes, case.experts.max(case.chunks));
        let plan = RoutePlan::alloc(queue, case.spec::<P>()).unwrap();
        let chunk_plan = RoutePlan::alloc(queue, case.chunk_spec()).unwrap();
        let table = plan.block_table(case.block).len().unwrap();
        let (rows, hidden) = (plan.num_rows(), case.hidden);
        let mut guarded = |len: usize| {
            let mut buf = queue.zeros(len + 2 * CANARY).unwrap();
            queue.fill(buf.view_mut(), 0x3c).unwrap();
            buf
        };
        let tables = [table, table / case.block, 1, case.ranks].map(&mut guarded);
        Self {
            tables,
            workspace: Workspace::new(queue, limits).unwrap(),
            mask: queue.zeros(case.len(case.experts)).unwrap(),
            probs: queue.zeros(case.len(case.experts)).unwrap(),
            values: queue.zeros(case.tokens * case.max_routes).unwrap(),
            valid: queue.zeros(1).unwrap(),
            sizes: queue.zeros(case.chunks).unwrap(),
            order: queue.zeros(case.chunks).unwrap(),
            x: queue.zeros(case.tokens * hidden).unwrap(),
            rows: queue.zeros(rows * hidden).unwrap(),
            chunk_rows: queue.zeros(case.tokens * hidden).unwrap(),
            grad: queue.zeros(case.len(case.experts)).unwrap(),
            out: queue.zeros(case.tokens * hidden).unwrap(),
            plan,
            chunk_plan,
            case,
        }
    }

    pub(crate) fn write(&mut self, queue: &mut Queue<'_, B>, contents: &Contents) -> Result<()> {
        let floats = |from: &[f32]| from.iter().map(|v| P::from_f32(*v)).collect::<Vec<P>>();
        let set = |(i, set): (usize, &bool)| if *set { M::set(i) } else { M::default() };
        let mask: Vec<M> = contents.mask.iter().enumerate().map(set).collect();
        queue.write(&mask, self.mask.view_mut())?;
        queue.write(&floats(&contents.probs), self.probs.view_mut())?;
        queue.write(&floats(&contents.values), self.values.view_mut())?;
        queue.write(&[contents.valid], self.valid.view_mut())?;
        queue.write(&contents.sizes, self.sizes.view_mut())?;
        queue.write(&contents.order, self.order.view_mut())?;
        queue.write(&floats(&contents.x), self.x.view_mut())?;
        queue.fill(self.grad.view_mut(), 0x3c)?;
        queue.fill(self.rows.view_mut(), 0)?;
        queue.fill(self.chunk_rows.view_mut(), 0)
    }

    pub(crate) fn enqueue(&mut self, queue: &mut Queue<'_, B>) -> Result<()> {
        let Self { case, workspace, plan, chunk_plan, .. } = self;
        let (h, experts) = (case.hidden, case.experts);
        let mask = matrix!(&case, self.mask.view(), experts);
        let routing = Routing::mask(mask).probs(matrix!(&case, self.probs.view(), experts));
        plan.build_into(queue, workspace, case.spec::<P>(), routing.valid_tokens(self.valid.view()))?;
        let grad = matrix!(&case, self.grad.view_mut(), experts);
        plan.mask_grad(self.values.view()).run_into(queue, grad)?;
        let [sorted, blocks, number, splits] = &mut self.tables;
        let guarded = |buf: &mut Buf<B, i32>| CANARY..buf.len() - CANARY;
        let (s, b, n, r) = (guarded(sorted), guarded(blocks), guarded(number), guarded(splits));
        let table = plan.block_table(case.block);
        let (s, b) = (sorted.view_mut().slice(s)?, blocks.view_mut().slice(b)?);
        table.run_into(queue, s, b, number.view_mut().slice(n)?)?;
        plan.split_sizes(case.ranks).run_into(queue, splits.view_mut().slice(r)?)?;
        plan.gather(self.x.rows(h)?).run_into(queue, self.rows.rows_mut(h)?)?;
        let combine = plan.combine(self.rows.rows(h)?).weights(plan.probs::<P>()?);
        combine.residual(self.x.rows(h)?).residual_scale(-0.3).run_into(queue, self.out.rows_mut(h)?)?;
        let routing = Routing::chunks(self.sizes.view(), Some(self.order.view()));
        let (x, to) = (self.x.rows(h)?, self.chunk_rows.rows_mut(h)?);
        chunk_plan.permute_into(queue, workspace, case.chunk_spec(), routing, x, to)
    }

    /// All outputs, what is beside them included.
    pub(crate) fn read(&self, queue: &mut Queue<'_, B>) -> Result<Vec<(&'static str, Vec<u32>)>> {
        let mut all = Vec::new();
        let (plan, chunks) = (&self.plan, &self.chunk_plan);
        let views = [
            ("ids", plan.route_ids()),
            ("source", Some(plan.source())),
            ("slot", Some(plan.slot())),
            ("expert_offsets", Some(plan.expert_offsets())),
            ("m_indices", plan.m_indices()),
            ("logical_load", plan.logical_load()),
            ("ids of rows", chunks.route_ids()),
            ("source of chunks", Some(chunks.source())),
            ("slot of chunks", Some(chunks.slot())),
            ("offsets of chunks", Some(chunks.expert_offsets())),
            ("sorted_token_ids", Some(self.tables[0].view())),
            ("expert_ids", Some(self.tables[1].view())),
            ("num_tokens_post_padded", Some(self.tables[2].view())),
            ("split sizes", Some(self.tables[3].view())),
        ];
        for (name, view) in views {
            let words = queue.download(view.expect("the spec asks for it"))?;
            all.push((name, words.into_iter().map(|v: i32| v as u32).collect()));
        }
        all.push(("status", queue.download(plan.status_counters())?));
        all.push(("status of chunks", queue.download(chunks.status_counters())?));
        let floats = [
            ("probs", plan.probs::<P>()?),
            ("rows", self.rows.view()),
            ("out", self.out.view()),
            ("grad", self.grad.view()),
            ("rows of chunks", self.chunk_rows.view()),
        ];
        for (name, view) in floats {
            all.push((name, bits(queue, view)?));
        }
        Ok(all)
    }
}

fn bits<B: PermuteBackend, P: Float>(queue: &mut Queue<'_, B>, view: View<'_, B, P>) -> Result<Vec<u32>> {
    Ok(queue.download(view)?.into_iter().map(|v: P| v.to_f32().to_bits()).collect())
}

pub(crate) fn equal(ours: &[(&str, Vec<u32>)], reference: &[(&str, Vec<u32>)], what: &dyn std::fmt::Debug) {
    for ((name, a), (_, b)) in ours.iter().zip(reference) {
        let at = a.iter().zip(b).position(|(a, b)| a != b);
        let pair = at.map(|at| (a[at], b[at]));
        assert!(a.len() == b.len() && at.is_none(), "{name} at {at:?}: {pair:?}: {what:?}");
    }
}
