//! A placement that can be reached with a bounded number of copies.

use super::error::{EplbError, bad};
use super::placement::{Placement, counts, gpu_loads, max_load};
use super::shape::Shape;

/// Goes from `old` towards `new` with at most `max_moves` copies (the length of the
/// [`MigrationPlan`](super::MigrationPlan) between `old` and the result).
///
/// Layers in which `new` lowers the maximal GPU load are taken over whole, the best gain (fall of
/// the maximal load over the mean load) per copy first, as far as the bound allows. What is left of
/// it is spent on the other layers that would gain, the largest gain first, in single steps from
/// the old placement. A step exchanges two slots, or turns a spare replica into a copy of an expert
/// of the most loaded GPU; the one that lowers the maximal load most is taken. A step stays within
/// a node in the hierarchical case and never puts a second replica of an expert on a GPU.
///
/// No layer gets a larger maximal GPU load than it had; a layer that would not gain stays as it is.
///
/// # Errors
/// [`EplbError::Argument`] if the shapes differ or `load` [L, E] is not valid.
pub fn limit_moves(old: &Placement, new: &Placement, load: &[f64], max_moves: usize) -> Result<Placement, EplbError> {
    const OP: &str = "limit_moves";
    let shape = *old.shape();
    if new.shape() != &shape {
        return Err(bad(OP, "new", format!("{shape:?}"), format!("{:?}", new.shape())));
    }
    shape.check_load(OP, load)?;

    let row = |l: usize| &load[l * shape.experts..][..shape.experts];
    let mut wanted: Vec<(usize, f64, usize)> = Vec::new();
    for l in 0..shape.layers {
        let (before, after) = (old.gpu_loads(l, row(l))?, new.gpu_loads(l, row(l))?);
        let mean = before.iter().map(|v| v / shape.gpus as f64).sum::<f64>();
        let gain = (max_load(&before) - max_load(&after)) / mean;
        let cost = difference(old.layer_phy2log(l), new.layer_phy2log(l));
        if gain > 0.0 {
            wanted.push((l, gain, cost));
        }
    }
    let mut left = max_moves;
    let mut phy2log = old.phy2log().to_vec();
    wanted.sort_by(|a, b| (b.1 / b.2 as f64).total_cmp(&(a.1 / a.2 as f64)));
    wanted.retain(|&(l, _, cost)| {
        let fits = cost <= left;
        if fits {
            left -= cost;
            phy2log[l * shape.replicas..][..shape.replicas].copy_from_slice(new.layer_phy2log(l));
        }
        !fits
    });
    wanted.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (l, _, _) in wanted {
        let slots = &mut phy2log[l * shape.replicas..][..shape.replicas];
        left -= improve(&shape, slots, row(l), left);
    }
    Placement::new(shape, phy2log)
}

fn difference(a: &[i32], b: &[i32]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}

/// A change of one layer.
#[derive(Clone, Copy)]
enum Step {
    /// The slot's spare replica makes way for a copy of the expert.
    Copy { slot: usize, expert: i32 },
    /// The two slots exchange their experts.
    Swap(usize, usize),
}

impl Step {
    fn apply(self, slots: &mut [i32]) {
        match self {
            Self::Copy { slot, expert } => slots[slot] = expert,
            Self::Swap(a, b) => slots.swap(a, b),
        }
    }
}

/// (maximal load, sum of squares over its square): what a step has to lower.
type Score = (f64, f64);

fn score(loads: &[f64]) -> Score {
    let max = max_load(loads);
    (max, loads.iter().map(|v| (v / max) * (v / max)).sum())
}

/// Takes the best step while it lowers the score; returns the number of slots changed.
fn improve(shape: &Shape, slots: &mut [i32], load: &[f64], budget: usize) -> usize {
    let start = slots.to_vec();
    let exact = |slots: &[i32]| gpu_loads(shape, slots, &counts(shape.experts, slots), load);
    let mut loads = exact(slots);
    loop {
        let left = budget - difference(&start, slots);
        let Some(step) = best_step(shape, slots, load, &loads, left) else { break };
        let mut trial = slots.to_vec();
        step.apply(&mut trial);
        // The search adds up differences; the decision is made on sums in the usual order.
        let next = exact(&trial);
        if score(&next) >= score(&loads) {
            break;
        }
        slots.copy_from_slice(&trial);
        loads = next;
    }
    difference(&start, slots)
}

/// The step that takes most load from the most loaded GPU and changes at most `left` slots.
fn best_step(shape: &Shape, slots: &[i32], load: &[f64], loads: &[f64], left: usize) -> Option<Step> {
    let counts = counts(shape.experts, slots);
    let size = shape.slots_per_gpu();
    let hot = (0..loads.len()).fold(0, |h, g| if loads[g] > loads[h] { g } else { h });
    let on = |gpu: usize| &slots[gpu * size..][..size];
    let share = |e: i32, copies: i32| load[e as usize] / f64::from(copies);
    let share_now = |e: i32| share(e, counts[e as usize]);
    let mut gpus_of = vec![Vec::new(); shape.experts];
    for (p, &e) in slots.iter().enumerate() {
        gpus_of[e as usize].push(p / size);
    }
    let gpus_per_domain = shape.gpus / shape.domains();
    let domain = hot / gpus_per_domain;

    let mut best: Option<(Score, Step)> = None;
    let mut trial = loads.to_vec();
    let mut offer = |trial: &[f64], step: Step| {
        let s = score(trial);
        if best.is_none_or(|(b, _)| s < b) {
            best = Some((s, step));
        }
    };
    for a in hot * size..(hot + 1) * size {
        let expert = slots[a];
        for (b, &other) in slots.iter().enumerate() {
            let gpu = b / size;
            if gpu / gpus_per_domain != domain || on(gpu).contains(&expert) {
                continue;
            }
            if left >= 1 && counts[other as usize] > 1 {
                trial.copy_from_slice(loads);
                for (e, copies) in [(expert, counts[expert as usize] + 1), (other, counts[other as usize] - 1)] {
                    let change = share(e, copies) - share_now(e);
                    gpus_of[e as usize].iter().for_each(|&g| trial[g] += change);
                }
                trial[gpu] += share(expert, counts[expert as usize] + 1);
                trial[gpu] -= share(other, counts[other as usize] - 1);
                offer(&trial, Step::Copy { slot: b, expert });
            }
            let moved = share_now(expert) - share_now(other);
            if left >= 2 && moved > 0.0 && !on(hot).contains(&other) {
                trial.copy_from_slice(loads);
                trial[hot] -= moved;
                trial[gpu] += moved;
                offer(&trial, Step::Swap(a, b));
            }
        }
    }
    best.map(|(_, step)| step)
}
