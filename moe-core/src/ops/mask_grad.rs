//! From routes back to a mask map.

use crate::check::Check;
use crate::raw::ScatterMaskArgs;
use crate::tag::{Tag, Untagged};
use crate::{Backend, Buf, Float, PermuteBackend, Queue, Region, Result, RoutePlan, RowsMut, View};

/// Values of routes to be brought back to a mask map; made by [`RoutePlan::mask_grad`].
#[must_use = "mask_grad does nothing until it is run"]
#[derive(Debug)]
pub struct MaskGrad<'a, B: Backend, T: Float, G: Tag = Untagged> {
    plan: &'a RoutePlan<B, G>,
    values: View<'a, B, T, G>,
}

impl<'a, B: PermuteBackend, T: Float, G: Tag> MaskGrad<'a, B, T, G> {
    pub(crate) fn new(plan: &'a RoutePlan<B, G>, values: View<'a, B, T, G>) -> Self {
        Self { plan, values }
    }

    /// Into new memory `[T, E]`.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run(self, queue: &mut Queue<'_, B, G>) -> Result<Buf<B, T, G>> {
        let shape = self.plan.shape();
        let cols = shape.num_experts;
        let mut out = queue.zeros(shape.num_tokens * cols)?;
        self.run_into(queue, out.rows_mut(cols)?)?;
        Ok(out)
    }

    /// Into the caller's memory `[T, E]`. Every element is written: +0 where the mask is not set, and past the routes
    /// that a token had room for.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](crate::Error::PlanNotBuilt), [`InvalidArgument`](crate::Error::InvalidArgument) if the plan is
    /// not of a mask map, [`Shape`](crate::Error::Shape), [`DeviceMismatch`](crate::Error::DeviceMismatch),
    /// [`Overlap`](crate::Error::Overlap), [`Unsupported`](crate::Error::Unsupported), or what the driver says.
    pub fn run_into(self, queue: &mut Queue<'_, B, G>, out: RowsMut<'_, B, T, G>) -> Result<()> {
        let check = Check { op: "mask_grad", device: queue.device_id() };
        let Self { plan, values } = self;
        let shape = plan.shape();
        check.device("plan", plan.device_id())?;
        check.device("values", values.device_id())?;
        check.device("out", out.device_id())?;
        check.len("values", shape.num_routes(), values.len())?;
        check.shape("out", [shape.num_tokens, shape.num_experts], [out.num_rows(), out.cols()])?;
        let ids = plan.mask_ids(check.op)?.into_raw().shorten();
        let (values, out) = (values.into_raw().shorten(), out.into_raw().shorten());
        check.apart(("out", out.region.span()), ("values", values.region.span()))?;
        let args = ScatterMaskArgs { ids, max_routes: shape.top_k, values, out };
        // SAFETY: checked above: devices, lengths and shape; the dtypes follow from the types; `out` overlaps neither
        // the values nor the ids, which are the plan's.
        unsafe { B::scatter_mask(queue.raw_mut(), args) }
    }
}
