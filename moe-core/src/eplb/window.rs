//! The load over the last steps.

use super::error::{EplbError, bad};

/// Load per layer and expert, summed over steps and, with [`add`](Self::add), over ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadTotals {
    layers: usize,
    experts: usize,
    steps: usize,
    sums: Vec<u64>,
}

impl LoadTotals {
    /// Totals of zero.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if a size is zero or the table has more than `i32::MAX` entries.
    pub fn zero(layers: usize, experts: usize) -> Result<Self, EplbError> {
        let n = table_len("load_totals", layers, experts)?;
        Ok(Self { layers, experts, steps: 0, sums: vec![0; n] })
    }

    /// Sums that were made elsewhere; their number is layers times experts.
    pub(super) fn from_sums(layers: usize, experts: usize, steps: usize, sums: Vec<u64>) -> Self {
        debug_assert_eq!(sums.len(), layers * experts);
        Self { layers, experts, steps, sums }
    }

    /// L.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// E.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Steps that were summed; of the rank with most steps where ranks were added.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// [L, E] routes.
    #[must_use]
    pub fn sums(&self) -> &[u64] {
        &self.sums
    }

    /// [L, E], to be summed over ranks in place by a collective.
    #[must_use]
    pub fn sums_mut(&mut self) -> &mut [u64] {
        &mut self.sums
    }

    /// [L, E] as [`rebalance`](super::rebalance) takes it. Exact up to 2⁵³.
    #[must_use]
    pub fn to_load(&self) -> Vec<f64> {
        self.sums.iter().map(|&v| v as f64).collect()
    }

    /// Adds another rank's totals (saturating).
    ///
    /// # Errors
    /// [`EplbError::Argument`] if the sizes differ; nothing was added then.
    pub fn add(&mut self, other: &Self) -> Result<(), EplbError> {
        if (self.layers, self.experts) != (other.layers, other.experts) {
            let expected = format!("{} x {}", self.layers, self.experts);
            let got = format!("{} x {}", other.layers, other.experts);
            return Err(bad("load_totals.add", "other", expected, got));
        }
        for (sum, v) in self.sums.iter_mut().zip(&other.sums) {
            *sum = sum.saturating_add(*v);
        }
        self.steps = self.steps.max(other.steps);
        Ok(())
    }
}

/// A sliding window over the last W steps of one rank.
///
/// Keeps the steps in a ring of W·L·E u32 values and their running sum, so that a step costs one
/// pass over L·E values whatever W is. The counts are a plan's `logical_load`.
#[derive(Debug, Clone)]
pub struct LoadWindow {
    totals: LoadTotals,
    ring: Vec<u32>,
    capacity: usize,
    next: usize,
}

impl LoadWindow {
    /// An empty window of `capacity` steps.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if a size is zero or the ring would exceed `isize::MAX` bytes.
    pub fn new(layers: usize, experts: usize, capacity: usize) -> Result<Self, EplbError> {
        const OP: &str = "load_window";
        let n = table_len(OP, layers, experts)?;
        if capacity == 0 {
            return Err(bad(OP, "capacity", "at least 1", capacity));
        }
        let Some(len) = n.checked_mul(capacity).filter(|&len| len <= isize::MAX as usize / 4) else {
            return Err(bad(OP, "capacity", "a ring that can be addressed", capacity));
        };
        let totals = LoadTotals::zero(layers, experts)?;
        Ok(Self { totals, ring: vec![0; len], capacity, next: 0 })
    }

    /// Takes in one step: `load` [L, E] routes per logical expert, as read back from the device.
    /// Allocates nothing.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if the length is not L·E or a count is negative; the window is
    /// unchanged then.
    pub fn push(&mut self, load: &[i32]) -> Result<(), EplbError> {
        const OP: &str = "load_window.push";
        let n = self.totals.sums.len();
        if load.len() != n {
            let expected = format!("{} x {} values", self.totals.layers, self.totals.experts);
            return Err(bad(OP, "load", expected, load.len()));
        }
        if let Some(i) = load.iter().position(|&v| v < 0) {
            return Err(bad(OP, "load", "counts of at least 0", format!("{} at {i}", load[i])));
        }
        let oldest = &mut self.ring[self.next * n..][..n];
        for ((sum, old), &new) in self.totals.sums.iter_mut().zip(oldest).zip(load) {
            let new = new.unsigned_abs();
            *sum = *sum - u64::from(*old) + u64::from(new);
            *old = new;
        }
        self.next = (self.next + 1) % self.capacity;
        self.totals.steps = (self.totals.steps + 1).min(self.capacity);
        Ok(())
    }

    /// W, the most steps the window holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether W steps have come in.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.totals.steps == self.capacity
    }

    /// The sums over the steps in the window.
    #[must_use]
    pub fn totals(&self) -> &LoadTotals {
        &self.totals
    }

    /// Forgets all steps.
    pub fn clear(&mut self) {
        self.ring.fill(0);
        self.totals.sums.fill(0);
        self.totals.steps = 0;
        self.next = 0;
    }
}

fn table_len(op: &'static str, layers: usize, experts: usize) -> Result<usize, EplbError> {
    for (arg, value) in [("layers", layers), ("experts", experts)] {
        if value == 0 {
            return Err(bad(op, arg, "at least 1", value));
        }
    }
    let n = layers.checked_mul(experts).filter(|&n| i32::try_from(n).is_ok());
    n.ok_or_else(|| bad(op, "layers x experts", format!("at most {}", i32::MAX), format!("{layers} x {experts}")))
}
