//! A CUDA device: the primary context of a GPU, or of a MIG instance.

use crate::health::Health;
use crate::memory::Allocation;
use crate::modules::Kernels;
use crate::probe;
use crate::thresholds::{self, KNOBS, Thresholds};
use crate::{Cuda, CudaMint, CudaQueue};
use cudarc::driver::sys::{CUdevice_attribute, CUuuid};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};
use moe_core::identity::Registry;
use moe_core::oracle::{Capabilities, DeviceClass, Knob, Path, Quantisation, Tuned, TuningTable, Wish};
use moe_core::{Backend, Device, DeviceId, DeviceInfo, DeviceSpec, Error, Result};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// What decides whether two devices are one.
fn key(uuid: CUuuid) -> u128 {
    u128::from_be_bytes(uuid.bytes.map(|b| b as u8))
}

/// The refusal of something in another context.
fn elsewhere(op: &'static str, arg: &'static str, here: DeviceId<Cuda>, ordinal: u32, key: u128) -> Error {
    if key == here.key() {
        let reason = format!("the {arg} belongs to another context of {here} than the primary one");
        return Error::Unsupported { op, backend: "cuda", reason };
    }
    let got = DeviceId::<Cuda>::mint(CudaMint(()), ordinal, 1, key).erase();
    Error::DeviceMismatch { op, arg, expected: here.erase(), got }
}

/// What the start of one operation costs, as measured.
const LAUNCH: Duration = Duration::from_micros(3);

/// Bytes per second of memory with this clock (kHz) and bus (bits), which moves data twice in a cycle. `None` where the
/// driver does not know them.
fn bandwidth(clock_khz: i32, bus_bits: i32) -> Option<f64> {
    let known = clock_khz > 0 && bus_bits > 0;
    known.then(|| 2.0 * f64::from(clock_khz) * 1e3 * f64::from(bus_bits) / 8.0)
}

static DEVICES: Registry<CudaDevice> = Registry::new();

/// An opened CUDA device. Its identity is the UUID that the driver gives the GPU, or the MIG instance.
#[derive(Clone)]
pub struct CudaDevice(Arc<Inner>);

struct Inner {
    id: DeviceId<Cuda>,
    context: Arc<CudaContext>,
    driver: i32,
    health: Health,
    kernels: OnceLock<Kernels>,
    loading: Mutex<()>,
    /// What choices between kernels depend on.
    tuning: RwLock<(Thresholds, Tuned)>,
    /// Never has work of its own: see [`CudaDevice::still`].
    still: Arc<CudaStream>,
    /// Memory that could not be freed while a stream that used it was capturing.
    unfreed: Mutex<Vec<Allocation>>,
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaDevice({}, {})", self.0.id, self.0.context.name().unwrap_or_default())
    }
}

impl CudaDevice {
    /// The device of a caller's context, so that the caller's streams and memory can be used here. Whether it was
    /// opened or adopted before, it is the same device.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`], or [`Error::Unsupported`] if the context is not the primary one of its device:
    /// other contexts have memory of their own.
    pub fn adopt(context: Arc<CudaContext>) -> Result<Self> {
        let op = "adopt";
        let driver = probe::driver()?;
        if !context.is_primary() {
            let reason = "the context is not the device's primary one: make it with CudaContext::new".into();
            return Err(Error::Unsupported { op, backend: "cuda", reason });
        }
        Self::register(op, driver, context)
    }

    fn register(op: &'static str, driver: i32, context: Arc<CudaContext>) -> Result<Self> {
        let fail = |error| crate::error::driver(op, error);
        let uuid = context.uuid().map_err(fail)?;
        let key = key(uuid);
        // One device for each key, so nothing ever counts as a second logical device of an ordinal.
        DEVICES.get_or_open(
            key,
            |_| false,
            |instance| {
                let (major, minor) = context.compute_capability().map_err(fail)?;
                if major < 8 {
                    let name = context.name().unwrap_or_default();
                    return Err(probe::unavailable(format!(
                        "{name} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer"
                    )));
                }
                context.bind_to_thread().map_err(fail)?;
                let raw = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(fail)?;
                // SAFETY: the stream was just made in this context and is never destroyed. Wrapping it instead of
                // `new_stream` keeps a caller's context in single-stream mode.
                let still = unsafe { context.wrap_borrowed_stream(raw) };
                let id = DeviceId::mint(CudaMint(()), context.ordinal() as u32, instance, key);
                Ok(Self(Arc::new(Inner {
                    id,
                    context,
                    driver,
                    health: Health::default(),
                    kernels: OnceLock::new(),
                    loading: Mutex::new(()),
                    tuning: RwLock::new((Thresholds::default(), Tuned::built_in(KNOBS))),
                    still,
                    unfreed: Mutex::new(Vec::new()),
                })))
            },
        )
    }

    /// The context that it was opened with or adopted from.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.0.context
    }

    /// A queue on a caller's stream. Work of both lies on one stream, so nothing has to wait for anything.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] if the stream belongs to another device, [`Error::Unsupported`] for a stream of
    /// another context or the per-thread default stream, which is a different stream on each thread, and
    /// [`Error::BackendUnavailable`] if the driver does not take the kernels.
    pub fn adopt_stream(&self, stream: Arc<CudaStream>) -> Result<CudaQueue> {
        self.expect_context("adopt_stream", "stream", stream.context())?;
        CudaQueue::new(self.clone(), stream)
    }

    /// A queue on a caller's stream whose operations are enqueued also while the caller captures it, into the caller's
    /// graph. Other queues refuse that: [`Capture`](crate::Capture) keeps the memory for as long as its graph lives, a
    /// graph of somebody else does not.
    ///
    /// # Safety
    /// For as long as a graph that was captured on the stream, or anything made from it, can run:
    /// - all memory that the captured operations use is neither freed nor given back: buffers, plans, workspaces, and
    ///   what was lent;
    /// - no run of the graph overlaps another use of that memory, on the host (a [`View`](moe_core::View) that is read,
    ///   a `CudaSlice` that is written) or on other streams, that a borrow would have forbidden. No events are recorded
    ///   for it.
    ///
    /// # Errors
    /// As [`adopt_stream`](Self::adopt_stream).
    pub unsafe fn adopt_capturing_stream(&self, stream: Arc<CudaStream>) -> Result<CudaQueue> {
        self.expect_context("adopt_capturing_stream", "stream", stream.context())?;
        let mut queue = CudaQueue::new(self.clone(), stream)?;
        queue.promised = true;
        Ok(queue)
    }

    /// Whether a context is this device's, perhaps through another `Arc`. Others are named, not opened.
    pub(crate) fn expect_context(&self, op: &'static str, arg: &'static str, context: &CudaContext) -> Result<()> {
        if context.cu_ctx() == self.context().cu_ctx() {
            return Ok(());
        }
        let uuid = context.uuid().map_err(|error| crate::error::driver(op, error))?;
        Err(elsewhere(op, arg, self.id(), context.ordinal() as u32, key(uuid)))
    }

    /// A stream on which nothing ever runs. cudarc gives an address only with a stream that is to wait for the memory;
    /// where only the address is asked for, this one waits.
    pub(crate) fn still(&self) -> &CudaStream {
        &self.0.still
    }

    pub(crate) fn health(&self) -> &Health {
        &self.0.health
    }

    /// The kernels; loads them if nobody has.
    pub(crate) fn kernels(&self) -> Result<&Kernels> {
        if let Some(kernels) = self.0.kernels.get() {
            return Ok(kernels);
        }
        let _one = self.0.loading.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.0.kernels.get().is_none() {
            let kernels = Kernels::load(&self.0.context)?;
            let _ = self.0.kernels.set(kernels);
        }
        Ok(self.0.kernels.get().expect("just set"))
    }

    pub(crate) fn thresholds(&self) -> Thresholds {
        self.0.tuning.read().unwrap_or_else(PoisonError::into_inner).0
    }

    /// The values in use, measured or built in.
    pub fn tuned(&self) -> Tuned {
        self.0.tuning.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    pub(crate) fn error(&self, op: &'static str, error: DriverError) -> Error {
        self.0.health.error(op, self.0.id.erase(), error, 0)
    }

    pub(crate) fn alloc_error(&self, op: &'static str, error: DriverError, bytes: usize) -> Error {
        self.0.health.error(op, self.0.id.erase(), error, bytes)
    }

    pub(crate) fn unfreed(&self) -> MutexGuard<'_, Vec<Allocation>> {
        self.0.unfreed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

// SAFETY: the id is set once, from the UUID; memory of another GPU or another context has another id or is refused.
unsafe impl Device for CudaDevice {
    type Backend = Cuda;

    fn open(spec: &DeviceSpec) -> Result<Self> {
        let ordinal = spec.ordinal_for::<Cuda>()?;
        let driver = probe::driver()?;
        let found = probe::count()?;
        if ordinal as usize >= found {
            return Err(Error::NoSuchDevice { spec: spec.to_string(), backend: "cuda", found });
        }
        let context = CudaContext::new(ordinal as usize).map_err(|error| crate::error::driver("open", error))?;
        Self::register("open", driver, context)
    }

    fn count() -> Result<usize> {
        probe::count()
    }

    fn id(&self) -> DeviceId<Cuda> {
        self.0.id
    }

    fn info(&self) -> DeviceInfo {
        let context = &self.0.context;
        let (major, minor) = context.compute_capability().unwrap_or_default();
        let sms = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).unwrap_or_default();
        DeviceInfo {
            name: context.name().unwrap_or_default(),
            memory_bytes: context.total_mem().ok().map(|bytes| bytes as u64),
            details: vec![
                ("compute capability", format!("{major}.{minor}")),
                ("multiprocessors", sms.to_string()),
                ("driver", format!("CUDA {}", probe::version_text(self.0.driver))),
                ("uuid", format!("{:032x}", self.0.id.key())),
            ],
        }
    }

    fn queue(&self) -> Result<CudaQueue> {
        let stream = self.0.context.new_stream().map_err(|error| self.error("queue", error))?;
        CudaQueue::new(self.clone(), stream)
    }

    fn capabilities(&self) -> Capabilities {
        let ask = |attribute| self.0.context.attribute(attribute).unwrap_or_default();
        let integrated = ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED) != 0;
        let class = if integrated { DeviceClass::IntegratedGpu } else { DeviceClass::DiscreteGpu };
        let capabilities = Capabilities::of(class).launch(LAUNCH).quantises(Quantisation::ALL);
        let clock = ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE);
        match bandwidth(clock, ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)) {
            Some(bandwidth) => capabilities.bandwidth(bandwidth),
            None => capabilities.note("the driver does not know the memory's clock and bus"),
        }
    }

    fn knobs(&self) -> &'static [Knob] {
        KNOBS
    }

    /// Operations that are enqueued from now on use the table. Workspaces that exist stay large enough.
    fn tune(&self, table: &TuningTable) -> Result<()> {
        let tuned = table.tuned(Cuda::NAME, &self.info().name, KNOBS)?;
        let tuning = (Thresholds::new(&tuned), tuned);
        *self.0.tuning.write().unwrap_or_else(PoisonError::into_inner) = tuning;
        Ok(())
    }

    fn paths(&self, wish: &Wish) -> Vec<Path> {
        let count = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = self.0.context.attribute(count).unwrap_or_default().max(1) as u32;
        thresholds::paths(&self.tuned(), wish, multiprocessors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_clock_times_bus_twice_a_cycle_and_unknown_without_them() {
        assert_eq!(bandwidth(3_201_000, 6_144), Some(4.916736e12)); // H200: 4.9 TB/s
        assert_eq!(bandwidth(0, 6_144), None);
        assert_eq!(bandwidth(3_201_000, 0), None);
    }

    #[test]
    fn what_is_refused_names_the_operation_that_was_asked_for_and_both_devices() {
        let here = DeviceId::<Cuda>::mint(CudaMint(()), 0, 1, 7);
        let error = elsewhere("lend", "memory", here, 0, 7);
        assert!(matches!(error, Error::Unsupported { op: "lend", .. }), "{error}");
        let error = elsewhere("lend_mut", "memory", here, 1, 8).to_string();
        assert_eq!(error, "lend_mut: memory is on cuda:1, expected cuda:0");
    }
}
