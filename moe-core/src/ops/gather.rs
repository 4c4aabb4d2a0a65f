//! `Y = P X`, or `diag(w) P X`.

use super::{Placed, Weights};
use crate::check::{Check, span, spans};
use crate::raw::GatherArgs;
use crate::tag::{Tag, Untagged};
use crate::{Backend, Buf, Element, Float, PermuteBackend, Queue, Region, Result, RoutePlan, Rows, RowsMut, View};

/// A gather to be run; made by [`RoutePlan::gather`].
#[must_use = "a gather does nothing until it is run"]
#[derive(Debug)]
pub struct Gather<'a, B: Backend, T: Element, G: Tag = Untagged> {
    plan: Placed<'a, B, G>,
    rows: Rows<'a, B, T, G>,
    weights: Option<Weights<'a, B>>,
}

impl<'a, B: PermuteBackend, T: Float, G: Tag> Gather<'a, B, T, G> {
    /// Multiplies each row by its route's weight, `[T, K]`: widened to f32, multiplied, rounded once.
    pub fn weights<'w: 'a, W: Float>(self, weights: View<'w, B, W, G>) -> Self {
        Self { weights: Some(Weights::new(weights)), ..self }
    }
}

impl<'a, B: PermuteBackend, T: Element, G: Tag> Gather<'a, B, T, G> {
    pub(crate) fn new(plan: &'a RoutePlan<B, G>, rows: Rows<'a, B, T, G>) -> Self {
        Self { plan: Placed::by_token(plan), rows, weights: None }
    }

    pub(crate) fn by_route(plan: &'a RoutePlan<B, G>, rows: Rows<'a, B, T, G>) -> Self {
        Self { plan: Placed::by_route(plan), rows, weights: None }
    }

    /// Gathers into new memory `[R, H]`, which starts from zeros.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run(self, queue: &mut Queue<'_, B, G>) -> Result<Buf<B, T, G>> {
        let cols = self.rows.cols();
        let mut out = queue.zeros(self.plan.shape().rows * cols)?;
        self.run_into(queue, out.rows_mut(cols)?)?;
        Ok(out)
    }

    /// Gathers into `out`, `[R, H]`. Rows past the plan's last expert offset are not touched.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](crate::Error::PlanNotBuilt), [`Shape`](crate::Error::Shape),
    /// [`DeviceMismatch`](crate::Error::DeviceMismatch), [`Overlap`](crate::Error::Overlap), or what the driver says.
    pub fn run_into(self, queue: &mut Queue<'_, B, G>, out: RowsMut<'_, B, T, G>) -> Result<()> {
        let check = Check { op: "gather", device: queue.device_id() };
        let Self { plan, rows, weights } = self;
        check.device("plan", plan.device_id())?;
        check.device("rows", rows.device_id())?;
        check.device("out", out.device_id())?;
        let shape = plan.shape();
        check.shape("rows", [shape.num_tokens, rows.cols()], [rows.num_rows(), rows.cols()])?;
        check.shape("out", [shape.rows, rows.cols()], [out.num_rows(), out.cols()])?;
        let weights = weights.map(|w| w.check(&check, shape.num_routes())).transpose()?;
        let plan = plan.built(check.op)?;
        let (rows, out) = (rows.into_raw().shorten(), out.into_raw().shorten());
        let inputs = [("rows", span(&rows.region)), ("weights", weights.as_ref().and_then(|w| span(&w.region)))];
        for input in spans(inputs) {
            check.apart(("out", out.region.span()), input)?;
        }
        // SAFETY: checked above: devices, shapes and lengths; the dtypes follow from the types; `out` overlaps no
        // input, and not the plan, which owns its memory and lends it to nobody mutably.
        unsafe { B::gather(queue.raw_mut(), GatherArgs { plan, rows, weights, out }) }
    }
}
