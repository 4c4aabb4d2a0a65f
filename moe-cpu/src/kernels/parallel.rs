//! Splitting a range of work over rayon's current pool.

use std::ops::Range;

/// Calls `f` on disjoint parts of `range`, each of at most `grain` (at least 1) items, that cover it.
/// Allocates nothing: the parts come from nested `rayon::join`, whose jobs lie on the stack.
pub(crate) fn for_ranges<F: Fn(Range<usize>) + Sync>(range: Range<usize>, grain: usize, f: &F) {
    let len = range.len();
    if len <= grain.max(1) {
        if len > 0 {
            f(range);
        }
        return;
    }
    let middle = range.start + len / 2;
    rayon::join(|| for_ranges(range.start..middle, grain, f), || for_ranges(middle..range.end, grain, f));
}

/// A pointer that tasks share. They write to disjoint places.
pub(crate) struct Shared(*mut u8);

// SAFETY: the pointer comes from a `&mut [u8]` that outlives the tasks, which write disjoint parts of it.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(bytes: &mut [u8]) -> Self {
        Shared(bytes.as_mut_ptr())
    }
    /// From memory that the caller has borrowed mutably for as long as this value lives.
    pub(crate) fn from_ptr(ptr: *mut u8) -> Self {
        Shared(ptr)
    }
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.0
    }
}
