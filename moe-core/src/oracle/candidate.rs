//! What a choice is made from.

use super::capabilities::Capabilities;
use super::report::Path;
use super::wish::Wish;
use crate::{AnyDeviceId, Dev, Device, DeviceInfo, DeviceSpec, PermuteBackend, Result};

/// An opened device, and what it says of itself. `D` is what the caller holds, such as the enum that
/// [`any_device!`](crate::any_device) makes.
#[derive(Clone, Debug)]
pub struct Opened<D> {
    /// The device.
    pub device: D,
    /// Its identity.
    pub id: AnyDeviceId,
    /// What it says of itself.
    pub info: DeviceInfo,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Which kernels it would run.
    pub paths: Vec<Path>,
}

/// A device that may be taken, or why it cannot be.
#[derive(Clone, Debug)]
pub struct Candidate<D> {
    /// The backend's name.
    pub(super) backend: String,
    /// The index that was tried, if there was one.
    pub(super) index: Option<u32>,
    /// The device, or why there is none.
    pub(super) outcome: Result<Opened<D>, String>,
}

impl<D> From<Opened<D>> for Candidate<D> {
    fn from(opened: Opened<D>) -> Self {
        Self { backend: opened.id.backend().to_owned(), index: Some(opened.id.ordinal()), outcome: Ok(opened) }
    }
}

impl<D> Candidate<D> {
    /// An opened device, for a wish.
    pub fn opened<B: PermuteBackend>(device: Dev<B>, wish: &Wish, wrap: impl FnOnce(Dev<B>) -> D) -> Self {
        let id = device.id().erase();
        let (info, capabilities) = (device.info(), device.raw().capabilities());
        let paths = device.raw().paths(wish);
        Opened { device: wrap(device), id, info, capabilities, paths }.into()
    }

    /// A backend, or with an index a device, that cannot be used, and why.
    pub fn unusable(backend: &str, index: Option<u32>, reason: impl Into<String>) -> Self {
        Self { backend: backend.to_owned(), index, outcome: Err(reason.into()) }
    }

    /// All devices of a backend, for a wish: each that its driver counts, and the one that the wish names if that is
    /// not among them. A backend without a device is one candidate that says why.
    pub fn of_backend<B: PermuteBackend>(wish: &Wish, wrap: impl Fn(Dev<B>) -> D) -> Vec<Self> {
        let found = match B::Device::count() {
            Ok(found) => found,
            Err(error) => return vec![Self::unusable(B::NAME, None, error.to_string())],
        };
        let asked = wish.ask.spec().filter(|spec| spec.backend() == B::NAME).and_then(DeviceSpec::index);
        let indices = (0..found as u32).chain(asked.filter(|index| *index as usize >= found));
        let open = |index| {
            let device = DeviceSpec::new(B::NAME, Some(index)).and_then(|spec| Dev::<B>::open(&spec));
            match device {
                Ok(device) => Self::opened(device, wish, &wrap),
                Err(error) => Self::unusable(B::NAME, Some(index), error.to_string()),
            }
        };
        let all: Vec<Self> = indices.map(open).collect();
        if all.is_empty() { vec![Self::unusable(B::NAME, None, "it has no device")] } else { all }
    }

    /// The device, or why there is none.
    pub fn outcome(&self) -> Result<&Opened<D>, &str> {
        self.outcome.as_ref().map_err(String::as_str)
    }

    /// Whether a specification names it.
    pub(super) fn is_named_by(&self, spec: &DeviceSpec) -> bool {
        let index = spec.index().is_none() || self.index.is_none() || spec.index() == self.index;
        spec.backend() == self.backend && index
    }

    /// "cuda:0", or "cuda" where no device was found.
    pub fn name(&self) -> String {
        match (&self.outcome, self.index) {
            (Ok(opened), _) => opened.id.to_string(),
            (Err(_), Some(index)) => format!("{}:{index}", self.backend),
            (Err(_), None) => self.backend.clone(),
        }
    }
}
