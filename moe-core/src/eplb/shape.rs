//! Sizes of a balancing problem and the checks on them.

use super::error::{EplbError, bad};

/// The sizes of a balancing problem.
///
/// When `groups` divides evenly by `nodes`, balancing is hierarchical: the experts of a group
/// (`experts / groups` consecutive ones) and all their replicas stay on one node. Otherwise it is
/// global and `groups` and `nodes` do not constrain the placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// L, number of MoE layers.
    pub layers: usize,
    /// E, logical experts per layer.
    pub experts: usize,
    /// R, replicas (slots) per layer over all GPUs, at least `experts`.
    pub replicas: usize,
    /// Groups of experts, as in group-limited routing; 1 where the model has none.
    pub groups: usize,
    /// Hosts.
    pub nodes: usize,
    /// GPUs over all nodes; divides `replicas`.
    pub gpus: usize,
}

impl Shape {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if a size is zero, if there are fewer replicas than experts, if
    /// `gpus` does not divide `replicas`, if `replicas` or the number of map entries exceeds
    /// `i32::MAX`, or, in the hierarchical case, if `groups` does not divide `experts` or `nodes`
    /// does not divide `gpus`.
    pub fn validate(&self) -> Result<(), EplbError> {
        const OP: &str = "shape";
        for (arg, value) in [
            ("layers", self.layers),
            ("experts", self.experts),
            ("replicas", self.replicas),
            ("groups", self.groups),
            ("nodes", self.nodes),
            ("gpus", self.gpus),
        ] {
            if value == 0 {
                return Err(bad(OP, arg, "at least 1", value));
            }
        }
        if self.replicas < self.experts {
            let expected = format!("at least {} (one per expert)", self.experts);
            return Err(bad(OP, "replicas", expected, self.replicas));
        }
        let entries = self.layers.checked_mul(self.replicas);
        if entries.is_none_or(|n| i32::try_from(n).is_err()) {
            let got = format!("{} x {}", self.layers, self.replicas);
            return Err(bad(OP, "layers x replicas", format!("at most {}", i32::MAX), got));
        }
        if !self.replicas.is_multiple_of(self.gpus) {
            let expected = format!("a multiple of gpus ({})", self.gpus);
            return Err(bad(OP, "replicas", expected, self.replicas));
        }
        if self.is_hierarchical() {
            if !self.experts.is_multiple_of(self.groups) {
                let expected = format!("a multiple of groups ({})", self.groups);
                return Err(bad(OP, "experts", expected, self.experts));
            }
            if !self.gpus.is_multiple_of(self.nodes) {
                let expected = format!("a multiple of nodes ({})", self.nodes);
                return Err(bad(OP, "gpus", expected, self.gpus));
            }
        }
        Ok(())
    }

    /// Whether groups of experts are kept on one node.
    #[must_use]
    pub fn is_hierarchical(&self) -> bool {
        self.groups.is_multiple_of(self.nodes)
    }

    /// S, slots per GPU.
    #[must_use]
    pub fn slots_per_gpu(&self) -> usize {
        self.replicas / self.gpus
    }

    /// The GPU that holds slot `slot`.
    #[must_use]
    pub fn gpu_of(&self, slot: usize) -> usize {
        slot / self.slots_per_gpu()
    }

    /// The node of GPU `gpu`; 0 where the GPUs do not divide evenly among the nodes.
    #[must_use]
    pub fn node_of(&self, gpu: usize) -> usize {
        if self.gpus.is_multiple_of(self.nodes) { gpu / (self.gpus / self.nodes) } else { 0 }
    }

    /// Parts of the machine that balance on their own: the nodes, or one part in the global case.
    pub(super) fn domains(&self) -> usize {
        if self.is_hierarchical() { self.nodes } else { 1 }
    }

    /// Checks a load [L, E]: length, no NaN, nothing negative, finite sums per layer.
    pub(super) fn check_load(&self, op: &'static str, load: &[f64]) -> Result<(), EplbError> {
        // `validate` bounds layers x replicas, and experts <= replicas.
        let want = self.layers * self.experts;
        if load.len() != want {
            let expected = format!("{} x {} = {want} values", self.layers, self.experts);
            return Err(bad(op, "load", expected, load.len()));
        }
        for (layer, row) in load.chunks_exact(self.experts).enumerate() {
            if let Some(e) = row.iter().position(|v| !v.is_finite() || *v < 0.0) {
                let got = format!("{} at layer {layer}, expert {e}", row[e]);
                return Err(bad(op, "load", "finite values of at least 0", got));
            }
            let sum: f64 = row.iter().sum();
            if !sum.is_finite() {
                let got = format!("{sum} at layer {layer}");
                return Err(bad(op, "load", "a finite sum per layer", got));
            }
        }
        Ok(())
    }
}
