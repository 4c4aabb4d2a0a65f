//! Renaming the parts of a new placement so that it resembles the old one.

use super::shape::Shape;

/// Reorders the slots of one layer \[R\] to resemble `old` \[R\], without changing which experts share
/// a GPU or a node.
///
/// Nodes first (hierarchical case only), then the GPUs within each domain, take over the place
/// whose content they overlap most; then experts that stay on a GPU go back to their slots.
pub(super) fn reuse_layer(shape: &Shape, new: &[i32], old: &[i32]) -> Vec<i32> {
    let slots = shape.replicas / shape.domains();
    let mut out = take_places(shape.experts, slots, new, old);
    for (new, old) in out.chunks_exact_mut(slots).zip(old.chunks_exact(slots)) {
        let s = shape.slots_per_gpu();
        let mut gpus = take_places(shape.experts, s, new, old);
        for (new, old) in gpus.chunks_exact_mut(s).zip(old.chunks_exact(s)) {
            keep_slots(shape.experts, new, old);
        }
        new.copy_from_slice(&gpus);
    }
    out
}

/// Permutes blocks of `size` slots: pairs of a new and an old block are joined in descending
/// overlap (number of slots in common, copies counted), ties to the lower new, then old block.
fn take_places(experts: usize, size: usize, new: &[i32], old: &[i32]) -> Vec<i32> {
    let n = new.len() / size;
    let mut pairs = Vec::with_capacity(n * n);
    let mut left = vec![0i32; experts];
    for (o, block) in old.chunks_exact(size).enumerate() {
        for (b, other) in new.chunks_exact(size).enumerate() {
            block.iter().for_each(|&e| left[e as usize] += 1);
            let mut overlap = 0usize;
            for &e in other {
                if left[e as usize] > 0 {
                    left[e as usize] -= 1;
                    overlap += 1;
                }
            }
            block.iter().for_each(|&e| left[e as usize] = 0);
            pairs.push((overlap, b, o));
        }
    }
    pairs.sort_by(|x, y| y.0.cmp(&x.0).then(x.1.cmp(&y.1)).then(x.2.cmp(&y.2)));
    let mut out = vec![0; new.len()];
    let (mut placed, mut taken) = (vec![false; n], vec![false; n]);
    for (_, b, o) in pairs {
        if !placed[b] && !taken[o] {
            (placed[b], taken[o]) = (true, true);
            out[o * size..][..size].copy_from_slice(&new[b * size..][..size]);
        }
    }
    out
}

/// Reorders one GPU's slots: what stays keeps its slot, the rest fills the gaps in order.
fn keep_slots(experts: usize, new: &mut [i32], old: &[i32]) {
    let mut left = vec![0i32; experts];
    new.iter().for_each(|&e| left[e as usize] += 1);
    let mut out = vec![-1; new.len()];
    for (slot, &e) in out.iter_mut().zip(old) {
        if left[e as usize] > 0 {
            left[e as usize] -= 1;
            *slot = e;
        }
    }
    let mut rest = new.iter().copied().filter(|&e| {
        let fresh = left[e as usize] > 0;
        left[e as usize] -= i32::from(fresh);
        fresh
    });
    for slot in out.iter_mut().filter(|s| **s < 0) {
        *slot = rest.next().expect("as many experts left as gaps");
    }
    drop(rest);
    new.copy_from_slice(&out);
}
