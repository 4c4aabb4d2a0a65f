//! The stages of a layer.

use super::{LayerState, MoeLayer};
use crate::check::Check;
use crate::tag::Tag;
use crate::{
    Error, Float, GroupedMatmul, MatmulInput, QuantBackend, Queue, Result, RouterBackend, Routing, Rows, RowsMut,
    Workspace,
};

/// A stage of a forward pass, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The router's product.
    Router,
    /// From logits to experts and weights.
    TopK,
    /// The route plan.
    Plan,
    /// Rows by expert, quantised where the weights are.
    Gather,
    /// Gate and up products.
    GateUp,
    /// SwiGLU, quantised where the weights are.
    Activation,
    /// Down products.
    Down,
    /// All of the shared experts.
    SharedExperts,
    /// Results weighted, summed and brought home.
    Combine,
}

impl Stage {
    /// A name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Router => "router",
            Stage::TopK => "top-k",
            Stage::Plan => "plan",
            Stage::Gather => "gather",
            Stage::GateUp => "gate, up",
            Stage::Activation => "swiglu",
            Stage::Down => "down",
            Stage::SharedExperts => "shared",
            Stage::Combine => "combine",
        }
    }
}

/// What is called when a stage is enqueued.
type Observer<'o, B, G> = dyn FnMut(&mut Queue<'_, B, G>, Stage) -> Result<()> + 'o;

impl<B: QuantBackend + RouterBackend, T: Float + MatmulInput, G: Tag> MoeLayer<B, T, G> {
    /// Runs the layer: `x` `[T, H]` to `out` `[T, H]`. `O` is `T` or f32, or with fp8 weights any float; products between
    /// the stages have that type, activations are `T` (fp8: rounded to bf16, then quantised).
    ///
    /// Nothing is read back and nothing allocated by the layer itself; `matmul` says what it does.
    ///
    /// # Errors
    /// [`Shape`](Error::Shape) for rows of another number or width than the state's and the layer's, and those of the
    /// operations.
    pub fn forward<O: Float>(
        &self,
        queue: &mut Queue<'_, B, G>,
        workspace: &mut Workspace<B, G>,
        matmul: &mut impl GroupedMatmul<B>,
        state: &mut LayerState<B, T, O, G>,
        x: Rows<'_, B, T, G>,
        out: RowsMut<'_, B, O, G>,
    ) -> Result<()> {
        self.forward_observed(queue, workspace, matmul, state, x, out, &mut |_, _| Ok(()))
    }

    /// Like [`forward`](Self::forward), and calls `after` when a stage is enqueued: to time it, or to look at the state's
    /// queue.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and those of `after`.
    #[allow(clippy::too_many_arguments)] // forward's, and the observer
    pub fn forward_observed<O: Float>(
        &self,
        queue: &mut Queue<'_, B, G>,
        workspace: &mut Workspace<B, G>,
        matmul: &mut impl GroupedMatmul<B>,
        state: &mut LayerState<B, T, O, G>,
        x: Rows<'_, B, T, G>,
        out: RowsMut<'_, B, O, G>,
        after: &mut Observer<'_, B, G>,
    ) -> Result<()> {
        let check = Check { op: "forward", device: queue.device_id() };
        let (hidden, num_experts) = (self.config.hidden_size, self.config.router.num_experts());
        check.device("layer", self.device_id())?;
        check.shape("x", [state.num_tokens, hidden], [x.num_rows(), x.cols()])?;
        check.shape("out", [state.num_tokens, hidden], [out.num_rows(), out.cols()])?;
        if state.spec != self.plan_spec(state.num_tokens) || state.shared.is_some() != self.shared.is_some() {
            let expected = "made for a layer of this shape".into();
            return Err(Error::InvalidArgument { op: check.op, arg: "state", expected, got: "another".into() });
        }

        let gate = self.gate.rows(hidden)?;
        let logits = state.logits.rows_mut(num_experts)?;
        state.tokens.grouped_matmul(x.clone(), gate).run_into(queue, matmul, logits)?;
        after(queue, Stage::Router)?;

        let mut route = self.config.router.route(state.logits.rows(num_experts)?);
        if let Some(bias) = &self.correction_bias {
            route = route.correction_bias(bias.view());
        }
        route.run_into(queue, state.topk_ids.view_mut(), state.topk_weights.view_mut())?;
        after(queue, Stage::TopK)?;

        let mut routing = Routing::top_k(state.topk_ids.view());
        if let Some(map) = &self.expert_map {
            routing = routing.expert_map(map.view());
        }
        state.plan.build_into(queue, workspace, state.spec, routing)?;
        after(queue, Stage::Plan)?;

        let (plan, experts) = (&state.plan, &self.experts);
        state.routed.gather(queue, plan, x.clone())?;
        after(queue, Stage::Gather)?;
        state.routed.multiply_gate_up(queue, plan, matmul, experts, hidden)?;
        after(queue, Stage::GateUp)?;
        state.routed.activate(queue, plan, experts.intermediate_size)?;
        after(queue, Stage::Activation)?;
        state.routed.down(queue, plan, matmul, experts, state.rows.rows_mut(hidden)?)?;
        after(queue, Stage::Down)?;

        if let (Some(shared), Some(experts)) = (&mut state.shared, &self.shared) {
            let plan = &state.tokens;
            shared.between.gather(queue, plan, x)?;
            shared.between.multiply_gate_up(queue, plan, matmul, experts, hidden)?;
            shared.between.activate(queue, plan, experts.intermediate_size)?;
            shared.between.down(queue, plan, matmul, experts, shared.rows.rows_mut(hidden)?)?;
            after(queue, Stage::SharedExperts)?;
        }

        let mut combine = plan.combine(state.rows.rows(hidden)?).weights(state.topk_weights.view());
        if let Some(shared) = &state.shared {
            combine = combine.residual(shared.rows.rows(hidden)?);
        }
        combine.run_into(queue, out)?;
        after(queue, Stage::Combine)
    }
}
