//! Plain implementations of all operations, on the host, to compare with. Slow and short on purpose; [`crate::raw`]
//! has the same in words.

use crate::raw::PlanShape;
use crate::{Capacity, Element, Float, Layout};
use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

mod routes;

pub use routes::{block_table, chunk_ids, mask_ids, mask_values, scatter_mask, split_sizes};

/// A route plan's arrays; names and shapes as in [`crate::raw::PlanArrays`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Plan {
    pub top_k: usize,
    pub source: Vec<i32>,
    pub slot: Vec<i32>,
    pub expert_offsets: Vec<i32>,
    pub tokens_per_expert: Vec<i32>,
    pub status: [u32; 5],
    pub m_indices: Vec<i32>,
    pub logical_load: Vec<i32>,
}

/// What a plan is built from; [`crate::raw::BuildArgs`] says what each part means.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Source<'a> {
    /// Widened; a masked one is -1 whatever the type was.
    pub ids: &'a [i64],
    /// `log2phy`, its width, and `logcnt`.
    pub replicas: Option<(&'a [i32], usize, &'a [i32])>,
    pub expert_map: Option<&'a [i32]>,
    pub capacity_weights: Option<&'a [f32]>,
    pub valid_tokens: Option<i32>,
    pub mask_overflow: Option<u32>,
}

/// Builds a plan from ids alone.
pub fn plan(shape: &PlanShape, ids: &[i64], expert_map: Option<&[i32]>, valid_tokens: Option<i32>) -> Plan {
    plan_of(shape, &Source { ids, expert_map, valid_tokens, ..Source::default() })
}

/// Builds a plan.
pub fn plan_of(shape: &PlanShape, source: &Source<'_>) -> Plan {
    let (routes, rows, local) = (shape.num_routes(), shape.rows, shape.num_local_experts);
    let valid = source.valid_tokens.map_or(shape.num_tokens, |n| (n.max(0) as usize).min(shape.num_tokens));
    let (mut status, mut load) = ([0; 5], vec![0; shape.num_experts]);
    let mut members = vec![Vec::new(); local];
    for (x, id) in source.ids.iter().enumerate().take(valid * shape.top_k) {
        if *id == -1 {
            status[0] += 1;
        } else if !(0..shape.num_experts as i64).contains(id) {
            status[1] += 1;
        } else {
            load[*id as usize] += 1;
            match local_expert(shape, source, *id as usize, x) {
                Ok(e) => members[e].push(x),
                Err(counter) => status[counter] += 1,
            }
        }
    }
    if let Some(over) = source.mask_overflow {
        (status[0], status[4]) = (0, over);
    }
    for routes in &mut members {
        let all = routes.len();
        match shape.capacity {
            None => {}
            Some(Capacity::ByRoute(c)) => routes.truncate(c),
            Some(Capacity::ByWeight(c)) => {
                let weights = source.capacity_weights.expect("weights for a capacity by weight");
                let heavier = |a: &usize, b: &usize| match (weights[*a], weights[*b]) {
                    (a, b) if a.is_nan() || b.is_nan() => a.is_nan().cmp(&b.is_nan()),
                    (a, b) => b.partial_cmp(&a).expect("not NaN"),
                };
                routes.sort_by(heavier); // stable: ties stay in route order
                routes.truncate(c);
                routes.sort_unstable();
            }
        }
        status[3] += (all - routes.len()) as u32;
    }
    let mut plan = Plan {
        top_k: shape.top_k,
        source: vec![-1; rows],
        slot: vec![-1; routes],
        expert_offsets: vec![0],
        tokens_per_expert: members.iter().map(|m| m.len() as i32).collect(),
        status,
        m_indices: vec![-1; rows],
        logical_load: load,
    };
    let mut start = 0;
    for (e, routes) in members.iter().enumerate() {
        for (i, x) in routes.iter().enumerate() {
            plan.source[start + i] = *x as i32;
            plan.slot[*x] = (start + i) as i32;
            plan.m_indices[start + i] = e as i32;
        }
        start += match shape.layout {
            Layout::Packed => routes.len(),
            Layout::Aligned(n) => routes.len().next_multiple_of(n),
            Layout::Padded(c) => c,
        };
        plan.expert_offsets.push(start as i32);
    }
    plan
}

impl Plan {
    /// Rows below the last expert offset.
    pub fn used(&self) -> usize {
        *self.expert_offsets.last().expect("E_local + 1 offsets") as usize
    }
}

/// The local expert of a route, or the counter of what becomes of it.
fn local_expert(shape: &PlanShape, source: &Source<'_>, id: usize, route: usize) -> Result<usize, usize> {
    let physical = match source.replicas {
        None => id,
        Some((log2phy, width, logcnt)) => {
            let copies = usize::try_from(logcnt[id]).ok().filter(|n| (1..=width).contains(n)).ok_or(1usize)?;
            let turn = (route / shape.top_k + route % shape.top_k) % copies;
            let physical = usize::try_from(log2phy[id * width + turn]).map_err(|_| 1usize)?;
            if physical >= shape.num_physical_experts {
                return Err(1);
            }
            physical
        }
    };
    match source.expert_map.map_or(physical as i32, |map| map[physical]) {
        -1 => Err(2),
        e => usize::try_from(e).ok().filter(|e| *e < shape.num_local_experts).ok_or(1),
    }
}

/// Elements that are computed with.
pub trait Widen: Element {
    /// The value, exactly.
    fn widen(self) -> f32;
}
impl Widen for f32 {
    fn widen(self) -> f32 {
        self
    }
}
impl Widen for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}
impl Widen for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}
impl Widen for F8E5M2 {
    fn widen(self) -> f32 {
        f16::from_bits(u16::from(self.to_bits()) << 8).to_f32() // the upper byte of an f16
    }
}
impl Widen for F8E4M3 {
    fn widen(self) -> f32 {
        let bits = self.to_bits();
        let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
        let size = match (exponent, mantissa) {
            (15, 7.0) => f32::NAN,
            (0, m) => m * 2f32.powi(-9),
            (e, m) => (8.0 + m) * 2f32.powi(e - 10),
        };
        if bits & 0x80 == 0 { size } else { -size }
    }
}

/// Rounds once, to nearest even; NaN becomes the canonical one.
pub fn round<T: Float>(x: f32) -> T {
    T::from_f32(if x.is_nan() { f32::from_bits(0x7fc0_0000) } else { x })
}

/// Copies rows; `out` `[R, H]` keeps what it has past the last offset.
pub fn gather<T: Element>(plan: &Plan, rows: &[T], hidden: usize, out: &mut [T]) {
    for (row, out) in out.chunks_exact_mut(hidden).enumerate().take(plan.used()) {
        match plan.source[row] {
            -1 => out.fill(T::default()),
            x => out.copy_from_slice(&rows[x as usize / plan.top_k * hidden..][..hidden]),
        }
    }
}

/// Copies rows times their weights.
pub fn gather_weighted<T: Float + Widen>(plan: &Plan, rows: &[T], weights: &[f32], hidden: usize, out: &mut [T]) {
    gather(plan, rows, hidden, out);
    for (row, out) in out.chunks_exact_mut(hidden).enumerate().take(plan.used()) {
        if plan.source[row] >= 0 {
            out.iter_mut().for_each(|y| *y = round(weights[plan.source[row] as usize] * y.widen()));
        }
    }
}

/// Sums rows `[R, H]` into tokens `[T, H]`. Weights are `[T, K]`, scales `[R, ceil(H / block)]` with their block, the
/// residual `[T, H]` with its scale.
pub fn combine<T: Widen, O: Float + Widen>(
    plan: &Plan,
    rows: &[T],
    weights: Option<&[f32]>,
    scales: Option<(&[f32], usize)>,
    residual: Option<(&[O], f32)>,
    hidden: usize,
) -> Vec<O> {
    let mut out = Vec::new();
    for (t, slots) in plan.slot.chunks_exact(plan.top_k).enumerate() {
        for h in 0..hidden {
            let mut sum = residual.map_or(0.0, |(x, scale)| scale * x[t * hidden + h].widen());
            for (k, slot) in slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
                let row = *slot as usize;
                let weight = weights.map_or(1.0, |w| w[t * plan.top_k + k]);
                let scale = scales.map_or(1.0, |(s, block)| s[row * hidden.div_ceil(block) + h / block]);
                sum = (weight * scale).mul_add(rows[row * hidden + h].widen(), sum);
            }
            out.push(round(sum));
        }
    }
    out
}

/// The gradient of combine's weights, `[T, K]`, in f32 before its rounding.
pub fn grad_weights<T: Widen>(plan: &Plan, rows: &[T], grad_out: &[T], hidden: usize) -> Vec<f32> {
    let dot = |(x, slot): (usize, &i32)| {
        let mut lanes = [0f32; 1024];
        let mut size = 1024;
        if *slot >= 0 {
            for h in 0..hidden {
                let dx = grad_out[x / plan.top_k * hidden + h].widen();
                lanes[h % 1024] = rows[*slot as usize * hidden + h].widen().mul_add(dx, lanes[h % 1024]);
            }
        }
        while size > 1 {
            size /= 2;
            (0..size).for_each(|i| lanes[i] += lanes[i + size]);
        }
        lanes[0]
    };
    plan.slot.iter().enumerate().map(dot).collect()
}
