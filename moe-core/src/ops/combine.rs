//! `X = Pᵀ diag(w) Y (+ X0)`.

use super::{Placed, Weights};
use crate::check::{Check, span, spans};
use crate::raw::{CombineArgs, RawRows, RawScales};
use crate::tag::{Tag, Untagged};
use crate::{
    Backend, Buf, CombineInput, DType, DeviceId, Error, Float, PermuteBackend, Queue, Region, Result, RoutePlan, Rows,
    RowsMut, View,
};

/// A combine to be run; made by [`RoutePlan::combine`].
#[must_use = "a combine does nothing until it is run"]
#[derive(Debug)]
pub struct Combine<'a, B: Backend, T: CombineInput, G: Tag = Untagged> {
    plan: Placed<'a, B, G>,
    rows: Rows<'a, B, T, G>,
    weights: Option<Weights<'a, B>>,
    scales: Option<(Rows<'a, B, f32, G>, usize)>,
    residual: Option<(DeviceId<B>, RawRows<'a, B>)>,
    residual_scale: Option<f32>,
}

impl<'a, B: PermuteBackend, T: CombineInput, G: Tag> Combine<'a, B, T, G> {
    pub(crate) fn new(plan: &'a RoutePlan<B, G>, rows: Rows<'a, B, T, G>) -> Self {
        Self::placed(Placed::by_token(plan), rows)
    }

    pub(crate) fn by_route(plan: &'a RoutePlan<B, G>, rows: Rows<'a, B, T, G>) -> Self {
        Self::placed(Placed::by_route(plan), rows)
    }

    fn placed(plan: Placed<'a, B, G>, rows: Rows<'a, B, T, G>) -> Self {
        Self { plan, rows, weights: None, scales: None, residual: None, residual_scale: None }
    }

    /// Weighs each row by its route's weight, `[T, K]`. Without it every weight is 1.
    pub fn weights<'w: 'a, W: Float>(self, weights: View<'w, B, W, G>) -> Self {
        Self { weights: Some(Weights::new(weights)), ..self }
    }

    /// Scales of 8-bit float rows: `[R, ceil(H / block)]`, one for `block` elements of a row.
    pub fn scales<'s: 'a>(self, scales: Rows<'s, B, f32, G>, block: usize) -> Self {
        Self { scales: Some((scales.shorten(), block)), ..self }
    }

    /// Starts the sum at these rows, `[T, H]`, instead of zero: a residual or a shared expert's result. Its type is
    /// that of the result.
    pub fn residual<'s: 'a, O: Float>(self, residual: Rows<'s, B, O, G>) -> Self {
        Self { residual: Some((residual.device_id(), residual.shorten().into_raw())), ..self }
    }

    /// Multiplies the residual: the sum starts at `scale * residual`, rounded to f32. Only with a residual.
    pub fn residual_scale(self, scale: f32) -> Self {
        Self { residual_scale: Some(scale), ..self }
    }

    /// Combines into new memory `[T, H]` of type `O`: that of the rows, or f32; for 8-bit float rows any float.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run<O: Float>(self, queue: &mut Queue<'_, B, G>) -> Result<Buf<B, O, G>> {
        let cols = self.rows.cols();
        let mut out = queue.zeros(self.plan.shape().num_tokens * cols)?;
        self.run_into(queue, out.rows_mut(cols)?)?;
        Ok(out)
    }

    /// Combines into `out`, `[T, H]`. Every element is written.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](Error::PlanNotBuilt), [`Shape`](Error::Shape), [`DeviceMismatch`](Error::DeviceMismatch),
    /// [`UnsupportedDType`](Error::UnsupportedDType), [`Overlap`](Error::Overlap),
    /// [`InvalidArgument`](Error::InvalidArgument) for a scale without a residual, or what the driver says.
    pub fn run_into<O: Float>(self, queue: &mut Queue<'_, B, G>, out: RowsMut<'_, B, O, G>) -> Result<()> {
        let op = "combine";
        let check = Check { op, device: queue.device_id() };
        let Self { plan, rows, weights, scales, residual, residual_scale } = self;
        check.device("plan", plan.device_id())?;
        check.device("rows", rows.device_id())?;
        check.device("out", out.device_id())?;
        let (shape, cols) = (plan.shape(), rows.cols());
        check.shape("rows", [shape.rows, cols], [rows.num_rows(), cols])?;
        check.shape("out", [shape.num_tokens, cols], [out.num_rows(), out.cols()])?;
        if !(O::DTYPE == DType::F32 || O::DTYPE == T::DTYPE || T::DTYPE.is_f8()) {
            let expected = "the dtype of rows, or f32; any float for 8-bit float rows";
            return Err(Error::UnsupportedDType { op, arg: "out", expected, got: O::DTYPE });
        }
        let weights = weights.map(|w| w.check(&check, shape.num_routes())).transpose()?;
        let scales = match scales {
            None => None,
            Some((scales, block)) => {
                if !T::DTYPE.is_f8() {
                    let expected = "an 8-bit float where there are scales";
                    return Err(Error::UnsupportedDType { op, arg: "rows", expected, got: T::DTYPE });
                }
                check.number("block", block >= 1, "at least 1", block)?;
                check.device("scales", scales.device_id())?;
                check.shape("scales", [shape.rows, cols.div_ceil(block)], [scales.num_rows(), scales.cols()])?;
                Some(RawScales { rows: scales.into_raw().shorten(), block })
            }
        };
        let residual = match residual {
            None => None,
            Some((device, rows)) => {
                check.device("residual", device)?;
                check.shape("residual", [shape.num_tokens, cols], [rows.rows, rows.cols])?;
                if rows.dtype != O::DTYPE {
                    let expected = "the dtype of out";
                    return Err(Error::UnsupportedDType { op, arg: "residual", expected, got: rows.dtype });
                }
                Some(rows.shorten())
            }
        };
        if let (Some(scale), None) = (residual_scale, &residual) {
            let expected = "not given without a residual".into();
            return Err(Error::InvalidArgument { op, arg: "residual_scale", expected, got: scale.to_string() });
        }
        let residual_scale = residual_scale.unwrap_or(1.0);
        let plan = plan.built(op)?;
        let (rows, out) = (rows.into_raw().shorten(), out.into_raw().shorten());
        let inputs = [
            ("rows", span(&rows.region)),
            ("weights", weights.as_ref().and_then(|v| span(&v.region))),
            ("scales", scales.as_ref().and_then(|v| span(&v.rows.region))),
            ("residual", residual.as_ref().and_then(|v| span(&v.region))),
        ];
        for input in spans(inputs) {
            check.apart(("out", out.region.span()), input)?;
        }
        // SAFETY: checked above: devices, shapes, lengths and dtypes; `out` overlaps no input, and not the plan, which
        // owns its memory and lends it to nobody mutably.
        unsafe {
            B::combine(queue.raw_mut(), CombineArgs { plan, rows, weights, scales, residual, residual_scale, out })
        }
    }
}
