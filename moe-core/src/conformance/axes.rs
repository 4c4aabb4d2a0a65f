//! The axes along which cases vary, and selections that cover their combinations.

use super::rng::Rng;
use crate::{Capacity, DType, Layout, PlanSpec};
use std::collections::HashSet;

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
    pub(super) residual: bool,
    /// Elements that share a scale.
    pub(super) block: Option<usize>,
    pub(super) gap: usize,
    pub(super) offset: usize,
    pub(super) wild: bool,
}

impl Case {
    pub(super) fn local_experts(&self) -> usize {
        match self.map {
            Map::Absent | Map::Permuted => self.experts,
            Map::EveryFourth => self.experts.div_ceil(4),
            Map::NoneLocal => 1,
            Map::Invalid => self.experts.div_ceil(2),
        }
    }

    pub(super) fn spec(&self) -> PlanSpec {
        let mut spec = PlanSpec::new(self.tokens, self.top_k, self.experts)
            .local_experts(self.local_experts())
            .layout(self.layout);
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
    fn elements(&self) -> usize {
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
    pub(super) residual: &'static [bool],
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
        residual: &[false],
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

    const COUNT: usize = 21;

    fn levels(&self) -> [usize; Self::COUNT] {
        let Self { tokens, top_k, experts, hidden, ids, dist, layout, map, capacity, valid, .. } = self;
        let Self { m_indices, logical_load, dirty, dtype, weights, out, residual, block, gap, offset, wild, .. } = self;
        [
            tokens.len(),
            top_k.len(),
            experts.len(),
            hidden.len(),
            ids.len(),
            dist.len(),
            layout.len(),
            map.len(),
            capacity.len(),
            valid.len(),
            m_indices.len(),
            logical_load.len(),
            dirty.len(),
            dtype.len(),
            weights.len(),
            out.len(),
            residual.len(),
            block.len(),
            gap.len(),
            offset.len(),
            wild.len(),
        ]
    }

    fn case(&self, i: &[usize; Self::COUNT]) -> Case {
        Case {
            tokens: self.tokens[i[0]],
            top_k: self.top_k[i[1]],
            experts: self.experts[i[2]],
            hidden: self.hidden[i[3]],
            ids: self.ids[i[4]],
            dist: self.dist[i[5]],
            layout: self.layout[i[6]],
            map: self.map[i[7]],
            capacity: self.capacity[i[8]],
            valid: self.valid[i[9]],
            m_indices: self.m_indices[i[10]],
            logical_load: self.logical_load[i[11]],
            dirty: self.dirty[i[12]],
            dtype: self.dtype[i[13]],
            weights: self.weights[i[14]],
            out: self.out[i[15]],
            residual: self.residual[i[16]],
            block: self.block[i[17]],
            gap: self.gap[i[18]],
            offset: self.offset[i[19]],
            wild: self.wild[i[20]],
        }
    }

    /// Cases of at most `limit` elements that hold every combination of two levels, or of three where `triples`, that
    /// some case of that size can hold. Greedy: each case is the best of a few random ones around a combination that
    /// is still missing.
    pub(super) fn cover(&self, rng: &mut Rng, triples: bool, limit: usize, fits: fn(&Case) -> bool) -> Vec<Case> {
        let levels = self.levels();
        let free: Vec<usize> = (0..Self::COUNT).filter(|a| levels[*a] > 1).collect();
        let mut missing = Vec::new();
        for (n, a) in free.iter().enumerate() {
            for (m, b) in free.iter().enumerate().skip(n + 1) {
                let thirds: Vec<usize> = if triples { free[m + 1..].to_vec() } else { vec![*b] };
                for c in thirds {
                    for i in 0..levels[*a] * levels[*b] * if triples { levels[c] } else { 1 } {
                        let (x, y, z) = (i % levels[*a], i / levels[*a] % levels[*b], i / (levels[*a] * levels[*b]));
                        missing.push([(*a, x), (*b, y), if triples { (c, z) } else { (*b, y) }]);
                    }
                }
            }
        }
        for i in (1..missing.len()).rev() {
            missing.swap(i, rng.below(i + 1));
        }
        let key = |part: &[(usize, usize); 3]| {
            part.iter().fold(0u64, |key, (axis, level)| key << 12 | (*axis as u64) << 5 | *level as u64)
        };
        let mut open: HashSet<u64> = missing.iter().map(key).collect();
        let parts = |i: &[usize; Self::COUNT]| {
            let mut keys = Vec::new();
            for (n, a) in free.iter().enumerate() {
                for (m, b) in free.iter().enumerate().skip(n + 1) {
                    let thirds = if triples { &free[m + 1..] } else { std::slice::from_ref(b) };
                    keys.extend(thirds.iter().map(|c| key(&[(*a, i[*a]), (*b, i[*b]), (*c, i[*c])])));
                }
            }
            keys
        };
        let mut cases = Vec::new();
        for part in missing {
            if !open.contains(&key(&part)) {
                continue;
            }
            let mut best: Option<(usize, [usize; Self::COUNT])> = None;
            let mut tried = 0;
            for attempt in 0..200 {
                let mut i = levels.map(|n| rng.below(n));
                part.iter().for_each(|(axis, level)| i[*axis] = *level);
                let case = self.case(&i);
                if case.elements() > limit || !fits(&case) {
                    continue;
                }
                let news = parts(&i).iter().filter(|k| open.contains(k)).count();
                if best.is_none_or(|(n, _)| news > n) {
                    best = Some((news, i));
                }
                tried += 1;
                if tried == 24 || attempt >= 60 {
                    break;
                }
            }
            open.remove(&key(&part)); // whether or not a case of this size can hold it
            if let Some((_, i)) = best {
                parts(&i).iter().for_each(|k| {
                    open.remove(k);
                });
                cases.push(self.case(&i));
            }
        }
        cases
    }
}
