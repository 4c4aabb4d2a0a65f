//! A layer all of whose stages run on the backend, by `MoeLayer`; timed.

use super::clock::{Clock, PASSES, keep_fastest, print_stages};
use super::layer::Layer;
use super::quant;
use super::stages::{Answers, to_f32};
use super::trace::Trace;
use moe_core::layer::{LayerOptions, LayerState, MoeLayer, SafeTensors};
use moe_core::{
    Dev, DeviceSpec, Float, MatmulBackend, MatmulInput, QuantBackend, Queue, Result, RouterBackend, Workspace,
};

/// Runs the layer with rows of type `T` and results of type `O`.
pub(crate) fn forward<B, T, O>(
    spec: &DeviceSpec,
    layer: &Layer,
    trace: &Trace,
    options: LayerOptions,
) -> Result<Answers, String>
where
    B: QuantBackend + RouterBackend + MatmulBackend,
    T: Float + MatmulInput,
    O: Float,
{
    let files = [SafeTensors::deserialize(&layer.bytes).map_err(|e| e.to_string())?];
    run::<B, T, O>(spec, layer, &files, trace, options).map_err(|e| e.to_string())
}

fn run<B, T, O>(
    spec: &DeviceSpec,
    layer: &Layer,
    files: &[SafeTensors<'_>],
    trace: &Trace,
    options: LayerOptions,
) -> Result<Answers>
where
    B: QuantBackend + RouterBackend + MatmulBackend,
    T: Float + MatmulInput,
    O: Float,
{
    let (tokens, hidden) = (trace.num_tokens, layer.hidden_size);
    let device = Dev::<B>::open(spec)?;
    println!("{}: {}", device.id(), device.info().name);
    let weights = if options.fp8_dynamic { "fp8 weights and rows, dynamic" } else { "weights as the rows" };
    println!(
        "{tokens} tokens of {hidden} {}, {} experts, top-{}, {weights}, results in {}, fastest of {PASSES} passes",
        T::DTYPE,
        layer.num_experts,
        layer.top_k,
        O::DTYPE
    );
    let mut queue = device.queue()?;
    let moe = MoeLayer::<B, T>::load(&mut queue, layer.config(), &layer.prefix, files, options)?;
    let mut workspace = Workspace::new(&mut queue, moe.limits(tokens))?;
    let mut state = LayerState::<B, T, O>::new(&mut queue, &mut workspace, &moe, tokens)?;
    let mut matmul = B::matmul(queue.raw())?;
    let x: Vec<T> = trace.hidden_states.iter().map(|x| T::from_f32(*x)).collect();
    let x = queue.upload(&x)?;
    let mut out = queue.zeros::<O>(tokens * hidden)?;

    let mut best = Vec::new();
    for _ in 0..PASSES {
        queue.synchronize()?;
        let mut clock = Clock::default();
        let mut lap = |queue: &mut Queue<'_, B>, stage: moe_core::layer::Stage| {
            queue.synchronize()?;
            clock.lap(stage.name());
            Ok(())
        };
        let (x, out) = (x.rows(hidden)?, out.rows_mut(hidden)?);
        moe.forward_observed(&mut queue, &mut workspace, &mut matmul, &mut state, x, out, &mut lap)?;
        keep_fastest(&mut best, clock.stages);
    }
    print_stages(&best);

    let plan = state.plan();
    Ok(Answers {
        source: queue.download(plan.source())?,
        slot: queue.download(plan.slot())?,
        expert_offsets: queue.download(plan.expert_offsets())?,
        topk_ids: queue.download(state.topk_ids())?,
        topk_weights: queue.download(state.topk_weights())?,
        stages: quant::differences(&mut queue, &state, trace, layer)?,
        output: to_f32(queue.download(out.view())?),
    })
}
