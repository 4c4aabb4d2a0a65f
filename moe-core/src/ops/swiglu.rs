//! The activation between an expert's products.

use super::quantised::{QuantRows, check_quant};
use crate::check::{Check, span, spans};
use crate::quant::Quantization;
use crate::raw::{PlanRef, RawSwiglu, SwigluArgs, SwigluQuantArgs};
use crate::tag::{Tag, Untagged};
use crate::{Backend, Buf, DType, Float, QuantBackend, Queue, Region, Result, RoutePlan, Rows, RowsMut, ViewMut};

/// `silu(gate) * up`, to be run or to be quantised; made by [`RoutePlan::swiglu`].
#[must_use = "an activation does nothing until it is run"]
#[derive(Debug)]
pub struct Swiglu<'a, B: Backend, T: Float, G: Tag = Untagged> {
    plan: &'a RoutePlan<B, G>,
    gate: Rows<'a, B, T, G>,
    up: Rows<'a, B, T, G>,
}

/// `silu(gate) * up` quantised, to be run; made by [`Swiglu::quantized`].
#[must_use = "an activation does nothing until it is run"]
#[derive(Debug)]
pub struct SwigluQuant<'a, B: Backend, T: Float, Q: Quantization, G: Tag = Untagged> {
    input: Swiglu<'a, B, T, G>,
    format: Q,
    round_to: DType,
}

impl<B: QuantBackend, G: Tag> RoutePlan<B, G> {
    /// `silu(gate) * up` of rows `[R, 2 I]`: the first I elements are the gate, the others go up, as in fused
    /// `gate_up_proj` (`w13`) weights. Only rows below the last expert offset are read and written.
    ///
    /// # Errors
    /// [`Shape`](crate::Error::Shape) for an odd number of elements in a row.
    pub fn swiglu<'a, 'r: 'a, T: Float>(&'a self, gate_up: Rows<'r, B, T, G>) -> Result<Swiglu<'a, B, T, G>> {
        let (gate, up) = gate_up.halves("swiglu")?;
        Ok(Swiglu { plan: self, gate: gate.shorten(), up: up.shorten() })
    }

    /// `silu(gate) * up` of two matrices `[R, I]`.
    pub fn swiglu_of<'a, 'r: 'a, T: Float>(
        &'a self,
        gate: Rows<'r, B, T, G>,
        up: Rows<'r, B, T, G>,
    ) -> Swiglu<'a, B, T, G> {
        Swiglu { plan: self, gate: gate.shorten(), up: up.shorten() }
    }
}

impl<'a, B: QuantBackend, T: Float, G: Tag> Swiglu<'a, B, T, G> {
    /// Quantises the result, which is rounded to bf16 first, as if a layer in bf16 had written it.
    pub fn quantized<Q: Quantization>(self, format: Q) -> SwigluQuant<'a, B, T, Q, G> {
        SwigluQuant { input: self, format, round_to: DType::BF16 }
    }

    /// Activates into new memory `[R, I]`, which starts from zeros.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run<O: Float>(self, queue: &mut Queue<'_, B, G>) -> Result<Buf<B, O, G>> {
        let cols = self.gate.cols();
        let mut out = queue.zeros(self.plan.num_rows().saturating_mul(cols))?;
        self.run_into(queue, out.rows_mut(cols)?)?;
        Ok(out)
    }

    /// Activates into `out`, `[R, I]`, rounding once. Rows past the plan's last expert offset are not touched.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](crate::Error::PlanNotBuilt), [`Shape`](crate::Error::Shape), [`DeviceMismatch`](crate::Error::DeviceMismatch),
    /// [`Overlap`](crate::Error::Overlap), or what the driver says.
    pub fn run_into<O: Float>(self, queue: &mut Queue<'_, B, G>, out: RowsMut<'_, B, O, G>) -> Result<()> {
        let check = Check { op: "swiglu", device: queue.device_id() };
        let cols = self.gate.cols();
        let (plan, input) = self.check(&check)?;
        check.device("out", out.device_id())?;
        check.shape("out", [plan.arrays.shape.rows, cols], [out.num_rows(), out.cols()])?;
        let out = out.into_raw().shorten();
        for span in inputs(&input) {
            check.apart(("out", out.region.span()), span)?;
        }
        // SAFETY: checked above: devices and shapes; the dtypes follow from the types; `out` overlaps no input, and not
        // the plan, which owns its memory and lends it to nobody mutably.
        unsafe { B::swiglu(queue.raw_mut(), SwigluArgs { plan, input, out }) }
    }

    /// Everything but the output.
    fn check<'s>(self, check: &Check<B>) -> Result<(PlanRef<'s, B>, RawSwiglu<'s, B>)>
    where
        'a: 's,
    {
        let Self { plan, gate, up } = self;
        check.device("plan", plan.device_id())?;
        check.device("gate", gate.device_id())?;
        check.device("up", up.device_id())?;
        let shape = [plan.num_rows(), gate.cols()];
        check.shape("gate", shape, [gate.num_rows(), gate.cols()])?;
        check.shape("up", shape, [up.num_rows(), up.cols()])?;
        let input = RawSwiglu { gate: gate.into_raw().shorten(), up: up.into_raw().shorten() };
        Ok((plan.built(check.op)?, input))
    }
}

fn inputs<'i, B: Backend>(
    input: &'i RawSwiglu<'_, B>,
) -> impl Iterator<Item = (&'static str, crate::Span)> + use<'i, B> {
    spans([("gate", span(&input.gate.region)), ("up", span(&input.up.region))])
}

impl<B: QuantBackend, T: Float, Q: Quantization, G: Tag> SwigluQuant<'_, B, T, Q, G> {
    /// Rounds to another type than bf16 before quantising; f32 is no rounding.
    pub fn round_to<R: Float>(self) -> Self {
        Self { round_to: R::DTYPE, ..self }
    }

    /// Activates and quantises into new memory, which starts from zeros.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run(self, queue: &mut Queue<'_, B, G>) -> Result<QuantRows<B, Q, G>> {
        let (rows, cols) = (self.input.plan.num_rows(), self.input.gate.cols());
        let mut out = QuantRows::alloc(queue, self.format, rows, cols)?;
        let (values, scales) = out.views_mut()?;
        self.run_into(queue, values, scales)?;
        Ok(out)
    }

    /// Activates and quantises into `values`, `[R, value_cols]`, and `scales`, of the length that
    /// [`scale_shape`](crate::quant::QuantFormat::scale_shape) gives. Rows past the plan's last expert offset, and their
    /// scales, are not touched.
    ///
    /// # Errors
    /// As [`GatherQuant::run_into`](super::GatherQuant::run_into).
    pub fn run_into(
        self,
        queue: &mut Queue<'_, B, G>,
        values: RowsMut<'_, B, Q::Value, G>,
        scales: ViewMut<'_, B, Q::Scale, G>,
    ) -> Result<()> {
        let check = Check { op: "swiglu_quant", device: queue.device_id() };
        let Self { input, format, round_to } = self;
        let cols = input.gate.cols();
        let (plan, input) = input.check(&check)?;
        let out = check_quant::<B, Q, G>(&check, format, plan.arrays.shape.rows, cols, values, scales)?;
        out.apart_from(&check, inputs(&input))?;
        // SAFETY: checked above: devices, shapes, lengths and the format; the dtypes follow from the types; the outputs
        // overlap neither each other nor an input, and not the plan, which owns its memory and lends it to nobody
        // mutably.
        unsafe { B::swiglu_quant(queue.raw_mut(), SwigluQuantArgs { plan, input, round_to, out }) }
    }
}
