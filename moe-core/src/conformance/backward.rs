//! Gradients against central differences of the forward operation in float64: of permute and unpermute with and without
//! weights, of probabilities, of mask maps and of chunk sorts, in layouts that pad and drop. Every coordinate is moved.

use super::axes::{Case, Dist};
use super::harness::{Checked, Ctx, ensure};
use super::naive::Plan;
use super::rng::Rng;
use super::route;
use crate::{Buf, Layout, PermuteBackend, PlanSpec, Queue, RoutePlan, Routing};

const LAYOUTS: [Layout; 3] = [Layout::Packed, Layout::Aligned(8), Layout::Padded(3)];
/// Elements of a row.
const H: usize = 6;

/// Permute, unpermute, and values by route, over top-k ids of which some are masked or invalid.
pub(super) fn gradients_of_primitives<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for layout in LAYOUTS {
        for top_k in [1, 3, 8] {
            let case = Case { tokens: 9, top_k, experts: 5, dist: Dist::Mixed, layout, ..Case::PLAIN };
            ctx.case(format!("{case:?}"), |ctx, rng| primitives(ctx, &case, rng));
        }
    }
}

/// Mask maps with probabilities, and chunk sorts.
pub(super) fn gradients_of_routes<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for layout in LAYOUTS {
        for max_routes in [2, 5] {
            ctx.case(format!("mask, {layout:?}, {max_routes} routes"), |ctx, rng| mask(ctx, layout, max_routes, rng));
        }
    }
    for sizes in [[2, 0, 4, 3], [3, -1, 4, 0], [5, 1, 9, 2]] {
        ctx.case(format!("chunks of {sizes:?}"), |ctx, rng| chunks(ctx, &sizes, rng));
    }
}

/// Numbers from -1 to 1 that f32 holds exactly.
fn numbers(rng: &mut Rng, len: usize) -> Vec<f64> {
    (0..len).map(|_| f64::from(rng.unit())).collect()
}

fn upload<B: PermuteBackend>(queue: &mut Queue<'_, B>, x: &[f64]) -> crate::Result<Buf<B, f32>> {
    queue.upload(&x.iter().map(|x| *x as f32).collect::<Vec<_>>())
}

/// `Y = diag(w) P X`.
fn gather(plan: &Plan, x: &[f64], w: Option<&[f64]>, hidden: usize) -> Vec<f64> {
    let mut y = vec![0.0; plan.source.len() * hidden];
    for (route, slot) in plan.slot.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
        for h in 0..hidden {
            let weight = w.map_or(1.0, |w| w[route]);
            y[*slot as usize * hidden + h] = weight * x[route / plan.top_k * hidden + h];
        }
    }
    y
}

/// `X = Pᵀ diag(w) Y`.
fn combine(plan: &Plan, y: &[f64], w: Option<&[f64]>, hidden: usize) -> Vec<f64> {
    let mut x = vec![0.0; plan.slot.len() / plan.top_k * hidden];
    for (route, slot) in plan.slot.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
        for h in 0..hidden {
            let weight = w.map_or(1.0, |w| w[route]);
            x[route / plan.top_k * hidden + h] += weight * y[*slot as usize * hidden + h];
        }
    }
    x
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `grad` is the gradient of `loss` at `x`.
fn check<B: PermuteBackend>(
    queue: &mut Queue<'_, B>,
    what: &str,
    grad: &Buf<B, f32>,
    x: &[f64],
    loss: impl Fn(&[f64]) -> f64,
) -> Checked {
    let grad = queue.download(grad.view())?;
    ensure(grad.len() == x.len(), || format!("{what}: {} elements, expected {}", grad.len(), x.len()))?;
    let step = 2f64.powi(-12);
    let mut moved = x.to_vec();
    for (i, got) in grad.iter().enumerate() {
        let mut at = |by: f64| {
            moved[i] = x[i] + by;
            loss(&moved)
        };
        let want = (at(step) - at(-step)) / (2.0 * step);
        moved[i] = x[i];
        let bound = 1e-5 * (1.0 + want.abs());
        ensure((f64::from(*got) - want).abs() <= bound, || format!("{what}[{i}] is {got}, differences give {want}"))?;
    }
    Ok(())
}

fn primitives<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, case: &Case, rng: &mut Rng) -> Checked {
    let (plan, p, _inputs) = route::build(ctx, case, rng)?;
    let (tokens, routes, rows, queue) = (case.tokens, p.slot.len(), plan.num_rows(), &mut ctx.queue);
    let (x, y, w) = (numbers(rng, tokens * H), numbers(rng, rows * H), numbers(rng, routes));
    let (dx, dy) = (numbers(rng, tokens * H), numbers(rng, rows * H)); // gradients of what is shaped like x, y
    let (x_in, y_in, w_in) = (upload(queue, &x)?, upload(queue, &y)?, upload(queue, &w)?);
    let (dx_in, dy_in) = (upload(queue, &dx)?, upload(queue, &dy)?);

    let grad = plan.combine(dy_in.rows(H)?).run(queue)?;
    check(queue, "permute, rows", &grad, &x, |x| dot(&dy, &gather(&p, x, None, H)))?;
    let grad = plan.combine(dy_in.rows(H)?).weights(w_in.view()).run(queue)?;
    check(queue, "weighted permute, rows", &grad, &x, |x| dot(&dy, &gather(&p, x, Some(&w), H)))?;
    let grad = plan.gather_grad_weights(x_in.rows(H)?, dy_in.rows(H)?).run(queue)?;
    check(queue, "weighted permute, weights", &grad, &w, |w| dot(&dy, &gather(&p, &x, Some(w), H)))?;

    let grad = plan.combine_grad(dx_in.rows(H)?).run_rows(queue)?;
    check(queue, "unpermute, rows", &grad, &y, |y| dot(&dx, &combine(&p, y, None, H)))?;
    let op = plan.combine_grad(dx_in.rows(H)?).weights(w_in.view()).rows(y_in.rows(H)?);
    let (rows, weights) = op.run(queue)?;
    check(queue, "weighted unpermute, rows", &rows, &y, |y| dot(&dx, &combine(&p, y, Some(&w), H)))?;
    check(queue, "weighted unpermute, weights", &weights, &w, |w| dot(&dx, &combine(&p, &y, Some(w), H)))?;

    let by_route = Plan { top_k: 1, ..p };
    let d = numbers(rng, plan.num_rows());
    let d_in = upload(queue, &d)?;
    let grad = plan.combine_routes(d_in.rows(1)?).run(queue)?;
    check(queue, "values by route", &grad, &w, |w| dot(&d, &gather(&by_route, w, None, 1)))
}

fn mask<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, layout: Layout, max_routes: usize, rng: &mut Rng) -> Checked {
    let (tokens, experts) = (9, 5);
    let mut workspace = ctx.workspace(tokens, max_routes, experts)?;
    let queue = &mut ctx.queue;
    let map: Vec<u8> = (0..tokens * experts).map(|_| rng.below(2) as u8).collect();
    let (x, probs) = (numbers(rng, tokens * H), numbers(rng, tokens * experts));
    let (map_in, probs_in) = (queue.upload(&map)?, upload(queue, &probs)?);
    let spec = PlanSpec::mask(tokens, experts).max_routes(max_routes).with_probs::<f32>().layout(layout);
    let routing = Routing::mask(map_in.rows(experts)?).probs(probs_in.rows(experts)?);
    let plan = RoutePlan::new(queue, &mut workspace, spec, routing)?;
    let p = route::download(queue, &plan)?;
    let by_route = Plan { top_k: 1, ..p.clone() };
    let ids = queue.download(plan.route_ids().expect("a plan of a mask has ids"))?;

    // out = unpermute(permute(x), probs), and beside it the probabilities in the order of the rows.
    let (d_out, d_probs) = (numbers(rng, tokens * H), numbers(rng, plan.num_rows()));
    let loss = |x: &[f64], probs: &[f64]| {
        let value = |(x, id): (usize, &i32)| if *id < 0 { 0.0 } else { probs[x / max_routes * experts + *id as usize] };
        let w: Vec<f64> = ids.iter().enumerate().map(value).collect();
        let out = combine(&p, &gather(&p, x, None, H), Some(&w), H);
        dot(&d_out, &out) + dot(&d_probs, &gather(&by_route, &w, None, 1))
    };
    let (x_in, d_out_in, d_probs_in) = (upload(queue, &x)?, upload(queue, &d_out)?, upload(queue, &d_probs)?);
    let rows = plan.gather(x_in.rows(H)?).run(queue)?;
    let op = plan.combine_grad(d_out_in.rows(H)?).weights(plan.probs::<f32>()?).rows(rows.rows(H)?);
    let (d_rows, d_w) = op.run::<f32>(queue)?;
    let d_w = plan.combine_routes(d_probs_in.rows(1)?).residual(d_w.rows(1)?).run(queue)?; // both uses of them
    let d_map = plan.mask_grad(d_w.view()).run(queue)?;
    check(queue, "probabilities", &d_map, &probs, |probs| loss(&x, probs))?;
    let d_x = plan.combine(d_rows.rows(H)?).run(queue)?;
    check(queue, "rows", &d_x, &x, |x| loss(x, &probs))
}

fn chunks<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, sizes: &[i32], rng: &mut Rng) -> Checked {
    let rows = 9;
    let mut workspace = ctx.workspace(rows, 1, sizes.len())?;
    let queue = &mut ctx.queue;
    let (sizes_in, order) = (queue.upload(sizes)?, queue.upload(&[2, 0, 3, 1])?);
    let routing = Routing::chunks(sizes_in.view(), Some(order.view()));
    let plan = RoutePlan::new(queue, &mut workspace, PlanSpec::chunks(rows, sizes.len()), routing)?;
    let p = route::download(queue, &plan)?;
    let (x, probs) = (numbers(rng, rows * H), numbers(rng, rows));
    let (dy, d_probs) = (numbers(rng, rows * H), numbers(rng, rows));
    let (dy_in, d_probs_in) = (upload(queue, &dy)?, upload(queue, &d_probs)?);
    let grad = plan.combine(dy_in.rows(H)?).run(queue)?;
    check(queue, "rows", &grad, &x, |x| dot(&dy, &gather(&p, x, None, H)))?;
    let grad = plan.combine_routes(d_probs_in.rows(1)?).run(queue)?;
    check(queue, "values", &grad, &probs, |v| dot(&d_probs, &gather(&p, v, None, 1)))
}
