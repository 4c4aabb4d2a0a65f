//! Errors of the CUDA driver, and what they become.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use moe_core::Error;

/// An error of the CUDA driver: the source of [`Error::Backend`].
#[derive(Debug, thiserror::Error)]
#[error("{name} ({code})")]
pub struct CudaError {
    /// The driver's number.
    pub code: u32,
    /// The driver's name of it, as `CUDA_ERROR_INVALID_VALUE`.
    pub name: String,
}

impl CudaError {
    pub(crate) fn new(error: DriverError) -> Self {
        // The names are part of the bindings: no call into a library that may not be there.
        Self { code: error.0 as u32, name: format!("{:?}", error.0) }
    }
}

/// A driver's error that is neither about memory nor the end of the device.
pub(crate) fn driver(op: &'static str, error: DriverError) -> Error {
    Error::Backend { op, backend: "cuda", source: Box::new(CudaError::new(error)) }
}

/// Whether an error stays with the context: every later call fails with it too.
pub(crate) fn is_sticky(error: DriverError) -> bool {
    use CUresult::*;
    matches!(
        error.0,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_UNKNOWN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_error_is_named_without_a_driver() {
        let error = driver("gather", DriverError(CUresult::CUDA_ERROR_INVALID_VALUE));
        assert_eq!(error.to_string(), "gather: cuda failed: CUDA_ERROR_INVALID_VALUE (1)");
    }

    #[test]
    fn errors_that_kill_the_context_are_told_from_those_that_do_not() {
        for (code, sticky) in [
            (CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, true),
            (CUresult::CUDA_ERROR_LAUNCH_FAILED, true),
            (CUresult::CUDA_ERROR_MISALIGNED_ADDRESS, true),
            (CUresult::CUDA_ERROR_OUT_OF_MEMORY, false),
            (CUresult::CUDA_ERROR_INVALID_VALUE, false),
            (CUresult::CUDA_ERROR_NOT_READY, false),
            (CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, false),
            (CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, false),
        ] {
            assert_eq!(is_sticky(DriverError(code)), sticky, "{code:?}");
        }
    }
}
