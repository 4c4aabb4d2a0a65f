//! What operations are enqueued on, as a user holds it.
#![allow(unsafe_code)] // calls the backends' checked copies

use crate::check::Check;
use crate::dtype::{as_bytes, as_bytes_mut};
use crate::tag::{Tag, Untagged};
use crate::{Backend, Buf, Buffer, CommandQueue, DeviceId, Element, Error, Result, View, ViewMut};
use std::marker::PhantomData;

/// A stream, a command encoder, or for the CPU nothing: what operations are enqueued on, in order.
///
/// "Ok" from an operation means that it was enqueued. A failure of work that was enqueued comes from
/// [`check`](Self::check), [`synchronize`](Self::synchronize) or [`download`](Self::download), and names the first
/// operation that can have failed.
#[derive(Debug)]
pub struct Queue<'q, B: Backend, G: Tag = Untagged> {
    raw: B::Queue<'q>,
    tag: PhantomData<G>,
}

impl<'q, B: Backend, G: Tag> Queue<'q, B, G> {
    pub(crate) fn new(raw: B::Queue<'q>) -> Self {
        Self { raw, tag: PhantomData }
    }

    /// The backend's own queue.
    pub fn raw(&self) -> &B::Queue<'q> {
        &self.raw
    }

    /// The backend's own queue, to enqueue other work between ours.
    pub fn raw_mut(&mut self) -> &mut B::Queue<'q> {
        &mut self.raw
    }

    /// Gives the backend's own queue back.
    pub fn into_raw(self) -> B::Queue<'q> {
        self.raw
    }

    /// The device it feeds.
    pub fn device_id(&self) -> DeviceId<B> {
        self.raw.device_id()
    }

    /// New memory of `len` elements, all zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::InvalidArgument`] if the bytes do not fit an `isize`, or what the driver says.
    pub fn zeros<T: Element>(&mut self, len: usize) -> Result<Buf<B, T, G>> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|b| isize::try_from(*b).is_ok());
        let bytes = bytes.ok_or_else(|| Error::InvalidArgument {
            op: "zeros",
            arg: "len",
            expected: "fewer bytes than isize::MAX".into(),
            got: len.to_string(),
        })?;
        Ok(Buf::new(self.raw.alloc_zeroed(bytes)?, len))
    }

    /// A new buffer with a copy of host data.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn upload<T: Element>(&mut self, data: &[T]) -> Result<Buf<B, T, G>> {
        let mut buf = self.zeros(data.len())?;
        self.write(data, buf.view_mut())?;
        Ok(buf)
    }

    /// Copies host data into a view of the same length. The host data may be changed when this returns; on a GPU that
    /// can mean waiting for what is enqueued.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`], or what the driver says.
    pub fn write<T: Element>(&mut self, data: &[T], dst: ViewMut<'_, B, T, G>) -> Result<()> {
        self.check_for("write").device("dst", dst.device_id())?;
        self.check_for("write").len("dst", data.len(), dst.len())?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: device and length were checked, and there is something to copy.
        unsafe { self.raw.upload(as_bytes(data), dst.into_region()) }
    }

    /// Runs what is enqueued, waits for it, and copies a view to the host.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`], or what the driver says of this copy or of work enqueued before.
    pub fn download<T: Element>(&mut self, src: View<'_, B, T, G>) -> Result<Vec<T>> {
        let mut data = vec![T::default(); src.len()];
        self.read(src, &mut data)?;
        Ok(data)
    }

    /// Like [`download`](Self::download), into host memory of the same length.
    ///
    /// # Errors
    /// As [`download`](Self::download), and [`Error::Shape`].
    pub fn read<T: Element>(&mut self, src: View<'_, B, T, G>, data: &mut [T]) -> Result<()> {
        self.check_for("read").device("src", src.device_id())?;
        self.check_for("read").len("src", data.len(), src.len())?;
        if data.is_empty() {
            return self.raw.synchronize();
        }
        // SAFETY: device and length were checked, and there is something to copy.
        unsafe { self.raw.download(src.into_region(), as_bytes_mut(data)) }
    }

    /// Sets every byte of a view.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`], or what the driver says.
    pub fn fill<T: Element>(&mut self, dst: ViewMut<'_, B, T, G>, byte: u8) -> Result<()> {
        self.check_for("fill").device("dst", dst.device_id())?;
        if dst.is_empty() {
            return Ok(());
        }
        // SAFETY: the device was checked, and there is something to fill.
        unsafe { self.raw.fill(dst.into_region(), byte) }
    }

    /// Reports failures of enqueued work that are known by now, without waiting.
    ///
    /// # Errors
    /// The failure.
    pub fn check(&mut self) -> Result<()> {
        self.raw.check()
    }

    /// Runs what is enqueued, waits for it, and reports failures.
    ///
    /// # Errors
    /// The failure.
    pub fn synchronize(&mut self) -> Result<()> {
        self.raw.synchronize()
    }

    pub(crate) fn alloc_bytes(&mut self, bytes: usize) -> Result<B::Buffer> {
        let buffer = self.raw.alloc_zeroed(bytes)?;
        debug_assert!(buffer.byte_len() >= bytes);
        Ok(buffer)
    }

    fn check_for(&self, op: &'static str) -> Check<B> {
        Check { op, device: self.device_id() }
    }
}
