//! Bytes on their way from a device to the host.

use crate::Result;
use std::fmt::Debug;

/// What a backend keeps of a copy to the host that was enqueued: an event and pinned memory, a mapping that was asked
/// for. Dropping it gives the copy up.
pub trait PendingReadback: Debug + Send {
    /// The bytes, once they have arrived. Never waits. Is not called again after it gave them.
    ///
    /// # Errors
    /// What the driver says, of this copy or of anything that was enqueued before.
    fn poll(&mut self) -> Result<Option<Vec<u8>>>;

    /// Waits for the bytes. Is not called after `poll` gave them.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    fn wait(&mut self) -> Result<Vec<u8>>;
}

/// A copy to the host that was enqueued; see
/// [`CommandQueue::start_download`](crate::CommandQueue::start_download).
#[derive(Debug)]
pub struct Readback(State);

#[derive(Debug)]
enum State {
    Ready(Vec<u8>),
    Pending(Box<dyn PendingReadback>),
}

impl Readback {
    /// Bytes that are there already.
    pub fn ready(bytes: Vec<u8>) -> Self {
        Self(State::Ready(bytes))
    }

    /// Bytes that will arrive.
    pub fn pending(pending: impl PendingReadback + 'static) -> Self {
        Self(State::Pending(Box::new(pending)))
    }

    /// The bytes if they have arrived, without waiting; else the copy again, to be asked later.
    ///
    /// # Errors
    /// What the driver says, of this copy or of anything that was enqueued before.
    pub fn poll(self) -> Result<Result<Vec<u8>, Self>> {
        match self.0 {
            State::Ready(bytes) => Ok(Ok(bytes)),
            State::Pending(mut pending) => Ok(pending.poll()?.ok_or(Self(State::Pending(pending)))),
        }
    }

    /// Waits for the bytes.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn wait(self) -> Result<Vec<u8>> {
        match self.0 {
            State::Ready(bytes) => Ok(bytes),
            State::Pending(mut pending) => pending.wait(),
        }
    }
}
