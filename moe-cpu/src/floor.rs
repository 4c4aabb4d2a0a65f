//! Parallel copies: the floor that a benchmark measures beside the operations, which move as many bytes.

use crate::{CpuDevice, kernels};

/// Copies with the C library's memcpy, in the device's pool.
///
/// # Panics
/// If the lengths differ.
pub fn copy_memcpy(device: &CpuDevice, src: &[u8], dst: &mut [u8]) {
    device.pool().install(|| kernels::copy_memcpy(src, dst));
}

/// Copies with stores that pass the caches by, where the machine has them, in the device's pool.
///
/// # Panics
/// If the lengths differ.
pub fn copy_streaming(device: &CpuDevice, src: &[u8], dst: &mut [u8]) {
    device.pool().install(|| kernels::copy_streaming(device.tier(), src, dst));
}
