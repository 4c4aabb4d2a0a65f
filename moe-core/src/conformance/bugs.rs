//! Bugs that users of other libraries hit, in small cases. The number is that of the bug list.

use super::axes::{Case, Dist, Map, Residual, Valid};
use super::combine::check_combine;
use super::combine_grad::check_grad;
use super::gather::check_gather;
use super::harness::{Checked, Ctx, ensure};
use super::rng::Rng;
use super::route;
use crate::{DType, Layout, PermuteBackend};
use half::bf16;

/// Plan, gather, combine and gradients of a case, each compared with the reference.
fn all<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, case: Case) {
    let weighted = Case { weights: Some(DType::F32), ..case };
    let bf16 = Case { dtype: DType::BF16, out: DType::BF16, ..weighted };
    ctx.case(format!("plan of {case:?}"), |ctx, rng| route::check_plan(ctx, &case, rng));
    ctx.case(format!("gather of {case:?}"), |ctx, rng| check_gather(ctx, &case, rng));
    ctx.case(format!("combine of {weighted:?}"), |ctx, rng| check_combine(ctx, &weighted, rng));
    ctx.case(format!("combine of {bf16:?}"), |ctx, rng| check_combine(ctx, &bf16, rng));
    ctx.case(format!("combine_grad of {weighted:?}"), |ctx, rng| check_grad(ctx, &weighted, rng));
}

/// -1 sorted as a signed number comes first and shifts every expert's rows.
pub(super) fn bug_03_masked_ids_are_not_sorted_first<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for ids in [DType::I32, DType::U32, DType::I64] {
        for (tokens, top_k, experts) in [(5, 2, 3), (64, 8, 32), (300, 4, 128)] {
            all(ctx, Case { tokens, top_k, experts, hidden: 24, ids, dist: Dist::Mixed, ..Case::PLAIN });
        }
    }
}

/// `expert_map[-1]` is the last expert's entry, which is local in both cases here.
pub(super) fn bug_04_masked_ids_read_no_expert_map<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for ids in [DType::I32, DType::U32, DType::I64] {
        for map in [Map::Absent, Map::Permuted] {
            let dist = Dist::AllMasked;
            let case = Case { tokens: 9, top_k: 4, experts: 8, hidden: 16, ids, dist, map, ..Case::PLAIN };
            all(ctx, case);
            all(ctx, Case { dist: Dist::Mixed, ..case });
        }
    }
}

/// No route at all: zero counts, zero output.
pub(super) fn bug_05_all_ids_masked<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for layout in [Layout::Packed, Layout::Aligned(16), Layout::Padded(4)] {
        let dist = Dist::AllMasked;
        let case = Case { tokens: 33, top_k: 4, experts: 8, hidden: 64, dist, layout, dirty: true, ..Case::PLAIN };
        all(ctx, case);
        ctx.case("zeros", |ctx, rng| {
            let (plan, _, _inputs) = route::build(ctx, &case, rng)?;
            let rows = ctx.queue.upload(&vec![f32::NAN; plan.num_rows() * 64])?;
            let out = plan.combine(rows.rows(64)?).run::<f32>(&mut ctx.queue)?;
            let zero = ctx.queue.download(out.view())?.iter().all(|x| x.to_bits() == 0);
            ensure(zero, || "combine without routes gives something else than zeros".into())
        });
    }
}

/// Rows and weights of routes that are not placed hold NaN, and 0 * NaN is NaN. The cases poison all of it.
pub(super) fn bug_08_unwritten_rows_are_not_summed<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for layout in [Layout::Packed, Layout::Aligned(16), Layout::Padded(3)] {
        for map in [Map::Absent, Map::EveryFourth, Map::Invalid] {
            let dist = Dist::Mixed;
            all(ctx, Case { tokens: 40, top_k: 4, experts: 32, hidden: 48, dist, layout, map, ..Case::PLAIN });
            let capacity = Some(2);
            all(ctx, Case { tokens: 40, top_k: 4, experts: 5, hidden: 48, dist, layout, map, capacity, ..Case::PLAIN });
        }
    }
    ctx.case("a zero weight on a row that is placed keeps NaN", |ctx, rng| {
        let case = Case { tokens: 3, top_k: 2, experts: 4, hidden: 8, ..Case::PLAIN };
        let (plan, _, _inputs) = route::build(ctx, &case, rng)?;
        let rows = ctx.queue.upload(&vec![bf16::NAN; plan.num_rows() * 8])?;
        let w = ctx.queue.upload(&[0.0f32; 6])?;
        let out = plan.combine(rows.rows(8)?).weights(w.view()).run::<f32>(&mut ctx.queue)?;
        let nan = ctx.queue.download(out.view())?.iter().all(|x| x.is_nan());
        ensure(nan, || "0 * NaN of a placed row is NaN: an expert's failure must not be hidden".into())
    });
}

/// A rank without local routes still owes zeros for every token, forward and backward.
pub(super) fn bug_09_no_local_routes_still_give_all_tokens<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for layout in [Layout::Packed, Layout::Aligned(16), Layout::Padded(4)] {
        let case = Case { tokens: 17, top_k: 4, experts: 16, hidden: 32, map: Map::NoneLocal, layout, ..Case::PLAIN };
        all(ctx, case);
        ctx.case("shape of the result", |ctx, rng| {
            let (plan, _, _inputs) = route::build(ctx, &case, rng)?;
            let rows = ctx.queue.upload(&vec![f32::NAN; plan.num_rows() * 32])?;
            let out = plan.combine(rows.rows(32)?).run::<f32>(&mut ctx.queue)?;
            let dx = ctx.queue.upload(&[1.0f32; 17 * 32])?;
            let (_, dw) = plan.combine_grad(dx.rows(32)?).rows(rows.rows(32)?).run::<f32>(&mut ctx.queue)?;
            let (out, dw) = (ctx.queue.download(out.view())?, ctx.queue.download(dw.view())?);
            let zeros = |x: &[f32]| x.iter().all(|x| x.to_bits() == 0);
            ensure(out.len() == 17 * 32 && zeros(&out), || "out is not [T, H] zeros".into())?;
            ensure(dw.len() == 17 * 4 && zeros(&dw), || "grad_weights is not [T, K] zeros".into())
        });
    }
}

/// T = 0, and no valid token, in every operation.
pub(super) fn bug_10_no_tokens<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for layout in [Layout::Packed, Layout::Aligned(8), Layout::Padded(4)] {
        for map in [Map::Absent, Map::EveryFourth] {
            for experts in [1, 8, 256] {
                let case = Case { top_k: 2, experts, hidden: 16, layout, map, ..Case::PLAIN };
                all(ctx, Case { m_indices: true, logical_load: true, ..case });
                all(ctx, Case { tokens: 12, valid: Valid::Zero, dirty: true, ..case });
            }
        }
    }
}

/// Buffers that are exactly as long as they must be, with sizes that are no multiple of a block; canaries around all.
pub(super) fn bug_11_sizes_that_are_no_multiple_of_a_block<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for (tokens, top_k, experts, block) in
        [(1, 1, 1, 128), (7, 3, 5, 64), (31, 5, 7, 13), (129, 3, 60, 128), (255, 1, 17, 16), (513, 6, 127, 128)]
    {
        for layout in [Layout::Packed, Layout::Aligned(block), Layout::Padded(block)] {
            let m_indices = true;
            all(ctx, Case { tokens, top_k, experts, hidden: 3, layout, m_indices, dirty: true, ..Case::PLAIN });
        }
    }
}

/// Expert counts that are no power of two, and those beyond a block's threads.
pub(super) fn bug_12_expert_counts<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for experts in [1, 3, 60, 127, 128, 160, 257, 1024, 1025, 4096] {
        for layout in [Layout::Packed, Layout::Aligned(4)] {
            for dist in [Dist::Uniform, Dist::AllToOne] {
                let (m_indices, logical_load) = (true, true);
                let case = Case { tokens: 77, top_k: 4, experts, hidden: 4, ..Case::PLAIN };
                all(ctx, Case { layout, dist, m_indices, logical_load, ..case });
            }
        }
    }
}

/// Rows whose size or address is no multiple of 16 bytes.
pub(super) fn bug_20_odd_widths_and_offsets<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for hidden in [1, 7, 8, 1025] {
        for offset in [0, 1, 3, 8] {
            for gap in [0, 1, 7] {
                let case = Case { tokens: 9, top_k: 3, experts: 4, hidden, offset, gap, ..Case::PLAIN };
                for dtype in [DType::U8, DType::BF16, DType::F32, DType::I64] {
                    let case = Case { dtype, ..case };
                    ctx.case(format!("gather of {case:?}"), |ctx, rng| check_gather(ctx, &case, rng));
                }
                for (dtype, out) in [(DType::F8E4M3, DType::F16), (DType::BF16, DType::BF16), (DType::F32, DType::F32)]
                {
                    let case = Case { dtype, out, weights: Some(DType::BF16), residual: Residual::Plain, ..case };
                    ctx.case(format!("combine of {case:?}"), |ctx, rng| check_combine(ctx, &case, rng));
                }
                let case = Case { dtype: DType::F16, weights: Some(DType::F16), out: DType::F16, ..case };
                ctx.case(format!("combine_grad of {case:?}"), |ctx, rng| check_grad(ctx, &case, rng));
            }
        }
    }
}

/// i64 ids must not be narrowed before they are compared: 2^32 + 3 is not expert 3, and u32::MAX - 1 is not -2.
pub(super) fn bug_21_id_types<B: PermuteBackend>(ctx: &mut Ctx<'_, B>) {
    for ids in [DType::I32, DType::U32, DType::I64] {
        for experts in [1, 32, 1025] {
            let case = Case { tokens: 200, top_k: 4, experts, hidden: 8, ids, dist: Dist::Mixed, ..Case::PLAIN };
            all(ctx, Case { logical_load: true, ..case });
        }
    }
    ctx.case("wide ids count as invalid, masked ones as masked", |ctx, rng| wide_ids(ctx, rng));
}

fn wide_ids<B: PermuteBackend>(ctx: &mut Ctx<'_, B>, _rng: &mut Rng) -> Checked {
    let mut workspace = ctx.workspace(6, 1, 8)?;
    let ids = ctx.queue.upload(&[1i64 << 32, (1 << 32) - 1, -1, 3, -(1 << 32), i64::MIN])?;
    let spec = crate::PlanSpec::new(6, 1, 8);
    let routing = crate::Routing::top_k(ids.view());
    let plan = crate::RoutePlan::new(&mut ctx.queue, &mut workspace, spec, routing)?;
    let status = plan.status(&mut ctx.queue)?;
    ensure(status.masked == 1 && status.invalid == 4, || format!("expected 1 masked and 4 invalid, got {status:?}"))?;
    let slot = ctx.queue.download(plan.slot())?;
    ensure(slot == [-1, -1, -1, 0, -1, -1], || format!("slot is {slot:?}"))
}
