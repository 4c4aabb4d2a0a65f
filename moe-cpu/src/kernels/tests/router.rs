use super::*;
use moe_core::Scoring;
use moe_core::raw::{RouterGroups, RouterShape};

/// Bits of all that the router computes for a batch.
fn compute(tier: Tier, shape: RouterShape, elem: Elem, logits: &[u8], bias: Option<&[f32]>) -> Vec<u32> {
    let tokens = logits.len() / (shape.num_experts * elem.size());
    let rows = Rows { bytes: logits, stride: shape.num_experts * elem.size() };
    let (mut ids, mut weights) = (vec![-7; tokens * shape.top_k], vec![0f32; tokens * shape.top_k]);
    let mut probs = vec![0u8; tokens * shape.num_experts * 4];
    let out = RouteOut {
        ids: &mut ids,
        weights: WeightsMut::F32(&mut weights),
        probs: Some(RowsMut { bytes: &mut probs, stride: shape.num_experts * 4 }),
    };
    route(tier, &Route { shape, logits: rows, elem, bias, valid: tokens - 1 }, out);
    let load = vec![3; shape.num_experts];
    let losses = Losses { load: Some(&load), balance_scale: 0.1, z_scale: Some(0.01) };
    let (mut terms, mut both) = (vec![0f32; tokens * 2], [0f32; 2]);
    router_losses(tier, &RouterLosses { shape, logits: rows, elem, valid: tokens - 1, losses }, &mut terms, &mut both);
    let mut grad = vec![0u8; logits.len()];
    let args = RouterGrad {
        shape,
        logits: rows,
        elem,
        valid: tokens - 1,
        tokens,
        weights: Some((&ids, Weights::F32(&weights))),
        grad_probs: Some(Rows { bytes: &probs, stride: shape.num_experts * 4 }),
        losses: Some(LossGrads { losses, grad: [1.0, 2.0] }),
    };
    router_grad(tier, &args, RowsMut { bytes: &mut grad, stride: shape.num_experts * elem.size() });
    let floats = weights.iter().chain(&terms).chain(&both).map(|x| x.to_bits());
    let bytes = probs.iter().chain(&grad).map(|b| u32::from(*b));
    ids.iter().map(|id| *id as u32).chain(floats).chain(bytes).collect()
}

#[test]
fn the_router_gives_the_same_bits_on_every_instruction_set() {
    let mut rng = Rng::fresh("router");
    for scoring in [Scoring::Softmax, Scoring::SoftmaxOfTopK, Scoring::Sigmoid] {
        for (num_experts, top_k, groups) in [(5, 2, None), (256, 8, Some((8, 4))), (600, 40, None)] {
            for elem in [Elem::F32, Elem::F16, Elem::Bf16] {
                let groups = groups.map(|(n_group, topk_group)| RouterGroups { n_group, topk_group });
                let renormalize = rng.below(2) == 0;
                let shape = RouterShape { num_experts, top_k, scoring, renormalize, scaling_factor: 2.5, groups };
                let logits: Vec<u8> = (0..9 * num_experts)
                    .flat_map(|_| encode(elem, (rng.float() / 16.0).clamp(-90.0, 90.0), 0))
                    .collect();
                let bias: Vec<f32> = (0..num_experts).map(|_| rng.below(100) as f32 / 1000.0).collect();
                let bias = (rng.below(2) == 0).then_some(&bias[..]);
                let want = compute(Tier::SCALAR, shape, elem, &logits, bias);
                for tier in Tier::available() {
                    let got = compute(tier, shape, elem, &logits, bias);
                    let first = got.iter().zip(&want).position(|(g, w)| g != w);
                    assert_eq!(first, None, "{} {shape:?} {elem:?}", tier.name());
                }
            }
        }
    }
}
