//! What of a buffer a kernel is shown: bindings, and windows of matrices that no binding holds whole.

use crate::buffer::WgpuRegion;
use crate::error::unsupported;
use crate::{Wgpu, WgpuDevice};
use moe_core::raw::{PlanRef, RawRows, RawRowsMut};
use moe_core::{Buffer, DType, Result};
use std::ops::Range;

/// A region as a kernel sees it: the binding around it, and where in the binding it begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    /// Bytes from the start of the binding to the region.
    pub(crate) base: u32,
    /// Of a buffer of this library's own.
    pub(crate) owned: bool,
}

impl<'a> Bound<'a> {
    /// Binds a region: from the adapter's alignment before it to the end of its last word.
    pub(crate) fn new(device: &WgpuDevice, op: &'static str, arg: &str, region: &WgpuRegion<'a>) -> Result<Self> {
        let offset = region.start - region.start % device.offset_alignment();
        let end = (region.start + region.len).next_multiple_of(4).max(offset + 16).min(region.buffer.size());
        let (size, limit) = (end - offset, device.max_binding());
        if size > limit {
            let reason = format!("{arg} takes {size} bytes, max_storage_buffer_binding_size is {limit}");
            return Err(unsupported(op, reason));
        }
        Ok(Self { buffer: region.buffer, offset, size, base: (region.start - offset) as u32, owned: region.owned })
    }

    pub(crate) fn binding(&self) -> wgpu::BufferBinding<'a> {
        let Self { buffer, offset, size, .. } = *self;
        wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) }
    }

    /// The arrays of a plan.
    pub(crate) fn plan(device: &WgpuDevice, op: &'static str, plan: PlanRef<'a, Wgpu>) -> Result<Self> {
        let bytes = 0..plan.arrays.byte_len as u64;
        Self::new(device, op, "the plan", &plan.buffer.region().elsewhere(bytes))
    }

    /// A region that may be missing; then anything may stand in its place, as it is not read.
    pub(crate) fn region_or(
        device: &WgpuDevice,
        op: &'static str,
        arg: &str,
        region: Option<&WgpuRegion<'a>>,
        instead: Self,
    ) -> Result<Self> {
        match region {
            Some(region) if region.len > 0 => Self::new(device, op, arg, region),
            _ => Ok(instead),
        }
    }
}

/// A matrix in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Matrix<'a> {
    region: WgpuRegion<'a>,
    pub(crate) rows: usize,
    pub(crate) row_bytes: u64,
    stride: u64,
}

/// Some rows of a matrix, bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window<'a> {
    pub(crate) bound: Bound<'a>,
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// Bytes from row to row.
    pub(crate) stride: u32,
    span: u64,
}

impl Window<'_> {
    /// The 32-bit words that hold it.
    pub(crate) fn words(&self) -> u32 {
        (u64::from(self.bound.base % 4) + self.span).div_ceil(4) as u32
    }
}

impl<'a> Matrix<'a> {
    pub(crate) fn new(rows: &RawRows<'a, Wgpu>) -> Self {
        Self::of(rows.region.clone(), rows.dtype, rows.rows, rows.cols, rows.stride)
    }

    pub(crate) fn new_mut(rows: &RawRowsMut<'a, Wgpu>) -> Self {
        Self::of(rows.region.0.clone(), rows.dtype, rows.rows, rows.cols, rows.stride)
    }

    fn of(region: WgpuRegion<'a>, dtype: DType, rows: usize, cols: usize, stride: usize) -> Self {
        let row_bytes = (cols * dtype.size()) as u64;
        let stride = if rows > 1 { (stride * dtype.size()) as u64 } else { row_bytes };
        Self { region, rows, row_bytes, stride }
    }

    /// Whether base, stride and length are multiples of 16 bytes.
    pub(crate) fn in_vectors(&self) -> bool {
        (self.region.start | self.row_bytes | self.stride).is_multiple_of(16)
    }

    /// How many rows a binding holds.
    pub(crate) fn rows_per_window(&self, device: &WgpuDevice, op: &'static str, arg: &str) -> Result<usize> {
        // The binding may begin before the first row and end after the last, by alignment.
        let room = device.max_binding().saturating_sub(device.offset_alignment() + 16);
        if self.row_bytes > room {
            let (row, limit) = (self.row_bytes, device.max_binding());
            let reason = format!("a row of {arg} takes {row} bytes, max_storage_buffer_binding_size is {limit}");
            return Err(unsupported(op, reason));
        }
        Ok(((room - self.row_bytes) / self.stride.max(1) + 1) as usize)
    }

    /// Rows `first..first + count`, at least one.
    pub(crate) fn window(
        &self,
        device: &WgpuDevice,
        op: &'static str,
        arg: &str,
        rows: Range<usize>,
    ) -> Result<Window<'a>> {
        let count = rows.len() as u64;
        let stride = if count > 1 { self.stride } else { self.row_bytes };
        let span = (count - 1) * stride + self.row_bytes;
        let start = self.region.start + rows.start as u64 * self.stride;
        let bound = Bound::new(device, op, arg, &self.region.elsewhere(start..start + span))?;
        Ok(Window { bound, first: rows.start as u32, count: count as u32, stride: stride as u32, span })
    }

    /// All rows, in windows of at most `most` rows.
    pub(crate) fn windows(
        &self,
        device: &WgpuDevice,
        op: &'static str,
        arg: &str,
        most: usize,
    ) -> Result<Vec<Window<'a>>> {
        let most = most.min(self.rows_per_window(device, op, arg)?);
        let starts = (0..self.rows).step_by(most);
        starts.map(|first| self.window(device, op, arg, first..self.rows.min(first + most))).collect()
    }
}
