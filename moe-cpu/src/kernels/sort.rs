//! moe_plan: expert ids to the index arrays of a route plan, by a parallel stable counting sort.
//!
//! The routes are cut into parts of equal length. Each part counts its routes per expert; a scan over experts, then
//! parts, turns counts into the row at which each part's routes of each expert begin; each part then places its routes
//! in order. The order is by local expert, then by route, whatever the number of parts.
//!
//! Shapes: ids and slot [T, K], source and m_indices [R], expert_offsets [E_local + 1], tokens_per_expert [E_local],
//! logical_load [E]. Every output is written to its full length; -1 marks what is not placed, padding and the tail.

use super::rows::Weights;
use super::weights_order::{self, Ranks};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

/// Expert ids, compared before they are narrowed. -1, and the largest `u32`, mean "masked".
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub(crate) enum Ids<'a> {
    I32(&'a [i32]),
    U32(&'a [u32]),
    I64(&'a [i64]),
}

/// How the rows of experts lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One expert's rows right after another's.
    Packed,
    /// Each expert that has rows is padded to a multiple of this.
    Aligned(usize),
    /// Every expert has exactly this many rows.
    Padded(usize),
}

/// How many routes an expert keeps, and which.
#[derive(Clone, Copy)]
pub(crate) enum Capacity<'a> {
    /// The first ones.
    ByRoute(usize),
    /// Those with the largest weights, ties to the lower route, NaN lowest. They stay in route order.
    ByWeight(usize, Weights<'a>),
}

/// Arguments of [`plan`].
#[derive(Clone, Copy)]
pub(crate) struct PlanArgs<'a> {
    /// [T, K].
    pub(crate) ids: Ids<'a>,
    /// K.
    pub(crate) top_k: usize,
    /// E.
    pub(crate) experts: usize,
    /// [E]: the local index, -1 for "not local"; anything else is invalid.
    pub(crate) expert_map: Option<&'a [i32]>,
    /// E_local; equals E without a map.
    pub(crate) local_experts: usize,
    /// Layout of the rows.
    pub(crate) layout: Layout,
    /// Capacity per local expert; `Padded` implies one.
    pub(crate) capacity: Option<Capacity<'a>>,
    /// Tokens from this one on are not routed and counted nowhere.
    pub(crate) valid_tokens: Option<i32>,
}

/// Outputs of [`plan`].
#[allow(missing_docs)]
pub(crate) struct PlanOut<'a> {
    pub(crate) source: &'a mut [i32],
    pub(crate) slot: &'a mut [i32],
    pub(crate) expert_offsets: &'a mut [i32],
    pub(crate) tokens_per_expert: &'a mut [i32],
    pub(crate) m_indices: Option<&'a mut [i32]>,
    /// masked, invalid, non_local, over_capacity, over_max_routes (0 here: ids have no limit per token).
    pub(crate) status: &'a mut [u32],
    pub(crate) logical_load: Option<&'a mut [i32]>,
}

/// Routes that are worth a task of their own.
const PART: usize = 8192;
/// Rows that a task fills after the routes are placed.
const FILL: usize = 1 << 15;

/// Into how many parts `routes` are cut.
fn parts_for(routes: usize, threads: usize) -> usize {
    (routes / PART).clamp(1, threads.max(1))
}

/// Bytes of scratch that [`plan`] needs, for any number of routes up to `max_routes` in pools of up to `threads`.
/// `by_weight` where the capacity goes by weight.
pub(crate) fn plan_scratch_bytes(
    max_routes: usize,
    experts: usize,
    local_experts: usize,
    threads: usize,
    by_weight: bool,
) -> usize {
    let parts = parts_for(max_routes, threads);
    let words = parts * TABLES * (experts + 2) + parts * local_experts + local_experts;
    let ranks = if by_weight { Ranks::words(max_routes, local_experts) } else { 0 };
    words * 4 + ranks * 8 + 16
}

/// An id type: classes 0..experts are experts, `experts` is masked, `experts + 1` invalid.
pub(super) trait Id: Copy + Sync {
    fn class(self, experts: u32) -> u32;
}

impl Id for i32 {
    #[inline(always)]
    fn class(self, experts: u32) -> u32 {
        if (self as u32) < experts { self as u32 } else { experts + u32::from(self != -1) }
    }
}

impl Id for u32 {
    #[inline(always)]
    fn class(self, experts: u32) -> u32 {
        if self < experts { self } else { experts + u32::from(self != u32::MAX) }
    }
}

impl Id for i64 {
    #[inline(always)]
    fn class(self, experts: u32) -> u32 {
        if (self as u64) < u64::from(experts) { self as u32 } else { experts + u32::from(self != -1) }
    }
}

/// Builds the index arrays.
///
/// # Panics
/// Where lengths do not fit the shapes, R cannot hold the placed routes, or the scratch is too small for the current
/// pool.
pub(crate) fn plan(args: &PlanArgs<'_>, out: &mut PlanOut<'_>, scratch: &mut [u8]) {
    match args.ids {
        Ids::I32(ids) => build(args, ids, out, scratch),
        Ids::U32(ids) => build(args, ids, out, scratch),
        Ids::I64(ids) => build(args, ids, out, scratch),
    }
}

fn build<I: Id>(args: &PlanArgs<'_>, ids: &[I], out: &mut PlanOut<'_>, scratch: &mut [u8]) {
    let (experts, local) = (args.experts, args.local_experts);
    assert!(args.top_k > 0 && ids.len().is_multiple_of(args.top_k), "ids must be [T, K]");
    assert!(out.slot.len() == ids.len(), "slot must be [T, K]");
    assert!(out.expert_offsets.len() == local + 1, "expert_offsets must be [E_local + 1]");
    assert!(out.tokens_per_expert.len() == local, "tokens_per_expert must be [E_local]");
    assert!(out.m_indices.as_ref().is_none_or(|m| m.len() == out.source.len()), "m_indices must be [R]");
    assert!(out.logical_load.as_ref().is_none_or(|l| l.len() == experts), "logical_load must be [E]");
    assert!(out.status.len() == 5, "status must hold five counters");
    match args.expert_map {
        Some(map) => assert!(map.len() == experts, "expert_map must be [E]"),
        None => assert!(local == experts, "without a map all experts are local"),
    }
    let tokens = ids.len() / args.top_k;
    let valid = args.valid_tokens.map_or(tokens, |v| usize::try_from(v).unwrap_or(0).min(tokens));
    let ids = &ids[..valid * args.top_k];
    out.slot[ids.len()..].fill(-1);

    let parts = parts_for(ids.len(), rayon::current_num_threads());
    let len = ids.len().div_ceil(parts).max(1);
    let by_weight = matches!(args.capacity, Some(Capacity::ByWeight(..)));
    let (words, ranks) = cut_scratch(scratch, parts, experts, local, by_weight.then_some(ids.len()));
    let (classes, words) = words.split_at_mut(parts * TABLES * (experts + 2));
    let (cursors, limits) = words.split_at_mut(parts * local);

    each(classes, TABLES * (experts + 2), &|part, counts| {
        let range = (part * len).min(ids.len())..((part + 1) * len).min(ids.len());
        count(&ids[range], experts as u32, counts);
    });
    out.status.fill(0);
    to_local(args, classes, cursors, parts, out);
    let capacity = match (args.capacity, args.layout) {
        (Some(Capacity::ByRoute(c) | Capacity::ByWeight(c, _)), Layout::Padded(p)) => c.min(p),
        (Some(Capacity::ByRoute(c) | Capacity::ByWeight(c, _)), _) => c,
        (None, Layout::Padded(p)) => p,
        (None, _) => usize::MAX,
    };
    let router = Router { experts: experts as u32, map: args.expert_map };
    let mut best = None;
    if let (Some(Capacity::ByWeight(_, weights)), Some(ranks)) = (args.capacity, ranks)
        && let Some((cutoffs, dropped)) = weights_order::cutoffs(ids, &router, weights, capacity, cursors, len, ranks)
    {
        out.status[3] = dropped as u32;
        best = Some((cutoffs, weights));
    }
    offsets(args.layout, capacity, cursors, limits, parts, out);

    let rows = atomic(out.source);
    let slots = &atomic(out.slot)[..ids.len()];
    let limits = &*limits;
    each(cursors, local, &|part, cursors| {
        let range = (part * len).min(ids.len())..((part + 1) * len).min(ids.len());
        let (first, slots, ids) = (range.start, &slots[range.clone()], &ids[range]);
        match best {
            Some((cutoffs, weights)) => place(ids, first, &router, cursors, limits, rows, slots, |e, route| {
                weights_order::key(weights.get(route), route) <= cutoffs[e]
            }),
            None => place(ids, first, &router, cursors, limits, rows, slots, |_, _| true),
        }
    });
    fill(args.layout, out);
}

/// Tables that a part counts in: neighbouring routes of one expert then do not wait for each other's store.
const TABLES: usize = 4;

/// Counts routes per class, into the first of the tables.
fn count<I: Id>(ids: &[I], experts: u32, tables: &mut [u32]) {
    let len = experts as usize + 2;
    let (first, others) = tables.split_at_mut(len);
    first.fill(0);
    if ids.len() < PART / 2 {
        ids.iter().for_each(|id| first[id.class(experts) as usize] += 1);
        return;
    }
    others.fill(0);
    let (second, others) = others.split_at_mut(len);
    let (third, fourth) = others.split_at_mut(len);
    let (fours, rest) = ids.as_chunks::<TABLES>();
    for [a, b, c, d] in fours {
        first[a.class(experts) as usize] += 1;
        second[b.class(experts) as usize] += 1;
        third[c.class(experts) as usize] += 1;
        fourth[d.class(experts) as usize] += 1;
    }
    rest.iter().for_each(|id| first[id.class(experts) as usize] += 1);
    for (((a, b), c), d) in first.iter_mut().zip(second).zip(third).zip(fourth) {
        *a += *b + *c + *d;
    }
}

/// From an id to a local expert.
pub(super) struct Router<'a> {
    experts: u32,
    map: Option<&'a [i32]>,
}

impl Router<'_> {
    /// The local expert, or something not below E_local.
    #[inline(always)]
    pub(super) fn local<I: Id>(&self, id: I) -> u32 {
        let class = id.class(self.experts);
        match self.map {
            None => class,
            Some(map) => map.get(class as usize).map_or(u32::MAX, |&m| m as u32),
        }
    }
}

/// Sums the classes of all parts into status and logical load, and gives each part's counts per local expert.
fn to_local(args: &PlanArgs<'_>, classes: &[u32], cursors: &mut [u32], parts: usize, out: &mut PlanOut<'_>) {
    let (experts, local) = (args.experts, args.local_experts);
    if let Some(load) = &mut out.logical_load {
        load.fill(0);
    }
    cursors.fill(0);
    for part in 0..parts {
        let counts = &classes[part * TABLES * (experts + 2)..][..experts + 2];
        let mine = &mut cursors[part * local..][..local];
        match args.expert_map {
            None => mine.copy_from_slice(&counts[..experts]),
            Some(map) => {
                for (&to, &n) in map.iter().zip(counts) {
                    match mine.get_mut(to as u32 as usize) {
                        Some(count) => *count += n,
                        None => out.status[if to == -1 { 2 } else { 1 }] += n,
                    }
                }
            }
        }
        if let Some(load) = &mut out.logical_load {
            load.iter_mut().zip(counts).for_each(|(load, &n)| *load += n as i32);
        }
        out.status[0] += counts[experts];
        out.status[1] += counts[experts + 1];
    }
}

/// Turns each part's counts into the row at which its routes of each expert begin, and gives each expert's end.
fn offsets(
    layout: Layout,
    capacity: usize,
    cursors: &mut [u32],
    limits: &mut [u32],
    parts: usize,
    out: &mut PlanOut<'_>,
) {
    let local = limits.len();
    let mut start = 0usize;
    let mut over = 0usize;
    for e in 0..local {
        out.expert_offsets[e] = start as i32;
        let mut next = start;
        for part in 0..parts {
            let cursor = &mut cursors[part * local + e];
            let n = *cursor as usize;
            *cursor = next as u32;
            next += n;
        }
        let placed = (next - start).min(capacity);
        over += next - start - placed;
        limits[e] = (start + placed) as u32;
        out.tokens_per_expert[e] = placed as i32;
        start += match layout {
            Layout::Packed => placed,
            Layout::Aligned(n) => placed.next_multiple_of(n.max(1)),
            Layout::Padded(c) => c,
        };
    }
    out.expert_offsets[local] = start as i32;
    assert!(start <= out.source.len(), "R is too small for the placed routes");
    out.status[3] += over as u32;
}

/// Places the routes of a part, in order, at the cursors of their experts.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn place<I: Id>(
    ids: &[I],
    first: usize,
    router: &Router<'_>,
    cursors: &mut [u32],
    limits: &[u32],
    rows: &[AtomicI32],
    slots: &[AtomicI32],
    keep: impl Fn(usize, usize) -> bool,
) {
    for (i, (&id, slot)) in ids.iter().zip(slots).enumerate() {
        let e = router.local(id) as usize;
        let mut to = -1;
        if let Some(cursor) = cursors.get_mut(e)
            && keep(e, first + i)
        {
            let row = *cursor;
            *cursor = row + 1;
            if row < limits[e] {
                to = row as i32;
                rows[row as usize].store((first + i) as i32, Relaxed);
            }
        }
        slot.store(to, Relaxed);
    }
}

/// Writes -1 to the source of padding rows and the tail, and `m_indices`.
fn fill(layout: Layout, out: &mut PlanOut<'_>) {
    let (offsets, counts) = (&*out.expert_offsets, &*out.tokens_per_expert);
    let used = offsets.last().map_or(0, |&u| u as usize);
    if layout == Layout::Packed && out.m_indices.is_none() {
        out.source[used..].fill(-1);
        return;
    }
    let m_indices = out.m_indices.as_mut().map(|m| atomic(m));
    let source = atomic(out.source);
    super::parallel::for_ranges(0..source.len(), FILL, &|range| {
        let mut row = range.start;
        // The last expert that begins at or before this row; empty experts begin where the next one does.
        let mut e = offsets[..counts.len()].partition_point(|&o| o as usize <= row).saturating_sub(1);
        while row < range.end {
            while e < counts.len() && offsets[e + 1] as usize <= row {
                e += 1;
            }
            let (placed, end) = match counts.get(e) {
                Some(&n) => (offsets[e] as usize + n as usize, offsets[e + 1] as usize),
                None => (row, range.end),
            };
            let (placed, end) = (placed.clamp(row, range.end), end.min(range.end));
            if let Some(m) = &m_indices {
                m[row..placed].iter().for_each(|m| m.store(e as i32, Relaxed));
                m[placed..end].iter().for_each(|m| m.store(-1, Relaxed));
            }
            source[placed..end].iter().for_each(|s| s.store(-1, Relaxed));
            row = end;
        }
    });
}

/// Calls `f` with each part's table, in parallel where there are several.
pub(super) fn each(tables: &mut [u32], len: usize, f: &(impl Fn(usize, &mut [u32]) + Sync)) {
    fn go(first: usize, tables: &mut [u32], len: usize, f: &(impl Fn(usize, &mut [u32]) + Sync)) {
        let parts = tables.len() / len;
        if parts <= 1 {
            return f(first, tables);
        }
        let (a, b) = tables.split_at_mut(parts / 2 * len);
        rayon::join(|| go(first, a, len, f), || go(first + parts / 2, b, len, f));
    }
    if len == 0 { f(0, tables) } else { go(0, tables, len, f) }
}

/// A slice that tasks share, to write single elements of.
pub(super) fn atomic(slice: &mut [i32]) -> &[AtomicI32] {
    // SAFETY: `AtomicI32` has the size, the alignment (on targets with 32-bit atomics) and the representation of
    // `i32`, and the slice is borrowed mutably for the life of the result.
    unsafe { &*(std::ptr::from_mut(slice) as *const [AtomicI32]) }
}

/// Cuts scratch into words, for the tables, and what ordering by weight needs.
fn cut_scratch(
    scratch: &mut [u8],
    parts: usize,
    experts: usize,
    local: usize,
    by_weight: Option<usize>,
) -> (&mut [u32], Option<Ranks<'_>>) {
    // SAFETY: every bit pattern is a `u64`.
    let (_, longs, _) = unsafe { scratch.align_to_mut::<u64>() };
    let ranks = by_weight.map_or(0, |routes| Ranks::words(routes, local));
    let words = parts * TABLES * (experts + 2) + parts * local + local;
    assert!(longs.len() >= ranks + words.div_ceil(2), "the scratch is too small");
    let (ranks, longs) = longs.split_at_mut(ranks);
    // SAFETY: every bit pattern is a `u32`.
    let (_, tables, _) = unsafe { longs.align_to_mut::<u32>() };
    (&mut tables[..words], by_weight.map(|_| Ranks::cut(ranks, local)))
}
