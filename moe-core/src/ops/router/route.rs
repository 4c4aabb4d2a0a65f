//! From logits to expert ids and weights.

use super::{Router, check_valid};
use crate::check::{Check, span, spans};
use crate::raw::RouteArgs;
use crate::tag::{Tag, Untagged};
use crate::{Buf, Float, Queue, Result, RouterBackend, Rows, RowsMut, View, ViewMut};

/// A routing to be run; made by [`Router::route`].
#[must_use = "a routing does nothing until it is run"]
#[derive(Debug)]
pub struct Route<'a, B: RouterBackend, T: Float, G: Tag = Untagged> {
    router: Router,
    logits: Rows<'a, B, T, G>,
    correction_bias: Option<View<'a, B, f32, G>>,
    valid_tokens: Option<View<'a, B, i32, G>>,
    probs: Option<RowsMut<'a, B, f32, G>>,
}

impl<'a, B: RouterBackend, T: Float, G: Tag> Route<'a, B, T, G> {
    pub(super) fn new(router: Router, logits: Rows<'a, B, T, G>) -> Self {
        Self { router, logits, correction_bias: None, valid_tokens: None, probs: None }
    }

    /// `[E]`: added to each expert's score for the choice, not for the weights.
    #[doc(alias = "e_score_correction_bias")]
    pub fn correction_bias<'m: 'a>(self, bias: View<'m, B, f32, G>) -> Self {
        Self { correction_bias: Some(bias.shorten()), ..self }
    }

    /// `[1]`, on the device: only tokens below this number are routed. The others get ids -1 and weights 0, which a
    /// route plan takes for masked.
    pub fn valid_tokens<'m: 'a>(self, count: View<'m, B, i32, G>) -> Self {
        Self { valid_tokens: Some(count.shorten()), ..self }
    }

    /// `[T, E]`: also writes the probabilities over all experts: the softmax, or for sigmoid scoring the scores divided
    /// by their sum. Losses and their own gradients need them not.
    pub fn probs<'m: 'a>(self, probs: RowsMut<'m, B, f32, G>) -> Self {
        Self { probs: Some(probs.shorten()), ..self }
    }

    /// Routes into new memory: ids and weights, each `[T, K]`.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    #[allow(clippy::type_complexity)] // two buffers of one device
    pub fn run<W: Float>(self, queue: &mut Queue<'_, B, G>) -> Result<(Buf<B, i32, G>, Buf<B, W, G>)> {
        let check = Check { op: "route", device: queue.device_id() };
        let (tokens, cols) = (self.logits.num_rows(), self.logits.cols());
        let routes = tokens * self.router.check(&check, tokens, cols)?.top_k;
        let (mut ids, mut weights) = (queue.zeros(routes)?, queue.zeros(routes)?);
        self.run_into(queue, ids.view_mut(), weights.view_mut())?;
        Ok((ids, weights))
    }

    /// Routes into the caller's `ids` and `weights`, each `[T, K]`.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::Error::InvalidArgument) for a router's number out of its range,
    /// [`Shape`](crate::Error::Shape), [`DeviceMismatch`](crate::Error::DeviceMismatch),
    /// [`Overlap`](crate::Error::Overlap), or what the driver says.
    pub fn run_into<W: Float>(
        self,
        queue: &mut Queue<'_, B, G>,
        ids: ViewMut<'_, B, i32, G>,
        weights: ViewMut<'_, B, W, G>,
    ) -> Result<()> {
        let check = Check { op: "route", device: queue.device_id() };
        let Self { router, logits, correction_bias, valid_tokens, probs } = self;
        let tokens = logits.num_rows();
        let shape = router.check(&check, tokens, logits.cols())?;
        check.device("logits", logits.device_id())?;
        if let Some(bias) = &correction_bias {
            check.device("correction_bias", bias.device_id())?;
            check.len("correction_bias", shape.num_experts, bias.len())?;
        }
        let valid_tokens = check_valid(&check, valid_tokens)?;
        check.device("ids", ids.device_id())?;
        check.len("ids", tokens * shape.top_k, ids.len())?;
        check.device("weights", weights.device_id())?;
        check.len("weights", tokens * shape.top_k, weights.len())?;
        if let Some(probs) = &probs {
            check.device("probs", probs.device_id())?;
            check.shape("probs", [tokens, shape.num_experts], [probs.num_rows(), probs.cols()])?;
        }
        let (logits, ids, weights) =
            (logits.into_raw().shorten(), ids.into_raw().shorten(), weights.into_raw().shorten());
        let correction_bias = correction_bias.map(|bias| bias.into_raw().shorten());
        let probs = probs.map(|probs| probs.into_raw().shorten());
        let inputs = || {
            spans([
                ("logits", span(&logits.region)),
                ("correction_bias", correction_bias.as_ref().and_then(|v| span(&v.region))),
                ("valid_tokens", valid_tokens.as_ref().and_then(|v| span(&v.region))),
            ])
        };
        let outputs = [
            ("ids", span(&ids.region)),
            ("weights", span(&weights.region)),
            ("probs", probs.as_ref().and_then(|p| span(&p.region))),
        ];
        for (i, out) in spans(outputs).enumerate() {
            for other in inputs().chain(spans(outputs).skip(i + 1)) {
                check.apart(out, other)?;
            }
        }
        let args = RouteArgs { shape, logits, correction_bias, valid_tokens, ids, weights, probs };
        // SAFETY: checked above: numbers, devices, shapes and lengths; the dtypes follow from the types; no output
        // overlaps an input or another output.
        unsafe { B::route(queue.raw_mut(), args) }
    }
}
