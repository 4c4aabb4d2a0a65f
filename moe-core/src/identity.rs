//! What a person asks for, and what it resolved to.
//!
//! [`DeviceSpec`] is what a person writes: "cpu", "cuda", "cuda:1". It may lack an index. [`DeviceId`] is canonical: a
//! backend, a resolved ordinal and a key that decides equality. The second can only be had from a device that was
//! really opened, and the first cannot be compared with anything, so this does not compile:
//!
//! ```compile_fail,E0369
//! # use moe_core::{Backend, DeviceId, DeviceSpec};
//! fn check<B: Backend>(configured: DeviceSpec, found: DeviceId<B>) -> bool {
//!     configured == found // "cuda" against "cuda:0": the answer would be wrong on correct input
//! }
//! ```

use crate::{Backend, Error, Result};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Mutex;

/// What was asked for: a backend's name and perhaps an index. "cuda" means any CUDA device, which is resolved to the
/// first.
///
/// Deliberately neither `PartialEq` nor `Hash`: a wish is not an identity.
///
/// ```
/// use moe_core::DeviceSpec;
/// let spec: DeviceSpec = "cuda:1".parse()?;
/// assert_eq!((spec.backend(), spec.index()), ("cuda", Some(1)));
/// assert_eq!("cuda".parse::<DeviceSpec>()?.index(), None);
/// assert!("cuda:".parse::<DeviceSpec>().is_err());
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    backend: String,
    index: Option<u32>,
}

impl DeviceSpec {
    /// The device `index` of a backend, or with `None` any device of it.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if the name is not a lower-case word.
    pub fn new(backend: &str, index: Option<u32>) -> Result<Self> {
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !backend.starts_with(|c: char| c.is_ascii_lowercase()) || !backend.chars().all(word) {
            return Err(invalid(backend, "a backend's name is a lower-case word"));
        }
        Ok(Self { backend: backend.to_owned(), index })
    }

    /// The backend's name.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// The index, if one was written.
    pub fn index(&self) -> Option<u32> {
        self.index
    }

    /// The ordinal that this asks a backend for: the index, or 0 where none was written.
    ///
    /// # Errors
    /// [`Error::WrongBackend`] if the specification names another backend.
    pub fn ordinal_for<B: Backend>(&self) -> Result<u32> {
        if self.backend != B::NAME {
            return Err(Error::WrongBackend { spec: self.to_string(), backend: B::NAME });
        }
        Ok(self.index.unwrap_or(0))
    }
}

fn invalid(input: &str, reason: &'static str) -> Error {
    Error::InvalidSpec { input: input.to_owned(), reason }
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let (name, index) = match s.split_once(':') {
            None => (s, None),
            Some((name, index)) => {
                let digits = !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
                let index = digits.then(|| index.parse().ok()).flatten();
                (name, Some(index.ok_or_else(|| invalid(s, "an index is a decimal number below 2^32"))?))
            }
        };
        Self::new(name, index).map_err(|_| invalid(s, "expected a lower-case name, or name:index"))
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}:{index}", self.backend),
            None => f.write_str(&self.backend),
        }
    }
}

/// A canonical device identity. Buffers may be used together only if theirs are equal.
///
/// There is no public constructor: a backend mints one with a proof that only it can make. `Display` always prints the
/// ordinal, and for a second logical device on the same ordinal its instance number, as in `wgpu:0#2`.
pub struct DeviceId<B: Backend> {
    any: AnyDeviceId,
    backend: PhantomData<fn() -> B>,
}

impl<B: Backend> DeviceId<B> {
    /// Mints an identity. `key` decides equality: the UUID of a CUDA device, the logical device of wgpu, the pool of a
    /// CPU device. `instance` counts the logical devices on one ordinal, from 1.
    pub fn mint(_proof: B::Mint, ordinal: u32, instance: u32, key: u128) -> Self {
        Self { any: AnyDeviceId { backend: B::NAME, ordinal, instance, key: key.to_ne_bytes() }, backend: PhantomData }
    }

    /// The resolved ordinal.
    pub fn ordinal(self) -> u32 {
        self.any.ordinal
    }

    /// The key that decides equality.
    pub fn key(self) -> u128 {
        u128::from_ne_bytes(self.any.key)
    }

    /// Forgets the backend's type and keeps its name, for messages and reports. There is no way back.
    pub fn erase(self) -> AnyDeviceId {
        self.any
    }
}

impl<B: Backend> Clone for DeviceId<B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for DeviceId<B> {}
impl<B: Backend> PartialEq for DeviceId<B> {
    fn eq(&self, other: &Self) -> bool {
        self.any.key == other.any.key
    }
}
impl<B: Backend> Eq for DeviceId<B> {}
impl<B: Backend> Hash for DeviceId<B> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.any.key.hash(state);
    }
}
impl<B: Backend> fmt::Display for DeviceId<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.any.fmt(f)
    }
}
impl<B: Backend> fmt::Debug for DeviceId<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.any.fmt(f)
    }
}

/// A device identity of any backend, for messages and reports. Keeps the backend's name, so that cpu:0 never equals
/// cuda:0.
#[derive(Clone, Copy)]
pub struct AnyDeviceId {
    backend: &'static str,
    ordinal: u32,
    instance: u32,
    /// Bytes, because a `u128` would align every error that holds two identities to 16.
    key: [u8; 16],
}

impl AnyDeviceId {
    /// The backend's name.
    pub fn backend(self) -> &'static str {
        self.backend
    }

    /// The resolved ordinal.
    pub fn ordinal(self) -> u32 {
        self.ordinal
    }
}

impl PartialEq for AnyDeviceId {
    fn eq(&self, other: &Self) -> bool {
        (self.backend, self.key) == (other.backend, other.key)
    }
}
impl Eq for AnyDeviceId {}
impl Hash for AnyDeviceId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.backend, self.key).hash(state);
    }
}
impl fmt::Display for AnyDeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.backend, self.ordinal)?;
        if self.instance > 1 {
            write!(f, "#{}", self.instance)?;
        }
        Ok(())
    }
}
impl fmt::Debug for AnyDeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The process-wide list of a backend's opened devices. Opening or adopting a device twice gives the same shared
/// device, so that nothing that lives on one device is ever refused by itself. A backend keeps one in a `static`.
#[derive(Debug)]
pub struct Registry<D>(Mutex<Vec<(u128, D)>>);

impl<D: Clone> Registry<D> {
    /// An empty list.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The device with this key, opened with `open` if it is not in the list. `open` gets the number of devices that
    /// are already there for which `same` holds, plus one: the instance number of the new one.
    ///
    /// # Errors
    /// What `open` says; nothing is entered then.
    pub fn get_or_open(&self, key: u128, same: impl Fn(&D) -> bool, open: impl FnOnce(u32) -> Result<D>) -> Result<D> {
        // A panic in `open` leaves the list as it was, so a poisoned lock still guards a good one.
        let mut list = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, device)) = list.iter().find(|(k, _)| *k == key) {
            return Ok(device.clone());
        }
        let instance = 1 + list.iter().filter(|(_, d)| same(d)).count() as u32;
        let device = open(instance)?;
        list.push((key, device.clone()));
        Ok(device)
    }
}

impl<D: Clone> Default for Registry<D> {
    fn default() -> Self {
        Self::new()
    }
}
