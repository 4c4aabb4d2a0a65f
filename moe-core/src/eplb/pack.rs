//! Balanced packing: n weighted items into packs of equal size.

/// Where the items went.
pub(super) struct Packing {
    /// Pack of each item.
    pub(super) pack: Vec<usize>,
    /// Position of each item within its pack.
    pub(super) rank: Vec<usize>,
}

/// Packs each item, heaviest first, into the lightest pack with room; ties go to the lower index,
/// among the items as among the packs.
///
/// Where every pack takes one item, item i goes to pack i. `packs` must divide the item count.
pub(super) fn pack(weight: &[f64], packs: usize) -> Packing {
    greedy(weight, packs, |_, _| true, |_, _| ())
}

/// As [`pack`], but two items of one label share a pack only if every pack has that label.
///
/// A pack that has the label is passed over while another one with room lacks it. Where only packs
/// with the label have room left, the item is put there for the time being, and [`separate`]
/// exchanges it afterwards.
pub(super) fn pack_apart(weight: &[f64], label: &[usize], packs: usize) -> Packing {
    let labels = label.iter().max().map_or(0, |m| m + 1);
    let holds = std::cell::RefCell::new(vec![false; packs * labels]);
    let mut packing = greedy(
        weight,
        packs,
        |item, p| !holds.borrow()[p * labels + label[item]],
        |item, p| holds.borrow_mut()[p * labels + label[item]] = true,
    );
    separate(weight, label, packs, labels, &mut packing);
    packing
}

/// The greedy loop: `prefer(item, pack)` says whether a pack is wanted, `put` records a choice.
fn greedy(weight: &[f64], packs: usize, prefer: impl Fn(usize, usize) -> bool, put: impl Fn(usize, usize)) -> Packing {
    let n = weight.len();
    let room = n / packs;
    if room == 1 {
        return Packing { pack: (0..n).collect(), rank: vec![0; n] };
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| weight[b].total_cmp(&weight[a]));

    let mut packing = Packing { pack: vec![0; n], rank: vec![0; n] };
    let mut sum = vec![0.0f64; packs];
    let mut used = vec![0usize; packs];
    for item in order {
        // Lightest pack with room, wanted ones before the others.
        let mut best: Option<(usize, bool)> = None;
        for p in (0..packs).filter(|&p| used[p] < room) {
            let wanted = prefer(item, p);
            let better = match best {
                None => true,
                Some((b, w)) => (wanted && !w) || (wanted == w && sum[p] < sum[b]),
            };
            if better {
                best = Some((p, wanted));
            }
        }
        let (p, _) = best.expect("packs x room slots hold all items");
        put(item, p);
        packing.pack[item] = p;
        packing.rank[item] = used[p];
        sum[p] += weight[item];
        used[p] += 1;
    }
    packing
}

/// Exchanges items until two of one label share a pack only if every pack has that label.
///
/// Take a label twice in pack g and not at all in pack h. Then h has an item whose label is not in
/// g, or one whose label it holds twice: g has at most `room - 2` other labels and h has `room`
/// items. Exchanging such an item with the second copy in g gives g or h one distinct label more
/// and takes none away, so the loop ends. Among the possible exchanges the one with the smallest
/// resulting maximum of the two packs is taken, ties to the lower indices.
fn separate(weight: &[f64], label: &[usize], packs: usize, labels: usize, packing: &mut Packing) {
    let mut held = vec![0usize; packs * labels];
    let mut sum = vec![0.0f64; packs];
    for (item, &p) in packing.pack.iter().enumerate() {
        held[p * labels + label[item]] += 1;
        sum[p] += weight[item];
    }
    while let Some((a, b)) = best_exchange(weight, label, packs, labels, packing, &held, &sum) {
        let (g, h) = (packing.pack[a], packing.pack[b]);
        for (from, to, item) in [(g, h, a), (h, g, b)] {
            held[from * labels + label[item]] -= 1;
            held[to * labels + label[item]] += 1;
            sum[from] -= weight[item];
            sum[to] += weight[item];
        }
        packing.pack.swap(a, b);
        packing.rank.swap(a, b);
    }
}

/// Finds the first item that shares its pack needlessly, and the best partner to exchange it with.
fn best_exchange(
    weight: &[f64],
    label: &[usize],
    packs: usize,
    labels: usize,
    packing: &Packing,
    held: &[usize],
    sum: &[f64],
) -> Option<(usize, usize)> {
    let has = |p: usize, l: usize| held[p * labels + l];
    let a =
        (0..weight.len()).find(|&a| has(packing.pack[a], label[a]) > 1 && (0..packs).any(|p| has(p, label[a]) == 0))?;
    let g = packing.pack[a];
    let mut best: Option<(f64, usize)> = None;
    for (b, &h) in packing.pack.iter().enumerate() {
        let gains = has(h, label[a]) == 0 && (has(g, label[b]) == 0 || has(h, label[b]) > 1);
        if gains {
            let moved = weight[a] - weight[b];
            let max = (sum[g] - moved).max(sum[h] + moved);
            if best.is_none_or(|(m, _)| max < m) {
                best = Some((max, b));
            }
        }
    }
    best.map(|(_, b)| (a, b))
}
