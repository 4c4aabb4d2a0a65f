//! Placing a plan's routes at their rows, and what fills the other rows.

use super::parallel::for_ranges;
use super::route::{Id, Physical, Router};
use super::simd::LINE;
use super::sort::{Layout, PlanOut};
use super::stores::{prefetch_word, stream_fence, stream_words};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

/// Rows that a task fills after the routes are placed.
pub(super) const FILL: usize = 1 << 15;

/// Some of a plan's routes, and where they are written to.
pub(super) struct Part<'a, I> {
    /// Their ids.
    pub(super) ids: &'a [I],
    /// The number of the first.
    pub(super) first: usize,
    /// [R]: source.
    pub(super) rows: &'a [AtomicI32],
    /// The rows of these routes.
    pub(super) slots: &'a [AtomicI32],
}

/// Places routes in order, at the cursors of their experts, where `keep` says so and below the experts' limits.
#[inline(always)]
pub(super) fn place<I: Id, P: Physical>(
    part: &Part<'_, I>,
    router: &Router<'_, P>,
    cursors: &mut [u32],
    limits: &[u32],
    keep: impl Fn(usize, usize) -> bool,
) {
    for ((route, &id), slot) in (part.first..).zip(part.ids).zip(part.slots) {
        let e = router.local(id, route) as usize;
        let mut to = -1;
        if let Some(cursor) = cursors.get_mut(e)
            && keep(e, route)
        {
            let row = *cursor;
            *cursor = row + 1;
            if row < limits[e] {
                to = row as i32;
                part.rows[row as usize].store(route as i32, Relaxed);
            }
        }
        slot.store(to, Relaxed);
    }
}

/// Routes whose rows are looked up before the first of them is written: those whose slots are a line.
pub(super) const BATCH: usize = LINE / 4;

/// Slots of at least so many routes are written past the cache.
const STREAM_ROUTES: usize = 1 << 18;

/// How many rows ahead of the one that is written an expert's rows are asked for: the next line.
const AHEAD: usize = 16;

/// The row of a route that is not placed: past every row, and -1 as a slot.
const NOWHERE: u32 = u32::MAX;

/// Places all routes that have a local expert; every one of them has a row.
///
/// Some cursors are read and moved before any row is written. Where a row is written is known from its cursor alone,
/// and a processor that does not know where a store goes has to guess whether the next look-up may pass it: one route
/// after the other, each look-up waits for the one before. The rows of all experts together are more lines than the
/// first cache level holds, so each store asks for the line after its own. `next` [E_local + 1] is scratch.
pub(super) fn place_all<I: Id, P: Physical>(
    part: &Part<'_, I>,
    router: &Router<'_, P>,
    cursors: &[u32],
    next: &mut [u32],
) {
    let local = cursors.len();
    let next = &mut next[..local + 1];
    next[..local].copy_from_slice(cursors);
    next[local] = NOWHERE;
    let mut row_of = |id: I, route: usize| {
        let e = (router.local(id, route) as usize).min(local);
        let row = next[e];
        next[e] = row + u32::from(e < local);
        row
    };
    let put = |row: u32, route: usize| {
        if let Some(source) = part.rows.get(row as usize) {
            prefetch_word(part.rows, row as usize + AHEAD);
            source.store(route as i32, Relaxed);
        }
    };
    let stream = part.ids.len() >= STREAM_ROUTES && (part.slots.as_ptr() as usize).is_multiple_of(LINE);
    let (batches, rest) = part.ids.as_chunks::<BATCH>();
    let (slots, rest_slots) = part.slots.as_chunks::<BATCH>();
    let mut route = part.first;
    for (ids, slots) in batches.iter().zip(slots) {
        let rows: [u32; BATCH] = std::array::from_fn(|i| row_of(ids[i], route + i));
        if stream {
            stream_words(slots, &rows);
        } else {
            slots.iter().zip(rows).for_each(|(slot, row)| slot.store(row as i32, Relaxed));
        }
        rows.iter().zip(route..).for_each(|(&row, route)| put(row, route));
        route += BATCH;
    }
    for ((&id, slot), route) in rest.iter().zip(rest_slots).zip(route..) {
        let row = row_of(id, route);
        slot.store(row as i32, Relaxed);
        put(row, route);
    }
    stream_fence();
}

/// Writes -1 to the source of padding rows and the tail, and `m_indices`.
pub(super) fn fill(layout: Layout, out: &mut PlanOut<'_>) {
    let (offsets, counts) = (&*out.expert_offsets, &*out.tokens_per_expert);
    let used = offsets.last().map_or(0, |&u| u as usize);
    if layout == Layout::Packed && out.m_indices.is_none() {
        out.source[used..].fill(-1);
        return;
    }
    let m_indices = out.m_indices.as_mut().map(|m| atomic(m));
    let source = atomic(out.source);
    for_ranges(0..source.len(), FILL, &|range| {
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

/// A slice that tasks share, to write single elements of.
pub(super) fn atomic(slice: &mut [i32]) -> &[AtomicI32] {
    // SAFETY: `AtomicI32` has the size, the alignment (on targets with 32-bit atomics) and the representation of
    // `i32`, and the slice is borrowed mutably for the life of the result.
    unsafe { &*(std::ptr::from_mut(slice) as *const [AtomicI32]) }
}
