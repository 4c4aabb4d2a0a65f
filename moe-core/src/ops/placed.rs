//! A plan as an operation uses it.

use crate::raw::{PlanArrays, PlanRef, PlanShape};
use crate::tag::Tag;
use crate::{Backend, DeviceId, Result, RoutePlan};

/// A plan as it is, or with every route as a token of its own. Only the shape differs: the arrays are the plan's.
#[derive(Debug)]
pub(super) struct Placed<'a, B: Backend, G: Tag> {
    plan: &'a RoutePlan<B, G>,
    arrays: PlanArrays,
}

impl<'a, B: Backend, G: Tag> Placed<'a, B, G> {
    /// Tokens of K routes.
    pub(super) fn by_token(plan: &'a RoutePlan<B, G>) -> Self {
        Self { plan, arrays: plan.arrays() }
    }

    /// N tokens of one route each.
    pub(super) fn by_route(plan: &'a RoutePlan<B, G>) -> Self {
        let mut arrays = plan.arrays();
        (arrays.shape.num_tokens, arrays.shape.top_k) = (arrays.shape.num_routes(), 1);
        Self { plan, arrays }
    }

    pub(super) fn device_id(&self) -> DeviceId<B> {
        self.plan.device_id()
    }

    pub(super) fn shape(&self) -> &PlanShape {
        &self.arrays.shape
    }

    pub(super) fn built(&self, op: &'static str) -> Result<PlanRef<'_, B>> {
        Ok(PlanRef { arrays: &self.arrays, ..self.plan.built(op)? })
    }
}
