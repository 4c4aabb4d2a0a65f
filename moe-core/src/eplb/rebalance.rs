//! From loads to a placement.

use rayon::prelude::*;

use super::error::{EplbError, bad};
use super::pack::{pack, pack_apart};
use super::placement::{Placement, counts, gpu_loads, identity_layer, max_load};
use super::replicate::replicate;
use super::reuse::reuse_layer;
use super::shape::Shape;

/// What [`rebalance`] does beyond the published algorithm.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Put two replicas of an expert on one GPU only if every GPU of the domain (the node, or the
    /// machine in the global case) has one, and give no expert more copies than the domain has
    /// GPUs while another expert has fewer. Default: true.
    pub spread: bool,
    /// Take the identity placement for a layer in which the greedy one has a larger maximal GPU
    /// load (greedy packing gives no such promise by itself). Default: true.
    pub never_worse: bool,
    /// Compute the layers on rayon's current thread pool. Default: true. The result does not
    /// depend on it.
    pub parallel: bool,
    /// The placement in use. The new one is then renamed to resemble it, which changes no load:
    /// nodes and GPUs get the set of experts that overlaps most with what they hold, and an expert
    /// that stays on its GPU keeps its slot. Default: none.
    pub previous: Option<&'a Placement>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { spread: true, never_worse: true, parallel: true, previous: None }
    }
}

impl Options<'_> {
    /// The published algorithm and nothing else.
    #[must_use]
    pub fn published() -> Self {
        Self { spread: false, never_worse: false, ..Self::default() }
    }
}

/// Computes a placement for `load` [L, E] (tokens per logical expert, in any unit).
///
/// Per layer, and on its own in each domain (the nodes in the hierarchical case, else the whole
/// machine): hierarchical only, whole groups of experts are packed onto the nodes; then each
/// further slot of the domain goes to the expert with the largest load per copy; then the replicas
/// are packed onto the GPUs. Packing goes heaviest first into the lightest pack with room. All
/// ties go to the lower index. Sums and quotients are f64. Source: DeepSeek's EPLB, see the
/// [module](super).
///
/// # Errors
/// [`EplbError::Argument`] if the shape is invalid, `load` has not L·E values, a load is NaN,
/// infinite or negative, or the previous placement has another shape.
pub fn rebalance(load: &[f64], shape: &Shape, options: &Options<'_>) -> Result<Placement, EplbError> {
    const OP: &str = "rebalance";
    shape.validate()?;
    shape.check_load(OP, load)?;
    if let Some(previous) = options.previous
        && previous.shape() != shape
    {
        let got = format!("{:?}", previous.shape());
        return Err(bad(OP, "options.previous", format!("{shape:?}"), got));
    }
    let identity = identity_layer(shape);
    let layer = |(l, row): (usize, &[f64])| {
        let mut slots = place_layer(row, shape, options.spread);
        if options.never_worse && worse(shape, &slots, &identity, row) {
            slots.copy_from_slice(&identity);
        }
        if let Some(previous) = options.previous {
            slots = reuse_layer(shape, &slots, previous.layer_phy2log(l));
        }
        slots
    };
    let phy2log: Vec<Vec<i32>> = if options.parallel && shape.layers > 1 {
        load.par_chunks_exact(shape.experts).enumerate().map(layer).collect()
    } else {
        load.chunks_exact(shape.experts).enumerate().map(layer).collect()
    };
    Placement::new(*shape, phy2log.concat())
}

fn worse(shape: &Shape, slots: &[i32], identity: &[i32], load: &[f64]) -> bool {
    let max = |slots: &[i32]| max_load(&gpu_loads(shape, slots, &counts(shape.experts, slots), load));
    max(slots) > max(identity)
}

/// \[R\]: the expert of each slot of one layer.
fn place_layer(load: &[f64], shape: &Shape, spread: bool) -> Vec<i32> {
    let domains = shape.domains();
    let (slots, gpus) = (shape.replicas / domains, shape.gpus / domains);
    let mut phy2log = vec![0; shape.replicas];
    for (d, members) in split_groups(load, shape).iter().enumerate() {
        let member_load: Vec<f64> = members.iter().map(|&e| load[e]).collect();
        let cap = if spread { gpus } else { usize::MAX };
        let (owner, copies) = replicate(&member_load, slots, cap);
        let share: Vec<f64> = owner.iter().map(|&m| member_load[m] / copies[m] as f64).collect();
        let packing = if spread { pack_apart(&share, &owner, gpus) } else { pack(&share, gpus) };
        for (i, &m) in owner.iter().enumerate() {
            let slot = d * slots + packing.pack[i] * shape.slots_per_gpu() + packing.rank[i];
            phy2log[slot] = members[m] as i32;
        }
    }
    phy2log
}

/// The experts of each domain, in the order in which its groups were packed.
fn split_groups(load: &[f64], shape: &Shape) -> Vec<Vec<usize>> {
    if shape.domains() == 1 && !shape.is_hierarchical() {
        return vec![(0..shape.experts).collect()];
    }
    let size = shape.experts / shape.groups;
    let per_node = shape.groups / shape.nodes;
    let group_load: Vec<f64> = load.chunks_exact(size).map(|g| g.iter().sum()).collect();
    let packing = pack(&group_load, shape.nodes);
    let mut members = vec![vec![0; per_node * size]; shape.nodes];
    for g in 0..shape.groups {
        let (node, first) = (packing.pack[g], packing.rank[g] * size);
        for i in 0..size {
            members[node][first + i] = g * size + i;
        }
    }
    members
}
