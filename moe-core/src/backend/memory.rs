//! Memory on a device.

use super::Backend;
use crate::DeviceId;
use std::fmt::Debug;
use std::ops::Range;

/// Owned memory on a device. Frees on drop and keeps its device alive. No `Clone`: cloning can fail.
///
/// # Safety
/// `device_id` and `byte_len` are truthful, and the regions cover exactly the `byte_len` bytes, which stay valid for
/// as long as the borrow. The memory is initialised and aligned to at least 256 bytes on a GPU, 64 on the CPU.
pub unsafe trait Buffer: Debug + Send + 'static {
    /// The family.
    type Backend: Backend<Buffer = Self>;
    /// Where it lives.
    fn device_id(&self) -> DeviceId<Self::Backend>;
    /// Its length in bytes.
    fn byte_len(&self) -> usize;
    /// All of it, to read.
    fn region(&self) -> <Self::Backend as Backend>::Region<'_>;
    /// All of it, to write.
    fn region_mut(&mut self) -> <Self::Backend as Backend>::RegionMut<'_>;
}

/// Where memory lies, for the checks of overlap and alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What `start` counts from: two spans with different values never overlap. 0 where addresses are absolute.
    pub allocation: u64,
    /// The first byte.
    pub start: u64,
    /// The number of bytes.
    pub len: u64,
}

impl Span {
    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Span) -> bool {
        self.allocation == other.allocation
            && self.len > 0
            && other.len > 0
            && self.start < other.start + other.len
            && other.start < self.start + self.len
    }
}

/// Borrowed memory on a device, without an element type.
///
/// # Safety
/// `span` tells the truth, and `slice` gives a region of exactly the bytes asked for.
pub unsafe trait Region: Debug + Sized {
    /// Where it lies, and its length.
    fn span(&self) -> Span;

    /// A part of it. The caller made sure that the range is inside; a backend may panic if it is not.
    fn slice(self, bytes: Range<usize>) -> Self;

    /// Its length in bytes.
    fn byte_len(&self) -> usize {
        self.span().len as usize
    }
}
