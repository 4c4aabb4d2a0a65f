//! CUDA memory: owned, and borrowed to read or to write.

use crate::Cuda;
use crate::lend::Refused;
use crate::memory::Allocation;
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use moe_core::{Buffer, Device, DeviceId, Element, Error, Region, Result, Span};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Owned memory on a CUDA device. Freed in stream order, after all work on any stream that uses it; a captured graph
/// that uses it keeps it alive.
pub struct CudaBuffer {
    memory: Arc<Allocation>,
}

impl CudaBuffer {
    pub(crate) fn new(memory: Allocation) -> Self {
        Self { memory: Arc::new(memory) }
    }

    /// The device address. Work that is enqueued with it elsewhere has to be ordered by the caller.
    pub fn device_ptr(&self) -> u64 {
        self.memory.ptr()
    }

    /// The slice that was [adopted](crate::CudaQueue::adopt_slice). What cudarc enqueues with it is ordered after the
    /// work here.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the buffer, if the memory was not adopted as a slice of `T`, if a captured graph still
    /// uses it, or while a stream that used it is being captured.
    pub fn into_slice<T: Element>(self) -> Result<CudaSlice<T>, Refused<Self>> {
        let refused = |memory: Arc<Allocation>, reason: &str| {
            let error = Error::Unsupported { op: "into_slice", backend: "cuda", reason: reason.into() };
            Refused::new(Self { memory }, error)
        };
        let mut memory =
            Arc::try_unwrap(self.memory).map_err(|memory| refused(memory, "a captured graph still uses the memory"))?;
        if memory.is_held() {
            return Err(refused(Arc::new(memory), "a stream that used the memory is being captured"));
        }
        let other = |memory| refused(Arc::new(memory), "the memory was not adopted as a slice of this type");
        memory.give_back().map_err(other)
    }
}

impl fmt::Debug for CudaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaBuffer({} bytes on {})", self.memory.len(), self.memory.device().id())
    }
}

// SAFETY: id and length are those of the allocation, which is zeroed when it is made (or a caller's, which cudarc
// initialised), aligned to 256 bytes (checked where it is adopted), and kept alive by the borrow.
unsafe impl Buffer for CudaBuffer {
    type Backend = Cuda;

    fn device_id(&self) -> DeviceId<Cuda> {
        self.memory.device().id()
    }

    fn byte_len(&self) -> usize {
        self.memory.len()
    }

    fn region(&self) -> CudaRegion<'_> {
        CudaRegion { ptr: self.memory.ptr(), len: self.memory.len(), memory: Memory::Owned(&self.memory) }
    }

    fn region_mut(&mut self) -> CudaRegionMut<'_> {
        CudaRegionMut { ptr: self.memory.ptr(), len: self.memory.len(), memory: MemoryMut::Owned(&self.memory) }
    }
}

/// What keeps borrowed memory in order with other streams.
pub(crate) enum Memory<'a> {
    /// Ours: freeing waits for every stream that used it.
    Owned(&'a Arc<Allocation>),
    /// A caller's: cudarc's events.
    Lent(CudaView<'a, u8>),
    /// A caller's, borrowed by a captured graph, which sees to the events when it runs. Holds the number of the
    /// capture.
    Captured(u64),
}

impl Clone for Memory<'_> {
    fn clone(&self) -> Self {
        match self {
            Memory::Owned(memory) => Memory::Owned(memory),
            Memory::Lent(view) => Memory::Lent(view.slice(..)),
            Memory::Captured(capture) => Memory::Captured(*capture),
        }
    }
}

/// Like [`Memory`], to write.
pub(crate) enum MemoryMut<'a> {
    Owned(&'a Arc<Allocation>),
    Lent(CudaViewMut<'a, u8>),
    Captured(u64),
}

/// Borrowed bytes on a CUDA device.
#[derive(Clone)]
pub struct CudaRegion<'a> {
    pub(crate) ptr: u64,
    pub(crate) len: usize,
    pub(crate) memory: Memory<'a>,
}

/// Borrowed bytes on a CUDA device, to write.
pub struct CudaRegionMut<'a> {
    pub(crate) ptr: u64,
    pub(crate) len: usize,
    pub(crate) memory: MemoryMut<'a>,
}

macro_rules! region {
    ($Region:ident) => {
        // SAFETY: address and length are those of the memory; `slice` stays inside, or panics.
        unsafe impl Region for $Region<'_> {
            fn span(&self) -> Span {
                Span { allocation: 0, start: self.ptr, len: self.len as u64 }
            }

            fn slice(self, bytes: Range<usize>) -> Self {
                assert!(bytes.start <= bytes.end && bytes.end <= self.len, "{bytes:?} is inside 0..{}", self.len);
                Self { ptr: self.ptr + bytes.start as u64, len: bytes.len(), ..self }
            }
        }

        impl fmt::Debug for $Region<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($Region), "({} bytes at {:#x})"), self.len, self.ptr)
            }
        }
    };
}
region!(CudaRegion);
region!(CudaRegionMut);

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> CudaRegion<'static> {
        CudaRegion { ptr: 0x1000, len: 64, memory: Memory::Captured(1) }
    }

    #[test]
    fn a_part_of_a_region_has_the_address_and_length_asked_for() {
        let part = region().slice(8..24).slice(4..16);
        assert_eq!(part.span(), Span { allocation: 0, start: 0x100c, len: 12 });
    }

    #[test]
    #[should_panic(expected = "is inside 0..64")]
    fn a_part_past_the_end_is_refused() {
        let _ = region().slice(60..65);
    }
}
