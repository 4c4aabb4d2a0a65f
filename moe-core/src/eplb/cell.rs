//! The placement in use, shared between the caller's threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::placement::Placement;

/// Holds the placement in use and counts its generations from 0.
#[derive(Debug)]
pub struct PlacementCell {
    generation: AtomicU64,
    current: Mutex<Arc<Placement>>,
}

impl PlacementCell {
    /// A cell with a first placement, generation 0.
    #[must_use]
    pub fn new(placement: Placement) -> Arc<Self> {
        Arc::new(Self { generation: AtomicU64::new(0), current: Mutex::new(Arc::new(placement)) })
    }

    /// Generation of the placement in use. One atomic read.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The placement in use and its generation.
    #[must_use]
    pub fn snapshot(&self) -> (u64, Arc<Placement>) {
        // No code that can panic runs under this lock, so poison cannot mean a broken value.
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (self.generation.load(Ordering::Relaxed), Arc::clone(&current))
    }

    /// Puts `placement` in use if the generation is still `base`; returns the new generation and
    /// the former placement, else the generation found.
    pub(super) fn swap(&self, base: u64, placement: Arc<Placement>) -> Result<(u64, Arc<Placement>), u64> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.generation.load(Ordering::Relaxed);
        if found != base {
            return Err(found);
        }
        let old = std::mem::replace(&mut *current, placement);
        // Release: who sees the number and then takes the lock sees the placement.
        self.generation.store(found + 1, Ordering::Release);
        Ok((found + 1, old))
    }

    /// A reader for one thread of the hot path.
    #[must_use]
    pub fn reader(self: &Arc<Self>) -> PlacementReader {
        let (generation, cached) = self.snapshot();
        PlacementReader { cell: Arc::clone(self), generation, cached }
    }
}

/// One thread's view of the placement in use.
///
/// [`current`](Self::current) costs one atomic read while the placement is the same. After a swap
/// it takes the cell's lock once, for the time of cloning an `Arc`; the balancer's worker never
/// computes under that lock. Call it once per step and keep the clone for the step: a step in
/// flight then ends with the maps it began with.
#[derive(Debug, Clone)]
pub struct PlacementReader {
    cell: Arc<PlacementCell>,
    generation: u64,
    cached: Arc<Placement>,
}

impl PlacementReader {
    /// The placement in use.
    pub fn current(&mut self) -> &Arc<Placement> {
        if self.cell.generation() != self.generation {
            (self.generation, self.cached) = self.cell.snapshot();
        }
        &self.cached
    }

    /// Generation of what [`current`](Self::current) returned last.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}
