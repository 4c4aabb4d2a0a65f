//! Selections of cases that cover the combinations of their axes.

use super::axes::{Axes, Case};
use super::rng::Rng;
use std::collections::HashSet;

impl Axes {
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
