//! Lending a caller's cudarc memory to operations, without a copy.

use crate::buffer::{CudaBuffer, CudaRegion, CudaRegionMut, Memory, MemoryMut};
use crate::memory::{ALIGN, Allocation};
use crate::{Cuda, CudaDevice, CudaMint, CudaQueue};
use cudarc::driver::{CudaContext, CudaSlice, CudaView, CudaViewMut, DevicePtr, DeviceSlice};
use moe_core::{Buf, Device, Element, Error, Result, View, ViewMut};
use std::sync::Arc;

/// A caller's memory that can be lent to read: [`CudaSlice`] or [`CudaView`].
pub trait Lend<T: Element> {
    /// All of it, as bytes.
    #[doc(hidden)]
    fn bytes(&self) -> CudaView<'_, u8>;
}

/// A caller's memory that can be lent to write: [`CudaSlice`] or [`CudaViewMut`].
pub trait LendMut<T: Element> {
    /// All of it, as bytes.
    #[doc(hidden)]
    fn bytes_mut(&mut self) -> CudaViewMut<'_, u8>;
}

const WHOLE: &str = "a view has as many bytes as it has";

impl<T: Element> Lend<T> for CudaSlice<T> {
    fn bytes(&self) -> CudaView<'_, u8> {
        // SAFETY: the elements are plain data without padding (`Element`).
        unsafe { self.transmute(self.num_bytes()) }.expect(WHOLE)
    }
}

impl<T: Element> Lend<T> for CudaView<'_, T> {
    fn bytes(&self) -> CudaView<'_, u8> {
        // SAFETY: the elements are plain data without padding (`Element`).
        unsafe { self.transmute(self.num_bytes()) }.expect(WHOLE)
    }
}

impl<T: Element> LendMut<T> for CudaSlice<T> {
    fn bytes_mut(&mut self) -> CudaViewMut<'_, u8> {
        let bytes = self.num_bytes();
        // SAFETY: the elements are plain data without padding, and any bytes make elements (`Element`).
        unsafe { self.transmute_mut(bytes) }.expect(WHOLE)
    }
}

impl<T: Element> LendMut<T> for CudaViewMut<'_, T> {
    fn bytes_mut(&mut self) -> CudaViewMut<'_, u8> {
        let bytes = self.num_bytes();
        // SAFETY: the elements are plain data without padding, and any bytes make elements (`Element`).
        unsafe { self.transmute_mut(bytes) }.expect(WHOLE)
    }
}

/// The address of lent memory. Only asks: no event is recorded, and what waits is a stream that never works.
fn address(device: &CudaDevice, view: &CudaView<'_, u8>) -> u64 {
    let (ptr, guard) = view.device_ptr(device.still());
    std::mem::forget(guard);
    ptr
}

impl CudaDevice {
    /// Lends a caller's memory to operations. Work on other streams is waited for by cudarc's events where the context
    /// tracks them.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] if it lives elsewhere, or what the driver says.
    pub fn lend<'a, T: Element>(&self, memory: &'a impl Lend<T>) -> Result<View<'a, Cuda, T>> {
        let view = memory.bytes();
        let (ptr, len) = self.resolve("lend", view.stream().context(), &view)?;
        View::from_raw(
            CudaMint(()),
            self.id(),
            CudaRegion { ptr, len, memory: Memory::Lent(view) },
            len / size_of::<T>(),
        )
    }

    /// Lends a caller's memory to be written.
    ///
    /// # Errors
    /// As [`lend`](Self::lend).
    pub fn lend_mut<'a, T: Element>(&self, memory: &'a mut impl LendMut<T>) -> Result<ViewMut<'a, Cuda, T>> {
        let view = memory.bytes_mut();
        let (ptr, len) = self.resolve("lend_mut", view.stream().context(), &view.as_view())?;
        let region = CudaRegionMut { ptr, len, memory: MemoryMut::Lent(view) };
        ViewMut::from_raw(CudaMint(()), self.id(), region, len / size_of::<T>())
    }

    /// Address and bytes of a caller's memory, once it is known to be on this device.
    pub(crate) fn resolve(
        &self,
        op: &'static str,
        context: &Arc<CudaContext>,
        view: &CudaView<'_, u8>,
    ) -> Result<(u64, usize)> {
        self.expect_context(op, context)?;
        Ok((address(self, view), view.len()))
    }

    fn expect_context(&self, op: &'static str, context: &Arc<CudaContext>) -> Result<()> {
        if context.cu_ctx() == self.context().cu_ctx() {
            return Ok(());
        }
        let got = Self::of_context(op, context)?.id().erase();
        if got == self.id().erase() {
            let reason = "the memory belongs to another context of the device than the primary one".into();
            return Err(Error::Unsupported { op, backend: "cuda", reason });
        }
        Err(Error::DeviceMismatch { op, arg: "memory", expected: self.id().erase(), got })
    }
}

impl CudaQueue {
    /// Takes a caller's slice as a buffer; [`CudaBuffer::into_slice`] gives it back.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] if it lives elsewhere, [`Error::Misaligned`] if its address is no multiple of 256 (the
    /// driver's allocations are), or what the driver says.
    pub fn adopt_slice<T: Element>(&mut self, slice: CudaSlice<T>) -> Result<Buf<Cuda, T>> {
        let op = "adopt_slice";
        self.not_capturing(op)?;
        let (ptr, _) = self.device().resolve(op, slice.context(), &slice.bytes())?;
        if !slice.is_empty() && !ptr.is_multiple_of(ALIGN as u64) {
            return Err(Error::Misaligned { op, arg: "slice", expected: ALIGN });
        }
        let len = slice.len();
        let memory = Allocation::adopt(self.device(), self.stream(), slice)?;
        Buf::from_raw(CudaMint(()), CudaBuffer::new(memory), len)
    }
}
