//! Arguments that are refused, each with the error that says why; nothing is written.

use super::super::harness::{Checked, Ctx, ensure};
use crate::quant::{Block128, Mxfp8, Nvfp4, PerToken, Quantization, ScaleLayout};
use crate::{Buf, Error, Limits, PlanSpec, QuantBackend, Queue, Result, RoutePlan, Routing, Workspace};
use float8::F8E4M3;

/// What `gather_quant`, `swiglu` and `swiglu_quant` refuse.
pub(super) fn errors_of_quant_arguments<B: QuantBackend>(ctx: &mut Ctx<'_, B>) {
    let (tokens, hidden) = (4, 6);
    let case = |ctx: &mut Ctx<'_, B>, name: &str, body: &dyn Fn(&mut Queue<'static, B>, &RoutePlan<B>) -> Checked| {
        ctx.case(name, |ctx, _| {
            let queue = &mut ctx.queue;
            let mut workspace = Workspace::new(queue, Limits::new(tokens, 1, 2))?;
            let ids = queue.upload(&[0, 1, 1, 0])?;
            let routing = Routing::top_k(ids.view());
            let plan = RoutePlan::new(queue, &mut workspace, PlanSpec::new(tokens, 1, 2), routing)?;
            body(queue, &plan)
        });
    };
    case(ctx, "values of another shape", &|queue, plan| {
        let x = queue.zeros::<f32>(tokens * hidden)?;
        let (mut values, mut scales) = (queue.zeros(tokens * 3)?, queue.zeros(tokens)?);
        let result = gather(queue, plan, &x, hidden, PerToken, &mut values, 3, &mut scales);
        refused(result, "gather_quant: values has 4 rows of 3 elements, expected 4 rows of 6 elements")
    });
    case(ctx, "too few scales", &|queue, plan| {
        let x = queue.zeros::<f32>(tokens * hidden)?;
        let (mut values, mut scales) = (queue.zeros(tokens * hidden)?, queue.zeros(3)?);
        let result = gather(queue, plan, &x, hidden, PerToken, &mut values, hidden, &mut scales);
        refused(result, "gather_quant: scales has 3 elements, expected 4 elements")
    });
    case(ctx, "swizzled scales without their padding", &|queue, plan| {
        let x = queue.zeros::<f32>(tokens * hidden)?;
        let format = Mxfp8 { layout: ScaleLayout::Swizzled, ..Mxfp8::default() };
        let (mut values, mut scales) = (queue.zeros(tokens * hidden)?, queue.zeros(tokens)?);
        let result = gather(queue, plan, &x, hidden, format, &mut values, hidden, &mut scales);
        refused(result, "gather_quant: scales has 4 elements, expected 512 elements")
    });
    case(ctx, "a layout that the format does not have", &|queue, plan| {
        let x = queue.zeros::<f32>(tokens * hidden)?;
        let (mut values, mut scales) = (queue.zeros(tokens * hidden)?, queue.zeros(tokens)?);
        let format = Block128(ScaleLayout::Swizzled);
        let result = gather(queue, plan, &x, hidden, format, &mut values, hidden, &mut scales);
        refused(result, "gather_quant: layout is Swizzled, expected RowMajor or ColumnMajor for f32 scales")
    });
    case(ctx, "an odd number of 4-bit floats", &|queue, plan| {
        let x = queue.zeros::<f32>(tokens * 5)?;
        let (mut values, mut scales) = (queue.zeros(tokens * 3)?, queue.zeros(tokens)?);
        let format = Nvfp4 { global_scale: 1.0, layout: ScaleLayout::RowMajor };
        let result = gather(queue, plan, &x, 5, format, &mut values, 3, &mut scales);
        refused(result, "gather_quant: hidden_size is 5, expected even: two 4-bit floats lie in a byte")
    });
    for (global_scale, text) in [(0.0, "0"), (f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-1.0, "-1")] {
        case(ctx, &format!("a global scale of {text}"), &|queue, plan| {
            let x = queue.zeros::<f32>(tokens * hidden)?;
            let (mut values, mut scales) = (queue.zeros(tokens * 3)?, queue.zeros(tokens)?);
            let format = Nvfp4 { global_scale, layout: ScaleLayout::RowMajor };
            let result = gather(queue, plan, &x, hidden, format, &mut values, 3, &mut scales);
            refused(result, &format!("gather_quant: global_scale is {text}, expected finite and above 0"))
        });
    }
    case(ctx, "rows of another number of tokens", &|queue, plan| {
        let x = queue.zeros::<f32>(3 * hidden)?;
        let (mut values, mut scales) = (queue.zeros(tokens * hidden)?, queue.zeros(tokens)?);
        let result = gather(queue, plan, &x, hidden, PerToken, &mut values, hidden, &mut scales);
        refused(result, "gather_quant: rows has 3 rows of 6 elements, expected 4 rows of 6 elements")
    });
    case(ctx, "a plan that is not built", &|queue, _| {
        let plan = RoutePlan::alloc(queue, PlanSpec::new(tokens, 1, 2))?;
        let x = queue.zeros::<f32>(tokens * hidden)?;
        let (mut values, mut scales) = (queue.zeros(tokens * hidden)?, queue.zeros(tokens)?);
        let result = gather(queue, &plan, &x, hidden, PerToken, &mut values, hidden, &mut scales);
        refused(result, "gather_quant: the route plan was allocated but not built yet")
    });
    case(ctx, "an odd number of gate and up", &|queue, plan| {
        let x = queue.zeros::<f32>(tokens * 5)?;
        let result = plan.swiglu(x.rows(5)?).map(drop);
        refused(result, "swiglu: rows has 5 elements, expected rows of an even number of elements")
    });
    case(ctx, "gate and up of two shapes", &|queue, plan| {
        let (gate, up) = (queue.zeros::<f32>(tokens * 4)?, queue.zeros::<f32>(tokens * 2)?);
        let result = plan.swiglu_of(gate.rows(4)?, up.rows(2)?).run::<f32>(queue).map(drop);
        refused(result, "swiglu: up has 4 rows of 2 elements, expected 4 rows of 4 elements")
    });
    case(ctx, "an activation into rows of another width", &|queue, plan| {
        let (x, mut out) = (queue.zeros::<f32>(tokens * 4)?, queue.zeros::<f32>(tokens)?);
        let result = plan.swiglu(x.rows(4)?)?.run_into(queue, out.rows_mut(1)?);
        refused(result, "swiglu: out has 4 rows of 1 elements, expected 4 rows of 2 elements")
    });
    case(ctx, "quantised activations with too few scales", &|queue, plan| {
        let x = queue.zeros::<f32>(tokens * 4)?;
        let (mut values, mut scales) = (queue.zeros::<F8E4M3>(tokens * 2)?, queue.zeros::<f32>(1)?);
        let op = plan.swiglu(x.rows(4)?)?.quantized(PerToken);
        let result = op.run_into(queue, values.rows_mut(2)?, scales.view_mut());
        refused(result, "swiglu_quant: scales has 1 elements, expected 4 elements")
    });
}

#[allow(clippy::too_many_arguments)] // the operation's
fn gather<B: QuantBackend, Q: Quantization>(
    queue: &mut Queue<'_, B>,
    plan: &RoutePlan<B>,
    x: &Buf<B, f32>,
    hidden: usize,
    format: Q,
    values: &mut Buf<B, Q::Value>,
    cols: usize,
    scales: &mut Buf<B, Q::Scale>,
) -> Result<()> {
    plan.gather_quant(x.rows(hidden)?, format).run_into(queue, values.rows_mut(cols)?, scales.view_mut())
}

fn refused(result: Result<()>, message: &str) -> Checked {
    let error = result.err();
    let text = error.as_ref().map(Error::to_string);
    ensure(text.as_deref() == Some(message), || format!("got {text:?}, expected {message:?}"))
}
