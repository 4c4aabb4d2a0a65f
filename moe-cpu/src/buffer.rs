//! CPU memory.

use crate::Cpu;
use moe_core::{Buffer, DeviceId, Element, Region, Span};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;

/// Owned memory, aligned to a cache line.
pub struct CpuBuffer {
    ptr: NonNull<u8>,
    len: usize,
    id: DeviceId<Cpu>,
}

// SAFETY: the memory is owned by the buffer alone and is plain bytes.
unsafe impl Send for CpuBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for CpuBuffer {}

const ALIGN: usize = 64;

fn layout(len: usize) -> Option<Layout> {
    Layout::from_size_align(len.max(1), ALIGN).ok()
}

impl CpuBuffer {
    /// Zeroed memory, or `None` where there is none.
    pub(crate) fn zeroed(id: DeviceId<Cpu>, len: usize) -> Option<Self> {
        let layout = layout(len)?;
        // SAFETY: the layout's size is at least 1.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { ptr, len, id })
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `ptr` holds `len` initialised bytes for as long as the buffer lives, and is borrowed with it.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// Its bytes, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        if let Some(layout) = layout(self.len) {
            // SAFETY: allocated in `zeroed` with this very layout.
            unsafe { dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

impl fmt::Debug for CpuBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuBuffer({} bytes on {})", self.len, self.id)
    }
}

// SAFETY: id and length are set at allocation; the regions are all of the bytes, initialised and aligned to 64.
unsafe impl Buffer for CpuBuffer {
    type Backend = Cpu;

    fn device_id(&self) -> DeviceId<Cpu> {
        self.id
    }

    fn byte_len(&self) -> usize {
        self.len
    }

    fn region(&self) -> CpuRegion<'_> {
        CpuRegion(self.bytes())
    }

    fn region_mut(&mut self) -> CpuRegionMut<'_> {
        CpuRegionMut(self.bytes_mut())
    }
}

/// Borrowed bytes.
#[derive(Clone, Copy)]
pub struct CpuRegion<'a>(pub(crate) &'a [u8]);

/// Borrowed bytes, to write.
pub struct CpuRegionMut<'a>(pub(crate) &'a mut [u8]);

fn span(bytes: &[u8]) -> Span {
    Span { allocation: 0, start: bytes.as_ptr() as usize as u64, len: bytes.len() as u64 }
}

// SAFETY: address and length are the slice's own; `slice` is the standard library's.
unsafe impl Region for CpuRegion<'_> {
    fn span(&self) -> Span {
        span(self.0)
    }

    fn slice(self, bytes: Range<usize>) -> Self {
        Self(&self.0[bytes])
    }
}

// SAFETY: as for `CpuRegion`.
unsafe impl Region for CpuRegionMut<'_> {
    fn span(&self) -> Span {
        span(self.0)
    }

    fn slice(self, bytes: Range<usize>) -> Self {
        Self(&mut self.0[bytes])
    }
}

impl fmt::Debug for CpuRegion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuRegion({} bytes)", self.0.len())
    }
}

impl fmt::Debug for CpuRegionMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuRegionMut({} bytes)", self.0.len())
    }
}

/// Bytes as elements.
///
/// # Panics
/// If they are not aligned to `T` or are no whole number of them, which moe-core rules out.
pub(crate) fn typed<T: Element>(bytes: &[u8]) -> &[T] {
    // SAFETY: `Element` promises that any bytes are values of `T`.
    let (head, elements, tail) = unsafe { bytes.align_to::<T>() };
    assert!(head.is_empty() && tail.is_empty(), "memory is aligned and whole");
    elements
}

/// Bytes as elements, to write.
///
/// # Panics
/// As [`typed`].
pub(crate) fn typed_mut<T: Element>(bytes: &mut [u8]) -> &mut [T] {
    // SAFETY: `Element` promises plain data, so that elements may be written as bytes and read as elements.
    let (head, elements, tail) = unsafe { bytes.align_to_mut::<T>() };
    assert!(head.is_empty() && tail.is_empty(), "memory is aligned and whole");
    elements
}
