//! Opened devices.

use super::Backend;
use crate::oracle::{Capabilities, Knob, Path, TuningTable, Wish};
use crate::{DeviceId, DeviceSpec, Error, Result};
use std::fmt::Debug;

/// What a device says of itself, for people.
#[derive(Clone, Debug, Default)]
pub struct DeviceInfo {
    /// The name that the maker or the driver gives it.
    pub name: String,
    /// Its memory in bytes, where that is known.
    pub memory_bytes: Option<u64>,
    /// Facts worth showing, such as instruction sets, driver versions or limits.
    pub details: Vec<(&'static str, String)>,
}

/// An opened device. Cheap to clone; a clone is the same device.
///
/// # Safety
/// `id` is the same for the whole life of the device and differs from that of any device whose memory this one cannot
/// address.
pub unsafe trait Device: Clone + Debug + Send + Sync + 'static {
    /// The family.
    type Backend: Backend<Device = Self>;

    /// Opens the device that a specification asks for. Opening it twice gives the same device.
    ///
    /// # Errors
    /// `WrongBackend`, `BackendUnavailable` or `NoSuchDevice`.
    fn open(spec: &DeviceSpec) -> Result<Self>;

    /// How many devices this machine has. They can be opened by ordinal; a backend may open further ordinals, as the
    /// CPU does for more thread pools.
    ///
    /// # Errors
    /// `BackendUnavailable`, with the reason.
    fn count() -> Result<usize>;

    /// The canonical identity.
    fn id(&self) -> DeviceId<Self::Backend>;

    /// What to tell people about it.
    fn info(&self) -> DeviceInfo;

    /// A queue that the device makes itself.
    ///
    /// # Errors
    /// What the driver says.
    fn queue(&self) -> Result<<Self::Backend as Backend>::Queue<'static>>;

    /// What it can do, and how fast it is expected to be; for the choice at set-up. The default claims everything.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// What can be tuned on it, each with its built-in value and the values that are worth measuring.
    fn knobs(&self) -> &'static [Knob] {
        &[]
    }

    /// Takes measured values, from the section of a table that bears this backend's and device's names; keys that the
    /// section lacks get their built-in values. Results keep their bits.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is nothing to tune, [`Error::InvalidArgument`] for a key or a value that does
    /// not exist; nothing has changed then.
    fn tune(&self, table: &TuningTable) -> Result<()> {
        let _ = table;
        let reason = "it has no knobs".into();
        Err(Error::Unsupported { op: "tune", backend: Self::Backend::NAME, reason })
    }

    /// Which of its kernels a wish would run, and why.
    fn paths(&self, wish: &Wish) -> Vec<Path> {
        let _ = wish;
        Vec::new()
    }
}
