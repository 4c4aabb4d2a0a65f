//! Device memory.

use crate::Wgpu;
use crate::bind_groups::BindGroups;
use moe_core::{Buffer, DeviceId, Region, Span};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

/// Owned memory: a wgpu buffer for storage and copies, of the length asked for, rounded up to 16 bytes.
pub struct WgpuBuffer {
    buffer: wgpu::Buffer,
    len: usize,
    id: DeviceId<Wgpu>,
    groups: Arc<BindGroups>,
}

impl Drop for WgpuBuffer {
    fn drop(&mut self) {
        self.groups.forget(&self.buffer);
    }
}

impl WgpuBuffer {
    pub(crate) const USAGE: wgpu::BufferUsages =
        wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

    pub(crate) fn new(buffer: wgpu::Buffer, len: usize, id: DeviceId<Wgpu>, groups: Arc<BindGroups>) -> Self {
        Self { buffer, len, id, groups }
    }

    /// wgpu's buffer, for the caller's own passes. The first [`byte_len`](Buffer::byte_len) bytes are in use.
    pub fn wgpu_buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }
}

impl fmt::Debug for WgpuBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WgpuBuffer({} bytes on {})", self.len, self.id)
    }
}

// SAFETY: id and length are set at allocation; the regions are all of the bytes, which wgpu initialises with zeros and
// aligns to more than 256 bytes.
unsafe impl Buffer for WgpuBuffer {
    type Backend = Wgpu;

    fn device_id(&self) -> DeviceId<Wgpu> {
        self.id
    }

    fn byte_len(&self) -> usize {
        self.len
    }

    fn region(&self) -> WgpuRegion<'_> {
        WgpuRegion { owned: true, ..WgpuRegion::new(&self.buffer, 0..self.len as u64) }
    }

    fn region_mut(&mut self) -> WgpuRegionMut<'_> {
        WgpuRegionMut(self.region())
    }
}

/// Borrowed bytes of a buffer.
#[derive(Clone)]
pub struct WgpuRegion<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// Of a [`WgpuBuffer`], not lent.
    pub(crate) owned: bool,
}

/// Borrowed bytes of a buffer, to write.
pub struct WgpuRegionMut<'a>(pub(crate) WgpuRegion<'a>);

impl<'a> WgpuRegion<'a> {
    pub(crate) fn new(buffer: &'a wgpu::Buffer, bytes: Range<u64>) -> Self {
        Self { buffer, start: bytes.start, len: bytes.end - bytes.start, owned: false }
    }

    /// Other bytes of the same buffer.
    pub(crate) fn elsewhere(&self, bytes: Range<u64>) -> Self {
        Self { owned: self.owned, ..Self::new(self.buffer, bytes) }
    }
}

// SAFETY: handles of one buffer hash alike, so spans of one buffer have one allocation; offset and length are the
// region's own.
unsafe impl Region for WgpuRegion<'_> {
    fn span(&self) -> Span {
        // Two buffers may collide, once in 2^64 pairs; then a disjoint pair could be refused, never more.
        let mut hasher = DefaultHasher::new();
        self.buffer.hash(&mut hasher);
        Span { allocation: hasher.finish(), start: self.start, len: self.len }
    }

    fn slice(self, bytes: Range<usize>) -> Self {
        let (start, end) = (bytes.start as u64, bytes.end as u64);
        assert!(start <= end && end <= self.len, "a slice of {} bytes is inside", self.len);
        Self { start: self.start + start, len: end - start, ..self }
    }

    fn byte_len(&self) -> usize {
        self.len as usize
    }
}

// SAFETY: as for `WgpuRegion`.
unsafe impl Region for WgpuRegionMut<'_> {
    fn span(&self) -> Span {
        self.0.span()
    }

    fn slice(self, bytes: Range<usize>) -> Self {
        Self(self.0.slice(bytes))
    }

    fn byte_len(&self) -> usize {
        self.0.len as usize
    }
}

impl fmt::Debug for WgpuRegion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WgpuRegion({} bytes at {})", self.len, self.start)
    }
}

impl fmt::Debug for WgpuRegionMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WgpuRegionMut({} bytes at {})", self.0.len, self.0.start)
    }
}
