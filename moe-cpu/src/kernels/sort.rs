//! moe_plan: expert ids to the index arrays of a route plan, by a parallel stable counting sort.
//!
//! The routes are cut into parts of equal length. Each part counts its routes per expert; a scan over experts, then
//! parts, turns counts into the row at which each part's routes of each expert begin; each part then places its routes
//! in order. The order is by local expert, then by route, whatever the number of parts.
//!
//! Shapes: ids and slot [T, K], source and m_indices [R], expert_offsets [E_local + 1], tokens_per_expert [E_local],
//! logical_load [E]. Every output is written to its full length; -1 marks what is not placed, padding and the tail.

use super::count::{count, offsets, table_words, to_local};
use super::place::{BATCH, FILL, Part, atomic, fill, place, place_all};
use super::route::{Id, Physical, Replicated, Router, Single};
use super::rows::Weights;
use super::weights_order::{self, Ranks};

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

/// The copies of each expert: the k-th route of token t to expert e goes to physical expert
/// `log2phy[e, (t + k) mod logcnt[e]]`. A count outside 1..=width or an entry outside 0..P makes the route invalid.
#[derive(Clone, Copy)]
pub(crate) struct Copies<'a> {
    /// [E, width].
    pub(crate) log2phy: &'a [i32],
    /// [E].
    pub(crate) logcnt: &'a [i32],
    /// The most copies of an expert.
    pub(crate) width: usize,
    /// P.
    pub(crate) physical_experts: usize,
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
    /// The copies of experts; without them P = E, and each expert is its own physical expert.
    pub(crate) copies: Option<Copies<'a>>,
    /// [P]: the local index, -1 for "not local"; anything else is invalid.
    pub(crate) expert_map: Option<&'a [i32]>,
    /// E_local; equals P without a map.
    pub(crate) local_experts: usize,
    /// Layout of the rows.
    pub(crate) layout: Layout,
    /// Capacity per local expert; `Padded` implies one.
    pub(crate) capacity: Option<Capacity<'a>>,
    /// Tokens from this one on are not routed and counted nowhere.
    pub(crate) valid_tokens: Option<i32>,
    /// What a mask map had beyond the ids: -1 then only fills up, and counts nowhere.
    pub(crate) over_max_routes: Option<u32>,
}

impl PlanArgs<'_> {
    /// P.
    pub(super) fn physical_experts(&self) -> usize {
        self.copies.map_or(self.experts, |copies| copies.physical_experts)
    }
}

/// Outputs of [`plan`].
#[allow(missing_docs)]
pub(crate) struct PlanOut<'a> {
    pub(crate) source: &'a mut [i32],
    pub(crate) slot: &'a mut [i32],
    pub(crate) expert_offsets: &'a mut [i32],
    pub(crate) tokens_per_expert: &'a mut [i32],
    pub(crate) m_indices: Option<&'a mut [i32]>,
    /// masked, invalid, non_local, over_capacity, over_max_routes.
    pub(crate) status: &'a mut [u32],
    pub(crate) logical_load: Option<&'a mut [i32]>,
}

/// Routes that are worth a task of their own.
const PART: usize = 8192;

/// Fewer routes than this are never split.
pub(super) const SPLIT: usize = 2 * PART;

/// Into how many parts `routes` are cut.
fn parts_for(routes: usize, threads: impl FnOnce() -> usize) -> usize {
    // A small plan does not ask for a pool: it may run outside of any.
    if routes < SPLIT { 1 } else { (routes / PART).clamp(1, threads().max(1)) }
}

/// Whether [`plan`] does everything on the calling thread.
pub(crate) fn plan_is_serial(routes: usize, rows: usize) -> bool {
    routes < SPLIT && rows <= FILL
}

/// Words of scratch that a part takes: its tables, its cursors, and what placing moves.
fn part_words(experts: usize, physical: usize, local: usize) -> usize {
    table_words(experts, physical) + 2 * local + 1
}

/// Bytes of scratch that [`plan`] needs, for any number of routes up to `max_routes` in pools of up to `threads`, and
/// any numbers of experts up to these. `by_weight` where the capacity goes by weight.
pub(crate) fn plan_scratch_bytes(
    max_routes: usize,
    experts: usize,
    physical_experts: usize,
    local_experts: usize,
    threads: usize,
    by_weight: bool,
) -> usize {
    let parts = parts_for(max_routes, || threads);
    let words = parts * part_words(experts, physical_experts, local_experts) + local_experts;
    let ranks = if by_weight { Ranks::words(max_routes, local_experts) } else { 0 };
    words * 4 + ranks * 8 + SLACK
}

/// Bytes of scratch that its alignment may cost.
const SLACK: usize = 16;

/// Builds the index arrays.
///
/// # Panics
/// Where lengths do not fit the shapes, R cannot hold the placed routes, or the scratch is too small for the current
/// pool.
pub(crate) fn plan(args: &PlanArgs<'_>, out: &mut PlanOut<'_>, scratch: &mut [u8]) {
    match args.ids {
        Ids::I32(ids) => route(args, ids, out, scratch),
        Ids::U32(ids) => route(args, ids, out, scratch),
        Ids::I64(ids) => route(args, ids, out, scratch),
    }
}

fn route<I: Id>(args: &PlanArgs<'_>, ids: &[I], out: &mut PlanOut<'_>, scratch: &mut [u8]) {
    assert!(args.top_k > 0 && ids.len().is_multiple_of(args.top_k), "ids must be [T, K]");
    let (experts, physical) = (args.experts as u32, args.physical_experts() as u32);
    match args.copies {
        None => build(args, ids, Single { experts }, out, scratch),
        Some(copies) => {
            assert!(copies.log2phy.len() == args.experts * copies.width, "log2phy must be [E, width]");
            assert!(copies.logcnt.len() == args.experts, "logcnt must be [E]");
            let top_k = args.top_k;
            build(args, ids, Replicated { experts, physical, top_k, copies }, out, scratch);
        }
    }
}

fn build<I: Id, P: Physical>(args: &PlanArgs<'_>, ids: &[I], physical: P, out: &mut PlanOut<'_>, scratch: &mut [u8]) {
    let (experts, local) = (args.experts, args.local_experts);
    assert!(out.slot.len() == ids.len(), "slot must be [T, K]");
    assert!(out.expert_offsets.len() == local + 1, "expert_offsets must be [E_local + 1]");
    assert!(out.tokens_per_expert.len() == local, "tokens_per_expert must be [E_local]");
    assert!(out.m_indices.as_ref().is_none_or(|m| m.len() == out.source.len()), "m_indices must be [R]");
    assert!(out.logical_load.as_ref().is_none_or(|l| l.len() == experts), "logical_load must be [E]");
    assert!(out.status.len() == 5, "status must hold five counters");
    match args.expert_map {
        Some(map) => assert!(map.len() == args.physical_experts(), "expert_map must be [P]"),
        None => assert!(local == args.physical_experts(), "without a map all experts are local"),
    }
    let tokens = ids.len() / args.top_k;
    let valid = args.valid_tokens.map_or(tokens, |v| usize::try_from(v).unwrap_or(0).min(tokens));
    let ids = &ids[..valid * args.top_k];
    out.slot[ids.len()..].fill(-1);

    let parts = parts_for(ids.len(), rayon::current_num_threads);
    // Parts begin at whole lines of ids.
    let len = ids.len().div_ceil(parts).next_multiple_of(BATCH).max(1);
    let range = |part: usize| (part * len).min(ids.len())..((part + 1) * len).min(ids.len());
    let by_weight = matches!(args.capacity, Some(Capacity::ByWeight(..)));
    let Scratch { tables, cursors, limits, next, ranks } =
        cut_scratch(scratch, parts, args, by_weight.then_some(ids.len()));

    let classes = args.physical_experts() + 2;
    each(tables, table_words(experts, classes - 2), &|part, tables| {
        let range = range(part);
        count(&ids[range.clone()], range.start, &physical, experts, classes, tables);
    });
    out.status.fill(0);
    to_local(args, tables, cursors, parts, out);
    if let Some(over) = args.over_max_routes {
        (out.status[0], out.status[4]) = (0, over);
    }
    let capacity = match (args.capacity, args.layout) {
        (Some(Capacity::ByRoute(c) | Capacity::ByWeight(c, _)), Layout::Padded(p)) => c.min(p),
        (Some(Capacity::ByRoute(c) | Capacity::ByWeight(c, _)), _) => c,
        (None, Layout::Padded(p)) => p,
        (None, _) => usize::MAX,
    };
    let router = Router { physical, map: args.expert_map };
    let mut best = None;
    if let (Some(Capacity::ByWeight(_, weights)), Some(ranks)) = (args.capacity, ranks)
        && let Some((cutoffs, dropped)) = weights_order::cutoffs(ids, &router, weights, capacity, cursors, len, ranks)
    {
        out.status[3] = dropped as u32;
        best = Some((cutoffs, weights));
    }
    let over = offsets(args.layout, capacity, cursors, limits, parts, out);
    out.status[3] += over as u32;

    let rows = atomic(out.source);
    let slots = &atomic(out.slot)[..ids.len()];
    let part_of = |part: usize| {
        let range = range(part);
        Part { first: range.start, rows, slots: &slots[range.clone()], ids: &ids[range] }
    };
    let limits = &*limits;
    match best {
        None if over == 0 => {
            let cursors = &*cursors;
            each(next, local + 1, &|part, next| {
                place_all(&part_of(part), &router, &cursors[part * local..][..local], next);
            });
        }
        None => each(cursors, local, &|part, cursors| {
            place(&part_of(part), &router, cursors, limits, |_, _| true);
        }),
        Some((cutoffs, weights)) => each(cursors, local, &|part, cursors| {
            place(&part_of(part), &router, cursors, limits, |e, route| {
                weights_order::key(weights.get(route), route) <= cutoffs[e]
            });
        }),
    }
    fill(args.layout, out);
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

/// Scratch of a plan.
struct Scratch<'a> {
    /// By part: what it counts in.
    tables: &'a mut [u32],
    /// By part and local expert: the next row.
    cursors: &'a mut [u32],
    /// By local expert: where its rows end.
    limits: &'a mut [u32],
    /// By part and local expert, and one more: what placing moves.
    next: &'a mut [u32],
    /// For capacity by weight.
    ranks: Option<Ranks<'a>>,
}

/// Cuts scratch.
fn cut_scratch<'a>(scratch: &'a mut [u8], parts: usize, args: &PlanArgs<'_>, by_weight: Option<usize>) -> Scratch<'a> {
    let (local, tables) = (args.local_experts, parts * table_words(args.experts, args.physical_experts()));
    // SAFETY: every bit pattern is a `u64`.
    let (_, longs, _) = unsafe { scratch.align_to_mut::<u64>() };
    let ranks = by_weight.map_or(0, |routes| Ranks::words(routes, local));
    let words = tables + parts * (2 * local + 1) + local;
    assert!(longs.len() >= ranks + words.div_ceil(2), "the scratch is too small");
    let (ranks, longs) = longs.split_at_mut(ranks);
    // SAFETY: every bit pattern is a `u32`.
    let (_, rest, _) = unsafe { longs.align_to_mut::<u32>() };
    let (tables, rest) = rest.split_at_mut(tables);
    let (cursors, rest) = rest.split_at_mut(parts * local);
    let (next, rest) = rest.split_at_mut(parts * (local + 1));
    Scratch { tables, cursors, limits: &mut rest[..local], next, ranks: by_weight.map(|_| Ranks::cut(ranks, local)) }
}
