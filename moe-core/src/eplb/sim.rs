//! Replays expert choices against placements.

use std::time::{Duration, Instant};

use super::bounded::limit_moves;
use super::error::{EplbError, bad};
use super::migrate::MigrationPlan;
use super::placement::{Placement, mean_over_max};
use super::rebalance::{Options, rebalance};
use super::route::physical_id;
use super::shape::Shape;
use super::trace::Trace;
use super::window::LoadWindow;

/// Settings of a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimConfig {
    /// R, slots per layer over all GPUs.
    pub replicas: usize,
    /// Groups of experts.
    pub groups: usize,
    /// Hosts.
    pub nodes: usize,
    /// GPUs over all hosts.
    pub gpus: usize,
    /// Tokens per step.
    pub step_tokens: usize,
    /// Steps in the load window.
    pub window: usize,
    /// Steps between two rebalances.
    pub interval: usize,
    /// Most expert copies per rebalance.
    pub max_moves: Option<usize>,
}

/// One step. Balancedness is mean over maximal load of the GPUs, averaged over the layers.
#[derive(Debug, Clone, PartialEq)]
pub struct SimRow {
    /// Number of the step, from 0.
    pub step: usize,
    /// Routes per layer.
    pub routes: usize,
    /// Balancedness of the rows under the identity placement.
    pub before: f64,
    /// Balancedness of the rows under the placement in use, which was computed from earlier steps.
    pub after: f64,
    /// The same if the copies of an expert shared its rows evenly.
    pub even: f64,
    /// Whether a rebalance has taken place before this step.
    pub balanced: bool,
    /// Expert copies of the rebalance that followed this step, 0 where none did.
    pub moves: usize,
    /// Those of `moves` that go to another GPU.
    pub across_gpus: usize,
    /// Time of that rebalance (placement and migration plan).
    pub rebalance: Option<Duration>,
}

/// What a simulation found.
#[derive(Debug, Clone, PartialEq)]
pub struct SimReport {
    /// The sizes that were simulated.
    pub shape: Shape,
    /// The steps.
    pub rows: Vec<SimRow>,
}

impl SimReport {
    /// Mean of (before, after, even) over the steps that followed a rebalance; `None` where there
    /// was no such step.
    #[must_use]
    pub fn means(&self) -> Option<(f64, f64, f64)> {
        let rows: Vec<&SimRow> = self.rows.iter().filter(|r| r.balanced).collect();
        let mean = |f: fn(&SimRow) -> f64| rows.iter().map(|r| f(r)).sum::<f64>() / rows.len() as f64;
        (!rows.is_empty()).then(|| (mean(|r| r.before), mean(|r| r.after), mean(|r| r.even)))
    }

    /// Expert copies over all rebalances.
    #[must_use]
    pub fn total_moves(&self) -> usize {
        self.rows.iter().map(|r| r.moves).sum()
    }

    /// The longest rebalance.
    #[must_use]
    pub fn slowest_rebalance(&self) -> Option<Duration> {
        self.rows.iter().filter_map(|r| r.rebalance).max()
    }

    /// A picture of the steps: one self-contained SVG document.
    #[must_use]
    pub fn svg(&self, title: &str) -> String {
        super::svg::draw(self, title)
    }
}

/// The rows as a Markdown table, and a line of means.
impl std::fmt::Display for SimReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "| step | routes | before | after | even | moves | to other GPUs | time |")?;
        writeln!(f, "|---:|---:|---:|---:|---:|---:|---:|---:|")?;
        for r in &self.rows {
            let time = r.rebalance.map_or_else(String::new, |t| format!("{t:.1?}"));
            writeln!(
                f,
                "| {} | {} | {:.3} | {:.3} | {:.3} | {} | {} | {time} |",
                r.step, r.routes, r.before, r.after, r.even, r.moves, r.across_gpus
            )?;
        }
        if let Some((before, after, even)) = self.means() {
            write!(f, "\nmean balancedness: before {before:.3}, after {after:.3}, even {even:.3}; ")?;
            write!(f, "{} copies", self.total_moves())?;
        }
        Ok(())
    }
}

/// Replays `trace` step by step: each step is served by the placement in use, its load goes into
/// the window, and every `interval` steps a new placement is computed from the window and taken up
/// at once. Rows go to replicas by [`physical_id`], with tokens numbered from 0 in each step.
///
/// # Errors
/// [`EplbError::Argument`] if the sizes do not fit together or a count is zero.
pub fn simulate(trace: &Trace, config: &SimConfig) -> Result<SimReport, EplbError> {
    const OP: &str = "simulate";
    let SimConfig { replicas, groups, nodes, gpus, step_tokens, window, interval, .. } = *config;
    let (layers, experts) = (trace.layers(), trace.experts());
    let shape = Shape { layers, experts, replicas, groups, nodes, gpus };
    for (arg, value) in [("step_tokens", step_tokens), ("interval", interval)] {
        if value == 0 {
            return Err(bad(OP, arg, "at least 1", value));
        }
    }
    let identity = Placement::identity(shape)?;
    let mut current = identity.clone();
    let mut window = LoadWindow::new(layers, experts, window)?;
    let mut rows = Vec::new();
    let mut balanced = false;
    for (step, first) in (0..trace.tokens()).step_by(step_tokens).enumerate() {
        let load = count(trace, first, step_tokens);
        let exact: Vec<f64> = load.iter().map(|&v| f64::from(v)).collect();
        let even = current.balancedness(&exact)?;
        let mut row = SimRow {
            step,
            routes: trace.ids(0, first, step_tokens).len(),
            before: routed(trace, first, step_tokens, &identity),
            after: routed(trace, first, step_tokens, &current),
            even: even.iter().sum::<f64>() / layers as f64,
            balanced,
            moves: 0,
            across_gpus: 0,
            rebalance: None,
        };
        window.push(&load)?;
        if (step + 1) % interval == 0 {
            let begin = Instant::now();
            let load = window.totals().to_load();
            let options = Options { previous: Some(&current), ..Options::default() };
            let mut next = rebalance(&load, &shape, &options)?;
            if let Some(max_moves) = config.max_moves {
                next = limit_moves(&current, &next, &load, max_moves)?;
            }
            let plan = MigrationPlan::between(&current, &next)?;
            row.rebalance = Some(begin.elapsed());
            row.moves = plan.len();
            row.across_gpus = plan.across_gpus();
            current = next;
            balanced = true;
        }
        rows.push(row);
    }
    Ok(SimReport { shape, rows })
}

/// [L, E]: routes of a step per logical expert.
fn count(trace: &Trace, first: usize, tokens: usize) -> Vec<i32> {
    let mut load = vec![0; trace.layers() * trace.experts()];
    for (layer, load) in load.chunks_exact_mut(trace.experts()).enumerate() {
        for &id in trace.ids(layer, first, tokens) {
            load[usize::from(id)] += 1;
        }
    }
    load
}

/// Balancedness of the rows that a step sends to each GPU, averaged over the layers.
fn routed(trace: &Trace, first: usize, tokens: usize, placement: &Placement) -> f64 {
    let shape = placement.shape();
    let layer = |l: usize| {
        let (map, counts) = (placement.layer_log2phy(l), placement.layer_logcnt(l));
        let mut rows = vec![0.0; shape.gpus];
        for (route, &id) in trace.ids(l, first, tokens).iter().enumerate() {
            let turn = (route / trace.top_k() + route % trace.top_k()) as u64;
            let slot = physical_id(map, counts, placement.width(), i32::from(id), turn);
            rows[shape.gpu_of(slot as usize)] += 1.0;
        }
        mean_over_max(&rows)
    };
    (0..shape.layers).map(layer).sum::<f64>() / shape.layers as f64
}
