//! Which expert weights have to be copied where to get from one placement to another.

use super::error::{EplbError, bad};
use super::placement::Placement;
use super::shape::Shape;

/// One expert's weights are to be copied from slot `from` to slot `to` of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Layer.
    pub layer: usize,
    /// Logical expert.
    pub expert: usize,
    /// Slot that holds the expert in the old placement.
    pub from: usize,
    /// GPU of `from`.
    pub from_gpu: usize,
    /// Slot that holds the expert in the new placement.
    pub to: usize,
    /// GPU of `to`.
    pub to_gpu: usize,
}

/// The copies that lead from one placement to another, by layer, then by target slot.
///
/// All sources are slots of the *old* placement, and a slot can be a source of one copy and the
/// target of another: send or stage what is to be read before it is overwritten. Slots that are
/// not a target keep their weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationPlan {
    shape: Shape,
    moves: Vec<Move>,
}

impl MigrationPlan {
    /// Plans the copies from `old` to `new`.
    ///
    /// The source of a copy is a slot of the target's GPU if one has the expert, else of its node,
    /// else any; among those the one with the fewest copies to send in this layer so far, ties to
    /// the lower slot.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if the shapes differ.
    pub fn between(old: &Placement, new: &Placement) -> Result<Self, EplbError> {
        let shape = *old.shape();
        if new.shape() != &shape {
            let got = format!("{:?}", new.shape());
            return Err(bad("migration", "new", format!("{shape:?}"), got));
        }
        let mut moves = Vec::new();
        let mut sent = vec![0usize; shape.replicas];
        for layer in 0..shape.layers {
            sent.fill(0);
            let (had, has) = (old.layer_phy2log(layer), new.layer_phy2log(layer));
            for (to, (&before, &after)) in had.iter().zip(has).enumerate() {
                if before == after {
                    continue;
                }
                let expert = after as usize;
                let to_gpu = shape.gpu_of(to);
                let sources = &old.layer_log2phy(layer)[expert * old.width()..][..old.width()];
                let distance = |gpu: usize| match gpu {
                    g if g == to_gpu => 0,
                    g if shape.node_of(g) == shape.node_of(to_gpu) => 1,
                    _ => 2,
                };
                let from = sources
                    .iter()
                    .filter_map(|&p| usize::try_from(p).ok())
                    .min_by_key(|&p| (distance(shape.gpu_of(p)), sent[p]))
                    .expect("a placement has a slot for every expert");
                sent[from] += 1;
                moves.push(Move { layer, expert, from, from_gpu: shape.gpu_of(from), to, to_gpu });
            }
        }
        Ok(Self { shape, moves })
    }

    /// The copies.
    #[must_use]
    pub fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// Number of copies: the cost that [`limit_moves`](super::limit_moves) bounds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.moves.len()
    }

    /// Whether nothing has to be copied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    /// Copies between two GPUs.
    #[must_use]
    pub fn across_gpus(&self) -> usize {
        self.moves.iter().filter(|m| m.from_gpu != m.to_gpu).count()
    }

    /// Copies between two nodes.
    #[must_use]
    pub fn across_nodes(&self) -> usize {
        let node = |gpu| self.shape.node_of(gpu);
        self.moves.iter().filter(|m| node(m.from_gpu) != node(m.to_gpu)).count()
    }

    /// The placement that the copies make of `old`.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if `old` has another shape, or a source does not hold its expert.
    pub fn apply(&self, old: &Placement) -> Result<Placement, EplbError> {
        const OP: &str = "migration.apply";
        if old.shape() != &self.shape {
            let got = format!("{:?}", old.shape());
            return Err(bad(OP, "old", format!("{:?}", self.shape), got));
        }
        let mut phy2log = old.phy2log().to_vec();
        for m in &self.moves {
            let held = old.layer_phy2log(m.layer)[m.from];
            if held as usize != m.expert {
                let expected = format!("expert {} in layer {}, slot {}", m.expert, m.layer, m.from);
                return Err(bad(OP, "old", expected, held));
            }
            phy2log[m.layer * self.shape.replicas + m.to] = held;
        }
        Placement::new(self.shape, phy2log)
    }
}
