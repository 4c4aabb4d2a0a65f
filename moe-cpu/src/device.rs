//! A CPU device: a thread pool with an ordinal.

use crate::buffer::{CpuRegion, CpuRegionMut};
use crate::kernels::{INSTRUCTIONS, KNOBS, STREAM_BYTES, STREAM_ROW, TASK_BYTES, Thresholds, Tier};
use crate::{Cpu, CpuMint, CpuQueue};
use moe_core::dtype::{as_bytes, as_bytes_mut};
use moe_core::identity::Registry;
use moe_core::oracle::{Capabilities, DeviceClass, Knob, Op, Path, Quantisation, Tuned, TuningTable, Wish};
use moe_core::{Backend, Device, DeviceId, DeviceInfo, DeviceSpec, Element, Error, Result, View, ViewMut};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// Ordinals that can be opened. Each is a pool of its own, so a typing error should not make one.
const MAX_POOLS: u32 = 64;

static DEVICES: Registry<CpuDevice> = Registry::new();

/// Bytes per second that a thread is assumed to copy, and all threads together, for the choice between backends.
const THREAD_BANDWIDTH: f64 = 12e9;
const MAX_BANDWIDTH: f64 = 150e9;

/// An opened CPU device.
#[derive(Clone)]
pub struct CpuDevice(Arc<Inner>);

struct Inner {
    id: DeviceId<Cpu>,
    pool: Arc<ThreadPool>,
    adopted: bool,
    /// What operations run with, and the table that it comes from.
    tuning: RwLock<(Tier, Tuned)>,
}

impl fmt::Debug for CpuDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuDevice({}, {} threads, {})", self.0.id, self.num_threads(), self.tier().name())
    }
}

impl CpuDevice {
    /// The device of a caller's pool, so that the caller's work and ours share threads. Adopting a pool twice gives
    /// the same device. The pool is kept for the life of the process.
    ///
    /// # Errors
    /// None today.
    pub fn adopt_pool(pool: Arc<ThreadPool>) -> Result<Self> {
        // An address is unique for as long as the registry keeps the pool; ordinals stay below it.
        let key = (1 << 64) | Arc::as_ptr(&pool) as usize as u128;
        DEVICES.get_or_open(key, |device| device.0.adopted, |n| Ok(Self::new(0, n + 1, key, pool, true)))
    }

    fn new(ordinal: u32, instance: u32, key: u128, pool: Arc<ThreadPool>, adopted: bool) -> Self {
        let id = DeviceId::mint(CpuMint(()), ordinal, instance, key);
        let tuning = RwLock::new((Tier::best(), Tuned::built_in(KNOBS)));
        Self(Arc::new(Inner { id, pool, adopted, tuning }))
    }

    /// Lends a caller's slice to operations on this device, without a copy.
    pub fn lend<'a, T: Element>(&self, data: &'a [T]) -> View<'a, Cpu, T> {
        let region = CpuRegion(as_bytes(data));
        View::from_raw(CpuMint(()), self.0.id, region, data.len()).expect("a slice is as long and as aligned as it is")
    }

    /// Lends a caller's slice to be written.
    pub fn lend_mut<'a, T: Element>(&self, data: &'a mut [T]) -> ViewMut<'a, Cpu, T> {
        let len = data.len();
        let region = CpuRegionMut(as_bytes_mut(data));
        ViewMut::from_raw(CpuMint(()), self.0.id, region, len).expect("a slice is as long and as aligned as it is")
    }

    /// Its pool.
    pub fn pool(&self) -> &Arc<ThreadPool> {
        &self.0.pool
    }

    /// Threads of its pool.
    pub fn num_threads(&self) -> usize {
        self.0.pool.current_num_threads()
    }

    pub(crate) fn tier(&self) -> Tier {
        self.0.tuning.read().unwrap_or_else(PoisonError::into_inner).0
    }

    /// The values in use, measured or built in.
    pub fn tuned(&self) -> Tuned {
        self.0.tuning.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

// SAFETY: the id is set once; all CPU memory is addressable from every pool, which asks nothing more of ids.
unsafe impl Device for CpuDevice {
    type Backend = Cpu;

    fn open(spec: &DeviceSpec) -> Result<Self> {
        let ordinal = spec.ordinal_for::<Cpu>()?;
        if ordinal >= MAX_POOLS {
            let (spec, found) = (spec.to_string(), MAX_POOLS as usize);
            return Err(Error::NoSuchDevice { spec, backend: "cpu", found });
        }
        let own = |device: &CpuDevice| !device.0.adopted && device.0.id.ordinal() == ordinal;
        DEVICES.get_or_open(u128::from(ordinal), own, |instance| {
            let name = move |thread| format!("moe-cpu-{ordinal}-{thread}");
            let pool = ThreadPoolBuilder::new().thread_name(name).build();
            let pool = pool.map_err(|e| Error::Backend { op: "open", backend: "cpu", source: Box::new(e) })?;
            Ok(Self::new(ordinal, instance, u128::from(ordinal), Arc::new(pool), false))
        })
    }

    /// One: further ordinals are pools of threads on the same cores.
    fn count() -> Result<usize> {
        Ok(1)
    }

    fn id(&self) -> DeviceId<Cpu> {
        self.0.id
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: format!("{} threads", self.num_threads()),
            memory_bytes: total_memory(),
            details: vec![("arch", std::env::consts::ARCH.into()), ("kernels", self.tier().name().into())],
        }
    }

    fn queue(&self) -> Result<CpuQueue> {
        Ok(CpuQueue::new(self.clone()))
    }

    fn capabilities(&self) -> Capabilities {
        let bandwidth = (THREAD_BANDWIDTH * self.num_threads() as f64).min(MAX_BANDWIDTH);
        let capabilities = Capabilities::of(DeviceClass::Cpu).bandwidth(bandwidth).quantises(Quantisation::ALL);
        capabilities.note("12 GB/s a thread, at most 150, are assumed")
    }

    fn knobs(&self) -> &'static [Knob] {
        KNOBS
    }

    fn tune(&self, table: &TuningTable) -> Result<()> {
        let tuned = table.tuned(Cpu::NAME, &self.info().name, KNOBS)?;
        let word = tuned.get(&INSTRUCTIONS);
        let tier = Tier::named(word).ok_or_else(|| Error::InvalidArgument {
            op: "tune",
            arg: INSTRUCTIONS.key,
            expected: "an instruction set that this machine has".into(),
            got: INSTRUCTIONS.format(word),
        })?;
        let tuning = (tier.with(Thresholds::new(&tuned)), tuned);
        *self.0.tuning.write().unwrap_or_else(PoisonError::into_inner) = tuning;
        Ok(())
    }

    fn paths(&self, wish: &Wish) -> Vec<Path> {
        let (tier, tuned, sizes) = (self.tier(), self.tuned(), wish.sizes());
        let from = |knob: &Knob| {
            let value = knob.format(tuned.get(knob));
            format!("{} {value}, {}", knob.key, if tuned.is_measured(knob) { "measured" } else { "built in" })
        };
        let instructions = match tuned.get(&INSTRUCTIONS) {
            0 => "the widest that the processor has".to_owned(),
            _ => from(&INSTRUCTIONS),
        };
        let mut paths = vec![Path { what: "instructions", taken: tier.name().into(), why: instructions }];
        let row = sizes.hidden_size.saturating_mul(wish.dtype().size());
        let tokens = sizes.typical_tokens;
        for &op in wish.wanted_ops() {
            let (what, rows) = match op {
                Op::Gather | Op::WeightedGather => ("gather: stores", tokens.saturating_mul(sizes.top_k)),
                Op::Combine => ("combine: stores", tokens),
                Op::CombineGrad => ("combine_grad: stores", tokens.saturating_mul(sizes.top_k)),
                _ => continue,
            };
            let bytes = rows.saturating_mul(row);
            let streams = tier.thresholds().streams(bytes, row);
            let taken = if streams { "past the cache" } else { "through the cache" };
            let why = format!("{bytes} bytes in rows of {row} ({}; {})", from(&STREAM_BYTES), from(&STREAM_ROW));
            paths.push(Path { what, taken: taken.into(), why });
        }
        let grain = tier.thresholds().grain_for(row.saturating_mul(sizes.top_k));
        let why = format!("a task moves about as many bytes as {}", from(&TASK_BYTES));
        paths.push(Path { what: "tasks", taken: format!("{grain} tokens each"), why });
        paths
    }
}

/// The machine's memory, where the system tells it in a file.
fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
