//! The router: softmax and top-k, DeepSeek-V3's grouped choice, the losses, and the gradient of the first. The dtype is that of the
//! logits; weights are f32.

use super::{Entry, Family, Run};
use crate::Result;
use crate::cases::{Case, RoutingKind, Rows};
use crate::routing::Ids;
use moe_core::half::{bf16, f16};
use moe_core::{Buf, Float, Queue, Router, RouterBackend, Scoring};

/// Groups of the grouped choice, and how many of them are taken.
const GROUPS: (usize, usize) = (8, 4);

pub(super) fn family<B: RouterBackend>() -> Family<B> {
    Family { ops: &["route", "route_grouped", "route_losses", "route_grad"], make }
}

fn make<B: RouterBackend>(
    queue: &mut Queue<'_, B>,
    op: &'static str,
    case: &Case,
    _: &Ids,
) -> Result<Option<Entry<B>>> {
    // Where routes go makes no difference here, and groups make sense where there are some experts in each.
    if case.routing != RoutingKind::Uniform || (op == "route_grouped" && !case.model.experts.is_multiple_of(GROUPS.0)) {
        return Ok(None);
    }
    match case.rows {
        Rows::Bf16 => entry::<B, bf16>(queue, op, case),
        Rows::F16 => entry::<B, f16>(queue, op, case),
        Rows::F32 => entry::<B, f32>(queue, op, case),
        Rows::F8 => Ok(None),
    }
}

fn entry<B: RouterBackend, T: Float>(
    queue: &mut Queue<'_, B>,
    op: &'static str,
    case: &Case,
) -> Result<Option<Entry<B>>> {
    let (tokens, experts, top_k) = (case.tokens, case.model.experts, case.model.top_k);
    let logits: Buf<B, T> = random(queue, tokens * experts)?;
    let matrix = tokens * experts * T::DTYPE.size();
    let out = tokens * top_k * 8;
    let (mut ids, mut weights) = (queue.zeros::<i32>(tokens * top_k)?, queue.zeros::<f32>(tokens * top_k)?);
    let router = Router::new(experts, top_k);
    let (bytes, run): (usize, Run<B>) = match op {
        "route" => {
            let run = move |queue: &mut Queue<'_, B>| {
                let route = router.route(logits.rows(experts)?);
                Ok(route.run_into(queue, ids.view_mut(), weights.view_mut())?)
            };
            (matrix + out, Box::new(run))
        }
        "route_grouped" => {
            let router = router.scoring(Scoring::Sigmoid).renormalize().scaling_factor(2.5);
            let router = router.groups(GROUPS.0, GROUPS.1);
            let bias: Buf<B, f32> = random(queue, experts)?;
            let run = move |queue: &mut Queue<'_, B>| {
                let route = router.route(logits.rows(experts)?).correction_bias(bias.view());
                Ok(route.run_into(queue, ids.view_mut(), weights.view_mut())?)
            };
            (matrix + out + experts * 4, Box::new(run))
        }
        "route_losses" => {
            let load = queue.upload(&vec![(tokens * top_k / experts) as i32; experts])?;
            let (mut of_tokens, mut losses) = (queue.zeros::<f32>(2 * tokens)?, queue.zeros::<f32>(2)?);
            let run = move |queue: &mut Queue<'_, B>| {
                let op = router.losses(logits.rows(experts)?).balance(load.view(), 1e-2).z(1e-3);
                Ok(op.run_into(queue, of_tokens.view_mut(), losses.view_mut())?)
            };
            (matrix + 4 * experts + 8 * (tokens + 1), Box::new(run))
        }
        _ => {
            router.route(logits.rows(experts)?).run_into(queue, ids.view_mut(), weights.view_mut())?;
            let mut grad = queue.zeros::<T>(tokens * experts)?;
            let run = move |queue: &mut Queue<'_, B>| {
                let op = router.grad(logits.rows(experts)?).weights(ids.view(), weights.view());
                Ok(op.run_into(queue, grad.rows_mut(experts)?)?)
            };
            (2 * matrix + out, Box::new(run))
        }
    };
    queue.synchronize()?;
    Ok(Some(Entry { dtype: case.rows.name(), bytes, run }))
}

/// Numbers from -1 to 1 of which hardly two are equal: equal logits are more work.
fn random<B: RouterBackend, T: Float>(queue: &mut Queue<'_, B>, len: usize) -> Result<Buf<B, T>> {
    let mut state = 1u64;
    let numbers = (0..len).map(|_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        T::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    });
    Ok(queue.upload(&numbers.collect::<Vec<T>>())?)
}
