//! What a plan is built from and into.

use super::RawView;
use crate::{Backend, Buffer, Capacity, Layout, Region};

/// The numbers that shape a plan; all are known on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanShape {
    /// T, tokens of the batch. May be 0.
    pub num_tokens: usize,
    /// K, routes of a token, at least 1.
    pub top_k: usize,
    /// E, the experts that ids name, at least 1.
    pub num_experts: usize,
    /// P, the experts that an expert map names, at least 1. Equals E without replicas.
    pub num_physical_experts: usize,
    /// `E_local`, experts that live here, at least 1. Equals P without an expert map.
    pub num_local_experts: usize,
    /// How the rows of the experts lie.
    pub layout: Layout,
    /// How many routes a local expert takes. `Layout::Padded(c)` always comes with a capacity of c or less.
    pub capacity: Option<Capacity>,
    /// R, rows of the plan: at most `i32::MAX`.
    pub rows: usize,
}

impl PlanShape {
    /// N, the number of routes: at most `i32::MAX`.
    pub fn num_routes(&self) -> usize {
        self.num_tokens * self.top_k
    }
}

/// An index array inside a plan's buffer. Elements are 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// The first byte, a multiple of [`PlanArrays::ALIGN`].
    pub offset: usize,
    /// The number of elements.
    pub len: usize,
}

impl Section {
    /// The bytes it takes in the buffer.
    pub fn bytes(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len * 4
    }
}

/// Where the arrays of a plan lie in its buffer, and the plan's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanArrays {
    /// The shape.
    pub shape: PlanShape,
    /// i32 `[R]`: row → route; -1 on padding rows and past the end.
    pub source: Section,
    /// i32 `[T, K]`: route → row; -1 where the route is not placed.
    pub slot: Section,
    /// i32 `[E_local + 1]`: first row of each local expert, padding included; the last entry is the number of rows in
    /// use.
    pub expert_offsets: Section,
    /// i32 `[E_local]`: placed routes of each local expert.
    pub tokens_per_expert: Section,
    /// u32 `[5]`: masked, invalid, non_local, over_capacity, over_max_routes. A route counts once, at the first that
    /// applies.
    pub status: Section,
    /// i32 `[R]`: row → local expert; -1 on padding rows and past the end.
    pub m_indices: Option<Section>,
    /// i32 `[E]`: routes per global expert, before any map or capacity.
    pub logical_load: Option<Section>,
    /// Bytes of all arrays.
    pub byte_len: usize,
}

impl PlanArrays {
    /// Alignment of each array in the buffer, in bytes.
    pub const ALIGN: usize = 256;
    /// The number of status counters.
    pub const STATUS_LEN: usize = 5;

    /// Lays the arrays of a plan out one after the other.
    pub fn new(shape: PlanShape, m_indices: bool, logical_load: bool) -> Self {
        let mut end = 0usize;
        let mut section = |len: usize| {
            let offset = end;
            end = (offset + len * 4).next_multiple_of(Self::ALIGN);
            Section { offset, len }
        };
        let e_local = shape.num_local_experts;
        // The short arrays first: their places do not depend on the number of tokens.
        let status = section(Self::STATUS_LEN);
        let expert_offsets = section(e_local + 1);
        let tokens_per_expert = section(e_local);
        let logical_load = logical_load.then(|| section(shape.num_experts));
        let slot = section(shape.num_routes());
        let source = section(shape.rows);
        let m_indices = m_indices.then(|| section(shape.rows));
        Self { shape, source, slot, expert_offsets, tokens_per_expert, status, m_indices, logical_load, byte_len: end }
    }
}

/// A built plan.
#[derive(Debug)]
pub struct PlanRef<'a, B: Backend> {
    /// The memory of all arrays.
    pub buffer: &'a B::Buffer,
    /// Where they lie.
    pub arrays: &'a PlanArrays,
}

impl<B: Backend> Clone for PlanRef<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for PlanRef<'_, B> {}

impl<'a, B: Backend> PlanRef<'a, B> {
    /// One of its arrays.
    pub fn region(&self, section: Section) -> B::Region<'a> {
        self.buffer.region().slice(section.bytes())
    }
}

/// A plan to be built.
#[derive(Debug)]
pub struct PlanMut<'a, B: Backend> {
    /// The memory of all arrays, at least `arrays.byte_len` bytes.
    pub buffer: &'a mut B::Buffer,
    /// Where they lie.
    pub arrays: &'a PlanArrays,
}

impl<B: Backend> PlanMut<'_, B> {
    /// The same plan for a shorter time.
    pub fn reborrow(&mut self) -> PlanMut<'_, B> {
        PlanMut { buffer: self.buffer, arrays: self.arrays }
    }

    /// The plan, to read.
    pub fn as_ref(&self) -> PlanRef<'_, B> {
        PlanRef { buffer: self.buffer, arrays: self.arrays }
    }
}

/// What a plan is built from. The shape is in the plan's arrays.
#[derive(Debug)]
pub struct BuildArgs<'a, B: Backend> {
    /// Expert ids `[T, K]` of dtype i32, u32 or i64, compared before they are narrowed. -1 (`u32::MAX` for u32) is
    /// masked; anything else outside `0..E` is invalid.
    pub ids: RawView<'a, B>,
    /// The copies of each expert. Without them an id is its own physical id.
    pub replicas: Option<RawReplicas<'a, B>>,
    /// i32 `[P]`: the local index of each physical expert, -1 where it is not local; anything else outside
    /// `0..E_local` is invalid. Without it every physical expert is local.
    pub expert_map: Option<RawView<'a, B>>,
    /// `[T, K]` in f32, f16 or bf16: what `Capacity::ByWeight` goes by. There if and only if the shape has it.
    pub capacity_weights: Option<RawView<'a, B>>,
    /// i32 `[1]`: only tokens below this number are routed; the routes of the others are not placed and count nowhere.
    /// A negative number means none, one above T means all.
    pub valid_tokens: Option<RawView<'a, B>>,
    /// u32 `[1]`, where the ids come from a [mask](super::MaskArgs): its `over_max_routes`, which is copied to the
    /// status. An id of -1 then only fills a token's K up, and does not count as masked.
    pub mask_overflow: Option<RawView<'a, B>>,
    /// Scratch of at least [`scratch_bytes`](crate::PermuteBackend::scratch_bytes) bytes for limits that hold this
    /// shape, all zero when it is first given, and afterwards as this backend left it.
    pub scratch: B::RegionMut<'a>,
}

/// Copies of experts: the k-th route of token t to expert e goes to physical expert
/// `log2phy[e, (t + k) mod logcnt[e]]`. A count outside `1..=width`, or an entry outside `0..P`, makes the route
/// invalid. Logical load counts e.
#[derive(Debug)]
pub struct RawReplicas<'a, B: Backend> {
    /// i32 `[E, width]`.
    pub log2phy: RawView<'a, B>,
    /// i32 `[E]`.
    pub logcnt: RawView<'a, B>,
    /// The most copies of an expert, at least 1.
    pub width: usize,
}

impl<'a, B: Backend> RawReplicas<'a, B> {
    /// The same for a shorter time.
    pub fn shorten<'s>(self) -> RawReplicas<'s, B>
    where
        'a: 's,
    {
        RawReplicas { log2phy: self.log2phy.shorten(), logcnt: self.logcnt.shorten(), width: self.width }
    }
}
