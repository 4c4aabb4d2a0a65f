//! Checking a plan on the host.

use super::RoutePlan;
use crate::tag::Tag;
use crate::{Backend, Error, Layout, Queue, Result};

impl<B: Backend, G: Tag> RoutePlan<B, G> {
    /// Reads the index arrays back and checks that they fit each other: offsets ascend and obey the layout, each row
    /// below the last offset is padding or holds the one route whose slot points at it, routes of an expert ascend,
    /// and everything past the end is -1. The ids that were made from a mask ascend, and are there for each placed route.
    /// For debugging: it waits for the device and copies all of it.
    ///
    /// # Errors
    /// [`Error::InvalidPlan`] with the first contradiction, or what reading back says.
    pub fn validate(&self, queue: &mut Queue<'_, B, G>) -> Result<()> {
        self.built("RoutePlan::validate")?;
        let source = queue.download(self.source())?;
        let slot = queue.download(self.slot())?;
        let offsets = queue.download(self.expert_offsets())?;
        let counts = queue.download(self.tokens_per_expert())?;
        let m_indices = self.m_indices().map(|v| queue.download(v)).transpose()?;

        let bad = |array, index, expected: String, got: i32| {
            Err(Error::InvalidPlan { array, index, expected, got: i64::from(got) })
        };
        let mut owner = vec![-1; source.len()];
        for (e, count) in counts.iter().enumerate() {
            let (start, count) = (offsets[e], *count);
            let rows = match self.shape().layout {
                Layout::Packed => Some(count),
                Layout::Aligned(n) => (count >= 0).then(|| (count as usize).next_multiple_of(n) as i32),
                Layout::Padded(c) => (0..=c as i32).contains(&count).then_some(c as i32),
            };
            let end = rows.and_then(|r| start.checked_add(r));
            let Some(end) = end.filter(|end| *end >= start && *end as usize <= source.len()) else {
                return bad("tokens_per_expert", e, format!("a count that fits {} rows", source.len()), count);
            };
            if e == 0 && start != 0 {
                return bad("expert_offsets", 0, "0".into(), start);
            }
            if offsets[e + 1] != end {
                return bad("expert_offsets", e + 1, end.to_string(), offsets[e + 1]);
            }
            let mut last = -1;
            for row in start as usize..(start + count) as usize {
                let route = source[row];
                if route <= last || route as usize >= slot.len() {
                    return bad("source", row, format!("a route in {}..{}", last + 1, slot.len()), route);
                }
                if slot[route as usize] != row as i32 {
                    return bad("slot", route as usize, row.to_string(), slot[route as usize]);
                }
                owner[row] = e as i32;
                last = route;
            }
        }
        let placed: usize = counts.iter().map(|c| *c as usize).sum();
        for (row, route) in source.iter().enumerate() {
            if owner[row] < 0 && *route != -1 {
                return bad("source", row, "-1".into(), *route);
            }
        }
        if slot.iter().filter(|s| **s >= 0).count() != placed {
            let lost = slot.iter().position(|s| *s >= 0 && source.get(*s as usize).is_none_or(|r| *r < 0));
            let index = lost.unwrap_or(0);
            return bad("slot", index, "-1, or a row that holds this route".into(), slot[index]);
        }
        for (row, expert) in m_indices.iter().flatten().enumerate() {
            if *expert != owner[row] {
                return bad("m_indices", row, owner[row].to_string(), *expert);
            }
        }
        if let Some(ids) = self.route_ids() {
            let ids = queue.download(ids)?;
            let (experts, top_k) = (self.shape().num_experts as i32, self.shape().top_k);
            for (x, (id, slot)) in ids.iter().zip(&slot).enumerate() {
                let last = if x % top_k == 0 { -1 } else { ids[x - 1] };
                let ascends = *id == -1 || (*id > last && (x % top_k == 0 || last >= 0));
                if !ascends || (*slot >= 0 && !(0..experts).contains(id)) {
                    return bad("route_ids", x, format!("an expert past {last}, below {experts}"), *id);
                }
            }
        }
        Ok(())
    }
}
