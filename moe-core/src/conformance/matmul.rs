//! The suite of grouped products, for backends that bring their own: [`MatmulBackend`].
//!
//! ```
//! moe_core::matmul_suite!(moe_cpu::Cpu, "cpu");
//! # fn main() {}
//! ```

use super::axes::{Axes, BOTH, Case, FLOATS};
use super::compare::same;
use super::guarded::{Guarded, Place};
use super::harness::{Checked, Ctx, Fail, ensure};
use super::naive::{Plan, Widen};
use super::rng::Rng;
use super::route;
use super::values::{narrow, values};
use crate::dtype::{MatmulInput, as_bytes, as_bytes_mut};
use crate::quant::ScaleLayout;
use crate::{DType, Error, Float, Limits, MatmulBackend, PlanSpec, RoutePlan, Routing, Workspace};
use float8::F8E4M3;
use half::{bf16, f16};

super::suite::suite! { $ matmul_suite by expect_matmul_pass for MatmulBackend:
    self::products_of_floats,
    self::products_of_8_bit_floats,
    self::errors_of_matmul_arguments,
}

const AXES: Axes = Axes {
    dtype: FLOATS,
    tokens: &[0, 1, 2, 7, 33, 100],
    experts: &[1, 4, 9],
    hidden: &[1, 7, 16, 64, 129, 384],
    wild: &[false],
    ..Axes::ROWS
};

/// Elements of the largest matrix of rows.
const LIMIT: usize = 1 << 15;

/// f32, f16 and bf16 to f32 and to themselves.
fn products_of_floats<B: MatmulBackend>(ctx: &mut Ctx<'_, B>) {
    let axes = Axes { m_indices: BOTH, ..AXES }; // stands for a result in f32
    for case in axes.cover(&mut ctx.rng(), ctx.options.full, LIMIT, |_| true) {
        ctx.case(format!("{case:?}"), |ctx, rng| match (case.dtype, case.m_indices) {
            (DType::F32, _) => check::<B, f32, f32>(ctx, &case, None, rng),
            (DType::F16, true) => check::<B, f16, f32>(ctx, &case, None, rng),
            (DType::F16, false) => check::<B, f16, f16>(ctx, &case, None, rng),
            (_, true) => check::<B, bf16, f32>(ctx, &case, None, rng),
            (_, false) => check::<B, bf16, bf16>(ctx, &case, None, rng),
        });
    }
}

/// How 8-bit rows and weights are scaled: elements of a row that share a scale, the rows' layout, and outputs and inputs
/// of a block of weights.
#[derive(Clone, Copy, Debug)]
struct Scaling {
    row_block: Option<usize>,
    layout: ScaleLayout,
    weight_block: Option<[usize; 2]>,
}

/// f8e4m3 with scales of every kind, to every float.
fn products_of_8_bit_floats<B: MatmulBackend>(ctx: &mut Ctx<'_, B>) {
    const WHOLE: usize = usize::MAX;
    let scalings = [
        (None, None),
        (Some(WHOLE), Some([1, WHOLE])),
        (Some(128), Some([128, 128])),
        (Some(WHOLE), Some([WHOLE, WHOLE])),
    ];
    let axes = Axes { out: FLOATS, dtype: &[DType::F8E4M3], ..AXES };
    for case in axes.cover(&mut ctx.rng(), ctx.options.full, LIMIT, |_| true) {
        for (row_block, weight_block) in scalings {
            for layout in [ScaleLayout::RowMajor, ScaleLayout::ColumnMajor] {
                let scaling = Scaling { row_block, layout, weight_block };
                ctx.case(format!("{scaling:?} {case:?}"), |ctx, rng| match case.out {
                    DType::F32 => check::<B, F8E4M3, f32>(ctx, &case, Some(scaling), rng),
                    DType::F16 => check::<B, F8E4M3, f16>(ctx, &case, Some(scaling), rng),
                    _ => check::<B, F8E4M3, bf16>(ctx, &case, Some(scaling), rng),
                });
            }
        }
    }
}

/// The scale of element `k` of row `row`, and of weight `[expert, n, k]`, computed plainly.
struct Scales {
    rows: Vec<f32>,
    row_block: usize,
    /// Rows that a column of scales has; 0 for row-major.
    column: usize,
    weights: Vec<f32>,
    weight_block: [usize; 2],
    outputs: usize,
    inputs: usize,
}

impl Scales {
    /// Random ones, or ones where there are none.
    fn new(scaling: Scaling, rows: usize, [experts, outputs, inputs]: [usize; 3], rng: &mut Rng) -> Self {
        let Scaling { row_block, layout, weight_block } = scaling;
        let row_block = row_block.unwrap_or(inputs).min(inputs);
        let [bn, bk] = weight_block.unwrap_or([outputs, inputs]);
        let weight_block = [bn.min(outputs), bk.min(inputs)];
        let column = if layout == ScaleLayout::ColumnMajor { rows.next_multiple_of(4) } else { 0 };
        let row_len = inputs.div_ceil(row_block) * if column > 0 { column } else { rows };
        let weight_len = experts * outputs.div_ceil(weight_block[0]) * inputs.div_ceil(weight_block[1]);
        let there = scaling.weight_block.is_some();
        let mut scale = |_| if there { (rng.unit() + 1.25) / 64.0 } else { 1.0 };
        let (rows, weights) = ((0..row_len).map(&mut scale).collect(), (0..weight_len).map(&mut scale).collect());
        Self { rows, row_block, column, weights, weight_block, outputs, inputs }
    }

    fn row(&self, row: usize, k: usize) -> f64 {
        let (block, blocks) = (k / self.row_block, self.inputs.div_ceil(self.row_block));
        let at = if self.column > 0 { block * self.column + row } else { row * blocks + block };
        self.rows[at].into()
    }

    fn weight(&self, expert: usize, n: usize, k: usize) -> f64 {
        let [bn, bk] = self.weight_block;
        let (rows, cols) = (self.outputs.div_ceil(bn), self.inputs.div_ceil(bk));
        self.weights[(expert * rows + n / bn) * cols + k / bk].into()
    }
}

fn check<B: MatmulBackend, T: MatmulInput + Widen, O: Float + Widen>(
    ctx: &mut Ctx<'_, B>,
    case: &Case,
    scaling: Option<Scaling>,
    rng: &mut Rng,
) -> Checked {
    let (plan, want_plan, _inputs) = route::build(ctx, case, rng)?;
    let (num_rows, inputs, experts) = (plan.num_rows(), case.hidden, case.local_experts());
    let outputs = [1, 8, 33, 130][rng.below(4)];
    // Past the last offset lies what must not be read.
    let mut x: Vec<T> = values(rng, num_rows * inputs, false);
    let mut nan = T::default();
    as_bytes_mut(std::slice::from_mut(&mut nan)).fill(0xff);
    x[want_plan.used() * inputs..].fill(nan);
    let w: Vec<T> = values(rng, experts * outputs * inputs, false);
    let place = Place::random(rng, case.offset, case.gap);
    let rows = Guarded::matrix(&mut ctx.queue, &x, inputs, place)?;
    let weights = Guarded::matrix(&mut ctx.queue, &w, inputs, Place::random(rng, (case.offset + 2) % 5, case.gap / 2))?;
    let place = Place::random(rng, (case.offset + 1) % 4, case.gap / 2);
    let mut out = Guarded::<B, O>::poisoned(&mut ctx.queue, num_rows, outputs, place)?;

    let scales = scaling.map(|scaling| Scales::new(scaling, num_rows, [experts, outputs, inputs], rng));
    let upload = |ctx: &mut Ctx<'_, B>, values: Option<&Vec<f32>>| ctx.queue.upload(values.unwrap_or(&Vec::new()));
    let row_scales = upload(ctx, scales.as_ref().map(|s| &s.rows))?;
    let weight_scales = upload(ctx, scales.as_ref().map(|s| &s.weights))?;
    let mut op = plan.grouped_matmul(rows.rows()?, weights.rows()?);
    if let (Some(scaling), Some(scales)) = (scaling, &scales)
        && scaling.weight_block.is_some()
    {
        op = op.row_scales(row_scales.view(), scales.row_block, scaling.layout);
        op = op.weight_scales(weight_scales.view(), scales.weight_block);
    }
    let mut matmul = B::matmul(ctx.queue.raw())?;
    let result = op.run_into(&mut ctx.queue, &mut matmul, out.rows_mut()?);
    // What a library cannot do it may refuse, with a reason; then it writes nothing.
    if matches!(&result, Err(Error::Unsupported { reason, .. }) if !reason.is_empty()) {
        let got = out.read(&mut ctx.queue, "out")?;
        return same("out of refused products", &got, &vec![out.poison(); got.len()], outputs);
    }
    result?;
    let got = out.read(&mut ctx.queue, "out")?;
    let used = want_plan.used();
    let tail = vec![out.poison(); (num_rows - used) * outputs];
    same("out, past the last offset", &got[used * outputs..], &tail, outputs)?;
    compare(&got, &want_plan, [inputs, outputs], &x, &w, scales.as_ref())
}

/// Within the bound of the arguments' docs.
fn compare<T: Widen, O: Float + Widen>(
    got: &[O],
    plan: &Plan,
    [inputs, outputs]: [usize; 2],
    x: &[T],
    w: &[T],
    scales: Option<&Scales>,
) -> Checked {
    let digits = match O::DTYPE {
        DType::F32 => 23,
        DType::F16 => 10,
        _ => 7,
    };
    for (expert, range) in plan.expert_offsets.windows(2).enumerate() {
        for row in range[0] as usize..range[1] as usize {
            for n in 0..outputs {
                let (mut sum, mut size) = (0f64, 0f64);
                for k in 0..inputs {
                    let x = f64::from(x[row * inputs + k].widen()) * scales.map_or(1.0, |s| s.row(row, k));
                    let w = f64::from(w[(expert * outputs + n) * inputs + k].widen());
                    let term = x * w * scales.map_or(1.0, |s| s.weight(expert, n, k));
                    sum += term;
                    size += term.abs();
                }
                let y = got[row * outputs + n];
                let bound = sum.abs() * 2f64.powi(-digits) + inputs as f64 * 2f64.powi(-23) * size + 6e-8;
                let near = (f64::from(y.widen()) - sum).abs() <= bound;
                if !near && as_bytes(&[y]) != as_bytes(&narrow::<O>(&[sum as f32])) {
                    return Err(Fail(format!("out[{row}, {n}] is {y:?}, expected {sum} within {bound:e}")));
                }
            }
        }
    }
    Ok(())
}

/// What products refuse.
fn errors_of_matmul_arguments<B: MatmulBackend>(ctx: &mut Ctx<'_, B>) {
    let f8 = "grouped_matmul: rows is f32, expected f8e4m3 where there are scales";
    let (rows, weights) = (
        "grouped_matmul: rows has 3 rows of 6 elements, expected 4 rows of 6 elements",
        "grouped_matmul: weights has 5 rows of 6 elements, expected 6 rows of 6 elements",
    );
    type Shape = ([usize; 2], [usize; 2]);
    let cases: [(&str, Shape, bool, &str); 3] = [
        ("rows of another number", ([3, 6], [6, 6]), false, rows),
        ("weights of another number of experts", ([4, 6], [5, 6]), false, weights),
        ("scales of floats", ([4, 6], [6, 6]), true, f8),
    ];
    for (name, ([m, k], [n, weight_k]), scaled, message) in cases {
        ctx.case(name, |ctx, _| {
            let (plan, queue) = (tiny_plan(ctx)?, &mut ctx.queue);
            let (x, w) = (queue.zeros::<f32>(m * k)?, queue.zeros::<f32>(n * weight_k)?);
            let scales = queue.zeros::<f32>(4)?;
            let mut out = queue.zeros::<f32>(4 * 3)?;
            let mut op = plan.grouped_matmul(x.rows(k)?, w.rows(weight_k)?);
            if scaled {
                op = op.row_scales(scales.view(), k, ScaleLayout::RowMajor);
            }
            let mut matmul = B::matmul(queue.raw())?;
            refused(op.run_into(queue, &mut matmul, out.rows_mut(3)?), message)
        });
    }
    // What is wrong, scales of rows, their block, blocks of weights, the layout, the message.
    type Refused = (&'static str, usize, usize, [usize; 2], ScaleLayout, &'static str);
    let scales: [Refused; 4] = [
        (
            "too few scales of rows",
            3,
            2,
            [3, 6],
            ScaleLayout::RowMajor,
            "grouped_matmul: row_scales has 3 elements, expected 4 elements",
        ),
        (
            "too few scales of weights",
            4,
            5,
            [1, 6],
            ScaleLayout::RowMajor,
            "grouped_matmul: weight_scales has 5 elements, expected 6 elements",
        ),
        (
            "a block of no outputs",
            4,
            2,
            [0, 6],
            ScaleLayout::RowMajor,
            "grouped_matmul: block of weight_scales is 0, expected at least 1",
        ),
        (
            "swizzled f32 scales",
            4,
            2,
            [3, 6],
            ScaleLayout::Swizzled,
            "grouped_matmul: layout is Swizzled, expected RowMajor or ColumnMajor for f32 scales",
        ),
    ];
    for (name, row_len, weight_len, block, layout, message) in scales {
        ctx.case(name, |ctx, _| {
            let (plan, queue) = (tiny_plan(ctx)?, &mut ctx.queue);
            let (x, w) = (queue.zeros::<F8E4M3>(4 * 6)?, queue.zeros::<F8E4M3>(6 * 6)?);
            let (row_scales, weight_scales) = (queue.zeros::<f32>(row_len)?, queue.zeros::<f32>(weight_len)?);
            let mut out = queue.zeros::<f32>(4 * 3)?;
            let op = plan.grouped_matmul(x.rows(6)?, w.rows(6)?);
            let op = op.row_scales(row_scales.view(), 6, layout).weight_scales(weight_scales.view(), block);
            let mut matmul = B::matmul(queue.raw())?;
            refused(op.run_into(queue, &mut matmul, out.rows_mut(3)?), message)
        });
    }
    ctx.case("a result of another type", |ctx, _| {
        let (plan, queue) = (tiny_plan(ctx)?, &mut ctx.queue);
        let (x, w) = (queue.zeros::<bf16>(4 * 6)?, queue.zeros::<bf16>(6 * 6)?);
        let mut out = queue.zeros::<f16>(4 * 3)?;
        let mut matmul = B::matmul(queue.raw())?;
        let result = plan.grouped_matmul(x.rows(6)?, w.rows(6)?).run_into(queue, &mut matmul, out.rows_mut(3)?);
        let message = "grouped_matmul: out is f16, expected the dtype of rows, or f32; any float for 8-bit float rows";
        refused(result, message)
    });
}

/// Four tokens to one of two experts each.
fn tiny_plan<B: MatmulBackend>(ctx: &mut Ctx<'_, B>) -> Checked<RoutePlan<B>> {
    let mut workspace = Workspace::new(&mut ctx.queue, Limits::new(4, 1, 2))?;
    let ids = ctx.queue.upload(&[0, 1, 1, 0])?;
    let routing = Routing::top_k(ids.view());
    Ok(RoutePlan::new(&mut ctx.queue, &mut workspace, PlanSpec::new(4, 1, 2), routing)?)
}

fn refused(result: crate::Result<()>, message: &str) -> Checked {
    let text = result.err().as_ref().map(Error::to_string);
    ensure(text.as_deref() == Some(message), || format!("got {text:?}, expected {message:?}"))
}
