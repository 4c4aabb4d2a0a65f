//! From a specification on the command line to a typed backend.

use crate::Outcome;
use moe_core::{BackendVisitor, DeviceSpec, PermuteBackend};
use std::path::PathBuf;

moe_core::any_device! {
    /// The backends of this program, fastest first.
    pub(crate) enum AnyDevice {
        #[cfg(feature = "cuda")]
        Cuda(moe_cuda::Cuda),
        #[cfg(feature = "wgpu")]
        Wgpu(moe_wgpu::Wgpu),
        Cpu(moe_cpu::Cpu),
    }
}

/// Work for any backend.
pub(crate) trait OnBackend {
    /// Does it on this one.
    fn run<B: PermuteBackend>(self, spec: &DeviceSpec) -> Outcome;
}

/// Does the work on the backend that the specification names.
pub(crate) fn with_backend(spec: &DeviceSpec, work: impl OnBackend) -> Outcome {
    AnyDevice::visit_backend(spec.backend(), With { spec, work }).map_err(|e| format!("--backend {spec}: {e}"))?
}

struct With<'a, W> {
    spec: &'a DeviceSpec,
    work: W,
}

impl<W: OnBackend> BackendVisitor for With<'_, W> {
    type Output = Outcome;

    fn visit<B: PermuteBackend>(self) -> Outcome {
        self.work.run::<B>(self.spec)
    }
}

/// The recorded files: in the current folder's `benches/data` (a packed folder has one), or in the workspace's.
pub(crate) fn data_dir() -> PathBuf {
    let here = PathBuf::from("benches/data");
    if here.is_dir() { here } else { PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/data")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    impl OnBackend for Nothing {
        fn run<B: PermuteBackend>(self, _: &DeviceSpec) -> Outcome {
            Ok(())
        }
    }

    #[test]
    fn a_backend_that_does_not_exist_is_refused_with_those_that_do() {
        assert_eq!(with_backend(&"cpu:1".parse().unwrap(), Nothing), Ok(()));
        let error = with_backend(&"tpu".parse().unwrap(), Nothing).unwrap_err();
        assert!(error.contains("--backend tpu") && error.contains("cpu"), "{error}");
    }
}
