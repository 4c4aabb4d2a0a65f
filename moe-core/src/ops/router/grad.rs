//! The gradient of the logits.

use super::{Losses, Router, check_valid};
use crate::check::{Check, span, spans};
use crate::raw::{RawLossGrads, RawRouteGrads, RawView, RouterGradArgs};
use crate::tag::{Tag, Untagged};
use crate::{Buf, DeviceId, Float, Queue, Region, Result, RouterBackend, Rows, RowsMut, View};

/// The ids that were taken, and the gradient of their weights.
type TakenGrad<'a, B, G> = (View<'a, B, i32, G>, DeviceId<B>, RawView<'a, B>);

/// The gradient of a router's logits, to be computed; made by [`Router::grad`].
///
/// It is the sum over everything named: the weights, the probabilities, the losses. Which experts were taken is a
/// constant.
///
/// ```
/// # use moe_core::{Dev, Router};
/// # use moe_cpu::Cpu;
/// # let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
/// # let logits = queue.upload(&[0.0f32, 2.0, 1.0, 2.0])?;
/// let router = Router::new(4, 2);
/// let (ids, weights) = router.route(logits.rows(4)?).run::<f32>(&mut queue)?;
/// let grad_weights = queue.upload(&[1.0f32, 1.0])?;
/// let grad = router.grad(logits.rows(4)?).weights(ids.view(), grad_weights.view()).z(1e-3).run(&mut queue)?;
/// assert!(queue.download(grad.view())?[1] > 0.0);
/// # Ok::<(), moe_core::Error>(())
/// ```
#[must_use = "a gradient is not computed until it is run"]
#[derive(Debug)]
pub struct RouterGrad<'a, B: RouterBackend, T: Float, G: Tag = Untagged> {
    router: Router,
    logits: Rows<'a, B, T, G>,
    weights: Option<TakenGrad<'a, B, G>>,
    probs: Option<Rows<'a, B, f32, G>>,
    losses: Losses<'a, B, G>,
    loss_grads: Option<View<'a, B, f32, G>>,
    valid_tokens: Option<View<'a, B, i32, G>>,
}

impl<'a, B: RouterBackend, T: Float, G: Tag> RouterGrad<'a, B, T, G> {
    pub(super) fn new(router: Router, logits: Rows<'a, B, T, G>) -> Self {
        let losses = Losses::NONE;
        Self { router, logits, weights: None, probs: None, losses, loss_grads: None, valid_tokens: None }
    }

    /// The ids that [`Route`](super::Route) gave and the gradient of its weights, each `[T, K]`.
    pub fn weights<'m: 'a, W: Float>(self, ids: View<'m, B, i32, G>, grad_weights: View<'m, B, W, G>) -> Self {
        let grad = (grad_weights.device_id(), grad_weights.shorten().into_raw());
        Self { weights: Some((ids.shorten(), grad.0, grad.1)), ..self }
    }

    /// The gradient of the probabilities over all experts, `[T, E]`.
    pub fn probs<'m: 'a>(self, grad_probs: Rows<'m, B, f32, G>) -> Self {
        Self { probs: Some(grad_probs.shorten()), ..self }
    }

    /// Adds the gradient of the load-balancing loss, computed with the same load and coefficient.
    pub fn balance<'m: 'a>(self, load: View<'m, B, i32, G>, coefficient: f32) -> Self {
        Self { losses: Losses { balance: Some((load.shorten(), coefficient)), ..self.losses }, ..self }
    }

    /// Adds the gradient of the z-loss, computed with the same coefficient.
    pub fn z(self, coefficient: f32) -> Self {
        Self { losses: Losses { z: Some(coefficient), ..self.losses }, ..self }
    }

    /// `[2]`: the gradients of the two losses themselves, as a loss scale makes them. Without it both are 1.
    pub fn loss_grads<'m: 'a>(self, grads: View<'m, B, f32, G>) -> Self {
        Self { loss_grads: Some(grads.shorten()), ..self }
    }

    /// `[1]`, on the device: as the router and the losses had it.
    pub fn valid_tokens<'m: 'a>(self, count: View<'m, B, i32, G>) -> Self {
        Self { valid_tokens: Some(count.shorten()), ..self }
    }

    /// The gradient in new memory, `[T, E]`.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run(self, queue: &mut Queue<'_, B, G>) -> Result<Buf<B, T, G>> {
        let cols = self.logits.cols();
        let mut out = queue.zeros(self.logits.num_rows() * cols)?;
        self.run_into(queue, out.rows_mut(cols)?)?;
        Ok(out)
    }

    /// The gradient into `grad_logits`, `[T, E]`.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::Error::InvalidArgument) for a number out of its range,
    /// [`Shape`](crate::Error::Shape), [`DeviceMismatch`](crate::Error::DeviceMismatch),
    /// [`Overlap`](crate::Error::Overlap), or what the driver says.
    pub fn run_into(self, queue: &mut Queue<'_, B, G>, grad_logits: RowsMut<'_, B, T, G>) -> Result<()> {
        let check = Check { op: "router grad", device: queue.device_id() };
        let Self { router, logits, weights, probs, losses, loss_grads, valid_tokens } = self;
        let tokens = logits.num_rows();
        let shape = router.check(&check, tokens, logits.cols())?;
        let matrix = [tokens, shape.num_experts];
        check.device("logits", logits.device_id())?;
        let weights = match weights {
            None => None,
            Some((ids, device, grad)) => {
                check.device("ids", ids.device_id())?;
                check.len("ids", tokens * shape.top_k, ids.len())?;
                check.device("grad_weights", device)?;
                check.len("grad_weights", tokens * shape.top_k, grad.len)?;
                Some(RawRouteGrads { ids: ids.into_raw().shorten(), grad: grad.shorten() })
            }
        };
        if let Some(probs) = &probs {
            check.device("grad_probs", probs.device_id())?;
            check.shape("grad_probs", matrix, [probs.num_rows(), probs.cols()])?;
        }
        if let Some(grads) = &loss_grads {
            check.device("loss_grads", grads.device_id())?;
            check.len("loss_grads", 2, grads.len())?;
        }
        let losses = match losses.is_none() {
            true => None,
            false => {
                let grad = loss_grads.map(|grads| grads.into_raw().shorten());
                Some(RawLossGrads { losses: losses.check(&check, &shape)?, grad })
            }
        };
        let valid_tokens = check_valid(&check, valid_tokens)?;
        check.device("grad_logits", grad_logits.device_id())?;
        check.shape("grad_logits", matrix, [grad_logits.num_rows(), grad_logits.cols()])?;
        let (logits, grad_logits) = (logits.into_raw().shorten(), grad_logits.into_raw().shorten());
        let grad_probs = probs.map(|probs| probs.into_raw().shorten());
        let inputs = spans([
            ("logits", span(&logits.region)),
            ("ids", weights.as_ref().and_then(|w| span(&w.ids.region))),
            ("grad_weights", weights.as_ref().and_then(|w| span(&w.grad.region))),
            ("grad_probs", grad_probs.as_ref().and_then(|p| span(&p.region))),
            ("load", losses.as_ref().and_then(|l| span(&l.losses.load.as_ref()?.region))),
            ("loss_grads", losses.as_ref().and_then(|l| span(&l.grad.as_ref()?.region))),
            ("valid_tokens", valid_tokens.as_ref().and_then(|v| span(&v.region))),
        ]);
        for input in inputs {
            check.apart(("grad_logits", grad_logits.region.span()), input)?;
        }
        let args = RouterGradArgs { shape, logits, valid_tokens, weights, grad_probs, losses, grad_logits };
        // SAFETY: checked above: numbers, devices, shapes and lengths; the dtypes follow from the types; the output
        // overlaps no input.
        unsafe { B::router_grad(queue.raw_mut(), args) }
    }
}
