//! The gradient of a weighted gather for its weights.

use crate::tag::{Tag, Untagged};
use crate::{Backend, Buf, CombineGrad, Float, PermuteBackend, Queue, Result, RoutePlan, Rows, ViewMut};

/// The gradient of a gather's weights, to be run; made by [`RoutePlan::gather_grad_weights`].
///
/// With Y = diag(w) P X it is `dw[t, k] = Σ_h X[t, h] * dY[slot[t, k], h]`: the weights' half of
/// [`combine_grad`](RoutePlan::combine_grad) with rows and gradient exchanged, summed in the same order.
#[must_use = "gather_grad_weights does nothing until it is run"]
#[derive(Debug)]
pub struct GatherGradWeights<'a, B: Backend, T: Float, G: Tag = Untagged>(CombineGrad<'a, B, T, G>);

impl<'a, B: PermuteBackend, T: Float, G: Tag> GatherGradWeights<'a, B, T, G> {
    pub(crate) fn new(plan: &'a RoutePlan<B, G>, rows: Rows<'a, B, T, G>, grad: Rows<'a, B, T, G>) -> Self {
        Self(CombineGrad::new(plan, rows).rows(grad).named("gather_grad_weights", ["rows", "grad", "out"]))
    }

    /// Into new memory `[T, K]`.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run<W: Float>(self, queue: &mut Queue<'_, B, G>) -> Result<Buf<B, W, G>> {
        let mut out = queue.zeros(self.0.num_routes())?;
        self.run_into(queue, out.view_mut())?;
        Ok(out)
    }

    /// Into the caller's memory `[T, K]`: 0 for routes that are not placed.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](crate::Error::PlanNotBuilt), [`Shape`](crate::Error::Shape),
    /// [`DeviceMismatch`](crate::Error::DeviceMismatch), [`Overlap`](crate::Error::Overlap), or what the driver says.
    pub fn run_into<W: Float>(self, queue: &mut Queue<'_, B, G>, out: ViewMut<'_, B, W, G>) -> Result<()> {
        self.0.run_into(queue, None, Some(out))
    }
}
