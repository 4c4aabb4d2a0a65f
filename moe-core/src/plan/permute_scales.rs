//! Permute of rows and their scales.

use crate::check::{Check, span, spans};
use crate::raw::RowScales;
use crate::tag::Tag;
use crate::{Element, PlanSpec, QuantBackend, Queue, Region, Result, RoutePlan, Routing, Rows, RowsMut, Workspace};

#[allow(unsafe_code)] // calls the backend's checked operation
impl<B: QuantBackend, G: Tag> RoutePlan<B, G> {
    /// Builds this plan and gathers rows `[T, H]` and their scales `[T, S]` with it, into `out` `[R, H]` and `scales_out`
    /// `[R, S]`, in one launch where the backend has one. For rows that are quantised already; [`crate::quant`] says
    /// which scales travel how.
    ///
    /// # Errors
    /// Those of [`permute_into`](Self::permute_into), for both.
    #[allow(clippy::too_many_arguments)] // a permute's, and the scales'
    pub fn permute_with_scales<T: Element, S: Element>(
        &mut self,
        queue: &mut Queue<'_, B, G>,
        workspace: &mut Workspace<B, G>,
        spec: PlanSpec,
        routing: Routing<'_, B, G>,
        rows: Rows<'_, B, T, G>,
        out: RowsMut<'_, B, T, G>,
        scales: Rows<'_, B, S, G>,
        scales_out: RowsMut<'_, B, S, G>,
    ) -> Result<()> {
        let op = "permute_with_scales";
        let checked = self.check_build(op, queue, workspace, spec, routing)?;
        let check = Check { op, device: self.device_id() };
        for (arg, device) in [
            ("rows", rows.device_id()),
            ("out", out.device_id()),
            ("scales", scales.device_id()),
            ("scales_out", scales_out.device_id()),
        ] {
            check.device(arg, device)?;
        }
        let (tokens, plan_rows) = (checked.arrays.shape.num_tokens, checked.arrays.shape.rows);
        check.shape("rows", [tokens, rows.cols()], [rows.num_rows(), rows.cols()])?;
        check.shape("out", [plan_rows, rows.cols()], [out.num_rows(), out.cols()])?;
        check.shape("scales", [tokens, scales.cols()], [scales.num_rows(), scales.cols()])?;
        check.shape("scales_out", [plan_rows, scales.cols()], [scales_out.num_rows(), scales_out.cols()])?;
        let (rows, out) = (rows.into_raw().shorten(), out.into_raw().shorten());
        let scales = RowScales { rows: scales.into_raw().shorten(), out: scales_out.into_raw().shorten() };
        let outs = [("out", out.region.span()), ("scales_out", scales.out.region.span())];
        check.apart(outs[0], outs[1])?;
        let inputs = [("rows", span(&rows.region)), ("scales", span(&scales.rows.region))];
        for input in spans(inputs).chain(self.spans()).chain(checked.routing.spans()) {
            check.apart(outs[0], input)?;
            check.apart(outs[1], input)?;
        }
        self.enqueue(queue, checked, |queue, plan, args| {
            let scales = RowScales { rows: scales.rows.shorten(), out: scales.out.shorten() };
            // SAFETY: `check_build` checked the builder's part; the four matrices are on the device, of T or R rows and of
            // one dtype each, and neither output overlaps anything.
            unsafe { B::permute_with_scales(queue, plan, args, rows.shorten(), out.shorten(), scales) }
        })
    }
}
