//! From a specification on the command line to a typed backend.

use crate::Outcome;
use moe_core::{Backend, DeviceSpec, PermuteBackend};
use moe_cpu::Cpu;
use std::path::PathBuf;

/// Work for any backend.
pub(crate) trait OnBackend {
    /// Does it on this one.
    fn run<B: PermuteBackend>(self, spec: &DeviceSpec) -> Outcome;
}

/// Does the work on the backend that the specification names.
pub(crate) fn with_backend(spec: &DeviceSpec, work: impl OnBackend) -> Outcome {
    match spec.backend() {
        Cpu::NAME => work.run::<Cpu>(spec),
        #[cfg(feature = "cuda")]
        moe_cuda::Cuda::NAME => work.run::<moe_cuda::Cuda>(spec),
        #[cfg(feature = "wgpu")]
        moe_wgpu::Wgpu::NAME => work.run::<moe_wgpu::Wgpu>(spec),
        other => Err(format!("--backend {other}: compiled in are {}", COMPILED_IN.join(", "))),
    }
}

/// The names of the backends that are compiled in.
pub(crate) const COMPILED_IN: &[&str] = &[
    Cpu::NAME,
    #[cfg(feature = "cuda")]
    moe_cuda::Cuda::NAME,
    #[cfg(feature = "wgpu")]
    moe_wgpu::Wgpu::NAME,
];

/// The recorded files: in the current folder's `benches/data` (a packed folder has one), or in the workspace's.
pub(crate) fn data_dir() -> PathBuf {
    let here = PathBuf::from("benches/data");
    if here.is_dir() { here } else { PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/data")) }
}
