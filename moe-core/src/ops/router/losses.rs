//! The load-balancing loss and the z-loss.

use super::{Losses, Router, check_valid};
use crate::check::{Check, span, spans};
use crate::raw::RouterLossArgs;
use crate::tag::{Tag, Untagged};
use crate::{Buf, Float, Queue, Region, Result, RouterBackend, Rows, View, ViewMut};

/// A batch's losses to be computed; made by [`Router::losses`].
///
/// The load-balancing loss is `coefficient * E * Σ_e f_e * P_e` with f the fraction of the routes that an expert got and
/// P its mean probability over the tokens (Switch Transformers, arXiv 2101.03961; GShard, 2006.16668). The z-loss is
/// `coefficient` times the mean of `logsumexp(logits)²` (ST-MoE, 2202.08906). Tokens whose largest logit is not finite
/// count 0 in both.
#[must_use = "losses are not computed until it is run"]
#[derive(Debug)]
pub struct RouterLosses<'a, B: RouterBackend, T: Float, G: Tag = Untagged> {
    router: Router,
    logits: Rows<'a, B, T, G>,
    losses: Losses<'a, B, G>,
    valid_tokens: Option<View<'a, B, i32, G>>,
}

impl<'a, B: RouterBackend, T: Float, G: Tag> RouterLosses<'a, B, T, G> {
    pub(super) fn new(router: Router, logits: Rows<'a, B, T, G>) -> Self {
        Self { router, logits, losses: Losses::NONE, valid_tokens: None }
    }

    /// The load-balancing loss: `load` `[E]` are the routes of each expert, a route plan's
    /// [`logical_load`](crate::RoutePlan::logical_load).
    pub fn balance<'m: 'a>(self, load: View<'m, B, i32, G>, coefficient: f32) -> Self {
        Self { losses: Losses { balance: Some((load.shorten(), coefficient)), ..self.losses }, ..self }
    }

    /// The z-loss.
    pub fn z(self, coefficient: f32) -> Self {
        Self { losses: Losses { z: Some(coefficient), ..self.losses }, ..self }
    }

    /// `[1]`, on the device: the means are over the tokens below this number.
    pub fn valid_tokens<'m: 'a>(self, count: View<'m, B, i32, G>) -> Self {
        Self { valid_tokens: Some(count.shorten()), ..self }
    }

    /// The two losses `[2]`, load-balancing and z, 0 for one that was not asked for.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run(self, queue: &mut Queue<'_, B, G>) -> Result<Buf<B, f32, G>> {
        let mut token_losses = queue.zeros(self.logits.num_rows() * 2)?;
        let mut out = queue.zeros(2)?;
        self.run_into(queue, token_losses.view_mut(), out.view_mut())?;
        Ok(out)
    }

    /// The two losses into `out` `[2]`, and what each token adds to them, not yet scaled, into `token_losses` `[T, 2]`.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::Error::InvalidArgument) for a number out of its range,
    /// [`Shape`](crate::Error::Shape), [`DeviceMismatch`](crate::Error::DeviceMismatch),
    /// [`Overlap`](crate::Error::Overlap), or what the driver says.
    pub fn run_into(
        self,
        queue: &mut Queue<'_, B, G>,
        token_losses: ViewMut<'_, B, f32, G>,
        out: ViewMut<'_, B, f32, G>,
    ) -> Result<()> {
        let check = Check { op: "router losses", device: queue.device_id() };
        let Self { router, logits, losses, valid_tokens } = self;
        let tokens = logits.num_rows();
        let shape = router.check(&check, tokens, logits.cols())?;
        check.device("logits", logits.device_id())?;
        let losses = losses.check(&check, &shape)?;
        let valid_tokens = check_valid(&check, valid_tokens)?;
        check.device("token_losses", token_losses.device_id())?;
        check.len("token_losses", tokens * 2, token_losses.len())?;
        check.device("out", out.device_id())?;
        check.len("out", 2, out.len())?;
        let logits = logits.into_raw().shorten();
        let (token_losses, out) = (token_losses.into_raw().shorten(), out.into_raw().shorten());
        let inputs = || {
            spans([
                ("logits", span(&logits.region)),
                ("load", losses.load.as_ref().and_then(|v| span(&v.region))),
                ("valid_tokens", valid_tokens.as_ref().and_then(|v| span(&v.region))),
            ])
        };
        for input in inputs() {
            check.apart(("token_losses", token_losses.region.span()), input)?;
        }
        for other in inputs().chain(spans([("token_losses", span(&token_losses.region))])) {
            check.apart(("out", out.region.span()), other)?;
        }
        let args = RouterLossArgs { shape, logits, valid_tokens, losses, token_losses, out };
        // SAFETY: checked above: numbers, devices, shapes and lengths; the dtypes follow from the types; no output
        // overlaps an input or the other output.
        unsafe { B::router_losses(queue.raw_mut(), args) }
    }
}
