//! Device memory that outlives every use of it.
//!
//! Memory is freed in stream order on its *home* stream. A use on another stream is not ordered with that, so an
//! allocation remembers the other streams, and freeing makes the home stream wait for each of them first. A stream that
//! is being captured can neither be waited for nor free memory: what such a stream used is kept until it is done.

use crate::CudaDevice;
use crate::capture::is_capturing;
use crate::lend::Refused;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, DriverError, result};
use moe_core::Result;
use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex};

/// Alignment of all memory, in bytes; also the smallest allocation.
pub(crate) const ALIGN: usize = 256;

/// Owned device memory. Freed when the last user of it is gone and its work is done.
pub(crate) struct Allocation {
    device: CudaDevice,
    ptr: u64,
    len: usize,
    home: Arc<CudaStream>,
    /// Streams other than home that have used it.
    others: Mutex<Vec<Arc<CudaStream>>>,
    /// A caller's slice that holds the memory, if we did not allocate it.
    adopted: Option<Box<dyn Adopted>>,
}

impl Allocation {
    /// New memory, zero in the order of the stream.
    pub(crate) fn zeroed(device: &CudaDevice, home: &Arc<CudaStream>, len: usize) -> Result<Self> {
        let op = "alloc_zeroed";
        sweep(device);
        let bytes = len.max(1).next_multiple_of(ALIGN);
        let context = home.context();
        context.bind_to_thread().map_err(|error| device.error(op, error))?;
        let ptr = if context.has_async_alloc() {
            // SAFETY: the stream is alive; the size is not 0.
            unsafe { result::malloc_async(home.cu_stream(), bytes) }
        } else {
            // SAFETY: a context is current; the size is not 0.
            unsafe { result::malloc_sync(bytes) }
        };
        let ptr = ptr.map_err(|error| device.alloc_error(op, error, len))?;
        let others = Mutex::new(Vec::new());
        let allocation = Self { device: device.clone(), ptr, len, home: Arc::clone(home), others, adopted: None };
        // SAFETY: the allocation has `bytes` bytes from `ptr` on.
        unsafe { result::memset_d8_async(ptr, 0, bytes, home.cu_stream()) }.map_err(|error| device.error(op, error))?;
        Ok(allocation)
    }

    /// A caller's slice. Home waits for what cudarc knows of its uses. Gives the slice back where that fails.
    pub(crate) fn adopt<T: Send + 'static>(
        device: &CudaDevice,
        home: &Arc<CudaStream>,
        mut slice: CudaSlice<T>,
    ) -> Result<Self, Refused<CudaSlice<T>>> {
        let op = "adopt_slice";
        let own = Arc::clone(slice.stream());
        let len = slice.num_bytes();
        if own.cu_stream() != home.cu_stream()
            && let Err(error) = home.join(&own)
        {
            return Err(Refused::new(slice, device.error(op, error)));
        }
        let (ptr, guard) = slice.device_ptr_mut(home);
        drop(guard);
        let others = Mutex::new(Vec::new());
        let adopted: Option<Box<dyn Adopted>> = Some(Box::new(Slice(Some(slice))));
        Ok(Self { device: device.clone(), ptr, len, home: Arc::clone(home), others, adopted })
    }

    pub(crate) fn device(&self) -> &CudaDevice {
        &self.device
    }

    pub(crate) fn ptr(&self) -> u64 {
        self.ptr
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Notes that work on a stream uses the memory.
    pub(crate) fn used_on(&self, stream: &Arc<CudaStream>) {
        if stream.cu_stream() == self.home.cu_stream() {
            return;
        }
        let mut others = self.others.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !others.iter().any(|other| other.cu_stream() == stream.cu_stream()) {
            others.push(Arc::clone(stream));
        }
    }

    /// Whether a stream that used it is being captured now.
    pub(crate) fn is_held(&mut self) -> bool {
        let others = self.others.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        let adopted = self.adopted.as_ref().and_then(|slice| slice.stream());
        others.iter().chain([&self.home]).chain(adopted).any(|stream| is_capturing(stream))
    }

    /// Makes home wait for all other streams that used the memory.
    fn gather_home(&mut self) -> std::result::Result<(), DriverError> {
        let others = self.others.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        for other in others.drain(..) {
            self.home.join(&other)?;
        }
        Ok(())
    }

    /// Gives a caller's slice back, after all work on it in the order of its own stream. `Err(self)` if the memory is
    /// not a slice of this type.
    pub(crate) fn give_back<T: Send + 'static>(mut self) -> std::result::Result<CudaSlice<T>, Self> {
        let found = self.adopted.as_mut().and_then(|slice| slice.any().downcast_mut::<Slice<T>>());
        let Some(slice) = found.and_then(|slice| slice.0.take()) else { return Err(self) };
        let home = Arc::clone(&self.home);
        let done = self.gather_home();
        self.adopted = None;
        self.ptr = 0;
        let slice = Slice(Some(slice)).hand_over(&home);
        home.context().record_err(done);
        Ok(slice.0.expect("handed over whole"))
    }

    fn free(&mut self) {
        let context = Arc::clone(self.home.context());
        context.record_err(context.bind_to_thread());
        context.record_err(self.gather_home());
        if let Some(slice) = self.adopted.take() {
            slice.release(&self.home);
        } else if context.has_async_alloc() {
            // SAFETY: allocated with `malloc_async`, freed once, and every stream that used it is waited for by home.
            context.record_err(unsafe { result::free_async(self.ptr, self.home.cu_stream()) });
        } else {
            context.record_err(self.home.synchronize());
            // SAFETY: allocated with `malloc_sync`, freed once, and home, which waits for all users, is idle.
            context.record_err(unsafe { result::free_sync(self.ptr) });
        }
        self.ptr = 0;
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.ptr == 0 && self.adopted.is_none() {
            return; // freed or given back
        }
        if !self.is_held() {
            self.free();
            return;
        }
        let kept = Self {
            device: self.device.clone(),
            ptr: std::mem::take(&mut self.ptr),
            len: self.len,
            home: Arc::clone(&self.home),
            others: std::mem::take(&mut self.others),
            adopted: self.adopted.take(),
        };
        self.device.unfreed().push(kept);
    }
}

/// Frees what could not be freed when it was dropped.
pub(crate) fn sweep(device: &CudaDevice) {
    let mut unfreed = device.unfreed();
    if unfreed.is_empty() {
        return;
    }
    let waiting = std::mem::take(&mut *unfreed);
    let (held, free): (Vec<_>, Vec<_>) = waiting.into_iter().map(|mut a| (a.is_held(), a)).partition(|(held, _)| *held);
    unfreed.extend(held.into_iter().map(|(_, allocation)| allocation));
    drop(unfreed); // dropping memory may put it back
    drop(free);
}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Allocation({} bytes at {:#x})", self.len, self.ptr)
    }
}

/// A caller's slice without its element type.
trait Adopted: Send + Sync {
    fn any(&mut self) -> &mut dyn Any;
    fn stream(&self) -> Option<&Arc<CudaStream>>;
    /// Drops it, after all work that `home` has.
    fn release(self: Box<Self>, home: &Arc<CudaStream>);
}

struct Slice<T>(Option<CudaSlice<T>>);

impl<T> Slice<T> {
    /// Orders all that is done with the slice from now on after the work of `home`.
    fn hand_over(mut self, home: &Arc<CudaStream>) -> Self {
        if let Some(slice) = &mut self.0 {
            let own = Arc::clone(slice.stream());
            drop(slice.device_ptr_mut(home)); // records the event that cudarc's next use waits for
            if own.cu_stream() != home.cu_stream() {
                own.context().record_err(own.join(home));
            }
        }
        self
    }
}

impl<T: Send + 'static> Adopted for Slice<T> {
    fn any(&mut self) -> &mut dyn Any {
        self
    }

    fn stream(&self) -> Option<&Arc<CudaStream>> {
        self.0.as_ref().map(|slice| slice.stream())
    }

    fn release(self: Box<Self>, home: &Arc<CudaStream>) {
        drop(self.hand_over(home));
    }
}
