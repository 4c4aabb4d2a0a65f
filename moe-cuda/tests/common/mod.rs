//! What the GPU tests share.
#![allow(dead_code, reason = "no test program uses all of it")]

pub(crate) mod routes;

use moe_core::{
    Backend, Buf, CombineInput, Dev, Element, Error, Float, Limits, PermuteBackend, PlanSpec, Queue, RoutePlan,
    Routing, Workspace,
};
use moe_cpu::Cpu;
use moe_cuda::Cuda;

/// The device, or `None` with the reason printed where there is none. `MOE_REQUIRE_CUDA=1` makes that a failure.
pub(crate) fn device(spec: &str) -> Option<Dev<Cuda>> {
    match Dev::<Cuda>::open(&spec.parse().unwrap()) {
        Ok(device) => Some(device),
        Err(error @ (Error::BackendUnavailable { .. } | Error::NoSuchDevice { .. })) => {
            assert!(!required(), "MOE_REQUIRE_CUDA is set: {error}");
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The device that the suites run on: "cuda", or what `MOE_CUDA_DEVICE` says.
pub(crate) fn wanted() -> String {
    std::env::var("MOE_CUDA_DEVICE").unwrap_or_else(|_| "cuda".into())
}

pub(crate) fn required() -> bool {
    std::env::var_os("MOE_REQUIRE_CUDA").is_some_and(|value| value != "0")
}

/// Whether compute-sanitizer watches, under which everything is many times slower.
pub(crate) fn sanitized() -> bool {
    std::env::var_os("MOE_SANITIZE").is_some_and(|value| value != "0")
}

pub(crate) fn cpu() -> Queue<'static, Cpu> {
    Dev::<Cpu>::open(&"cpu".parse().unwrap()).unwrap().queue().unwrap()
}

/// A small generator (Steele and others' SplitMix64).
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn float<T: Float>(&mut self) -> T {
        T::from_f32((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0)
    }

    pub(crate) fn floats<T: Float>(&mut self, n: usize) -> Vec<T> {
        (0..n).map(|_| self.float()).collect()
    }

    /// Ids of which a few are masked or out of range.
    pub(crate) fn ids(&mut self, n: usize, experts: usize) -> Vec<i32> {
        (0..n)
            .map(|_| match self.below(16) {
                0 => -1,
                1 => experts as i32,
                _ => self.below(experts) as i32,
            })
            .collect()
    }
}

/// The sizes of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) tokens: usize,
    pub(crate) top_k: usize,
    pub(crate) experts: usize,
    pub(crate) hidden: usize,
}

impl Batch {
    pub(crate) fn spec(&self) -> PlanSpec {
        PlanSpec::new(self.tokens, self.top_k, self.experts).with_m_indices().with_logical_load()
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits::new(self.tokens, self.top_k, self.experts)
    }
}

/// All that a layer's permute and unpermute put out.
#[derive(Debug, PartialEq)]
pub(crate) struct Outputs<T> {
    pub(crate) arrays: Vec<Vec<i32>>,
    pub(crate) status: moe_core::Status,
    pub(crate) rows: Vec<T>,
    pub(crate) out: Vec<T>,
}

/// Permute, then unpermute with weights, on any backend.
pub(crate) fn layer<B: PermuteBackend, T: Float + CombineInput>(
    queue: &mut Queue<'_, B>,
    batch: Batch,
    spec: PlanSpec,
    ids: &[i32],
    x: &[T],
    weights: &[f32],
) -> Outputs<T> {
    let mut workspace = Workspace::new(queue, batch.limits()).unwrap();
    let (ids, x, weights) = (queue.upload(ids).unwrap(), queue.upload(x).unwrap(), queue.upload(weights).unwrap());
    let routing = Routing::top_k(ids.view());
    let rows = x.rows(batch.hidden).unwrap();
    let (plan, rows) = RoutePlan::permute(queue, &mut workspace, spec, routing, rows).unwrap();
    let out: Buf<B, T> = plan.combine(rows.rows(batch.hidden).unwrap()).weights(weights.view()).run(queue).unwrap();
    read(queue, &plan, &rows, &out)
}

pub(crate) fn read<B: Backend, T: Element>(
    queue: &mut Queue<'_, B>,
    plan: &RoutePlan<B>,
    rows: &Buf<B, T>,
    out: &Buf<B, T>,
) -> Outputs<T> {
    let views = [plan.source(), plan.slot(), plan.expert_offsets(), plan.tokens_per_expert()];
    let views = views.into_iter().chain(plan.m_indices()).chain(plan.logical_load());
    Outputs {
        arrays: views.map(|view| queue.download(view).unwrap()).collect(),
        status: plan.status(queue).unwrap(),
        rows: queue.download(rows.view()).unwrap(),
        out: queue.download(out.view()).unwrap(),
    }
}
