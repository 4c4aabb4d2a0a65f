//! Every kernel against a naive version, on every instruction set that the machine has, bit for bit.

mod conversions;
mod planning;
mod router;
mod rows;

use super::*;
use half::{bf16, f16};

/// A small generator; tests print its seed.
pub(super) struct Rng(u64);

impl Rng {
    /// Seeded from the clock; the seed is printed, and shown where the test fails.
    pub(super) fn fresh(name: &str) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let seed = now.as_nanos() as u64 | 1;
        println!("{name}: seed {seed}");
        Rng(seed)
    }
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) as usize) % n.max(1)
    }
    /// Mostly ordinary numbers; one in eight is an infinity, a NaN, a subnormal, a zero or a tie of the roundings.
    pub(super) fn float(&mut self) -> f32 {
        const ODD: [u32; 10] = [
            0,
            0x8000_0000,
            1,
            0x8000_0001,
            0x7f80_0000,
            0xff80_0000,
            0xffc1_2345,
            0x3f80_8000,
            0x3f81_8000,
            0x3f80_1000,
        ];
        match self.below(8) {
            0 => f32::from_bits(ODD[self.below(ODD.len())]),
            1 => f32::from_bits(self.next() as u32),
            _ => (self.next() >> 40) as f32 / 65536.0 - 128.0,
        }
    }
    /// `n` elements as bytes.
    pub(super) fn elems(&mut self, elem: Elem, n: usize) -> Vec<u8> {
        (0..n).flat_map(|_| encode(elem, self.float(), self.next() as u8)).collect()
    }
}

/// A float as an element; 8-bit floats take `byte` as it is.
fn encode(elem: Elem, x: f32, byte: u8) -> Vec<u8> {
    match elem {
        Elem::F32 => x.to_ne_bytes().to_vec(),
        Elem::F16 => f16::from_f32(x).to_ne_bytes().to_vec(),
        Elem::Bf16 => bf16::from_f32(x).to_ne_bytes().to_vec(),
        Elem::E4m3 | Elem::E5m2 => vec![byte],
    }
}

/// An element of a buffer, widened by the crates that define the types.
pub(super) fn decode(elem: Elem, bytes: &[u8], i: usize) -> f32 {
    let b = &bytes[i * elem.size()..][..elem.size()];
    match elem {
        Elem::F32 => f32::from_ne_bytes(b.try_into().unwrap()),
        Elem::F16 => f16::from_ne_bytes(b.try_into().unwrap()).to_f32(),
        Elem::Bf16 => bf16::from_ne_bytes(b.try_into().unwrap()).to_f32(),
        Elem::E4m3 => float8::F8E4M3::from_bits(b[0]).to_f32(),
        Elem::E5m2 => float8::F8E5M2::from_bits(b[0]).to_f32(),
    }
}

/// Rounds with the crates' conversions; NaN as the kernels write it.
pub(super) fn rounded(elem: Elem, x: f32) -> Vec<u8> {
    match elem {
        Elem::F32 => (if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }).to_ne_bytes().to_vec(),
        Elem::F16 => (if x.is_nan() { 0x7e00 } else { f16::from_f32(x).to_bits() }).to_ne_bytes().to_vec(),
        Elem::Bf16 => (if x.is_nan() { 0x7fc0 } else { bf16::from_f32(x).to_bits() }).to_ne_bytes().to_vec(),
        Elem::E4m3 | Elem::E5m2 => unreachable!("not an output"),
    }
}

/// Runs in pools of one, two and five threads.
pub(super) fn in_pools(f: impl Fn(usize) + Sync) {
    for threads in [1, 2, 5] {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| f(threads));
    }
}

/// The arrays of a plan, poisoned before they are built.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Arrays {
    pub(super) source: Vec<i32>,
    pub(super) slot: Vec<i32>,
    pub(super) offsets: Vec<i32>,
    pub(super) counts: Vec<i32>,
    pub(super) m_indices: Vec<i32>,
    pub(super) status: Vec<u32>,
    pub(super) load: Vec<i32>,
}

pub(super) const POISON: i32 = 0x5a5a_5a5a;

/// R of the layout.
pub(super) fn row_capacity(args: &PlanArgs<'_>, routes: usize) -> usize {
    match args.layout {
        Layout::Packed => routes,
        Layout::Aligned(n) => (routes + args.local_experts.min(routes) * (n - 1)).next_multiple_of(n),
        Layout::Padded(c) => args.local_experts * c,
    }
}

/// The arguments of a packed plan whose experts are all local; ids are filled in.
pub(super) fn base(top_k: usize, experts: usize) -> PlanArgs<'static> {
    PlanArgs {
        ids: Ids::I64(&[]),
        top_k,
        experts,
        copies: None,
        expert_map: None,
        local_experts: experts,
        layout: Layout::Packed,
        capacity: None,
        valid_tokens: None,
        over_max_routes: None,
    }
}

/// Builds a plan in the current pool.
pub(super) fn build(args: &PlanArgs<'_>, routes: usize) -> Arrays {
    let rows = row_capacity(args, routes);
    let mut a = Arrays {
        source: vec![POISON; rows],
        slot: vec![POISON; routes],
        offsets: vec![POISON; args.local_experts + 1],
        counts: vec![POISON; args.local_experts],
        m_indices: vec![POISON; rows],
        status: vec![POISON as u32; 5],
        load: vec![POISON; args.experts],
    };
    let threads = rayon::current_num_threads();
    let by_weight = matches!(args.capacity, Some(Capacity::ByWeight(..)));
    let bytes =
        plan_scratch_bytes(routes, args.experts, args.physical_experts(), args.local_experts, threads, by_weight);
    let mut scratch = vec![0x5a; bytes];
    let mut out = PlanOut {
        source: &mut a.source,
        slot: &mut a.slot,
        expert_offsets: &mut a.offsets,
        tokens_per_expert: &mut a.counts,
        m_indices: Some(&mut a.m_indices),
        status: &mut a.status,
        logical_load: Some(&mut a.load),
    };
    plan(args, &mut out, &mut scratch);
    a
}

impl Arrays {
    pub(super) fn placement(&self, top_k: usize) -> Placement<'_> {
        Placement { source: &self.source, slot: &self.slot, expert_offsets: &self.offsets, top_k }
    }
}
