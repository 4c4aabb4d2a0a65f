//! One MoE layer's permute and unpermute, recorded into one encoder of the caller's and submitted once.
//!
//! `cargo run -p moe-wgpu --example layer`

use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
use moe_wgpu::Wgpu;

fn main() -> moe_core::Result<()> {
    let (tokens, top_k, experts, hidden) = (64, 4, 16, 256);
    let device = Dev::<Wgpu>::open(&"wgpu".parse()?)?;
    println!("{}: {}", device.id(), device.info().name);

    // Made once: the workspace serves every layer and every encoder.
    let mut queue = device.queue()?;
    let mut workspace = Workspace::new(&mut queue, Limits::new(tokens, top_k, experts))?;
    let spec = PlanSpec::new(tokens, top_k, experts);
    let mut plan = RoutePlan::alloc(&mut queue, spec)?;
    let mut rows = queue.zeros::<f32>(plan.num_rows() * hidden)?;
    let mut out = queue.zeros::<f32>(tokens * hidden)?;
    let ids: Vec<i32> = (0..tokens * top_k).map(|x| (x * 7 % experts) as i32).collect();
    let ids = queue.upload(&ids)?;
    let weights = queue.upload(&vec![1.0 / top_k as f32; tokens * top_k])?;
    let hidden_states: Vec<f32> = (0..tokens * hidden).map(|i| i as f32).collect();
    let x = queue.upload(&hidden_states)?;
    queue.raw_mut().submit()?;

    let mut encoder = device.raw().device().create_command_encoder(&Default::default());
    let mut layer = device.adopt_queue(device.raw().record(&mut encoder))?;
    plan.permute_into(
        &mut layer,
        &mut workspace,
        spec,
        Routing::top_k(ids.view()),
        x.rows(hidden)?,
        rows.rows_mut(hidden)?,
    )?;
    // Here the experts' matrix products would be recorded, into the same encoder.
    plan.combine(rows.rows(hidden)?).weights(weights.view()).run_into(&mut layer, out.rows_mut(hidden)?)?;
    drop(layer);
    device.raw().wgpu_queue().submit([encoder.finish()]);

    assert_eq!(queue.download(out.view())?, hidden_states, "weights of 1/K bring every token home as it was");
    println!("{tokens} tokens went to {experts} experts and came home in one submission");
    Ok(())
}
