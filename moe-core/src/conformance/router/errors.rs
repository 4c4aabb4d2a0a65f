//! Each check of an argument gives its own typed error and changes nothing.

use super::super::errors::refuses;
use super::super::harness::{Ctx, ensure};
use crate::{Result, Router, RouterBackend};

/// Numbers out of range, and shapes that do not fit.
pub(super) fn errors_of_router_arguments<B: RouterBackend>(ctx: &mut Ctx<'_, B>) {
    let numbers: &[(&str, Router)] = &[
        ("num_experts", Router::new(0, 1)),
        ("top_k", Router::new(8, 0)),
        ("top_k", Router::new(8, 9)),
        ("scaling_factor", Router::new(8, 2).scaling_factor(f32::INFINITY)),
        ("n_group", Router::new(8, 2).groups(3, 1)),
        ("n_group", Router::new(8, 2).groups(0, 1)),
        ("n_group", Router::new(512, 2).groups(256, 1)),
        ("topk_group", Router::new(8, 2).groups(4, 0)),
        ("topk_group", Router::new(8, 2).groups(4, 5)),
        ("top_k", Router::new(8, 3).groups(4, 1)),
        ("logits", Router::new(9, 2)),
    ];
    for (arg, router) in numbers {
        ctx.case(format!("{router:?}"), |ctx, _| {
            let logits = ctx.queue.zeros::<f32>(16)?;
            let variant = if *arg == "logits" { "Shape" } else { "InvalidArgument" };
            refuses(router.route(logits.rows(8)?).run::<f32>(&mut ctx.queue), variant, &["route", arg])?;
            refuses(router.losses(logits.rows(8)?).run(&mut ctx.queue), variant, &["router losses", arg])?;
            refuses(router.grad(logits.rows(8)?).run(&mut ctx.queue), variant, &["router grad", arg])
        });
    }
    ctx.case("lengths and overlaps", |ctx, _| {
        let queue = &mut ctx.queue;
        let router = Router::new(8, 2);
        let logits = queue.zeros::<f32>(16)?;
        let mut ids = queue.zeros::<i32>(5)?;
        let mut weights = queue.zeros::<f32>(64)?;
        queue.fill(ids.view_mut(), 0xa5)?;
        queue.fill(weights.view_mut(), 0xa5)?;
        let (seven, two) = (queue.zeros::<f32>(7)?, queue.zeros::<i32>(2)?);
        let x = || logits.rows(8);
        let mut route = |op: crate::Route<'_, B, f32>, ids_len, weights_len| -> Result<()> {
            op.run_into(queue, ids.view_mut().slice(0..ids_len)?, weights.view_mut().slice(0..weights_len)?)
        };
        let shape = "Shape";
        refuses(route(router.route(x()?), 5, 4), shape, &["route", "ids", "4 elements", "5 elements"])?;
        refuses(route(router.route(x()?), 4, 5), shape, &["route", "weights", "4", "5"])?;
        let op = router.route(x()?).correction_bias(seven.view());
        refuses(route(op, 4, 4), shape, &["route", "correction_bias", "8", "7"])?;
        let op = router.route(x()?).valid_tokens(two.view());
        refuses(route(op, 4, 4), shape, &["route", "valid_tokens", "1", "2"])?;

        let op = router.losses(x()?).balance(two.view(), 1.0);
        let queue = &mut ctx.queue;
        refuses(op.run(queue), shape, &["router losses", "load", "8", "2"])?;
        refuses(router.losses(x()?).z(f32::NAN).run(queue), "InvalidArgument", &["router losses", "z coefficient"])?;
        let op = router.grad(x()?).weights(two.view(), seven.view());
        refuses(op.run(queue), shape, &["router grad", "ids", "4", "2"])?;
        let four = queue.zeros::<i32>(4)?;
        let op = router.grad(x()?).weights(four.view(), seven.view());
        refuses(op.run(queue), shape, &["router grad", "grad_weights", "4", "7"])?;
        let op = router.grad(x()?).probs(seven.rows(7)?);
        refuses(op.run(queue), shape, &["router grad", "grad_probs", "2 rows of 8", "1 rows of 7"])?;
        let op = router.grad(x()?).z(1.0).loss_grads(seven.view());
        refuses(op.run(queue), shape, &["router grad", "loss_grads", "2", "7"])?;

        let kept = queue.download(ids.view())?.iter().all(|id| *id == i32::from_ne_bytes([0xa5; 4]));
        ensure(kept, || "refused, but the ids were changed".into())?;
        let kept = queue.download(weights.view())?.iter().all(|w| w.to_bits() == u32::from_ne_bytes([0xa5; 4]));
        ensure(kept, || "refused, but the weights were changed".into())
    });
}
