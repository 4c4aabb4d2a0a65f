//! The experts' products.

use super::{Backend, PermuteBackend};
use crate::Result;
use crate::raw::GroupedMatmulArgs;

/// Products by expert, on one backend.
///
/// A value and not a set of methods of the backend: a library's handle, its workspace or a table of tuned kernels has
/// to live somewhere, and anybody may write one for any backend, whose types belong to other crates.
///
/// # Safety
/// Implementations write only to `out`, inside its bounds, whatever the offsets on the device say. What a caller
/// promises to the `unsafe` method: all regions and the queue are on one device; lengths, shapes, strides and dtypes are
/// those that [`GroupedMatmulArgs`] states; `out` overlaps no other argument; element alignment holds. Contents are not
/// promised. [`RoutePlan::grouped_matmul`](crate::RoutePlan::grouped_matmul) checks all of it.
pub unsafe trait GroupedMatmul<B: Backend> {
    /// Refuses what it cannot compute: a dtype, a block of scales, an alignment. It is asked before anything is
    /// enqueued. By default everything is taken.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported), with what would work.
    fn accepts(&self, args: &GroupedMatmulArgs<'_, B>) -> Result<()> {
        let _ = args;
        Ok(())
    }

    /// Enqueues the products. The implementation's docs say whether the host reads the expert offsets, which waits for
    /// the plan; one that does not can be captured in a graph.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver or the library says.
    unsafe fn grouped_matmul(&mut self, queue: &mut B::Queue<'_>, args: GroupedMatmulArgs<'_, B>) -> Result<()>;
}

/// A backend that brings products of its own.
pub trait MatmulBackend: PermuteBackend {
    /// Its products.
    type Matmul: GroupedMatmul<Self>;

    /// Makes them ready, for one queue's device.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) where a library is missing, or what the driver says.
    fn matmul(queue: &Self::Queue<'_>) -> Result<Self::Matmul>;
}
