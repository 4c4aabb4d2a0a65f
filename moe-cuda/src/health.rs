//! Which operation can have broken a device.
//!
//! A CUDA error of a kernel shows up at some later call, on any stream, and stays. So each device keeps, for every queue
//! with work that was not seen to succeed, the first such operation; when an error that stays is seen, the oldest of all
//! is the first that can have caused it.

use crate::error::{CudaError, driver, is_sticky};
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use moe_core::{AnyDeviceId, Error};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

#[derive(Debug, Default)]
pub(crate) struct Health {
    lost: AtomicBool,
    /// Numbers operations and queues.
    next: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The first operation of each queue that was not seen to succeed, with its number.
    pending: HashMap<u64, (u64, &'static str)>,
    loss: Option<Loss>,
}

#[derive(Clone, Debug)]
struct Loss {
    first_op: &'static str,
    reason: String,
}

impl Health {
    pub(crate) fn new_queue(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Before an operation: the device must not be lost.
    pub(crate) fn check(&self, op: &'static str, device: AnyDeviceId) -> Result<(), Error> {
        if !self.lost.load(Ordering::Acquire) {
            return Ok(());
        }
        let loss = self.table().loss.clone();
        let Some(Loss { first_op, reason }) = loss else { return Ok(()) };
        Err(Error::DeviceLost { op, device, first_op, reason })
    }

    /// A queue got its first operation since all of its work was seen to succeed.
    pub(crate) fn enqueued(&self, queue: u64, op: &'static str) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.table().pending.entry(queue).or_insert((number, op));
    }

    /// All work of a queue has succeeded.
    pub(crate) fn succeeded(&self, queue: u64) {
        self.table().pending.remove(&queue);
    }

    /// What a driver's error is to a user. `bytes` is what was asked for, in an allocation.
    pub(crate) fn error(&self, op: &'static str, device: AnyDeviceId, error: DriverError, bytes: usize) -> Error {
        if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Error::OutOfMemory { op, device, bytes };
        }
        if !is_sticky(error) {
            return driver(op, error);
        }
        let mut table = self.table();
        let oldest = table.pending.values().min().map(|(_, op)| *op);
        let loss = table.loss.get_or_insert_with(|| Loss {
            first_op: oldest.unwrap_or("an operation of another library"),
            reason: CudaError::new(error).to_string(),
        });
        let Loss { first_op, reason } = loss.clone();
        self.lost.store(true, Ordering::Release);
        Error::DeviceLost { op, device, first_op, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cuda, CudaMint};
    use moe_core::DeviceId;

    fn device() -> AnyDeviceId {
        DeviceId::<Cuda>::mint(CudaMint(()), 0, 1, 7).erase()
    }

    fn fail(health: &Health, op: &'static str, code: CUresult) -> Error {
        health.error(op, device(), DriverError(code), 64)
    }

    #[test]
    fn a_lost_device_names_the_oldest_operation_that_was_not_seen_to_succeed() {
        let health = Health::default();
        let (a, b) = (health.new_queue(), health.new_queue());
        health.enqueued(a, "build");
        health.succeeded(a);
        health.enqueued(b, "gather");
        health.enqueued(a, "combine");
        health.enqueued(b, "zero_tail");
        assert!(health.check("build", device()).is_ok());
        for op in ["synchronize", "check"] {
            let Error::DeviceLost { first_op, op: noticed, .. } = fail(&health, op, CUresult::CUDA_ERROR_LAUNCH_FAILED)
            else {
                panic!("a launch failure loses the device")
            };
            assert_eq!((first_op, noticed), ("gather", op));
        }
        let later = health.check("permute", device()).unwrap_err().to_string();
        assert!(later.starts_with("permute: cuda:0 is lost: CUDA_ERROR_LAUNCH_FAILED (719)"), "{later}");
    }

    #[test]
    fn other_errors_leave_the_device_usable() {
        let health = Health::default();
        let full = fail(&health, "alloc_zeroed", CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert!(matches!(full, Error::OutOfMemory { bytes: 64, .. }), "{full}");
        let other = fail(&health, "gather", CUresult::CUDA_ERROR_INVALID_VALUE);
        assert!(matches!(other, Error::Backend { op: "gather", .. }), "{other}");
        assert!(health.check("gather", device()).is_ok());
    }
}
