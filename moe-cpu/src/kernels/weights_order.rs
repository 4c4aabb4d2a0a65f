//! Which routes of an expert over its capacity survive: those with the largest weights.

use super::route::{Id, Physical, Router};
use super::rows::Weights;
use super::sort::{SPLIT, each};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Scratch of this step.
pub(super) struct Ranks<'a> {
    /// [E_local]: the largest key that an expert keeps.
    cutoffs: &'a mut [u64],
    /// Keys of all routes with a local expert, by expert.
    keys: &'a mut [u64],
}

impl<'a> Ranks<'a> {
    /// 64-bit words that it takes.
    pub(super) fn words(routes: usize, local: usize) -> usize {
        routes + local
    }
    /// Cuts it from scratch.
    pub(super) fn cut(words: &'a mut [u64], local: usize) -> Self {
        let (cutoffs, keys) = words.split_at_mut(local);
        Ranks { cutoffs, keys }
    }
}

/// A number per route, all different, smaller for routes that survive longer: the weight in descending order (-0 as
/// +0, NaN last), then the route.
#[inline(always)]
pub(super) fn key(weight: f32, route: usize) -> u64 {
    let bits = (weight + 0.0).to_bits();
    let ascending = if weight.is_nan() {
        0
    } else if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    u64::from(!ascending) << 32 | route as u64
}

/// The largest surviving key of each expert and the number of routes that do not survive; `counts` (by part and
/// expert) become those of the survivors. `None`, with `counts` as they were, where no expert is over its capacity.
#[allow(clippy::too_many_arguments)]
pub(super) fn cutoffs<'a, I: Id, P: Physical>(
    ids: &[I],
    router: &Router<'_, P>,
    weights: Weights<'_>,
    capacity: usize,
    counts: &mut [u32],
    len: usize,
    ranks: Ranks<'a>,
) -> Option<(&'a [u64], usize)> {
    let local = ranks.cutoffs.len();
    let mut total = 0;
    let mut over = 0;
    for e in 0..local {
        let start = total;
        for part in counts.chunks_exact_mut(local) {
            let n = part[e] as usize;
            part[e] = total as u32;
            total += n;
        }
        over += (total - start).saturating_sub(capacity);
    }
    let part_of = |part: usize| (part * len).min(ids.len())..((part + 1) * len).min(ids.len());
    if over == 0 {
        each(counts, local, &|part, counts| {
            counts.fill(0);
            for route in part_of(part) {
                if let Some(count) = counts.get_mut(router.local(ids[route], route) as usize) {
                    *count += 1;
                }
            }
        });
        return None;
    }
    let keys = atomic(ranks.keys);
    each(counts, local, &|part, cursors| {
        for route in part_of(part) {
            if let Some(cursor) = cursors.get_mut(router.local(ids[route], route) as usize) {
                keys[*cursor as usize].store(key(weights.get(route), route), Relaxed);
                *cursor += 1;
            }
        }
    });
    // Each cursor now stands where the next part's routes of that expert begin: in the last part, at the expert's end.
    let ends = &counts[counts.len() - local..];
    select(ranks.cutoffs, &mut ranks.keys[..total], ends, 0, capacity);
    let cutoffs = &*ranks.cutoffs;
    each(counts, local, &|part, counts| {
        counts.fill(0);
        for route in part_of(part) {
            let e = router.local(ids[route], route) as usize;
            if let Some(count) = counts.get_mut(e) {
                *count += u32::from(key(weights.get(route), route) <= cutoffs[e]);
            }
        }
    });
    Some((cutoffs, over))
}

/// Finds the `capacity`-th smallest key of each expert, whose keys end at `ends` (less `base`) in `keys`.
fn select(cutoffs: &mut [u64], keys: &mut [u64], ends: &[u32], base: u32, capacity: usize) {
    match cutoffs {
        [] => {}
        [cutoff] => {
            *cutoff = match capacity {
                // Below every key.
                0 => 0,
                c if c < keys.len() => *keys.select_nth_unstable(c - 1).1,
                _ => u64::MAX,
            };
        }
        _ => {
            let middle = cutoffs.len() / 2;
            let end = ends[middle - 1];
            let (left, right) = cutoffs.split_at_mut(middle);
            let (low, high) = keys.split_at_mut((end - base) as usize);
            let split = low.len() + high.len() >= SPLIT;
            let mut below = || select(left, low, &ends[..middle], base, capacity);
            let mut above = || select(right, high, &ends[middle..], end, capacity);
            if split {
                rayon::join(below, above);
            } else {
                below();
                above();
            }
        }
    }
}

/// Keys that tasks share, to write single ones.
fn atomic(keys: &mut [u64]) -> &[AtomicU64] {
    const { assert!(align_of::<AtomicU64>() == align_of::<u64>()) };
    // SAFETY: `AtomicU64` has the size, alignment and representation of `u64`, and the slice is borrowed mutably for
    // the life of the result.
    unsafe { &*(std::ptr::from_mut(keys) as *const [AtomicU64]) }
}
