//! What a backend's operations get: untyped views with a run-time dtype, so that the number of instantiations does not
//! explode. Everything here was checked by the time a backend sees it.
//!
//! Names of sizes: `T` tokens, `K` = `top_k`, `N = T * K` routes, `E` experts, `E_local` local experts, `R` rows of the
//! plan, `H` the hidden size. Lengths and strides are in elements unless a name says bytes.

mod matmul;
mod ops;
mod plan;
mod quant;
mod router;
mod routes;

pub use matmul::{GroupedMatmulArgs, RawWeightScales};
pub use ops::{CombineArgs, CombineGradArgs, GatherArgs, RawGradWeights, RawScales, ZeroTailArgs};
pub use plan::{BuildArgs, PlanArrays, PlanMut, PlanRef, PlanShape, RawReplicas, Section};
pub use quant::{GatherQuantArgs, RawQuantMut, RawRowScales, RawSwiglu, RowScales, SwigluArgs, SwigluQuantArgs};
pub use router::{
    RawLossGrads, RawLosses, RawRouteGrads, RouteArgs, RouterGradArgs, RouterGroups, RouterLossArgs, RouterShape,
};
pub use routes::{BlockTableArgs, ChunkArgs, MaskArgs, ScatterMaskArgs, SplitSizesArgs};

use crate::{Backend, DType};

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
