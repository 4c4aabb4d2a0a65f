//! The three primitives, and what is derived from a plan beside them, as builders: name the optional arguments, then `run` (allocates the result) or `run_into`
//! (writes into the caller's memory and allocates nothing). Everything the host can see is checked before anything is
//! enqueued, so that an error leaves every buffer as it was.
#![allow(unsafe_code)] // calls the backends' checked operations

mod block_table;
mod combine;
mod combine_grad;
mod gather;
mod gather_grad;
mod gather_quant;
mod grouped_matmul;
mod mask_grad;
mod placed;
mod quantised;
mod router;
mod split_sizes;
mod swiglu;
mod zero_tail;

pub use block_table::{BlockTable, Blocks};
pub use combine::Combine;
pub use combine_grad::CombineGrad;
pub use gather::Gather;
pub use gather_grad::GatherGradWeights;
pub use gather_quant::GatherQuant;
pub use grouped_matmul::GroupedProducts;
pub use mask_grad::MaskGrad;
pub use quantised::QuantRows;
pub use router::{Route, Router, RouterGrad, RouterLosses, Scoring};
pub use split_sizes::SplitSizes;
pub use swiglu::{Swiglu, SwigluQuant};

use crate::check::Check;
use crate::raw::RawView;
use crate::tag::Tag;
use crate::{Backend, DeviceId, Float, Result, View};
use placed::Placed;

/// Weights whose dtype is known at run time only.
#[derive(Debug)]
struct Weights<'a, B: Backend> {
    device: DeviceId<B>,
    view: RawView<'a, B>,
}

impl<'a, B: Backend> Weights<'a, B> {
    fn new<'w: 'a, W: Float, G: Tag>(weights: View<'w, B, W, G>) -> Self {
        Self { device: weights.device_id(), view: weights.shorten().into_raw() }
    }

    fn check<'s>(self, check: &Check<B>, routes: usize) -> Result<RawView<'s, B>>
    where
        'a: 's,
    {
        check.device("weights", self.device)?;
        check.len("weights", routes, self.view.len)?;
        Ok(self.view.shorten())
    }
}
