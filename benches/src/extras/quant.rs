//! Rows that are quantised on the way, and the activation between the products.

use super::{Entry, Family, Run};
use crate::Result;
use crate::cases::{Case, Rows};
use crate::routing::Ids;
use crate::work::filled;
use moe_core::half::bf16;
use moe_core::quant::{Block128, Mxfp8, Nvfp4, PerToken, Quantization, ScaleLayout};
use moe_core::{Limits, PlanSpec, QuantBackend, Queue, RoutePlan, Routing, Workspace};

pub(super) fn family<B: QuantBackend>() -> Family<B> {
    const OPS: &[&str] = &[
        "gather_fp8_token",
        "gather_fp8_block",
        "gather_mxfp8",
        "gather_nvfp4",
        "swiglu",
        "swiglu_fp8_block",
        "swiglu_mxfp8",
    ];
    Family { ops: OPS, make }
}

/// I of the model: elements between an expert's two products.
fn intermediate_size(case: &Case) -> usize {
    match case.model.name {
        "dsv3" => 2048,
        "qwen3-30b" => 768,
        "mixtral" => 14336,
        _ => case.model.hidden,
    }
}

fn make<B: QuantBackend>(
    queue: &mut Queue<'_, B>,
    op: &'static str,
    case: &Case,
    ids: &Ids,
) -> Result<Option<Entry<B>>> {
    if case.rows != Rows::Bf16 {
        return Ok(None);
    }
    let mut workspace = Workspace::new(queue, Limits::new(case.tokens, case.model.top_k, case.model.experts))?;
    let topk_ids = queue.upload(&ids.ids)?;
    let map = ids.expert_map.as_ref().map(|map| queue.upload(map)).transpose()?;
    let spec = PlanSpec::new(case.tokens, case.model.top_k, case.model.experts).local_experts(case.local_experts());
    let routing = Routing::top_k(topk_ids.view());
    let routing = match &map {
        Some(map) => routing.expert_map(map.view()),
        None => routing,
    };
    let plan = RoutePlan::new(queue, &mut workspace, spec, routing)?;
    let of = Of { plan, case: *case, local_tokens: ids.local_tokens, local_routes: ids.local_routes };
    let swizzled = ScaleLayout::Swizzled;
    let entry = match op {
        "gather_fp8_token" => of.gather(queue, PerToken)?,
        "gather_fp8_block" => of.gather(queue, Block128(ScaleLayout::RowMajor))?,
        "gather_mxfp8" => of.gather(queue, Mxfp8 { layout: swizzled, ..Mxfp8::default() })?,
        "gather_nvfp4" => of.gather(queue, Nvfp4 { global_scale: 448.0 * 6.0, layout: swizzled })?,
        "swiglu" => of.swiglu(queue)?,
        "swiglu_fp8_block" => of.swiglu_quant(queue, Block128(ScaleLayout::RowMajor))?,
        _ => of.swiglu_quant(queue, Mxfp8 { layout: swizzled, ..Mxfp8::default() })?,
    };
    queue.synchronize()?;
    Ok(Some(entry))
}

/// A plan, and what it is of.
struct Of<B: QuantBackend> {
    plan: RoutePlan<B>,
    case: Case,
    local_tokens: usize,
    local_routes: usize,
}

impl<B: QuantBackend> Of<B> {
    /// Bytes of the placed rows' values and scales, without the padding of a layout.
    fn written<Q: Quantization>(&self, format: Q, cols: usize) -> Result<usize> {
        let format = format.format();
        let scales = format.group().map_or(1, |group| cols.div_ceil(group)) * format.scale_dtype().size();
        Ok(self.local_routes * (format.value_cols(cols)? * format.value_dtype().size() + scales))
    }

    fn gather<Q: Quantization + 'static>(self, queue: &mut Queue<'_, B>, format: Q) -> Result<Entry<B>> {
        let h = self.case.model.hidden;
        let x = filled(queue, self.case.tokens * h, bf16::from_f32)?;
        let bytes = 2 * self.local_tokens * h + self.written(format, h)?;
        let mut out = self.plan.gather_quant(x.rows(h)?, format).run(queue)?;
        let plan = self.plan;
        let run: Run<B> = Box::new(move |queue| {
            let (values, scales) = out.views_mut()?;
            Ok(plan.gather_quant(x.rows(h)?, format).run_into(queue, values, scales)?)
        });
        Ok(Entry { dtype: "bf16", bytes, run })
    }

    fn swiglu(self, queue: &mut Queue<'_, B>) -> Result<Entry<B>> {
        let (i, plan) = (intermediate_size(&self.case), self.plan);
        let x = filled(queue, plan.num_rows() * 2 * i, bf16::from_f32)?;
        let mut out = queue.zeros::<bf16>(plan.num_rows() * i)?;
        let bytes = 6 * self.local_routes * i;
        let run: Run<B> = Box::new(move |queue| Ok(plan.swiglu(x.rows(2 * i)?)?.run_into(queue, out.rows_mut(i)?)?));
        Ok(Entry { dtype: "bf16", bytes, run })
    }

    fn swiglu_quant<Q: Quantization + 'static>(self, queue: &mut Queue<'_, B>, format: Q) -> Result<Entry<B>> {
        let i = intermediate_size(&self.case);
        let x = filled(queue, self.plan.num_rows() * 2 * i, bf16::from_f32)?;
        let bytes = 4 * self.local_routes * i + self.written(format, i)?;
        let mut out = self.plan.swiglu(x.rows(2 * i)?)?.quantized(format).run(queue)?;
        let plan = self.plan;
        let run: Run<B> = Box::new(move |queue| {
            let (values, scales) = out.views_mut()?;
            Ok(plan.swiglu(x.rows(2 * i)?)?.quantized(format).run_into(queue, values, scales)?)
        });
        Ok(Entry { dtype: "bf16", bytes, run })
    }
}
