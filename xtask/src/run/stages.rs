//! A layer whose router and products run on the CPU, for backends without products of their own; timed.

use super::clock::{Clock, PASSES, keep_fastest, print_stages};
use super::layer::Layer;
use super::trace::Trace;
use moe_core::{
    Buf, Dev, DeviceSpec, Element, Float, Limits, PermuteBackend, PlanSpec, Queue, RoutePlan, Router, Routing,
    Workspace,
};
use moe_cpu::{Cpu, CpuQueue, matmul::grouped_matmul};

/// What the layer answered.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) topk_ids: Vec<i32>,
    pub(crate) topk_weights: Vec<f32>,
    pub(crate) source: Vec<i32>,
    pub(crate) slot: Vec<i32>,
    pub(crate) expert_offsets: Vec<i32>,
    pub(crate) output: Vec<f32>,
    /// Stages that were computed again on the host: what, and how many elements differ.
    pub(crate) stages: Vec<(&'static str, usize)>,
}

/// Runs the layer with rows of type `T` on the device that `spec` asks for.
pub(crate) fn forward<B: PermuteBackend, T: Float>(
    spec: &DeviceSpec,
    layer: &Layer,
    trace: &Trace,
) -> Result<Answers, String> {
    let mut layer_run = LayerRun::<B, T>::new(spec, layer, trace).map_err(|e| e.to_string())?;
    let mut best = Vec::new();
    let mut answers = None;
    for _ in 0..PASSES {
        let mut clock = Clock::default();
        answers = Some(layer_run.pass(layer, trace, &mut clock).map_err(|e| e.to_string())?);
        keep_fastest(&mut best, clock.stages);
    }
    print_stages(&best);
    answers.ok_or_else(|| "no pass".into())
}

/// Everything that a pass reuses.
struct LayerRun<B: PermuteBackend, T: Element> {
    queue: Queue<'static, B>,
    cpu: Queue<'static, Cpu>,
    workspace: Workspace<B>,
    plan: RoutePlan<B>,
    spec: PlanSpec,
    hidden_states: Buf<B, T>,
    rows: Buf<B, T>,
    output: Buf<B, T>,
}

impl<B: PermuteBackend, T: Float> LayerRun<B, T> {
    fn new(spec: &DeviceSpec, layer: &Layer, trace: &Trace) -> moe_core::Result<Self> {
        let Layer { top_k, num_experts, hidden_size, .. } = *layer;
        let device = Dev::<B>::open(spec)?;
        let products = if B::NAME == "cpu" { "" } else { "; the router and the experts' products run on the CPU" };
        println!("{}: {}{products}", device.id(), device.info().name);
        println!(
            "{} tokens of {hidden_size} {}, {num_experts} experts, top-{top_k}, fastest of {PASSES} passes",
            trace.num_tokens,
            T::DTYPE
        );
        let mut queue = device.queue()?;
        let plan_spec = PlanSpec::new(trace.num_tokens, top_k, num_experts);
        let plan = RoutePlan::alloc(&mut queue, plan_spec)?;
        let hidden_states: Vec<T> = trace.hidden_states.iter().map(|x| T::from_f32(*x)).collect();
        Ok(Self {
            workspace: Workspace::new(&mut queue, Limits::new(trace.num_tokens, top_k, num_experts))?,
            hidden_states: queue.upload(&hidden_states)?,
            rows: queue.zeros(plan.num_rows() * hidden_size)?,
            output: queue.zeros(trace.num_tokens * hidden_size)?,
            cpu: Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?,
            plan,
            spec: plan_spec,
            queue,
        })
    }

    fn pass(&mut self, layer: &Layer, trace: &Trace, clock: &mut Clock) -> moe_core::Result<Answers> {
        let Layer { top_k, num_experts, hidden_size, .. } = *layer;
        let queue = &mut self.queue;

        let mut logits = vec![0.0; trace.num_tokens * num_experts];
        let all = [0, trace.num_tokens as i32];
        let router: &[&[f32]] = &[&layer.router];
        grouped_matmul(self.cpu.raw(), &trace.hidden_states, router, &all, hidden_size, &mut logits, num_experts);
        clock.lap("router");

        let logits = self.cpu.upload(&logits)?;
        let router = Router::new(num_experts, top_k);
        let router = if layer.norm_topk_prob { router.renormalize() } else { router };
        let (ids, weights) = router.route(logits.rows(num_experts)?).run::<f32>(&mut self.cpu)?;
        let (topk_ids, topk_weights) = (self.cpu.download(ids.view())?, self.cpu.download(weights.view())?);
        clock.lap("top-k");

        let (ids, weights) = (queue.upload(&topk_ids)?, queue.upload(&topk_weights)?);
        queue.synchronize()?;
        clock.lap("upload");

        self.plan.build_into(queue, &mut self.workspace, self.spec, Routing::top_k(ids.view()))?;
        queue.synchronize()?;
        clock.lap("plan");

        let x = self.hidden_states.rows(hidden_size)?;
        self.plan.gather(x).run_into(queue, self.rows.rows_mut(hidden_size)?)?;
        queue.synchronize()?;
        clock.lap("gather");

        let expert_offsets = queue.download(self.plan.expert_offsets())?;
        let rows = to_f32(queue.download(self.rows.view())?);
        clock.lap("download");
        let done = experts(self.cpu.raw(), layer, &rows, &expert_offsets);
        clock.lap("experts");
        let done: Vec<T> = done.into_iter().map(T::from_f32).collect();
        queue.write(&done, self.rows.view_mut())?;
        queue.synchronize()?;
        clock.lap("upload");

        let y = self.rows.rows(hidden_size)?;
        let combine = self.plan.combine(y).weights(weights.view());
        combine.run_into(queue, self.output.rows_mut(hidden_size)?)?;
        queue.synchronize()?;
        clock.lap("combine");

        Ok(Answers {
            source: queue.download(self.plan.source())?,
            slot: queue.download(self.plan.slot())?,
            output: to_f32(queue.download(self.output.view())?),
            expert_offsets,
            topk_ids,
            topk_weights,
            stages: Vec::new(),
        })
    }
}

pub(crate) fn to_f32<T: Float>(values: Vec<T>) -> Vec<f32> {
    values.into_iter().map(T::to_f32).collect()
}

/// SwiGLU experts: `down(silu(gate(x)) * up(x))`, rows by expert.
fn experts(cpu: &CpuQueue, layer: &Layer, rows: &[f32], offsets: &[i32]) -> Vec<f32> {
    let (hidden, inner) = (layer.hidden_size, layer.intermediate_size);
    let num_rows = rows.len() / hidden;
    let product = |x: &[f32], weights: &[Vec<f32>], from: usize, to: usize| {
        let weights: Vec<&[f32]> = weights.iter().map(|w| w.as_slice()).collect();
        let mut out = vec![0.0; num_rows * to];
        grouped_matmul(cpu, x, &weights, offsets, from, &mut out, to);
        out
    };
    let gate = product(rows, &layer.gate_proj, hidden, inner);
    let mut act = product(rows, &layer.up_proj, hidden, inner);
    for (up, gate) in act.iter_mut().zip(gate) {
        *up *= gate / (1.0 + (-gate).exp());
    }
    product(&act, &layer.down_proj, inner, hidden)
}
