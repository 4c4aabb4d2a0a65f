//! The router: from logits to expert ids and weights.

use super::PermuteBackend;
use crate::Result;
use crate::raw::{RouteArgs, RouterGradArgs, RouterLossArgs};

/// A backend that also has the router. A trait of its own, so that a backend can begin without it.
///
/// # Safety
/// As [`PermuteBackend`]: implementations write only to the outputs they are given, inside their bounds, whatever
/// logits, ids and loads on the device say; and on `Ok` every output has been written to its full length.
///
/// # What a caller promises to the `unsafe` methods
/// What [`PermuteBackend`] states. [`crate::Router`] checks all of it. Contents are not promised.
pub unsafe trait RouterBackend: PermuteBackend {
    /// Takes each token's experts and computes their weights.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn route(queue: &mut Self::Queue<'_>, args: RouteArgs<'_, Self>) -> Result<()>;

    /// The load-balancing loss and the z-loss.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn router_losses(queue: &mut Self::Queue<'_>, args: RouterLossArgs<'_, Self>) -> Result<()>;

    /// The gradient of the logits.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn router_grad(queue: &mut Self::Queue<'_>, args: RouterGradArgs<'_, Self>) -> Result<()>;
}
