//! The memory of a forward pass.

use super::MoeLayer;
use super::experts::Between;
use crate::quant::PerToken;
use crate::tag::{Tag, Untagged};
use crate::{
    Backend, Buf, Float, MatmulInput, PlanSpec, QuantBackend, QuantRows, Queue, Result, RoutePlan, Routing, View,
    Workspace,
};

/// Everything that a forward pass of some tokens writes besides its output: plans, routes, rows between the stages. Layers
/// of one shape share one; a pass allocates nothing.
#[derive(Debug)]
pub struct LayerState<B: Backend, T: Float, O: Float, G: Tag = Untagged> {
    pub(super) num_tokens: usize,
    /// All tokens as the rows of one expert: for the router and the shared experts.
    pub(super) tokens: RoutePlan<B, G>,
    pub(super) spec: PlanSpec,
    pub(super) plan: RoutePlan<B, G>,
    pub(super) logits: Buf<B, f32, G>,
    pub(super) topk_ids: Buf<B, i32, G>,
    pub(super) topk_weights: Buf<B, f32, G>,
    pub(super) routed: Between<B, T, O, G>,
    /// `[R, H]`, the experts' results.
    pub(super) rows: Buf<B, O, G>,
    pub(super) shared: Option<Shared<B, T, O, G>>,
}

/// The shared experts' part.
#[derive(Debug)]
pub(super) struct Shared<B: Backend, T: Float, O: Float, G: Tag> {
    pub(super) between: Between<B, T, O, G>,
    /// `[T, H]`, their result.
    pub(super) rows: Buf<B, O, G>,
}

impl<B: QuantBackend, T: Float + MatmulInput, O: Float, G: Tag> LayerState<B, T, O, G> {
    /// Memory for batches of `num_tokens` tokens.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::Error::InvalidArgument) for a number of routes past i32, those of allocation, and of
    /// the workspace if it is too small.
    pub fn new(
        queue: &mut Queue<'_, B, G>,
        workspace: &mut Workspace<B, G>,
        layer: &MoeLayer<B, T, G>,
        num_tokens: usize,
    ) -> Result<Self> {
        let (hidden, router) = (layer.config.hidden_size, &layer.config.router);
        let spec = layer.plan_spec(num_tokens);
        let plan = RoutePlan::alloc(queue, spec)?;
        // One expert, to which every token goes: row t is token t.
        let ids: Buf<B, i32, G> = queue.zeros(num_tokens)?;
        let tokens = RoutePlan::new(queue, workspace, PlanSpec::new(num_tokens, 1, 1), Routing::top_k(ids.view()))?;
        let shared = match &layer.shared {
            None => None,
            Some(experts) => Some(Shared {
                between: Between::alloc(queue, experts, num_tokens, hidden)?,
                rows: queue.zeros(num_tokens * hidden)?,
            }),
        };
        Ok(Self {
            num_tokens,
            tokens,
            spec,
            logits: queue.zeros(num_tokens * router.num_experts())?,
            topk_ids: queue.zeros(num_tokens * router.top_k())?,
            topk_weights: queue.zeros(num_tokens * router.top_k())?,
            routed: Between::alloc(queue, &layer.experts, plan.num_rows(), hidden)?,
            rows: queue.zeros(plan.num_rows() * hidden)?,
            plan,
            shared,
        })
    }

    /// The plan of the last pass.
    pub fn plan(&self) -> &RoutePlan<B, G> {
        &self.plan
    }

    /// `[T, E]`, the router's logits of the last pass.
    pub fn router_logits(&self) -> View<'_, B, f32, G> {
        self.logits.view()
    }

    /// `[T, K]`, the experts that the router took.
    pub fn topk_ids(&self) -> View<'_, B, i32, G> {
        self.topk_ids.view()
    }

    /// `[T, K]`, their weights.
    pub fn topk_weights(&self) -> View<'_, B, f32, G> {
        self.topk_weights.view()
    }

    /// `[R, 2 I]`, the gate and up products of the last pass.
    pub fn gate_up(&self) -> View<'_, B, O, G> {
        self.routed.gate_up()
    }

    /// The quantised rows of the last pass, as they were gathered and as they were activated, where both are quantised
    /// per token.
    pub fn per_token_rows(&self) -> Option<[&QuantRows<B, PerToken, G>; 2]> {
        self.routed.per_token_rows()
    }
}
