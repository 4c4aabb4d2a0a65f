//! Lending a caller's cudarc memory to operations, without a copy.

use crate::buffer::{CudaBuffer, CudaRegion, CudaRegionMut, Memory, MemoryMut};
use crate::memory::{ALIGN, Allocation};
use crate::{Cuda, CudaDevice, CudaMint, CudaQueue};
use cudarc::driver::{CudaContext, CudaSlice, CudaView, CudaViewMut, DevicePtr, DeviceSlice};
use moe_core::{Buf, Device, Element, Error, Result, View, ViewMut};
use std::fmt;

/// A caller's memory that can be lent to read: [`CudaSlice`] or [`CudaView`].
///
/// Only cudarc's types are lent, so nobody else can say where memory lies:
///
/// ```compile_fail,E0277
/// use moe_cuda::Lend;
/// use moe_cuda::cudarc::driver::{CudaSlice, CudaView};
///
/// struct Mine(CudaSlice<u8>);
/// impl Lend<f32> for Mine {
///     fn bytes(&self) -> CudaView<'_, u8> {
///         self.0.slice(..1)
///     }
/// }
/// ```
pub trait Lend<T: Element>: sealed::Lend<T> {
    /// All of it, as bytes.
    #[doc(hidden)]
    fn bytes(&self) -> CudaView<'_, u8>;
}

/// A caller's memory that can be lent to write: [`CudaSlice`] or [`CudaViewMut`].
pub trait LendMut<T: Element>: sealed::LendMut<T> {
    /// All of it, as bytes.
    #[doc(hidden)]
    fn bytes_mut(&mut self) -> CudaViewMut<'_, u8>;
}

mod sealed {
    use super::*;

    pub trait Lend<T> {}
    impl<T> Lend<T> for CudaSlice<T> {}
    impl<T> Lend<T> for CudaView<'_, T> {}

    pub trait LendMut<T> {}
    impl<T> LendMut<T> for CudaSlice<T> {}
    impl<T> LendMut<T> for CudaViewMut<'_, T> {}
}

/// Memory that was not taken: it comes back, with the reason.
pub struct Refused<M> {
    /// The memory, as it was.
    pub memory: M,
    /// The reason.
    pub error: Box<Error>,
}

impl<M> Refused<M> {
    pub(crate) fn new(memory: M, error: Error) -> Self {
        Self { memory, error: Box::new(error) }
    }
}

/// Drops the memory.
impl<M> From<Refused<M>> for Error {
    fn from(refused: Refused<M>) -> Self {
        *refused.error
    }
}

impl<M> fmt::Debug for Refused<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refused({:?})", self.error)
    }
}

impl<M> fmt::Display for Refused<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<M> std::error::Error for Refused<M> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
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
    /// [`Error::DeviceMismatch`] if it lives elsewhere, [`Error::Unsupported`] if it belongs to another context of this
    /// device, or what the driver says.
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
        context: &CudaContext,
        view: &CudaView<'_, u8>,
    ) -> Result<(u64, usize)> {
        self.expect_context(op, "memory", context)?;
        Ok((address(self, view), view.len()))
    }
}

impl CudaQueue {
    /// Takes a caller's slice as a buffer; [`CudaBuffer::into_slice`] gives it back.
    ///
    /// # Errors
    /// The slice comes back with each: [`Error::DeviceMismatch`] if it lives elsewhere, [`Error::Unsupported`] if it
    /// belongs to another context of this device or while a graph is captured, [`Error::Misaligned`] if its address is
    /// no multiple of 256 (the driver's allocations are), or what the driver says.
    pub fn adopt_slice<T: Element>(&mut self, slice: CudaSlice<T>) -> Result<Buf<Cuda, T>, Refused<CudaSlice<T>>> {
        if let Err(error) = self.adoptable(&slice) {
            return Err(Refused::new(slice, error));
        }
        let len = slice.len();
        let memory = CudaBuffer::new(Allocation::adopt(self.device(), self.stream(), slice)?);
        Ok(Buf::from_raw(CudaMint(()), memory, len).expect("the slice holds as many elements as it says"))
    }

    fn adoptable<T: Element>(&self, slice: &CudaSlice<T>) -> Result<()> {
        let op = "adopt_slice";
        self.not_capturing(op)?;
        let (ptr, _) = self.device().resolve(op, slice.context(), &slice.bytes())?;
        if ptr.is_multiple_of(ALIGN as u64) {
            return Ok(());
        }
        Err(Error::Misaligned { op, arg: "slice", expected: ALIGN })
    }
}
