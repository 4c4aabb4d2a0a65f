//! `dY = diag(w) P dX` and `dw = rowdot(Y, P dX)`.

use super::Weights;
use crate::check::{Check, span, spans};
use crate::raw::{CombineGradArgs, RawGradWeights};
use crate::tag::{Tag, Untagged};
use crate::{
    Backend, Buf, Error, Float, PermuteBackend, Queue, Region, Result, RoutePlan, Rows, RowsMut, View, ViewMut,
};

/// The gradients of a combine, to be run; made by [`RoutePlan::combine_grad`].
#[must_use = "combine_grad does nothing until it is run"]
#[derive(Debug)]
pub struct CombineGrad<'a, B: Backend, T: Float, G: Tag = Untagged> {
    plan: &'a RoutePlan<B, G>,
    grad_out: Rows<'a, B, T, G>,
    weights: Option<Weights<'a, B>>,
    rows: Option<Rows<'a, B, T, G>>,
    /// What errors call the operation, `grad_out`, `rows` and `grad_weights`.
    names: (&'static str, [&'static str; 3]),
}

impl<'a, B: PermuteBackend, T: Float, G: Tag> CombineGrad<'a, B, T, G> {
    pub(crate) fn new(plan: &'a RoutePlan<B, G>, grad_out: Rows<'a, B, T, G>) -> Self {
        Self {
            plan,
            grad_out,
            weights: None,
            rows: None,
            names: ("combine_grad", ["grad_out", "rows", "grad_weights"]),
        }
    }

    /// The same work under other names.
    pub(super) fn named(self, op: &'static str, args: [&'static str; 3]) -> Self {
        Self { names: (op, args), ..self }
    }

    pub(super) fn num_routes(&self) -> usize {
        self.plan.shape().num_routes()
    }

    /// The weights that the combine had, `[T, K]`. Without it every weight was 1.
    pub fn weights<'w: 'a, W: Float>(self, weights: View<'w, B, W, G>) -> Self {
        Self { weights: Some(Weights::new(weights)), ..self }
    }

    /// The rows that the combine had, `[R, H]`: what the gradient of the weights is made of.
    pub fn rows<'s: 'a>(self, rows: Rows<'s, B, T, G>) -> Self {
        Self { rows: Some(rows.shorten()), ..self }
    }

    /// The gradient of the rows, in new memory `[R, H]` which starts from zeros.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run_rows(self, queue: &mut Queue<'_, B, G>) -> Result<Buf<B, T, G>> {
        let cols = self.grad_out.cols();
        let mut grad_rows = queue.zeros(self.plan.num_rows() * cols)?;
        self.run_into::<f32>(queue, Some(grad_rows.rows_mut(cols)?), None)?;
        Ok(grad_rows)
    }

    /// Both gradients, in new memory: `[R, H]`, which starts from zeros, and `[T, K]`.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    #[allow(clippy::type_complexity)] // two buffers of one device
    pub fn run<W: Float>(self, queue: &mut Queue<'_, B, G>) -> Result<(Buf<B, T, G>, Buf<B, W, G>)> {
        let cols = self.grad_out.cols();
        let mut grad_rows = queue.zeros(self.plan.num_rows() * cols)?;
        let mut grad_weights = queue.zeros(self.plan.shape().num_routes())?;
        self.run_into(queue, Some(grad_rows.rows_mut(cols)?), Some(grad_weights.view_mut()))?;
        Ok((grad_rows, grad_weights))
    }

    /// The gradients that are asked for: of the rows `[R, H]`, whose rows past the plan's last expert offset are not
    /// touched, and of the weights `[T, K]`, for which [`rows`](Self::rows) must be given.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](Error::PlanNotBuilt), [`Shape`](Error::Shape), [`DeviceMismatch`](Error::DeviceMismatch),
    /// [`Overlap`](Error::Overlap), [`InvalidArgument`](Error::InvalidArgument) if `rows` is missing, or what the
    /// driver says.
    pub fn run_into<W: Float>(
        self,
        queue: &mut Queue<'_, B, G>,
        grad_rows: Option<RowsMut<'_, B, T, G>>,
        grad_weights: Option<ViewMut<'_, B, W, G>>,
    ) -> Result<()> {
        let Self { plan, grad_out, weights, rows, names: (op, [grad_name, rows_name, weights_name]) } = self;
        let check = Check { op, device: queue.device_id() };
        check.device("plan", plan.device_id())?;
        check.device(grad_name, grad_out.device_id())?;
        let (shape, cols) = (plan.shape(), grad_out.cols());
        check.shape(grad_name, [shape.num_tokens, cols], [grad_out.num_rows(), cols])?;
        let weights = weights.map(|w| w.check(&check, shape.num_routes())).transpose()?;
        if let Some(rows) = &rows {
            check.device(rows_name, rows.device_id())?;
            check.shape(rows_name, [shape.rows, cols], [rows.num_rows(), rows.cols()])?;
        }
        if let Some(out) = &grad_rows {
            check.device("grad_rows", out.device_id())?;
            check.shape("grad_rows", [shape.rows, cols], [out.num_rows(), out.cols()])?;
        }
        let grad_weights = match (grad_weights, rows) {
            (None, _) => None,
            (Some(out), Some(rows)) => {
                check.device(weights_name, out.device_id())?;
                check.len(weights_name, shape.num_routes(), out.len())?;
                Some(RawGradWeights { rows: rows.into_raw().shorten(), out: out.into_raw().shorten() })
            }
            (Some(_), None) => {
                let expected = "given where the gradient of the weights is asked for".into();
                return Err(Error::InvalidArgument { op, arg: "rows", expected, got: "nothing".into() });
            }
        };
        let plan = plan.built(op)?;
        let (grad_out, grad_rows) = (grad_out.into_raw().shorten(), grad_rows.map(|rows| rows.into_raw().shorten()));
        let inputs = || {
            spans([
                (grad_name, span(&grad_out.region)),
                ("weights", weights.as_ref().and_then(|v| span(&v.region))),
                (rows_name, grad_weights.as_ref().and_then(|g| span(&g.rows.region))),
            ])
        };
        if let Some(out) = &grad_rows {
            let other = (weights_name, grad_weights.as_ref().and_then(|g| span(&g.out.region)));
            for input in inputs().chain(spans([other])) {
                check.apart(("grad_rows", out.region.span()), input)?;
            }
        }
        if let Some(grad) = &grad_weights {
            for input in inputs() {
                check.apart((weights_name, grad.out.region.span()), input)?;
            }
        }
        let args = CombineGradArgs { plan, grad_out, weights, grad_rows, grad_weights };
        // SAFETY: checked above: devices, shapes and lengths; the dtypes follow from the types; no output overlaps an
        // input or the other output, nor the plan, which owns its memory and lends it to nobody mutably.
        unsafe { B::combine_grad(queue.raw_mut(), args) }
    }
}
