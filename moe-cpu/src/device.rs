//! A CPU device: a thread pool with an ordinal.

use crate::buffer::{CpuRegion, CpuRegionMut};
use crate::kernels::Tier;
use crate::{Cpu, CpuMint, CpuQueue};
use moe_core::dtype::{as_bytes, as_bytes_mut};
use moe_core::identity::Registry;
use moe_core::{Device, DeviceId, DeviceInfo, DeviceSpec, Element, Error, Result, View, ViewMut};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::fmt;
use std::sync::Arc;

/// Ordinals that can be opened. Each is a pool of its own, so a typing error should not make one.
const MAX_POOLS: u32 = 64;

static DEVICES: Registry<CpuDevice> = Registry::new();

/// An opened CPU device.
#[derive(Clone)]
pub struct CpuDevice(Arc<Inner>);

struct Inner {
    id: DeviceId<Cpu>,
    pool: Arc<ThreadPool>,
    adopted: bool,
    tier: Tier,
}

impl fmt::Debug for CpuDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuDevice({}, {} threads, {})", self.0.id, self.num_threads(), self.0.tier.name())
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
        Self(Arc::new(Inner { id, pool, adopted, tier: Tier::best() }))
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
        self.0.tier
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
            details: vec![("arch", std::env::consts::ARCH.into()), ("kernels", self.0.tier.name().into())],
        }
    }

    fn queue(&self) -> Result<CpuQueue> {
        Ok(CpuQueue::new(self.clone()))
    }
}

/// The machine's memory, where the system tells it in a file.
fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
