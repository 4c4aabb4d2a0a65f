//! Each check of an argument gives its own typed error, which names operation and argument, and changes nothing.

use super::axes::Case;
use super::harness::{Checked, Ctx, Fail, ensure};
use super::route;
use crate::dtype::as_bytes;
use crate::{
    Buf, Capacity, Element, Error, Layout, Limits, PermuteBackend, PlanSpec, Queue, Result, RoutePlan, Routing,
    Workspace,
};
use float8::F8E4M3;
use half::{bf16, f16};

/// The result is the error `variant`, and its message names every part.
pub(super) fn refuses<R>(result: Result<R>, variant: &str, parts: &[&str]) -> Checked {
    let error = match result {
        Ok(_) => return Err(Fail(format!("accepted, expected {variant} that names {parts:?}"))),
        Err(error) => error,
    };
    let (debug, message) = (format!("{error:?}"), error.to_string());
    let named = parts.iter().all(|part| message.contains(part));
    ensure(debug.starts_with(variant) && named, || {
        format!("expected {variant} that names {parts:?}, got {debug:?}: {message}")
    })
}

/// Runs `op` on a buffer of poison, and makes sure that it was refused and changed nothing.
pub(super) fn refuses_and_keeps<B: PermuteBackend, T: Element>(
    queue: &mut Queue<'_, B>,
    len: usize,
    variant: &str,
    parts: &[&str],
    op: impl FnOnce(&mut Queue<'_, B>, &mut Buf<B, T>) -> Result<()>,
) -> Checked {
    let mut out = queue.zeros::<T>(len)?;
    queue.fill(out.view_mut(), 0xa5)?;
    let result = op(queue, &mut out);
    refuses(result, variant, parts)?;
    let kept = as_bytes(&queue.download(out.view())?).iter().all(|b| *b == 0xa5);
    ensure(kept, || format!("{parts:?}: refused, but the output was changed"))
}

/// Shapes, lengths and sizes of `alloc`, `build_into` and `permute_into`.
pub(super) fn errors_of_plan_arguments<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    let number = "InvalidArgument";
    let specs: &[(&str, PlanSpec)] = &[
        ("top_k", PlanSpec::new(1, 0, 4)),
        ("top_k", PlanSpec::new(0, 1 << 31, 4)),
        ("num_experts", PlanSpec::new(1, 1, 0)),
        ("num_local_experts", PlanSpec::new(1, 1, 4).local_experts(0)),
        ("num_local_experts", PlanSpec::new(1, 1, 4).local_experts(5)),
        ("num_tokens", PlanSpec::new(1 << 28, 8, 4)),
        ("num_tokens", PlanSpec::new(usize::MAX, 2, 4)),
        ("alignment", PlanSpec::new(1, 1, 4).layout(Layout::Aligned(0))),
        ("rows per expert", PlanSpec::new(1, 1, 4).layout(Layout::Padded(0))),
        ("capacity", PlanSpec::new(1, 1, 4).capacity(Capacity::ByRoute(0))),
        ("layout", PlanSpec::new(1 << 20, 8, 4096).layout(Layout::Aligned(1 << 20))),
        ("layout", PlanSpec::new(1, 1, 4096).layout(Layout::Padded(1 << 20))),
    ];
    for (arg, spec) in specs {
        ctx.case(format!("{spec:?}"), |ctx, _| {
            refuses(spec.num_rows(), number, &[arg])?;
            refuses(RoutePlan::alloc(&mut ctx.queue, *spec), number, &["RoutePlan::alloc", arg])
        });
    }
    ctx.case("build_into", |ctx, _| {
        let mut workspace = ctx.workspace(4, 2, 8)?;
        let queue = &mut ctx.queue;
        let spec = PlanSpec::new(4, 2, 8);
        let ids = queue.upload(&[0i32; 8])?;
        let map = queue.upload(&[0i32; 7])?;
        let two = queue.upload(&[0i32; 2])?;
        let mut plan = RoutePlan::new(queue, &mut workspace, spec, Routing::top_k(ids.view()))?;
        let before = route::download(queue, &plan)?;
        let short = ids.view().slice(0..7)?;
        type Make<'a, B> = (&'a str, [&'a str; 3], PlanSpec, Routing<'a, B>);
        let cases: Vec<Make<'_, B>> = vec![
            ("Shape", ["ids", "7 elements", "8 elements"], spec, Routing::top_k(short)),
            ("Shape", ["expert_map", "7", "8"], spec, Routing::top_k(ids.view()).expert_map(map.view())),
            ("Shape", ["valid_tokens", "2", "1"], spec, Routing::top_k(ids.view()).valid_tokens(two.view())),
            (number, ["num_local_experts", "without", "3"], spec.local_experts(3), Routing::top_k(ids.view())),
            ("TooSmall", ["plan", "bytes", "needs"], spec.layout(Layout::Padded(999)), Routing::top_k(ids.view())),
        ];
        for (variant, parts, spec, routing) in cases {
            let result = plan.build_into(queue, &mut workspace, spec, routing);
            refuses(result, variant, &["build_into", parts[0], parts[1], parts[2]])?;
        }
        let after = route::download(queue, &plan)?;
        ensure(before == after, || "a refused build changed the plan".into())?;
        // Still built, still usable.
        plan.validate(queue)?;
        Ok(())
    });
    ctx.case("permute_into", |ctx, _| {
        let mut workspace = ctx.workspace(4, 2, 8)?;
        let queue = &mut ctx.queue;
        let spec = PlanSpec::new(4, 2, 8);
        let ids = queue.upload(&[0i32; 8])?;
        let x = queue.upload(&[0f32; 15])?;
        let mut plan = RoutePlan::alloc(queue, spec)?;
        let mut run = |queue: &mut Queue<'_, B>, rows, cols: usize, out: &mut Buf<B, f32>| {
            let x = x.view().slice(0..rows * cols)?.rows(cols)?;
            plan.permute_into(queue, &mut workspace, spec, Routing::top_k(ids.view()), x, out.rows_mut(3)?)
        };
        let parts = &["permute_into", "rows", "5 rows of 3", "4 rows of 3"];
        refuses_and_keeps(queue, 24, "Shape", parts, |queue, out| run(queue, 5, 3, out))?;
        let parts = &["permute_into", "out", "7 rows of 3", "8 rows of 3"];
        refuses_and_keeps(queue, 21, "Shape", parts, |queue, out| run(queue, 4, 3, out))?;
        let parts = &["permute_into", "out", "8 rows of 3", "8 rows of 2"];
        refuses_and_keeps(queue, 24, "Shape", parts, |queue, out| run(queue, 4, 2, out))?;
        refuses(plan.status(queue), "PlanNotBuilt", &["RoutePlan::status"])
    });
}

/// Scratch that is too small names itself and both sizes; `grow` helps; a smaller batch needs nothing new.
pub(super) fn bug_18_too_small_a_workspace_is_a_typed_error<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("refuse, grow, shrink", |ctx, rng| {
        let mut workspace = Workspace::new(&mut ctx.queue, Limits { max_routes: 16, max_experts: 8 })?;
        let (tokens, top_k, experts) = (65, 4, 60);
        let large = Case { tokens, top_k, experts, ..Case::PLAIN };
        let (ids, ..) = route::contents(&large, rng);
        let inputs = route::Inputs::new(&mut ctx.queue, large.ids, &ids, None, None, Default::default())?;
        let mut plan = RoutePlan::alloc(&mut ctx.queue, large.spec())?;
        let result = plan.build_into(&mut ctx.queue, &mut workspace, large.spec(), inputs.routing()?);
        refuses(result, "TooSmall", &["build_into", "workspace", "16 routes", "260"])?;
        workspace.grow(&mut ctx.queue, Limits { max_routes: 260, max_experts: 8 })?;
        let result = plan.build_into(&mut ctx.queue, &mut workspace, large.spec(), inputs.routing()?);
        refuses(result, "TooSmall", &["build_into", "workspace", "8 experts", "60"])?;
        refuses(plan.validate(&mut ctx.queue), "PlanNotBuilt", &["RoutePlan::validate"])?;
        workspace.grow(&mut ctx.queue, Limits::new(tokens, top_k, experts))?;
        ensure(workspace.limits() == Limits::new(tokens, top_k, experts), || format!("{:?}", workspace.limits()))?;
        for tokens in [65, 3, 1, 0, 64, 65] {
            let case = Case { tokens, ..large };
            let (ids, ..) = route::contents(&case, rng);
            let inputs = route::Inputs::new(&mut ctx.queue, case.ids, &ids, None, None, Default::default())?;
            plan.build_into(&mut ctx.queue, &mut workspace, case.spec(), inputs.routing()?)?;
            let mut want = super::naive::plan(plan.shape(), &ids, None, None);
            (want.m_indices, want.logical_load) = (Vec::new(), Vec::new());
            super::compare::same_plan(&route::download(&mut ctx.queue, &plan)?, &want)?;
        }
        let size = workspace.byte_len();
        workspace.grow(&mut ctx.queue, Limits::new(1, 1, 1))?;
        ensure(workspace.byte_len() == size, || "growing to less changed the workspace".into())
    });
    ctx.case("a plan too small for a larger batch", |ctx, _| {
        let mut workspace = ctx.workspace(4096, 8, 8)?;
        let queue = &mut ctx.queue;
        let ids = queue.zeros::<i32>(4096 * 8)?;
        let mut plan = RoutePlan::alloc(queue, PlanSpec::new(1, 8, 8))?;
        let result = plan.build_into(queue, &mut workspace, PlanSpec::new(4096, 8, 8), Routing::top_k(ids.view()));
        refuses(result, "TooSmall", &["build_into", "plan", "bytes"])
    });
}

/// A plan of 4 tokens, 2 routes each, over 8 experts.
fn small<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) -> Checked<(RoutePlan<B>, RoutePlan<B>)> {
    let mut workspace = ctx.workspace(4, 2, 8)?;
    let spec = PlanSpec::new(4, 2, 8);
    let ids = ctx.queue.upload(&[0i32, 1, 2, 3, 4, 5, 6, 7])?;
    let built = RoutePlan::new(&mut ctx.queue, &mut workspace, spec, Routing::top_k(ids.view()))?;
    Ok((built, RoutePlan::alloc(&mut ctx.queue, spec)?))
}

/// Shapes of rows, weights and output; a plan that was never built.
pub(super) fn errors_of_gather_arguments<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("gather", |ctx, _| {
        let (plan, unbuilt) = small(ctx)?;
        let queue = &mut ctx.queue;
        let x = queue.zeros::<f32>(20)?;
        let w = queue.zeros::<f16>(7)?;
        let rows = |n: usize| x.view().slice(0..n * 4)?.rows(4);
        refuses_and_keeps(queue, 32, "Shape", &["gather", "rows", "5 rows of 4", "4 rows of 4"], |queue, out| {
            plan.gather(rows(5)?).run_into(queue, out.rows_mut(4)?)
        })?;
        refuses_and_keeps(queue, 28, "Shape", &["gather", "out", "7 rows of 4", "8 rows of 4"], |queue, out| {
            plan.gather(rows(4)?).run_into(queue, out.rows_mut(4)?)
        })?;
        refuses_and_keeps(queue, 32, "Shape", &["gather", "weights", "7 elements", "8 elements"], |queue, out| {
            plan.gather(rows(4)?).weights(w.view()).run_into(queue, out.rows_mut(4)?)
        })?;
        refuses_and_keeps(queue, 32, "PlanNotBuilt", &["gather"], |queue, out| {
            unbuilt.gather(rows(4)?).run_into(queue, out.rows_mut(4)?)
        })?;
        refuses_and_keeps(queue, 32, "PlanNotBuilt", &["zero_tail"], |queue, out: &mut Buf<B, f32>| {
            unbuilt.zero_tail(queue, out.rows_mut(4)?)
        })?;
        refuses_and_keeps(queue, 28, "Shape", &["zero_tail", "rows", "7 rows of 4"], |queue, out: &mut Buf<B, f32>| {
            plan.zero_tail(queue, out.rows_mut(4)?)
        })
    });
}

/// Scales that are shorter than the rows would be read past their end.
pub(super) fn bug_19_scales_shorter_than_the_rows<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("combine", |ctx, _| {
        let (plan, _) = small(ctx)?;
        let queue = &mut ctx.queue;
        let rows = queue.zeros::<F8E4M3>(8 * 130)?;
        let scales = queue.zeros::<f32>(16)?;
        let checks = [
            (7, 2, 128, "7 rows of 2"),
            (4, 2, 128, "4 rows of 2"),
            (8, 1, 128, "8 rows of 1"),
            (8, 2, 64, "8 rows of 3"),
        ];
        for (n, cols, block, text) in checks {
            let parts = &["combine", "scales", text, "8 rows of"];
            refuses_and_keeps(queue, 4 * 130, "Shape", parts, |queue, out: &mut Buf<B, bf16>| {
                let scales = scales.view().slice(0..n * cols)?.rows(cols)?;
                plan.combine(rows.rows(130)?).scales(scales, block).run_into(queue, out.rows_mut(130)?)
            })?;
        }
        Ok(())
    });
}

/// Shapes, dtypes and numbers of combine.
pub(super) fn errors_of_combine_arguments<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("combine", |ctx, _| {
        let (plan, unbuilt) = small(ctx)?;
        let queue = &mut ctx.queue;
        let y = queue.zeros::<bf16>(36)?;
        let y8 = queue.zeros::<F8E4M3>(32)?;
        let f = queue.zeros::<f32>(32)?;
        let rows = |n: usize| y.view().slice(0..n * 4)?.rows(4);
        refuses_and_keeps(
            queue,
            16,
            "Shape",
            &["combine", "rows", "9 rows of 4", "8 rows of 4"],
            |q, out: &mut Buf<B, f32>| plan.combine(rows(9)?).run_into(q, out.rows_mut(4)?),
        )?;
        refuses_and_keeps(
            queue,
            20,
            "Shape",
            &["combine", "out", "5 rows of 4", "4 rows of 4"],
            |q, out: &mut Buf<B, f32>| plan.combine(rows(8)?).run_into(q, out.rows_mut(4)?),
        )?;
        refuses_and_keeps(
            queue,
            16,
            "Shape",
            &["combine", "weights", "32 elements", "8"],
            |q, out: &mut Buf<B, f32>| plan.combine(rows(8)?).weights(f.view()).run_into(q, out.rows_mut(4)?),
        )?;
        refuses_and_keeps(queue, 16, "Shape", &["combine", "residual", "8 rows of 4"], |q, out: &mut Buf<B, f32>| {
            plan.combine(rows(8)?).residual(f.rows(4)?).run_into(q, out.rows_mut(4)?)
        })?;
        let dtype = "UnsupportedDType";
        refuses_and_keeps(queue, 16, dtype, &["combine", "out", "f16"], |q, out: &mut Buf<B, f16>| {
            plan.combine(rows(8)?).run_into(q, out.rows_mut(4)?)
        })?;
        refuses_and_keeps(queue, 16, dtype, &["combine", "residual", "bf16"], |q, out: &mut Buf<B, f32>| {
            plan.combine(rows(8)?).residual(rows(4)?).run_into(q, out.rows_mut(4)?)
        })?;
        refuses_and_keeps(queue, 16, dtype, &["combine", "rows", "bf16"], |q, out: &mut Buf<B, f32>| {
            plan.combine(rows(8)?).scales(f.rows(4)?, 1).run_into(q, out.rows_mut(4)?)
        })?;
        refuses_and_keeps(queue, 16, "InvalidArgument", &["combine", "block", "0"], |q, out: &mut Buf<B, f32>| {
            plan.combine(y8.rows(4)?).scales(f.rows(4)?, 0).run_into(q, out.rows_mut(4)?)
        })?;
        refuses_and_keeps(queue, 16, "PlanNotBuilt", &["combine"], |q, out: &mut Buf<B, f32>| {
            unbuilt.combine(rows(8)?).run_into(q, out.rows_mut(4)?)
        })
    });
}

/// Shapes of combine_grad, and rows that are missing.
pub(super) fn errors_of_combine_grad_arguments<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("combine_grad", |ctx, _| {
        let (plan, unbuilt) = small(ctx)?;
        let queue = &mut ctx.queue;
        let all = queue.zeros::<f32>(36)?;
        let rows = |n: usize| all.view().slice(0..n * 4)?.rows(4);
        let op = "combine_grad";
        refuses_and_keeps(
            queue,
            32,
            "Shape",
            &[op, "grad_out", "5 rows of 4", "4 rows of 4"],
            |q, out: &mut Buf<B, f32>| plan.combine_grad(rows(5)?).run_into::<f32>(q, Some(out.rows_mut(4)?), None),
        )?;
        refuses_and_keeps(
            queue,
            28,
            "Shape",
            &[op, "grad_rows", "7 rows of 4", "8 rows of 4"],
            |q, out: &mut Buf<B, f32>| plan.combine_grad(rows(4)?).run_into::<f32>(q, Some(out.rows_mut(4)?), None),
        )?;
        refuses_and_keeps(queue, 32, "Shape", &[op, "weights", "36 elements", "8"], |q, out: &mut Buf<B, f32>| {
            plan.combine_grad(rows(4)?).weights(all.view()).run_into::<f32>(q, Some(out.rows_mut(4)?), None)
        })?;
        refuses_and_keeps(
            queue,
            8,
            "Shape",
            &[op, "rows", "9 rows of 4", "8 rows of 4"],
            |q, out: &mut Buf<B, f32>| {
                plan.combine_grad(rows(4)?).rows(rows(9)?).run_into::<f32>(q, None, Some(out.view_mut()))
            },
        )?;
        refuses_and_keeps(queue, 7, "Shape", &[op, "grad_weights", "7 elements", "8"], |q, out: &mut Buf<B, f32>| {
            plan.combine_grad(rows(4)?).rows(rows(8)?).run_into::<f32>(q, None, Some(out.view_mut()))
        })?;
        refuses_and_keeps(queue, 8, "InvalidArgument", &[op, "rows", "nothing"], |q, out: &mut Buf<B, f32>| {
            plan.combine_grad(rows(4)?).run_into::<f32>(q, None, Some(out.view_mut()))
        })?;
        refuses_and_keeps(queue, 32, "PlanNotBuilt", &[op], |q, out: &mut Buf<B, f32>| {
            unbuilt.combine_grad(rows(4)?).run_into::<f32>(q, Some(out.rows_mut(4)?), None)
        })
    });
}

/// Slices, strides and copies that do not fit.
pub(super) fn errors_of_views_and_queues<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    ctx.case("views and queues", |ctx, _| {
        let queue = &mut ctx.queue;
        let mut buf = queue.zeros::<f32>(12)?;
        let number = "InvalidArgument";
        refuses(buf.view().slice(3..13), number, &["slice", "range", "3..13", "0..12"])?;
        #[allow(clippy::reversed_empty_ranges)]
        refuses(buf.view().slice(5..4), number, &["slice", "range", "5..4"])?;
        refuses(buf.rows(0), number, &["rows", "cols", "0"])?;
        refuses(buf.rows(5), "Shape", &["rows", "view", "12 elements", "multiple of 5"])?;
        refuses(buf.view().rows_strided(2, 4, 3), number, &["rows_strided", "stride", "3", "4"])?;
        refuses(buf.view().rows_strided(3, 4, 5), "Shape", &["rows_strided", "view", "12 elements", "3 rows of 4"])?;
        refuses(buf.view().rows_strided(usize::MAX, 4, usize::MAX), "Shape", &["rows_strided", "view"])?;
        buf.view().rows_strided(3, 2, 5)?; // the last row ends where the view does
        refuses(queue.write(&[0f32; 11], buf.view_mut()), "Shape", &["write", "dst", "12 elements", "11"])?;
        refuses(queue.read(buf.view(), &mut [0f32; 13]), "Shape", &["read", "src", "12", "13"])?;
        refuses(queue.zeros::<f32>(usize::MAX / 2), number, &["zeros", "len"])?;
        let past = Limits { max_routes: 1 << 31, max_experts: 1 };
        refuses(Workspace::new(queue, past), number, &["Workspace::new", "max_routes"])?;
        let past = Limits { max_routes: 1, max_experts: 1 << 31 };
        refuses(Workspace::new(queue, past), number, &["Workspace::new", "max_experts"])
    });
    ctx.case("specifications", |ctx, _| {
        let _ = &ctx.device;
        let spec = crate::DeviceSpec::new("no_such_backend", Some(0))?;
        refuses(crate::Dev::<B>::open(&spec), "WrongBackend", &["no_such_backend:0", B::NAME])?;
        let spec = crate::DeviceSpec::new(B::NAME, Some(999_999))?;
        let error: Error = match crate::Dev::<B>::open(&spec) {
            Ok(_) => return Err(Fail(format!("opened {spec}"))),
            Err(error) => error,
        };
        refuses::<()>(Err(error), "NoSuchDevice", &["999999", B::NAME])
    });
}
