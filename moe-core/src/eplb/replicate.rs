//! How many copies each expert gets.

/// Hands out `slots` copies: one for every expert, then one at a time to the expert with the
/// largest load per copy (ties to the lower index), but none beyond `cap` copies while another
/// expert is below it.
///
/// Returns the expert of each copy \[slots\], in the order of handing out, and the number of copies
/// \[E\]. Requires a non-empty `load` and `slots >= load.len()`.
pub(super) fn replicate(load: &[f64], slots: usize, mut cap: usize) -> (Vec<usize>, Vec<usize>) {
    let mut owner: Vec<usize> = (0..load.len()).collect();
    let mut copies = vec![1usize; load.len()];
    let mut share = load.to_vec();
    while owner.len() < slots {
        let mut top: Option<usize> = None;
        for e in 0..load.len() {
            if copies[e] < cap && top.is_none_or(|t| share[e] > share[t]) {
                top = Some(e);
            }
        }
        let Some(top) = top else {
            cap = usize::MAX;
            continue;
        };
        owner.push(top);
        copies[top] += 1;
        share[top] = load[top] / copies[top] as f64;
    }
    (owner, copies)
}
