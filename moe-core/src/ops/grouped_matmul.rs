//! The experts' products.

use crate::backend::GroupedMatmul;
use crate::check::{Check, span, spans};
use crate::dtype::MatmulInput;
use crate::quant::{ScaleLayout, ScaleShape};
use crate::raw::{GroupedMatmulArgs, RawRowScales, RawWeightScales};
use crate::tag::{Tag, Untagged};
use crate::{Backend, Buf, DType, Error, Float, Queue, Region, Result, RoutePlan, Rows, RowsMut, View};

/// Products by expert, to be run; made by [`RoutePlan::grouped_matmul`].
#[must_use = "products do nothing until they are run"]
#[derive(Debug)]
pub struct GroupedProducts<'a, B: Backend, T: MatmulInput, G: Tag = Untagged> {
    plan: &'a RoutePlan<B, G>,
    rows: Rows<'a, B, T, G>,
    weights: Rows<'a, B, T, G>,
    row_scales: Option<(View<'a, B, f32, G>, usize, ScaleLayout)>,
    weight_scales: Option<(View<'a, B, f32, G>, [usize; 2])>,
}

impl<B: Backend, G: Tag> RoutePlan<B, G> {
    /// For each local expert e, its rows of `rows` `[R, K]` times the transpose of its weights `[N, K]`, into the same
    /// rows of the result `[R, N]`. `weights` are `[E_local * N, K]`: those of one expert after the other. The caller brings
    /// the products: see [`GroupedMatmul`], and [`MatmulBackend`](crate::MatmulBackend) for a backend's own.
    pub fn grouped_matmul<'a, 'r: 'a, 'w: 'a, T: MatmulInput>(
        &'a self,
        rows: Rows<'r, B, T, G>,
        weights: Rows<'w, B, T, G>,
    ) -> GroupedProducts<'a, B, T, G> {
        let (rows, weights) = (rows.shorten(), weights.shorten());
        GroupedProducts { plan: self, rows, weights, row_scales: None, weight_scales: None }
    }
}

impl<'a, B: Backend, T: MatmulInput, G: Tag> GroupedProducts<'a, B, T, G> {
    /// Scales of f8e4m3 rows, one for `block` elements of a row (`K` or more: one for a row), as the quantising
    /// operations write them: `[R, ceil(K / block)]`, row-major or column-major.
    pub fn row_scales<'s: 'a>(self, scales: View<'s, B, f32, G>, block: usize, layout: ScaleLayout) -> Self {
        Self { row_scales: Some((scales.shorten(), block, layout)), ..self }
    }

    /// Scales of f8e4m3 weights, `[E_local, ceil(N / block[0]), ceil(K / block[1])]`. `[1, K]` is one scale for each
    /// output channel, `[128, 128]` DeepSeek's blocks.
    pub fn weight_scales<'s: 'a>(self, scales: View<'s, B, f32, G>, block: [usize; 2]) -> Self {
        Self { weight_scales: Some((scales.shorten(), block)), ..self }
    }

    /// Multiplies into new memory `[R, N]`, which starts from zeros.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run<O: Float>(
        self,
        queue: &mut Queue<'_, B, G>,
        matmul: &mut impl GroupedMatmul<B>,
    ) -> Result<Buf<B, O, G>> {
        let outputs = self.weights.num_rows() / self.plan.shape().num_local_experts;
        let mut out = queue.zeros(self.plan.num_rows().saturating_mul(outputs))?;
        self.run_into(queue, matmul, out.rows_mut(outputs)?)?;
        Ok(out)
    }

    /// Multiplies into `out`, `[R, N]`: of the type of the rows, or f32; for f8e4m3 any float. Rows past the plan's last
    /// expert offset are not touched.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](Error::PlanNotBuilt), [`Shape`](Error::Shape), [`DeviceMismatch`](Error::DeviceMismatch),
    /// [`UnsupportedDType`](Error::UnsupportedDType), [`InvalidArgument`](Error::InvalidArgument) for a block or a layout,
    /// [`Overlap`](Error::Overlap), [`Unsupported`](Error::Unsupported) from the products, or what the driver says.
    pub fn run_into<O: Float>(
        self,
        queue: &mut Queue<'_, B, G>,
        matmul: &mut impl GroupedMatmul<B>,
        out: RowsMut<'_, B, O, G>,
    ) -> Result<()> {
        let op = "grouped_matmul";
        let check = Check { op, device: queue.device_id() };
        let Self { plan, rows, weights, row_scales, weight_scales } = self;
        check.device("plan", plan.device_id())?;
        check.device("rows", rows.device_id())?;
        check.device("weights", weights.device_id())?;
        check.device("out", out.device_id())?;
        let (shape, inputs, outputs) = (plan.shape(), rows.cols(), out.cols());
        let experts = shape.num_local_experts;
        check.shape("rows", [shape.rows, inputs], [rows.num_rows(), inputs])?;
        check.shape("out", [shape.rows, outputs], [out.num_rows(), outputs])?;
        let expected = [experts.saturating_mul(outputs), inputs];
        check.shape("weights", expected, [weights.num_rows(), weights.cols()])?;
        let f8 = T::DTYPE.is_f8();
        if !(f8 || O::DTYPE == DType::F32 || O::DTYPE == T::DTYPE) {
            let expected = "the dtype of rows, or f32; any float for 8-bit float rows";
            return Err(Error::UnsupportedDType { op, arg: "out", expected, got: O::DTYPE });
        }
        if !f8 && (row_scales.is_some() || weight_scales.is_some()) {
            let expected = "f8e4m3 where there are scales";
            return Err(Error::UnsupportedDType { op, arg: "rows", expected, got: T::DTYPE });
        }
        let row_scales = match row_scales {
            None => None,
            Some((scales, block, layout)) => {
                check.number("block of row_scales", block >= 1, "at least 1", block)?;
                check.device("row_scales", scales.device_id())?;
                if layout == ScaleLayout::Swizzled {
                    let expected = "RowMajor or ColumnMajor for f32 scales".into();
                    return Err(Error::InvalidArgument { op, arg: "layout", expected, got: "Swizzled".into() });
                }
                let shape = ScaleShape::new(op, layout, shape.rows, inputs.div_ceil(block))?;
                check.len("row_scales", shape.len(), scales.len())?;
                Some(RawRowScales { scales: scales.into_raw().shorten(), block, shape })
            }
        };
        let weight_scales = match weight_scales {
            None => None,
            Some((scales, block)) => {
                check.number("block of weight_scales", block[0] >= 1, "at least 1", block[0])?;
                check.number("block of weight_scales", block[1] >= 1, "at least 1", block[1])?;
                check.device("weight_scales", scales.device_id())?;
                let expected = experts * outputs.div_ceil(block[0]) * inputs.div_ceil(block[1]);
                check.len("weight_scales", expected, scales.len())?;
                Some(RawWeightScales { scales: scales.into_raw().shorten(), block })
            }
        };
        let plan = plan.built(op)?;
        let (rows, weights) = (rows.into_raw().shorten(), weights.into_raw().shorten());
        let out = out.into_raw().shorten();
        let inputs = [
            ("rows", span(&rows.region)),
            ("weights", span(&weights.region)),
            ("row_scales", row_scales.as_ref().and_then(|s| span(&s.scales.region))),
            ("weight_scales", weight_scales.as_ref().and_then(|s| span(&s.scales.region))),
        ];
        for input in spans(inputs) {
            check.apart(("out", out.region.span()), input)?;
        }
        let args = GroupedMatmulArgs { plan, rows, row_scales, weights, weight_scales, out };
        matmul.accepts(&args)?;
        // SAFETY: checked above: devices, shapes, lengths, blocks and dtypes; `out` overlaps no input, and not the plan,
        // which owns its memory and lends it to nobody mutably.
        unsafe { matmul.grouped_matmul(queue.raw_mut(), args) }
    }
}
