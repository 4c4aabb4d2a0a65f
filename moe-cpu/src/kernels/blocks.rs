//! moe_block_table and moe_split_sizes: further index arrays of a plan.
//!
//! Shapes: source [R], expert_offsets [E_local + 1], tokens_per_expert [E_local]; sorted [L], experts [L / block]. What
//! the plan's arrays hold is not trusted.

/// Lists the routes of each expert, padded with `routes` to a multiple of `block`; what is left over gets `routes` and
/// -1. Gives the entries in use.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub(crate) fn block_table(
    source: &[i32],
    offsets: &[i32],
    counts: &[i32],
    routes: usize,
    block: usize,
    sorted: &mut [i32],
    experts: &mut [i32],
) -> usize {
    assert!(block > 0 && sorted.len() == experts.len() * block, "a table has an expert for each block");
    assert!(offsets.len() > counts.len(), "expert_offsets must be [E_local + 1]");
    let mut blocks = 0;
    for (e, (start, count)) in offsets.iter().zip(counts).enumerate() {
        let start = usize::try_from(*start).unwrap_or(0).min(source.len());
        let from = &source[start..];
        let room = sorted.len() - blocks * block;
        let count = usize::try_from(*count).unwrap_or(0).min(from.len()).min(room);
        let mine = count.div_ceil(block);
        let to = &mut sorted[blocks * block..][..mine * block];
        to[..count].copy_from_slice(&from[..count]);
        to[count..].fill(routes as i32);
        experts[blocks..][..mine].fill(e as i32);
        blocks += mine;
    }
    sorted[blocks * block..].fill(routes as i32);
    experts[blocks..].fill(-1);
    blocks * block
}

/// The rows of each rank's experts.
///
/// # Panics
/// Where the ranks do not divide the experts.
pub(crate) fn split_sizes(offsets: &[i32], out: &mut [i32]) {
    let experts = offsets.len() - 1;
    assert!(experts.is_multiple_of(out.len()), "ranks must divide the experts");
    let each = experts / out.len();
    for (rank, size) in out.iter_mut().enumerate() {
        *size = offsets[(rank + 1) * each].wrapping_sub(offsets[rank * each]);
    }
}
