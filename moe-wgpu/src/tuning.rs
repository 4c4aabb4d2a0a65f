//! Which variant of a kernel runs: one table of knobs. Each setting gives the same bits.

use crate::WgpuDevice;
use crate::plan::Way;
use moe_core::oracle::{Knob, Op, Path, Tuned, Wish};
use moe_core::{Error, PlanSpec, Result};

const SIZES: &[&str] = &["64", "128", "256", "512", "1024"];

fn size(tuned: &Tuned, knob: &Knob) -> u32 {
    64 << tuned.get(knob)
}

const GATHER_THREADS: Knob = Knob::choice("gather_threads", "threads of a gather's workgroup", SIZES, 1, &[0, 1, 2, 3]);
const GATHER_UNITS: Knob = Knob::number(
    "gather_units",
    "16-byte units of a row that a thread of a gather moves, where there are many",
    (1, 16),
    2,
    &[1, 2, 4, 8],
);
const COMBINE_THREADS: Knob =
    Knob::choice("combine_threads", "threads of a combine's workgroup", SIZES, 1, &[0, 1, 2, 3]);
const COMBINE_UNITS: Knob =
    Knob::number("combine_units", "16-byte units of a row that a thread of a combine sums", (1, 8), 1, &[1, 2, 4]);
const COMBINE_ROUTES: Knob = Knob::number(
    "combine_routes",
    "rows that a thread of a combine asks for at once, where there are many threads",
    (1, 8),
    4,
    &[2, 4, 8],
);
const PLAN_THREADS: Knob = Knob::choice(
    "plan_threads",
    "threads of a plan's workgroup, with subgroups, where there are many routes",
    SIZES,
    3,
    &[2, 3, 4],
);
const PLAN_TILES: Knob = Knob::number(
    "plan_tiles",
    "routes of a thread up to which one workgroup makes the whole plan",
    (0, 16),
    2,
    &[0, 1, 2, 4, 8],
);
const PLAN_CHUNKS: Knob =
    Knob::number("plan_chunks", "workgroups that share a larger plan", (1, 256), 128, &[16, 32, 64, 128, 256]);
const PLAN_RANKS: Knob =
    Knob::choice("plan_ranks", "how a workgroup ranks routes", &["best", "comparisons", "subgroups"], 0, &[0, 1, 2]);

/// Where "many" begins, as an H200 has it.
const MANY_UNITS: u64 = 1 << 18;
const MANY_THREADS: u64 = 1 << 16;
const MANY_ROUTES: usize = 1 << 14;

/// All that can be tuned.
pub(crate) const KNOBS: &[Knob] = &[
    GATHER_THREADS,
    GATHER_UNITS,
    COMBINE_THREADS,
    COMBINE_UNITS,
    COMBINE_ROUTES,
    PLAN_THREADS,
    PLAN_TILES,
    PLAN_CHUNKS,
    PLAN_RANKS,
];

/// What the device lets a workgroup be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workgroup {
    /// The most threads.
    pub(crate) threads: u32,
    /// Bytes of memory.
    pub(crate) memory: u32,
}

impl Workgroup {
    pub(crate) fn new(limits: &wgpu::Limits) -> Self {
        let threads = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        Self { threads, memory: limits.max_compute_workgroup_storage_size }
    }
}

/// The variants in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) gather_threads: u32,
    gather_units: u32,
    pub(crate) combine_threads: u32,
    pub(crate) combine_units: u32,
    combine_routes: u32,
    plan_threads: u32,
    pub(crate) plan_tiles: u32,
    pub(crate) plan_chunks: usize,
    /// Subgroups rank routes; `None`: where they are large.
    subgroups: Option<bool>,
}

impl Tuning {
    pub(crate) fn new(tuned: &Tuned, workgroup: Workgroup) -> Self {
        let threads = |knob| size(tuned, knob).min(workgroup.threads);
        let number = |knob| tuned.get(knob) as u32;
        Self {
            gather_threads: threads(&GATHER_THREADS),
            gather_units: number(&GATHER_UNITS),
            combine_threads: threads(&COMBINE_THREADS),
            combine_units: number(&COMBINE_UNITS),
            combine_routes: number(&COMBINE_ROUTES),
            plan_threads: threads(&PLAN_THREADS),
            plan_tiles: number(&PLAN_TILES),
            plan_chunks: tuned.get(&PLAN_CHUNKS),
            subgroups: [None, Some(false), Some(true)].get(tuned.get(&PLAN_RANKS)).copied().flatten(),
        }
    }

    /// Units that a thread of a gather moves, of `units` in all: where there are few, one each keeps the GPU busy.
    pub(crate) fn gather_units(&self, units: u64) -> u32 {
        if units < MANY_UNITS { 1 } else { self.gather_units }
    }

    /// Rows that a thread of a combine asks for at once, of `threads` in all: few threads wait for the memory, many
    /// share the registers.
    pub(crate) fn combine_routes(&self, threads: u64) -> u32 {
        if threads < MANY_THREADS { 8 } else { self.combine_routes }
    }

    /// Whether subgroups of up to `lanes` rank routes. They take turns, which costs more than comparing where they are
    /// small.
    pub(crate) fn by_subgroups(&self, lanes: u32) -> bool {
        self.subgroups.unwrap_or(lanes >= 16)
    }

    /// Threads of a plan's workgroup where subgroups rank.
    pub(crate) fn plan_threads(&self, routes: usize) -> u32 {
        if routes < MANY_ROUTES { self.plan_threads.min(256) } else { self.plan_threads }
    }
}

/// Refuses what a table asks for and the device does not have.
pub(crate) fn check(tuned: &Tuned, workgroup: Workgroup, subgroups: bool) -> Result<()> {
    let refuse = |knob: &Knob, expected: String| {
        let got = knob.format(tuned.get(knob));
        Err(Error::InvalidArgument { op: "tune", arg: knob.key, expected, got })
    };
    for knob in [GATHER_THREADS, COMBINE_THREADS, PLAN_THREADS] {
        if tuned.is_measured(&knob) && size(tuned, &knob) > workgroup.threads {
            return refuse(&knob, format!("at most the {} threads of a workgroup of this device", workgroup.threads));
        }
    }
    match tuned.get(&PLAN_RANKS) {
        2 if !subgroups => refuse(&PLAN_RANKS, "comparisons: the device has no subgroups".into()),
        _ => Ok(()),
    }
}

/// Which kernels a wish would run, and why.
pub(crate) fn paths(device: &WgpuDevice, wish: &Wish) -> Vec<Path> {
    let (tuned, sizes) = (device.tuned(), wish.sizes());
    let from = |knob: &Knob| {
        let value = knob.format(tuned.get(knob));
        format!("{} {value}, {}", knob.key, if tuned.is_measured(knob) { "measured" } else { "built in" })
    };
    let tuning = device.tuning();
    let row = sizes.hidden_size.saturating_mul(wish.dtype().size());
    let vectors = row.is_multiple_of(16);
    let words = || ("words", format!("rows of {row} bytes are no whole units of 16"));
    let mut paths = Vec::new();
    for &op in wish.wanted_ops() {
        let (what, (taken, why)) = match op {
            Op::Plan => {
                let spec = PlanSpec::new(sizes.typical_tokens, sizes.top_k, sizes.num_experts);
                let spec = spec.local_experts(sizes.num_local_experts).layout(wish.wanted_layout());
                let Ok(rows) = spec.num_rows() else { continue };
                let routes = sizes.typical_tokens.saturating_mul(sizes.top_k);
                let way = Way::new(device, routes, sizes.num_local_experts, rows);
                let limits = [from(&PLAN_TILES), from(&PLAN_THREADS), from(&PLAN_RANKS)].join("; ");
                ("plan", (way.name(), format!("{routes} routes ({limits})")))
            }
            Op::Gather | Op::WeightedGather if vectors => {
                let why =
                    format!("{} threads ({}; {})", tuning.gather_threads, from(&GATHER_THREADS), from(&GATHER_UNITS));
                ("gather", ("tokens", why))
            }
            Op::Combine if vectors => {
                let why = format!(
                    "{} threads ({}; {})",
                    tuning.combine_threads,
                    from(&COMBINE_THREADS),
                    from(&COMBINE_UNITS)
                );
                ("combine", ("vectors", why))
            }
            Op::Gather | Op::WeightedGather => ("gather", words()),
            Op::Combine => ("combine", words()),
            _ => continue,
        };
        paths.push(Path { what, taken: taken.into(), why });
    }
    paths
}
