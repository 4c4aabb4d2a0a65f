//! The axes along which cases vary.

use crate::{Capacity, DType, Layout, PlanSpec};

/// How ids are distributed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dist {
    Uniform,
    /// The smaller an id, the likelier.
    Skewed,
    AllToOne,
    AllMasked,
    /// Valid, masked, negative, past the last expert, and wide ids whose low bits look valid.
    Mixed,
}

/// What the expert map says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Map {
    Absent,
    EveryFourth,
    Permuted,
    NoneLocal,
    /// Half local, the other half a mix of -1 and values that are no index.
    Invalid,
}

/// The device-side count of valid tokens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Valid {
    Absent,
    Zero,
    Some,
    All,
    TooMany,
    Negative,
}

/// What a combine starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Residual {
    Absent,
    Plain,
    /// Times a number other than 1.
    Scaled,
}

/// What a case is made of. Groups that do not look at a part leave it at its first level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) tokens: usize,
    pub(super) top_k: usize,
    pub(super) experts: usize,
    pub(super) hidden: usize,
    pub(super) ids: DType,
    pub(super) dist: Dist,
    pub(super) layout: Layout,
    pub(super) map: Map,
    pub(super) capacity: Option<usize>,
    pub(super) valid: Valid,
    pub(super) m_indices: bool,
    pub(super) logical_load: bool,
    /// Whether the plan is built over that of a larger batch.
    pub(super) dirty: bool,
    pub(super) dtype: DType,
    pub(super) weights: Option<DType>,
    pub(super) out: DType,
    pub(super) residual: Residual,
    /// Elements that share a scale.
    pub(super) block: Option<usize>,
    pub(super) gap: usize,
    pub(super) offset: usize,
    pub(super) wild: bool,
}

impl Case {
    /// The first level of every axis.
    pub(super) const PLAIN: Self = Self {
        tokens: 0,
        top_k: 1,
        experts: 1,
        hidden: 1,
        ids: DType::I32,
        dist: Dist::Uniform,
        layout: Layout::Packed,
        map: Map::Absent,
        capacity: None,
        valid: Valid::Absent,
        m_indices: false,
        logical_load: false,
        dirty: false,
        dtype: DType::F32,
        weights: None,
        out: DType::F32,
        residual: Residual::Absent,
        block: None,
        gap: 0,
        offset: 0,
        wild: false,
    };

    pub(super) fn local_experts(&self) -> usize {
        match self.map {
            Map::Absent | Map::Permuted => self.experts,
            Map::EveryFourth => self.experts.div_ceil(4),
            Map::NoneLocal => 1,
            Map::Invalid => self.experts.div_ceil(2),
        }
    }

    pub(super) fn spec(&self) -> PlanSpec {
        self.shaped(PlanSpec::new(self.tokens, self.top_k, self.experts))
    }

    /// A mask map's plan: `top_k` is the routes of a token, `weights` the type of its probabilities.
    pub(super) fn mask_spec(&self) -> PlanSpec {
        let spec = self.shaped(PlanSpec::mask(self.tokens, self.experts).max_routes(self.top_k));
        match self.weights {
            None => spec,
            Some(DType::F16) => spec.with_probs::<half::f16>(),
            Some(DType::BF16) => spec.with_probs::<half::bf16>(),
            Some(_) => spec.with_probs::<f32>(),
        }
    }

    /// The plan of `logical` experts whose copies are the case's experts.
    pub(super) fn spec_of_copies(&self, logical: usize) -> PlanSpec {
        self.shaped(PlanSpec::new(self.tokens, self.top_k, logical).physical_experts(self.experts))
    }

    /// The spec with the case's layout, map, capacity and arrays.
    fn shaped(&self, spec: PlanSpec) -> PlanSpec {
        let mut spec = spec.local_experts(self.local_experts()).layout(self.layout);
        if let Some(c) = self.capacity {
            spec = spec.capacity(Capacity::ByRoute(c));
        }
        if self.m_indices {
            spec = spec.with_m_indices();
        }
        if self.logical_load {
            spec = spec.with_logical_load();
        }
        spec
    }

    /// Elements of its largest matrix.
    pub(super) fn elements(&self) -> usize {
        self.spec().num_rows().unwrap_or(usize::MAX).max(self.tokens * self.top_k).saturating_mul(self.hidden)
    }
}

/// The levels of each part of a case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axes {
    pub(super) tokens: &'static [usize],
    pub(super) top_k: &'static [usize],
    pub(super) experts: &'static [usize],
    pub(super) hidden: &'static [usize],
    pub(super) ids: &'static [DType],
    pub(super) dist: &'static [Dist],
    pub(super) layout: &'static [Layout],
    pub(super) map: &'static [Map],
    pub(super) capacity: &'static [Option<usize>],
    pub(super) valid: &'static [Valid],
    pub(super) m_indices: &'static [bool],
    pub(super) logical_load: &'static [bool],
    pub(super) dirty: &'static [bool],
    pub(super) dtype: &'static [DType],
    pub(super) weights: &'static [Option<DType>],
    pub(super) out: &'static [DType],
    pub(super) residual: &'static [Residual],
    pub(super) block: &'static [Option<usize>],
    pub(super) gap: &'static [usize],
    pub(super) offset: &'static [usize],
    pub(super) wild: &'static [bool],
}

pub(super) const BOTH: &[bool] = &[false, true];
pub(super) const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];
pub(super) const WEIGHTS: &[Option<DType>] = &[None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)];

impl Axes {
    /// Plans of all kinds; no rows.
    pub(super) const PLAN: Self = Self {
        tokens: &[0, 1, 2, 3, 7, 33, 100, 257, 513, 1000, 2049],
        top_k: &[1, 2, 3, 4, 5, 6, 8, 16],
        experts: &[1, 3, 8, 32, 60, 127, 128, 160, 256, 257, 1024, 1025, 4096],
        hidden: &[1],
        ids: &[DType::I32, DType::U32, DType::I64],
        dist: &[Dist::Uniform, Dist::Skewed, Dist::AllToOne, Dist::AllMasked, Dist::Mixed],
        layout: &[
            Layout::Packed,
            Layout::Aligned(1),
            Layout::Aligned(2),
            Layout::Aligned(8),
            Layout::Aligned(13),
            Layout::Aligned(16),
            Layout::Aligned(128),
            Layout::Padded(1),
            Layout::Padded(5),
            Layout::Padded(64),
        ],
        map: &[Map::Absent, Map::EveryFourth, Map::Permuted, Map::NoneLocal, Map::Invalid],
        capacity: &[None, Some(1), Some(7), Some(100)],
        valid: &[Valid::Absent, Valid::Zero, Valid::Some, Valid::All, Valid::TooMany, Valid::Negative],
        m_indices: BOTH,
        logical_load: BOTH,
        dirty: BOTH,
        dtype: &[DType::F32],
        weights: &[None],
        out: &[DType::F32],
        residual: &[Residual::Absent],
        block: &[None],
        gap: &[0],
        offset: &[0, 1, 3],
        wild: &[false],
    };

    /// Rows of all kinds, over the plans that differ for them.
    pub(super) const ROWS: Self = Self {
        tokens: &[0, 1, 2, 7, 33, 100, 257],
        top_k: &[1, 2, 5, 8],
        experts: &[1, 8, 60, 257],
        hidden: &[1, 7, 64, 1025, 7168],
        ids: &[DType::I32],
        dist: &[Dist::Uniform, Dist::AllToOne, Dist::AllMasked, Dist::Mixed],
        layout: &[Layout::Packed, Layout::Aligned(8), Layout::Aligned(128), Layout::Padded(5)],
        map: &[Map::Absent, Map::EveryFourth, Map::NoneLocal],
        capacity: &[None, Some(3)],
        valid: &[Valid::Absent, Valid::Some],
        m_indices: &[false],
        logical_load: &[false],
        dirty: &[false],
        gap: &[0, 1, 24],
        offset: &[0, 1, 5],
        wild: BOTH,
        ..Self::PLAN
    };
}
