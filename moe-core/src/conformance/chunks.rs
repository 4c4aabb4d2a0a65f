//! Chunk sorts, and their way back.

use super::compare::{same, same_plan};
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx};
use super::naive;
use super::rng::Rng;
use super::route;
use super::values::values;
use crate::{PermuteBackend, PlanSpec, RoutePlan, Routing};
use half::bf16;

/// What the order of chunks holds.
#[derive(Clone, Copy, Debug)]
enum Order {
    Absent,
    Permuted,
    /// Repeated, negative and too large numbers.
    Broken,
}

/// What the sizes of chunks hold.
#[derive(Clone, Copy, Debug)]
enum Sizes {
    /// They add up to the rows; some are 0.
    Whole,
    /// Fewer rows than there are.
    Short,
    /// More rows than there are.
    Long,
    /// Some are negative, some close to the largest i32.
    Broken,
}

/// Sorted rows, values beside them and both brought back, for sizes and orders of all kinds.
pub(super) fn chunk_sorts<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for rows in [0, 1, 25, 300, 2049] {
        for chunks in [1, 2, 6, 33, 257, 1025] {
            for sizes in [Sizes::Whole, Sizes::Short, Sizes::Long, Sizes::Broken] {
                for order in [Order::Absent, Order::Permuted, Order::Broken] {
                    ctx.case(format!("{rows} rows, {chunks} chunks, sizes {sizes:?}, order {order:?}"), |ctx, rng| {
                        check(ctx, (rows, chunks), (sizes, order), rng)
                    });
                }
            }
        }
    }
}

fn random_sizes(kind: Sizes, rows: usize, chunks: usize, rng: &mut Rng) -> Vec<i32> {
    let total = match kind {
        Sizes::Whole | Sizes::Broken => rows,
        Sizes::Short => rng.below(rows + 1),
        Sizes::Long => rows + 1 + rng.below(rows + 1),
    };
    let mut cuts: Vec<usize> = (1..chunks).map(|_| rng.below(total + 1)).collect();
    cuts.extend([0, total]);
    cuts.sort_unstable();
    let mut sizes: Vec<i32> = cuts.windows(2).map(|pair| (pair[1] - pair[0]) as i32).collect();
    if matches!(kind, Sizes::Broken) {
        for _ in 0..1 + chunks / 4 {
            let odd = [-1, -7, i32::MIN, i32::MAX, i32::MAX - 1, -(rows as i32)];
            sizes[rng.below(chunks)] = odd[rng.below(odd.len())];
        }
    }
    sizes
}

fn random_order(kind: Order, chunks: usize, rng: &mut Rng) -> Option<Vec<i32>> {
    let mut order: Vec<i32> = (0..chunks as i32).collect();
    (1..chunks).for_each(|i| order.swap(i, rng.below(i + 1)));
    match kind {
        Order::Absent => return None,
        Order::Permuted => {}
        Order::Broken => {
            for _ in 0..1 + chunks / 3 {
                let odd = [-1, i32::MIN, i32::MAX, chunks as i32, rng.below(chunks) as i32, rng.below(chunks) as i32];
                order[rng.below(chunks)] = odd[rng.below(odd.len())];
            }
        }
    }
    Some(order)
}

fn check<B: PermuteBackend>(
    ctx: &mut Ctx<'_, B>,
    (rows, chunks): (usize, usize),
    (sizes, order): (Sizes, Order),
    rng: &mut Rng,
) -> Checked {
    let hidden = [1, 8, 33][rng.below(3)];
    let sizes = random_sizes(sizes, rows, chunks, rng);
    let order = random_order(order, chunks, rng);
    let place = Place::random(rng, rng.clone().below(4), 0);
    let mut workspace = ctx.workspace(rows, 1, chunks)?;
    let queue = &mut ctx.queue;
    let sizes_in = Guarded::vector(queue, &sizes, place)?;
    let order_in = order.as_deref().map(|order| Guarded::vector(queue, order, place)).transpose()?;
    let view = order_in.as_ref().map(|order| order.view()).transpose()?;
    let spec = PlanSpec::chunks(rows, chunks);
    let plan = RoutePlan::new(queue, &mut workspace, spec, Routing::chunks(sizes_in.view()?, view))?;

    let ids = naive::chunk_ids(rows, &sizes, order.as_deref());
    let got = plan.route_ids().expect("a plan of chunks has ids");
    same("route_ids", &queue.download(got)?, &ids, 0)?;
    let wide: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let mut want = naive::plan(plan.shape(), &wide, None, None);
    (want.m_indices, want.logical_load) = (Vec::new(), Vec::new());
    same_plan(&route::download(queue, &plan)?, &want)?;
    plan.validate(queue)?;
    sizes_in.read(queue, "sizes")?;
    order_in.map(|order| order.read(queue, "order")).transpose()?;

    let data: Vec<bf16> = values(rng, rows * hidden, true);
    let probs: Vec<f32> = values(rng, rows, true);
    let (x, p) = (queue.upload(&data)?, queue.upload(&probs)?);
    let sorted = plan.gather(x.rows(hidden)?).run(queue)?;
    let mut want_rows = vec![bf16::ZERO; rows * hidden];
    naive::gather(&want, &data, hidden, &mut want_rows);
    same("sorted", &queue.download(sorted.view())?, &want_rows, hidden)?;
    let sorted_probs = plan.gather_routes(p.rows(1)?).run(queue)?;
    let mut want_probs = vec![0.0; rows];
    naive::gather(&want, &probs, 1, &mut want_probs);
    same("sorted values", &queue.download(sorted_probs.view())?, &want_probs, 1)?;

    let grad: Vec<f32> = values(rng, rows * hidden, false);
    let dy = queue.upload(&grad)?;
    let back = plan.combine(dy.rows(hidden)?).run::<f32>(queue)?;
    let want_back = naive::combine::<f32, f32>(&want, &grad, None, None, None, hidden);
    same("brought back", &queue.download(back.view())?, &want_back, hidden)
}
