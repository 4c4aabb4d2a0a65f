//! moe_expand: mask maps and chunk sizes to the ids that a plan is built from.
//!
//! Shapes: mask and probs [T, E] with strides, ids and values [T, K]. The k-th id of a token is its k-th set expert in
//! ascending order, -1 where there is none; the chunk of a row gives its id as the place of the chunk in the output.

use super::rows::{Rows, RowsMut};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Elements of a mask that a task looks at.
const TASK: usize = 1 << 17;

/// The elements of a mask map, one row after the other; not 0 is set. The stride is in elements.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub(crate) enum MaskBits<'a> {
    U8(&'a [u8], usize),
    I32(&'a [i32], usize),
}

/// Arguments of [`expand_mask`].
#[derive(Clone, Copy)]
pub(crate) struct Expand<'a> {
    /// [T, E].
    pub(crate) mask: MaskBits<'a>,
    /// E.
    pub(crate) experts: usize,
    /// T.
    pub(crate) tokens: usize,
    /// K.
    pub(crate) max_routes: usize,
    /// [T, E], with the bytes of an element.
    pub(crate) probs: Option<(Rows<'a>, usize)>,
    /// Tokens from this one on have no routes.
    pub(crate) valid_tokens: Option<i32>,
}

/// Writes ids [T, K] and, where there are probabilities, theirs [T, K], zero where an id is -1. Gives how many set
/// experts had no room.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub(crate) fn expand_mask(args: &Expand<'_>, ids: &mut [i32], probs: &mut [u8]) -> u32 {
    let over = AtomicU32::new(0);
    assert!(ids.len() == args.tokens * args.max_routes, "ids must be [T, K]");
    assert!(probs.len() == args.probs.map_or(0, |(_, size)| ids.len() * size), "probs must be [T, K]");
    each_token(args, 0..args.tokens, ids, probs, &over);
    over.into_inner()
}

fn each_token(args: &Expand<'_>, tokens: Range<usize>, ids: &mut [i32], probs: &mut [u8], over: &AtomicU32) {
    if tokens.len() > 1 && tokens.len() * args.experts > TASK {
        let middle = tokens.len() / 2;
        let (first, second) = ids.split_at_mut(middle * args.max_routes);
        let at = args.probs.map_or(0, |(_, size)| first.len() * size);
        let (first_probs, second_probs) = probs.split_at_mut(at);
        let (start, middle, end) = (tokens.start, tokens.start + middle, tokens.end);
        rayon::join(
            || each_token(args, start..middle, first, first_probs, over),
            || each_token(args, middle..end, second, second_probs, over),
        );
        return;
    }
    let valid = args.valid_tokens.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(0));
    let (k, experts) = (args.max_routes, args.experts);
    let mut more = 0;
    for (at, token) in tokens.enumerate() {
        let ids = &mut ids[at * k..][..k];
        let mut found = 0;
        let mut set = |e: usize| {
            if let Some(id) = ids.get_mut(found) {
                *id = e as i32;
            }
            found += 1;
        };
        if token < valid {
            match args.mask {
                MaskBits::U8(mask, stride) => scan(&mask[token * stride..][..experts], &mut set),
                MaskBits::I32(mask, stride) => scan(&mask[token * stride..][..experts], &mut set),
            }
        }
        let placed = found.min(k);
        more += (found - placed) as u32;
        ids[placed..].fill(-1);
        if let Some((rows, size)) = &args.probs {
            let row = rows.bytes.get(token * rows.stride..).unwrap_or(&[]);
            let probs = &mut probs[at * k * size..][..k * size];
            probs[placed * size..].fill(0);
            for (to, id) in probs.chunks_exact_mut(*size).zip(&ids[..placed]) {
                to.copy_from_slice(&row[*id as usize * size..][..*size]);
            }
        }
    }
    over.fetch_add(more, Relaxed);
}

/// Calls `set` with the numbers of the elements that are not 0, which are few.
#[inline(always)]
fn scan<T: Copy + Default + PartialEq>(mask: &[T], mut set: impl FnMut(usize)) {
    let zero = T::default();
    let (eights, rest) = mask.as_chunks::<8>();
    for (i, eight) in eights.iter().enumerate() {
        if *eight != [zero; 8] {
            (0..8).filter(|j| eight[*j] != zero).for_each(|j| set(i * 8 + j));
        }
    }
    let done = mask.len() - rest.len();
    (0..rest.len()).filter(|j| rest[*j] != zero).for_each(|j| set(done + j));
}

/// Brings values [T, K] back to the places [T, E] that their ids name, and zeroes the others. Elements have `size`
/// bytes.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub(crate) fn scatter_mask(ids: &[i32], values: &[u8], k: usize, size: usize, out: RowsMut<'_>, experts: usize) {
    if ids.is_empty() {
        return;
    }
    assert!(values.len() == ids.len() * size && ids.len().is_multiple_of(k), "ids and values must be [T, K]");
    assert!(out.count(experts * size) >= ids.len() / k, "too few rows to scatter to");
    each_row(ids, values, k, size, out, experts);
}

fn each_row(ids: &[i32], values: &[u8], k: usize, size: usize, out: RowsMut<'_>, experts: usize) {
    let RowsMut { bytes, stride } = out;
    let tokens = ids.len() / k;
    if tokens > 1 && tokens * experts > TASK {
        let middle = tokens / 2;
        let (first, second) = ids.split_at(middle * k);
        let (first_values, second_values) = values.split_at(middle * k * size);
        let (first_out, second_out) = bytes.split_at_mut(middle * stride);
        rayon::join(
            || each_row(first, first_values, k, size, RowsMut { bytes: first_out, stride }, experts),
            || each_row(second, second_values, k, size, RowsMut { bytes: second_out, stride }, experts),
        );
        return;
    }
    for ((row, ids), values) in bytes.chunks_mut(stride).zip(ids.chunks_exact(k)).zip(values.chunks_exact(k * size)) {
        let row = &mut row[..experts * size];
        row.fill(0);
        for (id, value) in ids.iter().zip(values.chunks_exact(size)) {
            if (*id as u32 as usize) < experts {
                row[*id as usize * size..][..size].copy_from_slice(value);
            }
        }
    }
}

/// Writes the place of each row's chunk, or the number of chunks where it has none. `work` has room for a place for each
/// chunk.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub(crate) fn expand_chunks(sizes: &[i32], order: Option<&[i32]>, ids: &mut [i32], work: &mut [u32]) {
    let chunks = sizes.len();
    assert!(order.is_none_or(|order| order.len() == chunks), "order must be [C]");
    let places = &mut work[..chunks];
    match order {
        None => (0..chunks).for_each(|c| places[c] = c as u32),
        Some(order) => {
            places.fill(chunks as u32);
            // The first place wins, so it is written last.
            for (place, chunk) in order.iter().enumerate().rev() {
                if let Some(to) = places.get_mut(*chunk as u32 as usize) {
                    *to = place as u32;
                }
            }
        }
    }
    let mut rest = ids;
    for (size, place) in sizes.iter().zip(&*places) {
        let size = usize::try_from(*size).unwrap_or(0).min(rest.len());
        let (rows, after) = rest.split_at_mut(size);
        rows.fill(*place as i32);
        rest = after;
    }
    rest.fill(chunks as i32);
}
