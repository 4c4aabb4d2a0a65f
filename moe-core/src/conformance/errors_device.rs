//! Devices and streams that do not fit, found before anything is enqueued.

use super::errors::refuses;
use super::harness::{Checked, Ctx, ensure};
use crate::{CommandQueue, Dev, DeviceSpec, Limits, PermuteBackend, PlanSpec, Result, RoutePlan, Routing, Workspace};

/// What was asked for without an index works with everything on the device that it resolved to.
pub(super) fn bug_15_a_spec_without_index_is_its_device<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("opened twice, mixed", |ctx, _| {
        let asked = Dev::<B>::open(&DeviceSpec::new(B::NAME, None)?)?;
        let named = Dev::<B>::open(&DeviceSpec::new(B::NAME, Some(asked.id().ordinal()))?)?;
        ensure(asked.id() == named.id(), || format!("{} is not {}", asked.id(), named.id()))?;
        ensure(asked.id().to_string().contains(':'), || format!("{} has no index", asked.id()))?;
        let mut queue = asked.queue()?;
        let mut workspace = Workspace::new(&mut queue, Limits::new(2, 1, 2))?;
        // Inputs and outputs from the device opened by its full name; workspace, plan and queue from the other.
        let mut other = named.queue()?;
        let ids = other.upload(&[1i32, 0])?;
        let x = other.upload(&[1f32, 2.0, 3.0, 4.0])?;
        other.synchronize()?;
        let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::new(2, 1, 2), Routing::top_k(ids.view()))?;
        let rows = plan.gather(x.rows(2)?).run(&mut queue)?;
        let rows = queue.download(rows.view())?;
        ensure(rows == [3.0, 4.0, 1.0, 2.0], || format!("{rows:?}"))?;
        ensure(ctx.device.id().to_string().starts_with(B::NAME), || ctx.device.id().to_string())
    });
}

/// Every argument that lives on another device is named, with both devices.
pub(super) fn errors_of_a_second_device<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let Some(second) = ctx.options.second_device.clone() else {
        return ctx.skip("no second device was named");
    };
    ctx.case(format!("{} and {second}", ctx.device.id()), |ctx, _| mixed(ctx, &second));
}

fn mixed<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, second: &str) -> Checked {
    let there = Dev::<B>::open(&second.parse()?)?;
    let (a, b) = (ctx.device.id().to_string(), there.id().to_string());
    ensure(ctx.device.id() != there.id(), || format!("{a} and {b} are one device"))?;
    let mut workspace = ctx.workspace(4, 2, 8)?;
    let (here, mut q2) = (&mut ctx.queue, there.queue()?);
    let spec = PlanSpec::new(4, 2, 8);
    let ids = here.upload(&[0i32, 1, 2, 3, 4, 5, 6, 7])?;
    let mut plan = RoutePlan::new(here, &mut workspace, spec, Routing::top_k(ids.view()))?;
    let (x, w) = (here.zeros::<f32>(16)?, here.zeros::<f32>(8)?);
    let mut y = here.zeros::<f32>(32)?;

    let (ids2, map2, one2) = (q2.zeros::<i32>(8)?, q2.zeros::<i32>(8)?, q2.zeros::<i32>(1)?);
    let (x2, w2) = (q2.zeros::<f32>(16)?, q2.zeros::<f32>(8)?);
    let mut y2 = q2.zeros::<f32>(32)?;
    let mut workspace2 = Workspace::new(&mut q2, Limits::new(4, 2, 8))?;
    let mut plan2 = RoutePlan::new(&mut q2, &mut workspace2, spec, Routing::top_k(ids2.view()))?;
    let other = |result: Result<()>, op: &str, arg: &str| refuses(result, "DeviceMismatch", &[op, arg, &a, &b]);

    let top_k = || Routing::top_k(ids.view());
    other(plan.build_into(here, &mut workspace, spec, Routing::top_k(ids2.view())), "build_into", "ids")?;
    other(plan.build_into(here, &mut workspace, spec, top_k().expert_map(map2.view())), "build_into", "expert_map")?;
    other(
        plan.build_into(here, &mut workspace, spec, top_k().valid_tokens(one2.view())),
        "build_into",
        "valid_tokens",
    )?;
    other(plan.build_into(here, &mut workspace2, spec, top_k()), "build_into", "workspace")?;
    other(plan2.build_into(here, &mut workspace, spec, top_k()), "build_into", "plan")?;
    let result = plan.permute_into(here, &mut workspace, spec, top_k(), x2.rows(4)?, y.rows_mut(4)?);
    other(result, "permute_into", "rows")?;
    let result = plan.permute_into(here, &mut workspace, spec, top_k(), x.rows(4)?, y2.rows_mut(4)?);
    other(result, "permute_into", "out")?;
    other(workspace2.grow(here, Limits::new(9, 9, 9)), "Workspace::grow", "workspace")?;

    other(plan2.gather(x.rows(4)?).run_into(here, y.rows_mut(4)?), "gather", "plan")?;
    other(plan.gather(x2.rows(4)?).run_into(here, y.rows_mut(4)?), "gather", "rows")?;
    other(plan.gather(x.rows(4)?).run_into(here, y2.rows_mut(4)?), "gather", "out")?;
    other(plan.gather(x.rows(4)?).weights(w2.view()).run_into(here, y.rows_mut(4)?), "gather", "weights")?;

    let mut out = here.zeros::<f32>(16)?;
    let mut out2 = q2.zeros::<f32>(16)?;
    other(plan2.combine(y.rows(4)?).run_into(here, out.rows_mut(4)?), "combine", "plan")?;
    other(plan.combine(y2.rows(4)?).run_into(here, out.rows_mut(4)?), "combine", "rows")?;
    other(plan.combine(y.rows(4)?).run_into(here, out2.rows_mut(4)?), "combine", "out")?;
    other(plan.combine(y.rows(4)?).weights(w2.view()).run_into(here, out.rows_mut(4)?), "combine", "weights")?;
    other(plan.combine(y.rows(4)?).residual(x2.rows(4)?).run_into(here, out.rows_mut(4)?), "combine", "residual")?;
    let y8 = here.zeros::<float8::F8E4M3>(32)?;
    other(plan.combine(y8.rows(4)?).scales(y2.rows(4)?, 1).run_into(here, out.rows_mut(4)?), "combine", "scales")?;

    let rows = here.zeros::<f32>(32)?;
    let op = "combine_grad";
    let mut dw = here.zeros::<f32>(8)?;
    let mut dw2 = q2.zeros::<f32>(8)?;
    other(plan2.combine_grad(x.rows(4)?).run_into::<f32>(here, Some(y.rows_mut(4)?), None), op, "plan")?;
    other(plan.combine_grad(x2.rows(4)?).run_into::<f32>(here, Some(y.rows_mut(4)?), None), op, "grad_out")?;
    other(plan.combine_grad(x.rows(4)?).run_into::<f32>(here, Some(y2.rows_mut(4)?), None), op, "grad_rows")?;
    let weighted = plan.combine_grad(x.rows(4)?).weights(w2.view());
    other(weighted.run_into::<f32>(here, Some(y.rows_mut(4)?), None), op, "weights")?;
    let with_rows = plan.combine_grad(x.rows(4)?).rows(y2.rows(4)?);
    other(with_rows.run_into::<f32>(here, None, Some(dw.view_mut())), op, "rows")?;
    let with_rows = plan.combine_grad(x.rows(4)?).rows(rows.rows(4)?);
    other(with_rows.run_into::<f32>(here, None, Some(dw2.view_mut())), op, "grad_weights")?;

    other(plan.zero_tail(here, y2.rows_mut(4)?), "zero_tail", "rows")?;
    other(plan2.zero_tail(here, y.rows_mut(4)?), "zero_tail", "plan")?;
    other(here.write(&[0f32; 8], dw2.view_mut()), "write", "dst")?;
    other(here.fill(dw2.view_mut(), 0), "fill", "dst")?;
    other(here.download(w2.view()).map(drop), "read", "src")?;
    other(ctx.device.adopt(x2).map(drop), "adopt", "buffer")?;
    other(ctx.device.adopt_view(w2.view()).map(drop), "adopt_view", "view")?;
    other(ctx.device.adopt_view_mut(dw2.view_mut()).map(drop), "adopt_view_mut", "view")?;
    other(ctx.device.adopt_queue(q2.into_raw()).map(drop), "adopt_queue", "queue")?;
    // The first device still works, with its own.
    let rows = plan.gather(x.rows(4)?).weights(w.view()).run(&mut ctx.queue)?;
    ctx.queue.download(rows.view())?;
    Ok(())
}

/// A workspace belongs to the stream that it was made on.
pub(super) fn errors_of_a_second_stream<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let second = match ctx.device.queue() {
        Ok(queue) if queue.raw().stream_key() != ctx.queue.raw().stream_key() => queue,
        _ => return ctx.skip("all queues of this backend are one stream"),
    };
    ctx.case("two streams", |ctx, _| {
        let mut second = second;
        let mut workspace = ctx.workspace(4, 2, 8)?;
        let ids = ctx.queue.zeros::<i32>(8)?;
        ctx.queue.synchronize()?;
        let spec = PlanSpec::new(4, 2, 8);
        let id = ctx.device.id().to_string();
        let result = RoutePlan::new(&mut second, &mut workspace, spec, Routing::top_k(ids.view()));
        refuses(result, "StreamMismatch", &["build_into", "workspace", &id])?;
        let result = workspace.grow(&mut second, Limits::new(8, 2, 8));
        refuses(result, "StreamMismatch", &["Workspace::grow", "workspace", &id])?;
        RoutePlan::new(&mut ctx.queue, &mut workspace, spec, Routing::top_k(ids.view()))?;
        Ok(())
    });
}
