//! From what was measured to records of a report.

use crate::report::{Kind, Record};
use crate::stats::Samples;
use crate::target::{Clock, Measured, Target};
use std::collections::BTreeMap;

/// What was measured.
#[derive(Clone, Debug)]
pub struct What {
    /// The layer.
    pub model: &'static str,
    /// The operation.
    pub op: &'static str,
    /// The element type.
    pub dtype: &'static str,
    /// Where the ids come from.
    pub routing: &'static str,
    /// T.
    pub tokens: usize,
    /// Bytes that it reads and writes.
    pub bytes: usize,
}

/// The record of one of ours.
pub fn ours<T: Target>(target: &T, what: &What, measured: &Measured, cache: &str) -> Record {
    Record {
        run: 0,
        contender: target.name().into(),
        kind: Kind::Ours,
        device: target.device(),
        device_name: target.device_name(),
        model: what.model.into(),
        op: what.op.into(),
        dtype: what.dtype.into(),
        routing: what.routing.into(),
        tokens: what.tokens,
        cache: cache.into(),
        us: measured.ours.median(),
        us_min: measured.ours.min(),
        clock: measured.clock.as_ref().map(|clock| match clock {
            Clock::Gpu { .. } => "gpu".into(),
            Clock::Wall => "wall".into(),
        }),
        wall_us: match &measured.clock {
            Some(Clock::Gpu { wall }) => Some(wall.median()),
            _ => None,
        },
        samples: measured.ours.len(),
        bytes: what.bytes,
        copies: measured.copies.iter().map(|(name, samples)| ((*name).to_owned(), samples.median())).collect(),
        way: None,
        other_ways: BTreeMap::new(),
    }
}

/// The record of a peer in its fastest way, beside ours.
pub fn peer(ours: &Record, contender: &str, mut ways: Vec<(&'static str, &Samples)>) -> Option<Record> {
    ways.sort_by(|a, b| a.1.median().total_cmp(&b.1.median()));
    let (way, samples) = *ways.first()?;
    Some(Record {
        contender: contender.into(),
        kind: Kind::Peer,
        clock: None,
        wall_us: None,
        us: samples.median(),
        us_min: samples.min(),
        samples: samples.len(),
        way: Some(way.to_owned()),
        other_ways: ways[1..].iter().map(|(way, s)| ((*way).to_owned(), s.median())).collect(),
        ..ours.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_peers_ways_the_fastest_counts() {
        let ours = crate::report::tests::record("moe-cpu", Kind::Ours, 1, 1.0);
        let (slow, fast) = (Samples(vec![9.0, 9.0, 9.0]), Samples(vec![4.0, 5.0, 40.0]));
        let record = peer(&ours, "candle", vec![("slow", &slow), ("fast", &fast)]).unwrap();
        assert_eq!((record.us, record.way.as_deref(), record.other_ways["slow"]), (5.0, Some("fast"), 9.0));
        assert!(peer(&ours, "candle", vec![]).is_none());
    }
}
