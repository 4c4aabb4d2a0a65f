//! Driver errors as typed errors.

use crate::Wgpu;
use moe_core::{Backend, DeviceId, Error, Result};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// Waits for a future of wgpu's. On native platforms these are ready when they are made, or after a poll of the device.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

/// A driver's error that `op` reports.
pub(crate) fn backend(op: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Backend { op, backend: Wgpu::NAME, source: source.into() }
}

/// Something beyond a limit of the adapter.
pub(crate) fn unsupported(op: &'static str, reason: String) -> Error {
    Error::Unsupported { op, backend: Wgpu::NAME, reason }
}

/// What is known of a device's loss; its callback writes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lost(Arc<Mutex<Option<String>>>);

impl Lost {
    pub(crate) fn set(&self, reason: String) {
        let mut lost = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        lost.get_or_insert(reason);
    }

    /// The error, if the device is lost.
    pub(crate) fn check(
        &self,
        op: &'static str,
        device: DeviceId<Wgpu>,
        first_op: impl FnOnce() -> &'static str,
    ) -> Result<()> {
        // Not locked while `first_op` looks at what is recorded: a submission tells of a loss under that lock.
        let lost = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        match lost {
            None => Ok(()),
            Some(reason) => Err(Error::DeviceLost { op, device: device.erase(), first_op: first_op(), reason }),
        }
    }
}

/// Runs `work`, and gives the errors that wgpu reports meanwhile instead of letting them reach its handler, which
/// panics.
pub(crate) fn catch<T>(device: &wgpu::Device, work: impl FnOnce() -> T) -> (T, Option<wgpu::Error>) {
    // Scopes belong to the thread, so errors of other threads stay out; they nest, so a caller's own scopes are not
    // disturbed.
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let value = work();
    let errors = [ready(memory.pop()), ready(internal.pop()), ready(validation.pop())];
    (value, errors.into_iter().flatten().next())
}
