//! Gather and quantise in one pass.

use super::quantised::{QuantRows, check_quant};
use crate::check::{Check, span, spans};
use crate::quant::Quantization;
use crate::raw::GatherQuantArgs;
use crate::tag::{Tag, Untagged};
use crate::{Backend, Float, QuantBackend, Queue, Result, RoutePlan, Rows, RowsMut, ViewMut};

/// A quantising gather to be run; made by [`RoutePlan::gather_quant`].
#[must_use = "a gather does nothing until it is run"]
#[derive(Debug)]
pub struct GatherQuant<'a, B: Backend, T: Float, Q: Quantization, G: Tag = Untagged> {
    plan: &'a RoutePlan<B, G>,
    rows: Rows<'a, B, T, G>,
    format: Q,
}

impl<B: QuantBackend, G: Tag> RoutePlan<B, G> {
    /// Gathers rows `[T, H]` and quantises them: row `slot[t, k]` of the result is the quantisation of row t, as if
    /// each token's row were quantised once and its values and scales then gathered. [`crate::quant`] has the formats
    /// and their rules. Padding rows are the quantisation of zeros.
    ///
    /// ```
    /// use moe_core::quant::PerToken;
    /// use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
    /// use moe_cpu::Cpu;
    ///
    /// let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
    /// let mut workspace = Workspace::new(&mut queue, Limits::new(2, 1, 2))?;
    /// let ids = queue.upload(&[1, 0])?;
    /// let x = queue.upload(&[448.0f32, -224.0, 0.5, 1.0])?;
    /// let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::new(2, 1, 2), Routing::top_k(ids.view()))?;
    /// let rows = plan.gather_quant(x.rows(2)?, PerToken).run(&mut queue)?;
    /// let values: Vec<f32> = queue.download(rows.values.view())?.iter().map(|v| v.to_f32()).collect();
    /// assert_eq!(values, [224.0, 448.0, 448.0, -224.0]);
    /// assert_eq!(queue.download(rows.scales.view())?, [1.0 / 448.0, 1.0]);
    /// # Ok::<(), moe_core::Error>(())
    /// ```
    pub fn gather_quant<'a, 'r: 'a, T: Float, Q: Quantization>(
        &'a self,
        rows: Rows<'r, B, T, G>,
        format: Q,
    ) -> GatherQuant<'a, B, T, Q, G> {
        GatherQuant { plan: self, rows: rows.shorten(), format }
    }
}

impl<B: QuantBackend, T: Float, Q: Quantization, G: Tag> GatherQuant<'_, B, T, Q, G> {
    /// Gathers into new memory, which starts from zeros.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run(self, queue: &mut Queue<'_, B, G>) -> Result<QuantRows<B, Q, G>> {
        let mut out = QuantRows::alloc(queue, self.format, self.plan.num_rows(), self.rows.cols())?;
        let (values, scales) = out.views_mut()?;
        self.run_into(queue, values, scales)?;
        Ok(out)
    }

    /// Gathers into `values`, `[R, value_cols]`, and `scales`, of the length that
    /// [`scale_shape`](crate::quant::QuantFormat::scale_shape) gives for R rows. Rows past the plan's last expert offset,
    /// and their scales, are not touched.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](crate::Error::PlanNotBuilt), [`Shape`](crate::Error::Shape),
    /// [`InvalidArgument`](crate::Error::InvalidArgument) for a format, [`Unsupported`](crate::Error::Unsupported) for one
    /// that the backend does not write, [`DeviceMismatch`](crate::Error::DeviceMismatch),
    /// [`Overlap`](crate::Error::Overlap), or what the driver says.
    pub fn run_into(
        self,
        queue: &mut Queue<'_, B, G>,
        values: RowsMut<'_, B, Q::Value, G>,
        scales: ViewMut<'_, B, Q::Scale, G>,
    ) -> Result<()> {
        let check = Check { op: "gather_quant", device: queue.device_id() };
        let Self { plan, rows, format } = self;
        check.device("plan", plan.device_id())?;
        check.device("rows", rows.device_id())?;
        let (shape, cols) = (plan.shape(), rows.cols());
        check.shape("rows", [shape.num_tokens, cols], [rows.num_rows(), cols])?;
        let out = check_quant::<B, Q, G>(&check, format, shape.rows, cols, values, scales)?;
        let plan = plan.built(check.op)?;
        let rows = rows.into_raw().shorten();
        out.apart_from(&check, spans([("rows", span(&rows.region))]))?;
        // SAFETY: checked above: devices, shapes, lengths and the format; the dtypes follow from the types; the outputs
        // overlap neither each other nor the input, and not the plan, which owns its memory and lends it to nobody
        // mutably.
        unsafe { B::gather_quant(queue.raw_mut(), GatherQuantArgs { plan, rows, out }) }
    }
}
