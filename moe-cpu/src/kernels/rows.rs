//! What the kernels are given: rows, weights, and the index arrays of a plan.

use half::{bf16, f16};

/// Rows to read: row i begins at byte `i * stride`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// The bytes, from the first row on.
    pub(crate) bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
}

/// Rows to write: row i begins at byte `i * stride`. Bytes between rows are left alone.
pub(crate) struct RowsMut<'a> {
    /// The bytes, from the first row on.
    pub(crate) bytes: &'a mut [u8],
    /// Bytes from one row to the next, at least those of a row.
    pub(crate) stride: usize,
}

/// How many rows of `row` bytes lie in `bytes` at this stride; any number at stride 0.
fn count(bytes: usize, row: usize, stride: usize) -> usize {
    bytes.checked_sub(row).map_or(0, |last| last.checked_div(stride).map_or(usize::MAX, |n| n + 1))
}

impl Rows<'_> {
    /// How many rows of `row` bytes can be read.
    pub(crate) fn count(&self, row: usize) -> usize {
        count(self.bytes.len(), row, self.stride)
    }
}

impl RowsMut<'_> {
    /// How many rows of `row` bytes can be written.
    pub(crate) fn count(&self, row: usize) -> usize {
        assert!(self.stride >= row.max(1), "rows to write must not overlap");
        count(self.bytes.len(), row, self.stride)
    }
}

/// Router weights by route, [T, K].
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub(crate) enum Weights<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl Weights<'_> {
    /// The number of weights.
    pub(crate) fn len(&self) -> usize {
        match self {
            Weights::F32(w) => w.len(),
            Weights::F16(w) => w.len(),
            Weights::Bf16(w) => w.len(),
        }
    }
    /// The weight of a route, widened.
    #[inline(always)]
    pub(crate) fn get(&self, route: usize) -> f32 {
        match self {
            Weights::F32(w) => w[route],
            Weights::F16(w) => super::elem::f16_value(w[route].to_bits()),
            Weights::Bf16(w) => f32::from_bits(u32::from(w[route].to_bits()) << 16),
        }
    }
}

/// Gradients of router weights by route, [T, K]; rounded to the element type.
#[allow(missing_docs)]
pub(crate) enum WeightsMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
}

/// The index arrays of a plan. Their contents are not trusted.
#[derive(Clone, Copy)]
pub(crate) struct Placement<'a> {
    /// Row to route, [R]; -1 on padding rows and past the end.
    pub(crate) source: &'a [i32],
    /// Route to row, [T, K]; -1 where the route is not placed.
    pub(crate) slot: &'a [i32],
    /// First row of each local expert, [E_local + 1].
    pub(crate) expert_offsets: &'a [i32],
    /// Routes per token, K, at least 1.
    pub(crate) top_k: usize,
}

impl Placement<'_> {
    /// The number of tokens.
    pub(crate) fn tokens(&self) -> usize {
        assert!(self.top_k > 0 && self.slot.len().is_multiple_of(self.top_k), "slot must be [T, K]");
        self.slot.len() / self.top_k
    }
    /// The rows in use, at most R.
    pub(crate) fn used(&self) -> usize {
        let last = self.expert_offsets.last().copied().unwrap_or(0);
        usize::try_from(last).unwrap_or(0).min(self.source.len())
    }
    /// The row of a route: below `used`, and claimed by this route alone.
    ///
    /// The second look-up makes it sound to write to the row from many tasks: of all routes that name one row, only
    /// the one in `source` gets it.
    #[inline(always)]
    pub(crate) fn row_of(&self, route: usize, used: usize) -> Option<usize> {
        let row = self.slot[route] as u32 as usize;
        (row < used && self.source[row] as u32 as usize == route).then_some(row)
    }
}
