//! What a backend's operations get: untyped views with a run-time dtype, so that the number of instantiations does not
//! explode. Everything here was checked by the time a backend sees it.
//!
//! Names of sizes: `T` tokens, `K` = `top_k`, `N = T * K` routes, `E` experts, `E_local` local experts, `R` rows of the
//! plan, `H` the hidden size. Lengths and strides are in elements unless a name says bytes.

use crate::{Backend, Buffer, Capacity, DType, Layout, Region};

/// `len` elements of one type, without gaps. The region has exactly their bytes.
#[derive(Clone, Debug)]
pub struct RawView<'a, B: Backend> {
    /// The memory.
    pub region: B::Region<'a>,
    /// The type of its elements.
    pub dtype: DType,
    /// How many there are.
    pub len: usize,
}

/// Like [`RawView`], to be written.
#[derive(Debug)]
pub struct RawViewMut<'a, B: Backend> {
    /// The memory.
    pub region: B::RegionMut<'a>,
    /// The type of its elements.
    pub dtype: DType,
    /// How many there are.
    pub len: usize,
}

/// A matrix: `rows` rows of `cols` elements, row `r` starting at element `r * stride`. `stride >= cols`, and
/// equal where there are fewer than two rows. The region ends with the last row.
#[derive(Clone, Debug)]
pub struct RawRows<'a, B: Backend> {
    /// The memory.
    pub region: B::Region<'a>,
    /// The type of its elements.
    pub dtype: DType,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Elements from the start of one row to the start of the next.
    pub stride: usize,
}

/// Like [`RawRows`], to be written. Elements between the end of a row and the start of the next are not touched.
#[derive(Debug)]
pub struct RawRowsMut<'a, B: Backend> {
    /// The memory.
    pub region: B::RegionMut<'a>,
    /// The type of its elements.
    pub dtype: DType,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Elements from the start of one row to the start of the next.
    pub stride: usize,
}

macro_rules! shorten {
    ($($Raw:ident by $shorten:ident keeps $($field:ident)*;)*) => { $(
        impl<'a, B: Backend> $Raw<'a, B> {
            /// The same for a shorter time.
            pub fn shorten<'s>(self) -> $Raw<'s, B>
            where
                'a: 's,
            {
                $Raw { region: B::$shorten(self.region), $($field: self.$field),* }
            }
        }
    )* };
}
shorten! {
    RawView by shorten keeps dtype len;
    RawViewMut by shorten_mut keeps dtype len;
    RawRows by shorten keeps dtype rows cols stride;
    RawRowsMut by shorten_mut keeps dtype rows cols stride;
}

impl<'a, B: Backend> RawRows<'a, B> {
    /// Rows without gaps, as one run of elements.
    pub(crate) fn into_view(self) -> RawView<'a, B> {
        debug_assert!(self.stride == self.cols || self.rows < 2);
        RawView { region: self.region, dtype: self.dtype, len: self.rows * self.cols }
    }
}

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

/// `out[slot[t, k], :] = rows[t, :]` for placed routes, times `weights[t, k]` where there are weights.
///
/// Without weights the bits are copied. With weights: widen both to f32, multiply, round once to the dtype (nearest
/// even), NaN canonical. Padding rows below the last expert offset become zero; rows from there on are not touched.
#[derive(Debug)]
pub struct GatherArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// `[T, H]`, any dtype without weights; f32, f16 or bf16 with.
    pub rows: RawRows<'a, B>,
    /// `[T, K]` in f32, f16 or bf16.
    pub weights: Option<RawView<'a, B>>,
    /// `[R, H]`, the dtype of `rows`.
    pub out: RawRowsMut<'a, B>,
}

/// Scales of 8-bit float rows.
#[derive(Debug)]
pub struct RawScales<'a, B: Backend> {
    /// f32 `[R, ceil(H / block)]`.
    pub rows: RawRows<'a, B>,
    /// Elements of a row that share one scale, at least 1. H or more means one scale for each row.
    pub block: usize,
}

/// `out[t, :] = residual[t, :] + Σ_k weights[t, k] * rows[slot[t, k], :]`, summed in f32.
///
/// The sum starts at the residual, widened, or at +0, and adds k = 0, 1, … with one fused multiply-add each; a weight
/// that is not there is 1. With scales the factor is `weight * scale`, rounded to f32 (the scale alone without
/// weights). One rounding to the output's dtype at the end (nearest even); NaN canonical: 0x7fc00000, 0x7fc0 for bf16,
/// 0x7e00 for f16. A route that is not placed contributes nothing: its weight and any row are not read.
#[derive(Debug)]
pub struct CombineArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// `[R, H]` in f32, f16, bf16, f8e4m3 or f8e5m2.
    pub rows: RawRows<'a, B>,
    /// `[T, K]` in f32, f16 or bf16.
    pub weights: Option<RawView<'a, B>>,
    /// Only for 8-bit float rows.
    pub scales: Option<RawScales<'a, B>>,
    /// `[T, H]`, the dtype of `out`.
    pub residual: Option<RawRows<'a, B>>,
    /// `[T, H]`: the dtype of `rows` or f32; for 8-bit float rows f32, f16 or bf16.
    pub out: RawRowsMut<'a, B>,
}

/// `grad_rows[slot[t, k], :] = weights[t, k] * grad_out[t, :]` and `grad_weights[t, k] = Σ_h rows[slot[t, k], h] *
/// grad_out[t, h]`.
///
/// `grad_rows`: as a weighted [gather](GatherArgs) of `grad_out`, rounded once; a bit copy where there are no weights.
/// Padding rows below the last expert offset become zero; rows from there on are not touched. `grad_weights` is summed
/// in an order that does not depend on the machine: 1,024 f32 lanes that start at +0, lane `h mod 1024` in ascending h
/// with one fused multiply-add each, then `lane[i] += lane[i + s]` for s = 512, 256, … 1, then one rounding; 0 for
/// routes that are not placed; NaN canonical.
#[derive(Debug)]
pub struct CombineGradArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// `[T, H]`, the gradient of combine's output, in f32, f16 or bf16.
    pub grad_out: RawRows<'a, B>,
    /// `[T, K]` in f32, f16 or bf16.
    pub weights: Option<RawView<'a, B>>,
    /// The first output, `[R, H]`, the dtype of `grad_out`.
    pub grad_rows: Option<RawRowsMut<'a, B>>,
    /// The second output and what it is made of.
    pub grad_weights: Option<RawGradWeights<'a, B>>,
}

/// The weights' half of [`CombineGradArgs`].
#[derive(Debug)]
pub struct RawGradWeights<'a, B: Backend> {
    /// What combine read: `[R, H]`, the dtype of `grad_out`.
    pub rows: RawRows<'a, B>,
    /// `[T, K]` in f32, f16 or bf16.
    pub out: RawViewMut<'a, B>,
}

/// Zeroes the rows from the last expert offset to R.
#[derive(Debug)]
pub struct ZeroTailArgs<'a, B: Backend> {
    /// The plan.
    pub plan: PlanRef<'a, B>,
    /// `[R, H]`, any dtype.
    pub rows: RawRowsMut<'a, B>,
}
