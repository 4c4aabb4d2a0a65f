//! The load balancer: recorded answers, properties at random, the worker, the simulator.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use moe_core::eplb::{
    Balancer, BalancerConfig, Drift, EplbError, Health, INVALID_ID, LoadTotals, LoadWindow, MASKED_ID, MigrationPlan,
    Mode, Options, Placement, Shape, SimConfig, Trace, limit_moves, map_ids, physical_id, rebalance, simulate,
};
use serde_json::Value;

#[path = "eplb/input.rs"]
mod input;
#[path = "eplb/migrate.rs"]
mod migrate;
#[path = "eplb/placement.rs"]
mod placement;
#[path = "eplb/sim.rs"]
mod sim;
#[path = "eplb/worker.rs"]
mod worker;

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    /// Seeded from the clock, or from EPLB_SEED to repeat a run; prints the seed.
    fn new(test: &str) -> Self {
        let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("EPLB_SEED").map_or_else(|_| clock(), |s| s.parse().unwrap());
        println!("{test}: EPLB_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In low..=high.
    fn within(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() >> 33) as usize % (high - low + 1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.within(0, from.len() - 1)]
    }

    /// A valid shape, hierarchical or global.
    fn shape(&mut self) -> Shape {
        let nodes = self.within(1, 4);
        let gpus = nodes * self.within(1, 5);
        let groups = if self.within(0, 1) == 0 { nodes * self.within(1, 3) } else { self.within(1, 5) };
        let experts = groups * self.within(1, 12);
        let replicas = experts.div_ceil(gpus) * gpus + gpus * self.within(0, 3);
        Shape { layers: self.within(1, 4), experts, replicas, groups, nodes, gpus }
    }

    /// Loads of different kinds: even, skewed, few values (many ties), mostly zero, all zero.
    fn load(&mut self, shape: &Shape) -> Vec<f64> {
        let kind = self.within(0, 4);
        let n = shape.layers * shape.experts;
        (0..n)
            .map(|_| match kind {
                0 => 1000.0 + self.within(0, 50) as f64,
                1 => (self.within(1, 1_000_000) as f64 / 1e6).powi(6) * 1e5,
                2 => self.within(0, 3) as f64,
                3 if self.within(0, 9) == 0 => self.within(0, 1000) as f64,
                _ => 0.0,
            })
            .collect()
    }
}

fn ints(value: &Value) -> Vec<i32> {
    match value {
        Value::Array(items) => items.iter().flat_map(ints).collect(),
        item => vec![item.as_i64().expect("an integer") as i32],
    }
}

fn max(loads: &[f64]) -> f64 {
    loads.iter().copied().fold(0.0, f64::max)
}

fn layer_load<'a>(shape: &Shape, load: &'a [f64], layer: usize) -> &'a [f64] {
    &load[layer * shape.experts..][..shape.experts]
}

const V3: Shape = Shape { layers: 61, experts: 256, replicas: 288, groups: 8, nodes: 4, gpus: 32 };

/// Loads as in a large model: a few hot experts per layer.
fn v3_load() -> Vec<f64> {
    let mut random = Random(42);
    (0..V3.layers * V3.experts).map(|_| (random.within(1, 100_000) as f64 / 1e5).powi(4) * 1e5).collect()
}

fn totals(shape: &Shape, load: &[f64]) -> LoadTotals {
    let mut totals = LoadTotals::zero(shape.layers, shape.experts).unwrap();
    totals.sums_mut().iter_mut().zip(load).for_each(|(s, &v)| *s = v as u64);
    totals
}

fn assert_groups_stay_on_one_node(placement: &Placement) {
    let shape = placement.shape();
    for l in 0..shape.layers {
        let mut home = vec![None; shape.groups];
        for (slot, &e) in placement.layer_phy2log(l).iter().enumerate() {
            let node = shape.node_of(shape.gpu_of(slot));
            let group = e as usize / (shape.experts / shape.groups);
            assert_eq!(*home[group].get_or_insert(node), node, "group {group}, {shape:?}");
        }
    }
}

/// Copies per expert and GPU of one layer, [gpus][experts].
fn copies_per_gpu(placement: &Placement, layer: usize) -> Vec<Vec<usize>> {
    let shape = placement.shape();
    let count = |slots: &[i32]| {
        let mut n = vec![0; shape.experts];
        slots.iter().for_each(|&e| n[e as usize] += 1);
        n
    };
    placement.layer_phy2log(layer).chunks(shape.slots_per_gpu()).map(count).collect()
}

fn argument(error: EplbError) -> &'static str {
    let text = error.to_string();
    assert!(text.contains("expected") && text.contains("got"), "{text}");
    match error {
        EplbError::Argument { arg, .. } => arg,
        other => panic!("expected an argument error, got {other:?}"),
    }
}
