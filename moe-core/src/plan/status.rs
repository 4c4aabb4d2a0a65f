//! What a build counted.

use crate::raw::PlanArrays;

/// Routes that were not placed, by reason. A route counts once, at the first reason that applies, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The id was -1, or `u32::MAX` for u32 ids.
    pub masked: u32,
    /// The id, or what the expert map says of it, is out of range.
    pub invalid: u32,
    /// The expert lives elsewhere.
    pub non_local: u32,
    /// The expert had no room left.
    pub over_capacity: u32,
    /// The token had more routes than the plan has room for.
    pub over_max_routes: u32,
}

impl Status {
    pub(crate) fn from_counters(c: [u32; PlanArrays::STATUS_LEN]) -> Self {
        let [masked, invalid, non_local, over_capacity, over_max_routes] = c;
        Self { masked, invalid, non_local, over_capacity, over_max_routes }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        [self.masked, self.invalid, self.non_local, self.over_capacity, self.over_max_routes]
            .iter()
            .map(|n| u64::from(*n))
            .sum()
    }
}
