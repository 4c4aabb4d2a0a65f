//! What can be known before a device is opened: the driver library, its version, the devices.

use crate::error::CudaError;
use crate::ptx;
use cudarc::driver::{DriverError, result, sys};
use moe_core::{Error, Result};
use std::panic::catch_unwind;
use std::sync::OnceLock;

/// The oldest driver whose library has every function that is called here (`cuGraphInstantiateWithFlags` and
/// `cuDeviceGetUuid_v2`), as `cuDriverGetVersion` counts.
const OLDEST_LIBRARY: i32 = 11_040;

/// The first driver branch of each CUDA release and the PTX ISA it reads, from NVIDIA's "CUDA Toolkit Release Notes"
/// and "PTX ISA, Release History". Ascending.
const RELEASES: &[(i32, u32, (u32, u32))] = &[
    (11_000, 450, (7, 0)),
    (11_010, 455, (7, 1)),
    (11_020, 460, (7, 2)),
    (11_030, 465, (7, 3)),
    (11_040, 470, (7, 4)),
    (11_050, 495, (7, 5)),
    (11_060, 510, (7, 6)),
    (11_070, 515, (7, 7)),
    (11_080, 520, (7, 8)),
    (12_000, 525, (8, 0)),
    (12_010, 530, (8, 1)),
    (12_020, 535, (8, 2)),
    (12_030, 545, (8, 3)),
    (12_040, 550, (8, 4)),
    (12_050, 555, (8, 5)),
    (12_070, 565, (8, 6)),
    (12_080, 570, (8, 7)),
    (12_090, 575, (8, 8)),
    (13_000, 580, (9, 0)),
];

pub(crate) fn unavailable(reason: impl Into<String>) -> Error {
    Error::BackendUnavailable { backend: "cuda", reason: reason.into() }
}

/// A driver version as people write it: 11040 is 11.4.
pub(crate) fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The oldest driver that takes the kernels: its version and branch.
fn oldest_driver(isa: (u32, u32)) -> (i32, u32) {
    let ptx = RELEASES.iter().find(|(_, _, reads)| *reads >= isa).unwrap_or(&RELEASES[RELEASES.len() - 1]);
    let library = RELEASES.iter().find(|(version, _, _)| *version >= OLDEST_LIBRARY).unwrap_or(ptx);
    let (version, branch, _) = *if ptx.0 > library.0 { ptx } else { library };
    (version, branch)
}

/// Whether a driver takes the kernels.
fn check_version(version: i32, isa: (u32, u32)) -> Result<()> {
    let (oldest, branch) = oldest_driver(isa);
    if version >= oldest {
        return Ok(());
    }
    Err(unavailable(format!(
        "the driver supports CUDA {}; the kernels are PTX ISA {}.{} and need CUDA {} (driver branch {branch}) or newer: \
         update the driver",
        version_text(version),
        isa.0,
        isa.1,
        version_text(oldest),
    )))
}

/// Makes sure that the driver is there and new enough, once in a process; gives its version.
pub(crate) fn driver() -> Result<i32> {
    static DRIVER: OnceLock<Result<i32, String>> = OnceLock::new();
    let found = DRIVER.get_or_init(|| {
        probe().map_err(|error| match error {
            Error::BackendUnavailable { reason, .. } => reason,
            other => other.to_string(),
        })
    });
    found.clone().map_err(unavailable)
}

fn probe() -> Result<i32> {
    // SAFETY: loads the driver's library and runs its initialisers, which is what this process asked for.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable(
            "no CUDA driver library (libcuda.so.1, nvcuda.dll) was found: install NVIDIA's driver, or run the \
             container with GPU access",
        ));
    }
    let mut version = 0;
    // SAFETY: the library is present; the pointer is to a live i32.
    let asked = catch_unwind(|| unsafe {
        let mut version = 0;
        sys::cuDriverGetVersion(&mut version).result().map(|()| version)
    });
    match asked {
        Ok(Ok(found)) => version = found,
        Ok(Err(error)) => return Err(failed("cuDriverGetVersion", error)),
        Err(_) => {}
    }
    check_version(version, ptx::isa())?;
    // The library of a machine without a GPU fails here, so this is no surprise.
    catch_unwind(result::init)
        .map_err(|_| unavailable("the driver library lacks cuInit"))?
        .map_err(|error| failed("cuInit", error))?;
    Ok(version)
}

fn failed(call: &str, error: DriverError) -> Error {
    use sys::CUresult::*;
    let help = match error.0 {
        CUDA_ERROR_NO_DEVICE => ": there is no NVIDIA GPU, or none is visible (CUDA_VISIBLE_DEVICES)",
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => ": the library and the kernel module are of different versions",
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => ": forward compatibility does not work on this GPU",
        CUDA_ERROR_STUB_LIBRARY => ": the library is the toolkit's stub, not the driver",
        _ => "",
    };
    unavailable(format!("{call} says {}{help}", CudaError::new(error)))
}

/// How many devices there are.
pub(crate) fn count() -> Result<usize> {
    driver()?;
    let count = result::device::get_count().map_err(|error| failed("cuDeviceGetCount", error))?;
    if count <= 0 {
        return Err(unavailable("there is no NVIDIA GPU, or none is visible (CUDA_VISIBLE_DEVICES)"));
    }
    Ok(count as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_is_refused_with_both_versions() {
        let error = check_version(11_020, (7, 0)).unwrap_err().to_string();
        assert!(error.contains("CUDA 11.2;") && error.contains("CUDA 11.4 (driver branch 470)"), "{error}");
        let error = check_version(12_020, (8, 3)).unwrap_err().to_string();
        assert!(error.contains("PTX ISA 8.3") && error.contains("CUDA 12.3 (driver branch 545)"), "{error}");
        assert!(check_version(11_040, (7, 0)).is_ok() && check_version(13_000, (9, 0)).is_ok());
    }

    #[test]
    fn the_table_of_releases_ascends() {
        assert!(RELEASES.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1 && w[0].2 < w[1].2));
    }
}
