//! What becomes of a route: its physical expert, then its local one.

use super::sort::Copies;

/// An id type. Its class among `experts`: 0..experts are experts, `experts` is masked, `experts + 1` invalid.
pub(super) trait Id: Copy + Sync {
    fn class(self, experts: u32) -> u32;
    /// The expert, or `experts` where it is none.
    fn expert(self, experts: u32) -> u32;
}

impl Id for i32 {
    #[inline(always)]
    fn class(self, experts: u32) -> u32 {
        if (self as u32) < experts { self as u32 } else { experts + u32::from(self != -1) }
    }
    #[inline(always)]
    fn expert(self, experts: u32) -> u32 {
        (self as u32).min(experts)
    }
}

impl Id for u32 {
    #[inline(always)]
    fn class(self, experts: u32) -> u32 {
        if self < experts { self } else { experts + u32::from(self != u32::MAX) }
    }
    #[inline(always)]
    fn expert(self, experts: u32) -> u32 {
        self.min(experts)
    }
}

impl Id for i64 {
    #[inline(always)]
    fn class(self, experts: u32) -> u32 {
        if (self as u64) < u64::from(experts) { self as u32 } else { experts + u32::from(self != -1) }
    }
    #[inline(always)]
    fn expert(self, experts: u32) -> u32 {
        (self as u64).min(u64::from(experts)) as u32
    }
}

/// From a route to its physical expert, as a class among the P physical experts.
pub(super) trait Physical: Sync {
    /// Whether the class of a route follows from its id alone.
    const BY_ID: bool;
    /// The class of the route with this number and id.
    fn class<I: Id>(&self, id: I, route: usize) -> u32;
    /// Its physical expert, or something not below P.
    #[inline(always)]
    fn expert<I: Id>(&self, id: I, route: usize) -> u32 {
        self.class(id, route)
    }
}

/// Every expert is its own physical expert.
pub(super) struct Single {
    pub(super) experts: u32,
}

impl Physical for Single {
    const BY_ID: bool = true;
    #[inline(always)]
    fn class<I: Id>(&self, id: I, _: usize) -> u32 {
        id.class(self.experts)
    }
    #[inline(always)]
    fn expert<I: Id>(&self, id: I, _: usize) -> u32 {
        id.expert(self.experts)
    }
}

/// Experts have copies, which take turns by token plus k.
pub(super) struct Replicated<'a> {
    pub(super) experts: u32,
    pub(super) physical: u32,
    pub(super) top_k: usize,
    pub(super) copies: Copies<'a>,
}

impl Physical for Replicated<'_> {
    const BY_ID: bool = false;
    #[inline(always)]
    fn class<I: Id>(&self, id: I, route: usize) -> u32 {
        let e = id.class(self.experts);
        if e >= self.experts {
            return self.physical + (e - self.experts);
        }
        let Copies { log2phy, logcnt, width, .. } = self.copies;
        let (e, count) = (e as usize, logcnt[e as usize] as u32 as usize);
        if count == 0 || count > width {
            return self.physical + 1;
        }
        let turn = route / self.top_k + route % self.top_k;
        let physical = log2phy[e * width + turn % count] as u32;
        if physical < self.physical { physical } else { self.physical + 1 }
    }
}

/// From a route to its local expert.
pub(super) struct Router<'a, P> {
    pub(super) physical: P,
    /// [P].
    pub(super) map: Option<&'a [i32]>,
}

impl<P: Physical> Router<'_, P> {
    /// The local expert of a route, or something not below E_local.
    #[inline(always)]
    pub(super) fn local<I: Id>(&self, id: I, route: usize) -> u32 {
        let physical = self.physical.expert(id, route);
        match self.map {
            None => physical,
            Some(map) => map.get(physical as usize).map_or(u32::MAX, |&m| m as u32),
        }
    }
}
