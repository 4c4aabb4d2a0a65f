//! Which operation can have broken a device.
//!
//! A CUDA error of a kernel shows up at some later call, on any stream, and stays. So each device keeps, for every
//! stream with work that was not seen to succeed, the first such operation; when an error that stays is seen, the oldest
//! of all is the first that can have caused it. Work of a stream that no queue feeds any more is kept with an event,
//! until the event has passed.

use crate::error::{CudaError, driver, is_sticky};
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaEvent, DriverError};
use moe_core::{AnyDeviceId, Error};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// The number of an operation, and its name.
type First = (u64, &'static str);

/// What is known of the work on one stream; all queues on the stream share it.
#[derive(Debug, Default)]
pub(crate) struct Track {
    /// Whether something was enqueued that was not seen to succeed.
    pending: AtomicBool,
    /// The first such operation.
    first: Mutex<Option<First>>,
}

impl Track {
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// The stream was seen idle: all of its work has succeeded.
    pub(crate) fn succeeded(&self) {
        if self.pending.swap(false, Ordering::Relaxed) {
            *lock(&self.first) = None;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The health of a device. `E` tells when the work before it is done.
#[derive(Debug)]
pub(crate) struct Health<E = CudaEvent> {
    lost: AtomicBool,
    /// Numbers operations.
    next: AtomicU64,
    table: Mutex<Table<E>>,
}

#[derive(Debug)]
struct Table<E> {
    /// The streams that queues feed, by key. A key belongs to one stream while a queue on it lives.
    streams: HashMap<u64, Weak<Track>>,
    /// The first operations of streams that no queue feeds any more.
    left: Vec<(First, E)>,
    loss: Option<Loss>,
}

impl<E> Default for Health<E> {
    fn default() -> Self {
        let table = Table { streams: HashMap::new(), left: Vec::new(), loss: None };
        Self { lost: AtomicBool::new(false), next: AtomicU64::new(0), table: Mutex::new(table) }
    }
}

#[derive(Clone, Debug)]
struct Loss {
    first_op: &'static str,
    reason: String,
}

impl<E> Health<E> {
    /// What is known of a stream that a queue is to feed.
    pub(crate) fn track(&self, stream: u64) -> Arc<Track> {
        let streams = &mut lock(&self.table).streams;
        streams.retain(|_, track| track.strong_count() > 0);
        if let Some(track) = streams.get(&stream).and_then(Weak::upgrade) {
            return track;
        }
        let track = Arc::new(Track::default());
        streams.insert(stream, Arc::downgrade(&track));
        track
    }

    /// The last queue of a stream goes while work may be running. `done` passes after that work.
    pub(crate) fn leave(&self, track: &Track, done: E) {
        track.pending.store(false, Ordering::Relaxed);
        if let Some(first) = lock(&track.first).take() {
            lock(&self.table).left.push((first, done));
        }
    }

    pub(crate) fn has_left(&self) -> bool {
        !lock(&self.table).left.is_empty()
    }

    /// Forgets what was left and is done by now.
    pub(crate) fn sweep(&self, is_done: impl Fn(&E) -> bool) {
        lock(&self.table).left.retain(|(_, done)| !is_done(done));
    }

    /// Before an operation: the device must not be lost.
    pub(crate) fn check(&self, op: &'static str, device: AnyDeviceId) -> Result<(), Error> {
        if !self.lost.load(Ordering::Acquire) {
            return Ok(());
        }
        let loss = lock(&self.table).loss.clone();
        let Some(Loss { first_op, reason }) = loss else { return Ok(()) };
        Err(Error::DeviceLost { op, device, first_op, reason })
    }

    /// An operation was enqueued on a stream, and so can fail from now on.
    pub(crate) fn enqueued(&self, track: &Track, op: &'static str) {
        if !track.pending.swap(true, Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            lock(&track.first).get_or_insert((number, op));
        }
    }

    /// What a driver's error is to a user. `bytes` is what was asked for, in an allocation.
    pub(crate) fn error(&self, op: &'static str, device: AnyDeviceId, error: DriverError, bytes: usize) -> Error {
        if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Error::OutOfMemory { op, device, bytes };
        }
        if !is_sticky(error) {
            return driver(op, error);
        }
        let mut table = lock(&self.table);
        let fed = table.streams.values().filter_map(Weak::upgrade).filter_map(|track| *lock(&track.first));
        let oldest = fed.chain(table.left.iter().map(|(first, _)| *first)).min().map(|(_, op)| op);
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

    /// "Done" is a plain flag here.
    type Health = super::Health<bool>;

    fn device() -> AnyDeviceId {
        DeviceId::<Cuda>::mint(CudaMint(()), 0, 1, 7).erase()
    }

    fn fail(health: &Health, op: &'static str, code: CUresult) -> Error {
        health.error(op, device(), DriverError(code), 64)
    }

    fn blamed(health: &Health) -> &'static str {
        match fail(health, "check", CUresult::CUDA_ERROR_LAUNCH_FAILED) {
            Error::DeviceLost { first_op, .. } => first_op,
            other => panic!("a launch failure loses the device: {other}"),
        }
    }

    #[test]
    fn a_lost_device_names_the_oldest_operation_that_was_not_seen_to_succeed() {
        let health = Health::default();
        let (a, b) = (health.track(1), health.track(2));
        health.enqueued(&a, "build");
        a.succeeded();
        health.enqueued(&b, "gather");
        health.enqueued(&a, "combine");
        health.enqueued(&b, "zero_tail");
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

    /// Blame must not hang on the queue that waited, but on the stream.
    #[test]
    fn work_that_one_queue_enqueued_and_another_of_the_stream_saw_done_is_not_blamed() {
        let health = Health::default();
        let (enqueues, waits, other) = (health.track(1), health.track(1), health.track(2));
        health.enqueued(&enqueues, "build");
        waits.succeeded();
        health.enqueued(&other, "gather");
        health.enqueued(&enqueues, "combine");
        assert_eq!(blamed(&health), "gather");
    }

    #[test]
    fn work_of_a_dropped_queue_is_blamed_until_it_is_done_and_not_after() {
        for (done, first_op) in [(false, "build"), (true, "gather")] {
            let health = Health::default();
            let dropped = health.track(1);
            health.enqueued(&dropped, "build");
            health.leave(&dropped, done);
            drop(dropped);
            health.enqueued(&health.track(1), "lost with its track"); // the key again, of another stream
            let other = health.track(2);
            health.enqueued(&other, "gather");
            assert!(health.has_left());
            health.sweep(|done| *done);
            assert_eq!(blamed(&health), first_op);
        }
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
