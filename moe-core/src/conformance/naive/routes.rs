//! What turns masks and chunks into ids, and what is derived from a plan.

use super::Plan;
use crate::Element;

/// What a mask map gives: ids `[T, K]`, -1 where there is none, and the set experts that had no room.
pub fn mask_ids(mask: &[bool], experts: usize, top_k: usize, valid_tokens: Option<i32>) -> (Vec<i32>, u32) {
    let (mut ids, mut over) = (Vec::new(), 0);
    for (t, row) in mask.chunks_exact(experts).enumerate() {
        let valid = valid_tokens.is_none_or(|n| (t as i64) < i64::from(n));
        let set: Vec<i32> = (0..experts).filter(|e| valid && row[*e]).map(|e| e as i32).collect();
        over += set.len().saturating_sub(top_k) as u32;
        ids.extend((0..top_k).map(|k| set.get(k).copied().unwrap_or(-1)));
    }
    (ids, over)
}

/// The values `[T, E]` of the ids `[T, K]`; 0 for -1.
pub fn mask_values<T: Element>(ids: &[i32], top_k: usize, values: &[T], experts: usize) -> Vec<T> {
    let value = |(x, id): (usize, &i32)| match id {
        -1 => T::default(),
        e => values[x / top_k * experts + *e as usize],
    };
    ids.iter().enumerate().map(value).collect()
}

/// Values `[T, K]` at the places `[T, E]` of their ids; 0 elsewhere.
pub fn scatter_mask<T: Element>(ids: &[i32], top_k: usize, values: &[T], experts: usize) -> Vec<T> {
    let mut out = vec![T::default(); ids.len() / top_k * experts];
    for (x, id) in ids.iter().enumerate().filter(|(_, id)| **id >= 0) {
        out[x / top_k * experts + *id as usize] = values[x];
    }
    out
}

/// The id of each of `rows` rows in chunks: the place of its chunk in the output, or the number of chunks.
pub fn chunk_ids(rows: usize, sizes: &[i32], order: Option<&[i32]>) -> Vec<i32> {
    let mut chunk_of: Vec<usize> = Vec::new();
    for (c, size) in sizes.iter().enumerate() {
        chunk_of.extend((0..*size).take(rows - chunk_of.len()).map(|_| c));
    }
    let place = |c: usize| match order {
        None => c,
        Some(order) => order.iter().position(|x| *x == c as i32).unwrap_or(sizes.len()),
    };
    (0..rows).map(|r| chunk_of.get(r).map_or(sizes.len(), |c| place(*c)) as i32).collect()
}

/// `sorted_token_ids` `[len]`, `expert_ids` `[len / block]` and `num_tokens_post_padded` of a plan.
pub fn block_table(plan: &Plan, len: usize, block: usize) -> (Vec<i32>, Vec<i32>, i32) {
    let (mut sorted, mut experts) = (Vec::new(), Vec::new());
    for (e, count) in plan.tokens_per_expert.iter().enumerate() {
        let first = plan.expert_offsets[e] as usize;
        sorted.extend(&plan.source[first..first + *count as usize]);
        sorted.resize(sorted.len().next_multiple_of(block), plan.slot.len() as i32);
        experts.resize(sorted.len() / block, e as i32);
    }
    let used = sorted.len() as i32;
    sorted.resize(len, plan.slot.len() as i32);
    experts.resize(len / block, -1);
    (sorted, experts, used)
}

/// The rows of each rank.
pub fn split_sizes(plan: &Plan, ranks: usize) -> Vec<i32> {
    let each = plan.tokens_per_expert.len() / ranks;
    (0..ranks).map(|r| plan.expert_offsets[(r + 1) * each] - plan.expert_offsets[r * each]).collect()
}
