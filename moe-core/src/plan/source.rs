//! What routes are made from: expert ids, a mask map, or chunks.

use super::memory::{Origin, Part, Parts, view_mut};
use crate::check::Check;
use crate::raw::{ChunkArgs, MaskArgs, PlanShape, RawRows, RawView, RawViewMut};
use crate::tag::Tag;
use crate::{Backend, DeviceId, Error, PermuteBackend, Queue, Result};

/// What routes are made from, with the device of each part.
#[derive(Debug)]
pub(super) enum Source<'a, B: Backend> {
    TopK(DeviceId<B>, RawView<'a, B>),
    Mask(DeviceId<B>, RawRows<'a, B>),
    Chunks(DeviceId<B>, RawView<'a, B>, Option<(DeviceId<B>, RawView<'a, B>)>),
}

/// What routes are made from.
pub(crate) enum CheckedSource<'a, B: Backend> {
    TopK(RawView<'a, B>),
    Mask { mask: RawRows<'a, B>, probs: Option<RawRows<'a, B>> },
    Chunks { sizes: RawView<'a, B>, order: Option<RawView<'a, B>> },
}

impl<'a, B: Backend> Source<'a, B> {
    pub(super) fn check<'s>(
        self,
        check: &Check<B>,
        shape: &PlanShape,
        origin: Origin,
        probs: Option<RawRows<'s, B>>,
    ) -> Result<CheckedSource<'s, B>>
    where
        'a: 's,
    {
        let got = match self {
            Source::TopK(..) => Origin::TopK,
            Source::Mask(..) => Origin::Mask,
            Source::Chunks(..) => Origin::Chunks,
        };
        if got != origin {
            let (op, expected, got) = (check.op, origin.words().into(), got.words().into());
            return Err(Error::InvalidArgument { op, arg: "routing", expected, got });
        }
        Ok(match self {
            Source::TopK(device, ids) => {
                check.device("ids", device)?;
                check.len("ids", shape.num_routes(), ids.len)?;
                CheckedSource::TopK(ids.shorten())
            }
            Source::Mask(device, mask) => {
                check.device("mask", device)?;
                check.shape("mask", [shape.num_tokens, shape.num_experts], [mask.rows, mask.cols])?;
                CheckedSource::Mask { mask: mask.shorten(), probs }
            }
            Source::Chunks(device, sizes, order) => {
                check.device("sizes", device)?;
                check.len("sizes", shape.num_experts, sizes.len)?;
                if let Some((device, order)) = &order {
                    check.device("order", *device)?;
                    check.len("order", shape.num_experts, order.len)?;
                }
                CheckedSource::Chunks { sizes: sizes.shorten(), order: order.map(|(_, order)| order.shorten()) }
            }
        })
    }
}

impl<B: PermuteBackend> CheckedSource<'_, B> {
    /// Makes the ids that are not the caller's, in the plan's own memory.
    ///
    /// # Safety
    /// The source was checked for this shape, and is on the device of the queue; `memory` is too, holds the parts,
    /// and overlaps nothing else.
    #[allow(unsafe_code)] // calls the backends' checked operations
    pub(super) unsafe fn expand<G: Tag>(
        &self,
        queue: &mut Queue<'_, B, G>,
        shape: &PlanShape,
        parts: &Parts<Part>,
        memory: &mut Parts<B::Buffer>,
        valid_tokens: Option<RawView<'_, B>>,
    ) -> Result<()> {
        let there = "the builder saw that there is memory";
        match self {
            CheckedSource::TopK(_) => Ok(()),
            CheckedSource::Mask { mask, probs } => {
                let args = MaskArgs {
                    mask: mask.clone().shorten(),
                    probs: probs.clone().map(RawRows::shorten),
                    valid_tokens: valid_tokens.map(RawView::shorten),
                    max_routes: shape.top_k,
                    ids: view_mut::<B>(parts.ids, &mut memory.ids).expect(there).shorten(),
                    probs_out: view_mut::<B>(parts.probs, &mut memory.probs).map(RawViewMut::shorten),
                    over_max_routes: view_mut::<B>(parts.over_max_routes, &mut memory.over_max_routes)
                        .expect(there)
                        .shorten(),
                };
                // SAFETY: the caller's promises; the outputs are buffers of their own.
                unsafe { B::expand_mask(queue.raw_mut(), args) }
            }
            CheckedSource::Chunks { sizes, order } => {
                let args = ChunkArgs {
                    sizes: sizes.clone().shorten(),
                    order: order.clone().map(RawView::shorten),
                    ids: view_mut::<B>(parts.ids, &mut memory.ids).expect(there).shorten(),
                    work: view_mut::<B>(parts.work, &mut memory.work).expect(there).shorten(),
                };
                // SAFETY: likewise.
                unsafe { B::expand_chunks(queue.raw_mut(), args) }
            }
        }
    }
}
