//! A logical device of wgpu.

use crate::bind_groups::BindGroups;
use crate::buffer::{WgpuRegion, WgpuRegionMut};
use crate::error::{Lost, backend, catch, ready};
use crate::kernels::{Pipelines, Target};
use crate::queue::Recording;
use crate::tuning::{self, KNOBS, Tuning, Workgroup};
use crate::{Wgpu, WgpuMint, WgpuQueue, adapters};
use moe_core::identity::Registry;
use moe_core::oracle::{Capabilities, DeviceClass, Knob, Op, Path, Tuned, TuningTable, Wish};
use moe_core::{Backend, Device, DeviceId, DeviceInfo, DeviceSpec, Element, Error, Result, View, ViewMut};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

static DEVICES: Registry<WgpuDevice> = Registry::new();
/// The logical devices that have a key, so that one that was opened here and comes back to be adopted is known.
static KNOWN: Mutex<Vec<(wgpu::Device, u128)>> = Mutex::new(Vec::new());

/// What a device that this crate makes may use. All of it is used where the adapter has it unless it is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WgpuOptions {
    /// f16 by the adapter's `SHADER_F16`. Without it f16 is unpacked by integer operations; results are the same, but
    /// for subnormals where the adapter flushes them.
    pub native_f16: bool,
    /// Subgroup operations. Without them a workgroup ranks routes by comparing; results are the same.
    pub subgroups: bool,
    /// Parameters as immediate data. Without it they lie in uniform buffers; results are the same.
    pub immediates: bool,
    /// The most bytes of a buffer that a kernel is shown at once, at most what the adapter allows. Larger data is
    /// worked on in windows. A multiple of 4, at least 4,096.
    pub max_binding_bytes: Option<u32>,
}

impl WgpuOptions {
    /// Everything the adapter has.
    const ALL: Self = Self { native_f16: true, subgroups: true, immediates: true, max_binding_bytes: None };

    /// What timing on the GPU takes; no operation uses it.
    const TIMESTAMPS: wgpu::Features =
        wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);

    /// What every adapter has: nothing optional.
    pub const PLAIN: Self = Self { native_f16: false, subgroups: false, immediates: false, ..Self::ALL };

    /// The features that a device needs for these, where the adapter has them.
    fn features(self) -> wgpu::Features {
        let mut features = Self::TIMESTAMPS;
        features.set(wgpu::Features::SHADER_F16, self.native_f16);
        features.set(wgpu::Features::SUBGROUP, self.subgroups);
        features.set(wgpu::Features::IMMEDIATES, self.immediates);
        features
    }

    /// Makes these the options of devices that are [opened](Device::open) by specification alone from now on, in this
    /// process: for programs that get a specification and no more, such as test suites.
    pub fn set_default(self) {
        *DEFAULT_OPTIONS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = self;
    }
}

/// Everything the adapter has, whatever was [set](WgpuOptions::set_default).
impl Default for WgpuOptions {
    fn default() -> Self {
        Self::ALL
    }
}

static DEFAULT_OPTIONS: Mutex<WgpuOptions> = Mutex::new(WgpuOptions::ALL);

/// An opened or adopted logical device.
#[derive(Clone)]
pub struct WgpuDevice(Arc<Inner>);

struct Inner {
    id: DeviceId<Wgpu>,
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    target: Target,
    subgroups: bool,
    max_binding: u64,
    offset_alignment: u64,
    storage_buffers: u32,
    max_groups: u32,
    max_buffer: u64,
    workgroup: Workgroup,
    tuning: RwLock<(Tuning, Tuned)>,
    lost: Lost,
    /// What a dropped queue could not report.
    deferred: Mutex<Option<Error>>,
    pipelines: Pipelines,
    bind_groups: Arc<BindGroups>,
    recording: Mutex<Recording>,
}

impl fmt::Debug for WgpuDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WgpuDevice({}, {})", self.0.id, self.0.info.name)
    }
}

impl WgpuDevice {
    /// Opens a device as [`Device::open`] does, with other options. Other options make another logical device, which
    /// prints as such (`wgpu:0#2`); the same options twice give the same device.
    ///
    /// # Errors
    /// As [`Device::open`], and [`Error::InvalidArgument`] for options out of their range.
    pub fn open_with(spec: &DeviceSpec, options: WgpuOptions) -> Result<Self> {
        let ordinal = spec.ordinal_for::<Wgpu>()?;
        let found = Self::count()?;
        let Some(adapter) = adapters::all().get(ordinal as usize) else {
            return Err(Error::NoSuchDevice { spec: spec.to_string(), backend: Wgpu::NAME, found });
        };
        if let Some(bytes) = options.max_binding_bytes.filter(|b| *b < 4096 || b % 4 != 0) {
            let expected = "a multiple of 4, at least 4096".into();
            let (op, arg) = ("open", "max_binding_bytes");
            return Err(Error::InvalidArgument { op, arg, expected, got: bytes.to_string() });
        }
        let binding = u128::from(options.max_binding_bytes.unwrap_or(0));
        let off = [!options.native_f16, !options.subgroups, !options.immediates];
        let off = off.iter().fold(0, |bits, off| bits << 1 | u128::from(*off));
        let key = u128::from(ordinal) | binding << 32 | off << 64;
        DEVICES.get_or_open(
            key,
            |device| device.0.id.ordinal() == ordinal,
            |instance| {
                let features = adapter.features() & options.features();
                let mut limits = adapter.limits();
                if !features.contains(wgpu::Features::IMMEDIATES) {
                    limits.max_immediate_size = 0;
                }
                let descriptor = wgpu::DeviceDescriptor {
                    label: Some("moe-wgpu"),
                    required_features: features,
                    required_limits: limits,
                    ..Default::default()
                };
                let opened = ready(adapter.request_device(&descriptor));
                let (device, queue) = opened.map_err(|e| backend("open", e))?;
                let lost = Lost::default();
                let told = lost.clone();
                device.set_device_lost_callback(move |reason, message| told.set(format!("{reason:?}: {message}")));
                known(|list| list.push((device.clone(), key)));
                let id = DeviceId::mint(WgpuMint(()), ordinal, instance, key);
                Ok(Self::new(id, device, queue, lost, options.max_binding_bytes))
            },
        )
    }

    /// The device of a caller's logical device and its queue. Adopting one twice gives the same device; so does
    /// adopting one that was opened here. It is kept for the life of the process. Features and limits are those that
    /// it was made with: f16 is native if it has `SHADER_F16`, `SUBGROUP` and `IMMEDIATES` are used where it has them.
    ///
    /// The callback for a lost device stays the caller's; it should call [`mark_lost`](Self::mark_lost).
    ///
    /// # Errors
    /// None today.
    pub fn adopt(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        let key = known(|list| match list.iter().find(|(other, _)| same(other, &device)) {
            Some((_, key)) => *key,
            None => {
                let key = 1 << 96 | list.len() as u128;
                list.push((device.clone(), key));
                key
            }
        });
        let ordinal = adapters::ordinal_of(&device.adapter_info());
        DEVICES.get_or_open(
            key,
            |other| other.0.id.ordinal() == ordinal,
            |instance| {
                let id = DeviceId::mint(WgpuMint(()), ordinal, instance, key);
                Ok(Self::new(id, device.clone(), queue, Lost::default(), None))
            },
        )
    }

    fn new(id: DeviceId<Wgpu>, device: wgpu::Device, queue: wgpu::Queue, lost: Lost, max_binding: Option<u32>) -> Self {
        let (limits, features) = (device.limits(), device.features());
        let tuned = Tuned::built_in(KNOBS);
        let workgroup = Workgroup::new(&limits);
        let largest = u64::from(u32::MAX - 3).min(limits.max_storage_buffer_binding_size);
        Self(Arc::new(Inner {
            id,
            info: device.adapter_info(),
            target: Target {
                native_f16: features.contains(wgpu::Features::SHADER_F16),
                immediates: if features.contains(wgpu::Features::IMMEDIATES) { limits.max_immediate_size } else { 0 },
            },
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            max_binding: max_binding.map_or(largest, |b| largest.min(u64::from(b))) & !3,
            offset_alignment: u64::from(limits.min_storage_buffer_offset_alignment),
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_groups: limits.max_compute_workgroups_per_dimension,
            max_buffer: limits.max_buffer_size & !3,
            workgroup,
            tuning: RwLock::new((Tuning::new(&tuned, workgroup), tuned)),
            device,
            queue,
            lost,
            deferred: Mutex::new(None),
            pipelines: Pipelines::default(),
            bind_groups: Arc::default(),
            recording: Mutex::default(),
        }))
    }

    /// What the adapters of this machine say of themselves, by ordinal.
    pub fn adapters() -> Vec<wgpu::AdapterInfo> {
        adapters::all().iter().map(wgpu::Adapter::get_info).collect()
    }

    fn subgroup_sizes(&self) -> String {
        let wgpu::AdapterInfo { subgroup_min_size: min, subgroup_max_size: max, .. } = self.0.info;
        match self.0.subgroups {
            true if min == max => format!("of {max}"),
            true => format!("of {min} to {max}"),
            false => "not used".into(),
        }
    }

    /// wgpu's logical device.
    pub fn device(&self) -> &wgpu::Device {
        &self.0.device
    }

    /// wgpu's queue.
    pub fn wgpu_queue(&self) -> &wgpu::Queue {
        &self.0.queue
    }

    /// A queue that records into the caller's encoder, which the caller submits. Nothing can be downloaded or waited
    /// for through it: that is [`Error::Unsupported`]. What is wrong with recorded commands, wgpu reports when the
    /// caller finishes the encoder.
    pub fn record<'q>(&self, encoder: &'q mut wgpu::CommandEncoder) -> WgpuQueue<'q> {
        WgpuQueue::lent(self.clone(), encoder)
    }

    /// Lends a range of bytes of a caller's buffer to operations on this device, without a copy. The buffer belongs to
    /// this logical device, has `STORAGE` usage and a size that is a multiple of 4 bytes; the range begins at a multiple
    /// of the element's size and holds whole elements.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what does not fit that, [`Error::Misaligned`] for the base.
    pub fn view<'a, T: Element>(&self, buffer: &'a wgpu::Buffer, bytes: Range<u64>) -> Result<View<'a, Wgpu, T>> {
        let len = self.check_lent::<T>(buffer, &bytes)?;
        View::from_raw(WgpuMint(()), self.id(), WgpuRegion::new(buffer, bytes), len)
    }

    /// Lends a range of bytes of a caller's buffer to be written, as [`view`](Self::view) does.
    ///
    /// # Errors
    /// As [`view`](Self::view).
    pub fn view_mut<'a, T: Element>(
        &self,
        buffer: &'a wgpu::Buffer,
        bytes: Range<u64>,
    ) -> Result<ViewMut<'a, Wgpu, T>> {
        let len = self.check_lent::<T>(buffer, &bytes)?;
        ViewMut::from_raw(WgpuMint(()), self.id(), WgpuRegionMut(WgpuRegion::new(buffer, bytes)), len)
    }

    fn check_lent<T: Element>(&self, buffer: &wgpu::Buffer, bytes: &Range<u64>) -> Result<usize> {
        let refuse =
            |arg, expected: String, got: String| Err(Error::InvalidArgument { op: "view", arg, expected, got });
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return refuse("buffer", "a buffer with STORAGE usage".into(), format!("{:?}", buffer.usage()));
        }
        if !buffer.size().is_multiple_of(4) {
            return refuse("buffer", "a size that is a multiple of 4 bytes".into(), buffer.size().to_string());
        }
        let size = size_of::<T>() as u64;
        let whole =
            bytes.start <= bytes.end && bytes.end <= buffer.size() && (bytes.end - bytes.start).is_multiple_of(size);
        if !whole {
            let expected = format!("whole elements of {size} bytes inside 0..{}", buffer.size());
            return refuse("bytes", expected, format!("{bytes:?}"));
        }
        if buffer.size() > 0 {
            let ((), error) = catch(&self.0.device, || self.0.pipelines.try_bind(&self.0.device, buffer));
            if let Some(error) = error {
                return refuse("buffer", format!("a buffer of {}", self.0.id), error.to_string());
            }
        }
        Ok(((bytes.end - bytes.start) / size) as usize)
    }

    pub(crate) fn pipelines(&self) -> &Pipelines {
        &self.0.pipelines
    }

    pub(crate) fn bind_groups(&self) -> &Arc<BindGroups> {
        &self.0.bind_groups
    }

    pub(crate) fn target(&self) -> Target {
        self.0.target
    }

    /// The most lanes of a subgroup, where kernels may use subgroups.
    pub(crate) fn subgroups(&self) -> Option<u32> {
        self.0.subgroups.then_some(self.0.info.subgroup_max_size)
    }

    /// What a workgroup may be.
    pub(crate) fn workgroup(&self) -> Workgroup {
        self.0.workgroup
    }

    /// The variants in use.
    pub(crate) fn tuning(&self) -> Tuning {
        self.0.tuning.read().unwrap_or_else(PoisonError::into_inner).0
    }

    /// The values of its [knobs](Device::knobs).
    pub fn tuned(&self) -> Tuned {
        self.0.tuning.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Says that the device is lost: for the callback of a program that adopted its own device. Every call then gives
    /// [`Error::DeviceLost`].
    pub fn mark_lost(&self, reason: &str) {
        self.0.lost.set(reason.to_owned());
    }

    /// The most bytes of a buffer that a kernel is shown at once.
    pub(crate) fn max_binding(&self) -> u64 {
        self.0.max_binding
    }

    pub(crate) fn offset_alignment(&self) -> u64 {
        self.0.offset_alignment
    }

    pub(crate) fn storage_buffers(&self) -> u32 {
        self.0.storage_buffers
    }

    pub(crate) fn max_groups(&self) -> u32 {
        self.0.max_groups
    }

    pub(crate) fn max_buffer(&self) -> u64 {
        self.0.max_buffer
    }

    pub(crate) fn create_encoder(&self) -> wgpu::CommandEncoder {
        self.0.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("moe-wgpu") })
    }

    /// What the queues of this device recorded.
    pub(crate) fn recording(&self) -> MutexGuard<'_, Recording> {
        self.0.recording.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Keeps the error of a queue that was dropped for the next check.
    pub(crate) fn defer(&self, error: Error) {
        self.0.deferred.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(error);
    }

    pub(crate) fn take_deferred(&self) -> Option<Error> {
        self.0.deferred.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }

    pub(crate) fn lost(&self) -> &Lost {
        &self.0.lost
    }
}

fn same(a: &wgpu::Device, b: &wgpu::Device) -> bool {
    a == b && adapters::address(a) == adapters::address(b)
}

fn known<R>(f: impl FnOnce(&mut Vec<(wgpu::Device, u128)>) -> R) -> R {
    f(&mut KNOWN.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

// SAFETY: the id is set once, with a key of the logical device; buffers of different logical devices have different
// keys.
unsafe impl Device for WgpuDevice {
    type Backend = Wgpu;

    fn open(spec: &DeviceSpec) -> Result<Self> {
        let options = *DEFAULT_OPTIONS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Self::open_with(spec, options)
    }

    fn count() -> Result<usize> {
        match adapters::all().len() {
            0 => Err(Error::BackendUnavailable {
                backend: Wgpu::NAME,
                reason: "no Vulkan, Metal or DX12 adapter was found; a driver, or Mesa's llvmpipe, gives one".into(),
            }),
            n => Ok(n),
        }
    }

    fn id(&self) -> DeviceId<Wgpu> {
        self.0.id
    }

    fn info(&self) -> DeviceInfo {
        let Inner { info, max_binding, .. } = &*self.0;
        DeviceInfo {
            name: info.name.clone(),
            memory_bytes: None,
            details: vec![
                ("api", format!("{:?}", info.backend)),
                ("kind", format!("{:?}", info.device_type)),
                ("driver", format!("{} {}", info.driver, info.driver_info)),
                ("native f16", self.0.target.native_f16.to_string()),
                ("subgroups", self.subgroup_sizes()),
                ("immediate data", format!("{} bytes", self.0.target.immediates)),
                ("timestamps", self.0.device.features().contains(WgpuOptions::TIMESTAMPS).to_string()),
                ("largest binding", format!("{max_binding} bytes")),
            ],
        }
    }

    fn capabilities(&self) -> Capabilities {
        let class = match self.0.info.device_type {
            wgpu::DeviceType::DiscreteGpu => DeviceClass::DiscreteGpu,
            wgpu::DeviceType::IntegratedGpu => DeviceClass::IntegratedGpu,
            wgpu::DeviceType::Cpu => DeviceClass::SoftwareGpu,
            _ => DeviceClass::Unknown,
        };
        let capabilities =
            Capabilities::of(class).launch(Duration::from_micros(30)).max_buffer_bytes(self.0.max_buffer);
        capabilities.without(Some(Op::Route), None, None, "there is no router on wgpu")
    }

    fn knobs(&self) -> &'static [Knob] {
        KNOBS
    }

    fn tune(&self, table: &TuningTable) -> Result<()> {
        let tuned = table.tuned(Wgpu::NAME, &self.info().name, KNOBS)?;
        tuning::check(&tuned, self.0.workgroup, self.0.subgroups)?;
        let tuning = (Tuning::new(&tuned, self.0.workgroup), tuned);
        *self.0.tuning.write().unwrap_or_else(PoisonError::into_inner) = tuning;
        Ok(())
    }

    fn paths(&self, wish: &Wish) -> Vec<Path> {
        tuning::paths(self, wish)
    }

    fn queue(&self) -> Result<WgpuQueue<'static>> {
        self.0.lost.check("queue", self.0.id, || "unknown")?;
        Ok(WgpuQueue::own(self.clone()))
    }
}
