//! The traits that a backend implements.
//!
//! [`Backend`] has no methods, only associated types, so that mixing two backends is a type error. Arguments are
//! checked once, in this crate; a backend gets checked input through the `unsafe` methods of [`PermuteBackend`], whose
//! contract is written there. What lies *in* ids and index arrays is on the device and is never trusted.
#![allow(unsafe_code)]

mod device;
mod matmul;
mod memory;
mod permute;
mod quant;
mod queue;
mod router;

pub use device::{Device, DeviceInfo};
pub use matmul::{GroupedMatmul, MatmulBackend};
pub use memory::{Buffer, Region, Span};
pub use permute::PermuteBackend;
pub use quant::QuantBackend;
pub use queue::CommandQueue;
pub use router::RouterBackend;

use std::fmt::Debug;

/// A family of devices: names its types. Nothing of it runs.
pub trait Backend: Copy + Debug + Send + Sync + 'static {
    /// The name in specifications and identities: "cpu", "cuda", "wgpu".
    const NAME: &'static str;
    /// The proof that this backend made something. Its constructor is private to the backend's crate, so that nobody
    /// else can mint identities, buffers or views.
    type Mint;
    /// An opened device.
    type Device: Device<Backend = Self>;
    /// Memory on a device, without an element type.
    type Buffer: Buffer<Backend = Self>;
    /// Borrowed memory to read.
    type Region<'a>: Region + Clone;
    /// Borrowed memory to write.
    type RegionMut<'a>: Region;
    /// What operations are enqueued on: a stream, a command encoder, or for the CPU nothing. `'q` is the time for
    /// which the caller lends it.
    type Queue<'q>: CommandQueue<Backend = Self>;

    /// The same region for a shorter time. Always written `region`: the compiler sees that it holds where the type is
    /// known, but not for any backend.
    fn shorten<'long: 'short, 'short>(region: Self::Region<'long>) -> Self::Region<'short>;

    /// Like [`shorten`](Self::shorten), for a region to write.
    fn shorten_mut<'long: 'short, 'short>(region: Self::RegionMut<'long>) -> Self::RegionMut<'short>;
}
