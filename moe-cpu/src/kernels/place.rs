//! Placing a plan's routes at their rows, and what fills the other rows.

use super::parallel::for_ranges;
use super::route::{Id, Physical, Router};
use super::sort::{Layout, PlanOut};
use super::stores::{stream_fence, stream_words};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

/// Rows that a task fills after the routes are placed.
const FILL: usize = 1 << 15;

/// Words of a cache line.
pub(super) const LINE_WORDS: usize = 16;

/// A cache line of words.
#[repr(C, align(64))]
pub(super) struct Line([u32; LINE_WORDS]);

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

/// Whether a part of so many routes gains from whole lines: the experts' rows then lie on more pages than a processor
/// keeps translations of, and each line is filled.
pub(super) fn by_line(routes: usize, local: usize) -> bool {
    local <= 1024 && routes >= 2 * LINE_WORDS * local
}

/// Places all routes that have a local expert; every one of them has a row.
///
/// Each expert's next rows are collected in a line of `lines` [E_local], and written when the line is whole: one store
/// to a far page for sixteen rows, without reading what it replaces. `begins` [E_local] is scratch.
pub(super) fn place_by_line<I: Id, P: Physical>(
    part: &Part<'_, I>,
    router: &Router<'_, P>,
    cursors: &mut [u32],
    begins: &mut [u32],
    lines: &mut [Line],
) {
    begins.copy_from_slice(cursors);
    // Rows are counted from the last line boundary at or before `source`.
    let shift = (part.rows.as_ptr() as usize / 4 % LINE_WORDS) as u32;
    let flush = |Line(line): &Line, begin: u32, end: u32| {
        let from = (end.wrapping_sub(1).wrapping_add(shift) & !(LINE_WORDS as u32 - 1)).wrapping_sub(shift);
        let whole = from as i32 >= 0 && from >= begin && end - from == LINE_WORDS as u32;
        if whole {
            stream_words(&part.rows[from as usize..end as usize], line);
        } else {
            for row in begin.max(if from as i32 >= 0 { from } else { 0 })..end {
                part.rows[row as usize].store(line[((row + shift) as usize) % LINE_WORDS] as i32, Relaxed);
            }
        }
    };
    for ((route, &id), slot) in (part.first..).zip(part.ids).zip(part.slots) {
        let e = router.local(id, route) as usize;
        let mut to = -1;
        if let Some(cursor) = cursors.get_mut(e) {
            let row = *cursor;
            *cursor = row + 1;
            to = row as i32;
            let at = (row + shift) as usize % LINE_WORDS;
            lines[e].0[at] = route as u32;
            if at == LINE_WORDS - 1 {
                flush(&lines[e], begins[e], row + 1);
            }
        }
        slot.store(to, Relaxed);
    }
    for ((line, &begin), &end) in lines.iter().zip(&*begins).zip(&*cursors) {
        if begin < end && !(end + shift).is_multiple_of(LINE_WORDS as u32) {
            flush(line, begin, end);
        }
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
