//! What a plan keeps beside its index arrays: the routes that its builder made from a mask or from chunks.

use crate::raw::{PlanShape, RawView, RawViewMut};
use crate::tag::Tag;
use crate::{Backend, Buffer, DType, Queue, Region, Result};

/// What the routes of a plan are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    TopK,
    Mask,
    Chunks,
}

impl Origin {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Origin::TopK => "expert ids (Routing::top_k, PlanSpec::new)",
            Origin::Mask => "a mask map (Routing::mask, PlanSpec::mask)",
            Origin::Chunks => "chunks (Routing::chunks, PlanSpec::chunks)",
        }
    }
}

/// An array of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) len: usize,
    pub(crate) dtype: DType,
}

impl Part {
    fn byte_len(&self) -> usize {
        self.len * self.dtype.size()
    }
}

/// The arrays that a builder makes routes in. Nothing is there for plans of expert ids, which the caller has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts<T> {
    /// i32 `[T, K]`.
    pub(crate) ids: Option<T>,
    /// `[T, K]`, for masks with probabilities.
    pub(crate) probs: Option<T>,
    /// u32 `[1]`, for masks.
    pub(crate) over_max_routes: Option<T>,
    /// u32 `[2 * C + 2]`, for chunks.
    pub(crate) work: Option<T>,
}

/// What the routes of a plan are made from, and the arrays for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteArrays {
    pub(crate) origin: Origin,
    pub(crate) parts: Parts<Part>,
}

impl RouteArrays {
    pub(crate) fn new(origin: Origin, probs: Option<DType>, shape: &PlanShape) -> Self {
        let part = |there: bool, len: usize, dtype: DType| there.then_some(Part { len, dtype });
        let (mask, chunks) = (origin == Origin::Mask, origin == Origin::Chunks);
        let parts = Parts {
            ids: part(mask || chunks, shape.num_routes(), DType::I32),
            probs: probs.and_then(|dtype| part(mask, shape.num_routes(), dtype)),
            over_max_routes: part(mask, 1, DType::U32),
            work: part(chunks, 2 * shape.num_experts + 2, DType::U32),
        };
        Self { origin, parts }
    }
}

impl Parts<Part> {
    /// Memory for all of them.
    pub(crate) fn alloc<B: Backend, G: Tag>(&self, queue: &mut Queue<'_, B, G>) -> Result<Parts<B::Buffer>> {
        let mut alloc = |part: Option<Part>| part.map(|part| queue.alloc_bytes(part.byte_len())).transpose();
        Ok(Parts {
            ids: alloc(self.ids)?,
            probs: alloc(self.probs)?,
            over_max_routes: alloc(self.over_max_routes)?,
            work: alloc(self.work)?,
        })
    }

    /// Each with the memory that there is for it: bytes needed and there.
    pub(crate) fn sizes<M: Buffer>(&self, memory: &Parts<M>) -> [(usize, usize); 4] {
        let size = |part: Option<Part>, memory: &Option<M>| {
            (part.map_or(0, |part| part.byte_len()), memory.as_ref().map_or(0, M::byte_len))
        };
        [
            size(self.ids, &memory.ids),
            size(self.probs, &memory.probs),
            size(self.over_max_routes, &memory.over_max_routes),
            size(self.work, &memory.work),
        ]
    }
}

/// A part in its memory, which was seen to hold it.
pub(crate) fn view<B: Backend>(part: Option<Part>, memory: &Option<B::Buffer>) -> Option<RawView<'_, B>> {
    let (part, memory) = (part?, memory.as_ref()?);
    Some(RawView { region: memory.region().slice(0..part.byte_len()), dtype: part.dtype, len: part.len })
}

/// Like [`view`], to write.
pub(crate) fn view_mut<B: Backend>(part: Option<Part>, memory: &mut Option<B::Buffer>) -> Option<RawViewMut<'_, B>> {
    let (part, memory) = (part?, memory.as_mut()?);
    Some(RawViewMut { region: memory.region_mut().slice(0..part.byte_len()), dtype: part.dtype, len: part.len })
}
