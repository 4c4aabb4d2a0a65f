//! Counting a plan's routes: by physical expert, then by local one, then as rows.

use super::route::{Id, Physical};
use super::sort::{Layout, PlanArgs, PlanOut};

/// Tables that a part counts in: neighbouring routes of one expert then do not wait for each other's store.
pub(super) const TABLES: usize = 4;

/// Routes from which on a part counts in several tables.
const SEVERAL: usize = 4096;

/// The tables of a part: `physical + 2` classes each, and room for the load of `experts` behind the first.
pub(super) fn table_words(experts: usize, physical: usize) -> usize {
    (TABLES * (physical + 2)).max(physical + 2 + experts)
}

/// Counts routes per class into the first of the tables. Where the class takes more than the id, ids are counted
/// behind the first table.
pub(super) fn count<I: Id, P: Physical>(
    ids: &[I],
    first_route: usize,
    physical: &P,
    experts: usize,
    classes: usize,
    tables: &mut [u32],
) {
    let (first, others) = tables.split_at_mut(classes);
    first.fill(0);
    if !P::BY_ID {
        let load = &mut others[..experts];
        load.fill(0);
        for (route, &id) in (first_route..).zip(ids) {
            first[physical.class(id, route) as usize] += 1;
            if let Some(load) = load.get_mut(id.class(experts as u32) as usize) {
                *load += 1;
            }
        }
        return;
    }
    // What is no expert is one class at first: there is none of it in most batches.
    let expert = |id: I| physical.expert(id, 0) as usize;
    let (fours, rest) = if ids.len() < SEVERAL { (&[][..], ids) } else { ids.as_chunks::<TABLES>() };
    rest.iter().for_each(|&id| first[expert(id)] += 1);
    if !fours.is_empty() {
        let others = &mut others[..(TABLES - 1) * classes];
        others.fill(0);
        let (second, others) = others.split_at_mut(classes);
        let (third, fourth) = others.split_at_mut(classes);
        for &[a, b, c, d] in fours {
            first[expert(a)] += 1;
            second[expert(b)] += 1;
            third[expert(c)] += 1;
            fourth[expert(d)] += 1;
        }
        for (((a, b), c), d) in first.iter_mut().zip(second).zip(third).zip(fourth) {
            *a += *b + *c + *d;
        }
    }
    let masked = classes - 2;
    if first[masked] > 0 {
        let invalid = ids.iter().filter(|&&id| physical.class(id, 0) as usize > masked).count() as u32;
        first[masked] -= invalid;
        first[masked + 1] += invalid;
    }
}

/// Sums the tables of all parts into status and logical load, and gives each part's counts per local expert.
pub(super) fn to_local(args: &PlanArgs<'_>, tables: &[u32], cursors: &mut [u32], parts: usize, out: &mut PlanOut<'_>) {
    let (experts, physical, local) = (args.experts, args.physical_experts(), args.local_experts);
    let words = table_words(experts, physical);
    if let Some(load) = &mut out.logical_load {
        load.fill(0);
    }
    cursors.fill(0);
    for part in 0..parts {
        let (counts, behind) = tables[part * words..][..words].split_at(physical + 2);
        let mine = &mut cursors[part * local..][..local];
        match args.expert_map {
            None => mine.copy_from_slice(&counts[..physical]),
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
            let ids = if args.copies.is_some() { behind } else { counts };
            load.iter_mut().zip(ids).for_each(|(load, &n)| *load += n as i32);
        }
        out.status[0] += counts[physical];
        out.status[1] += counts[physical + 1];
    }
}

/// Turns each part's counts into the row at which its routes of each expert begin, and gives each expert's end.
/// Returns how many routes find no room.
pub(super) fn offsets(
    layout: Layout,
    capacity: usize,
    cursors: &mut [u32],
    limits: &mut [u32],
    parts: usize,
    out: &mut PlanOut<'_>,
) -> usize {
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
    over
}
