//! A second backend, whose memory is only addresses: nothing is ever read or written. Enough for every check that is
//! made before a backend's operations are called, and to lend overlapping memory, which safe slices cannot.
#![allow(dead_code, unreachable_pub)]

use moe_core::raw::{
    BlockTableArgs, BuildArgs, ChunkArgs, CombineArgs, CombineGradArgs, GatherArgs, GatherQuantArgs, GroupedMatmulArgs,
    MaskArgs, PlanMut, ScatterMaskArgs, SplitSizesArgs, SwigluArgs, SwigluQuantArgs, ZeroTailArgs,
};
use moe_core::{
    Backend, Buffer, Capacity, CommandQueue, Device, DeviceId, DeviceInfo, DeviceSpec, Element, Error, GroupedMatmul,
    Limits, MatmulBackend, PermuteBackend, QuantBackend, Region, Result, Span, View, ViewMut,
};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
    static KNOWS_MASKS: Cell<bool> = const { Cell::new(true) };
}

/// Whether mask maps are supported, on this thread.
pub fn know_masks(known: bool) {
    KNOWS_MASKS.set(known);
}

/// Calls of operations that got past the checks, on this thread.
pub fn launches() -> usize {
    LAUNCHES.get()
}

static NEXT_ADDRESS: AtomicU64 = AtomicU64::new(4096);
static NEXT_STREAM: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy, Debug)]
pub struct Toy;

pub struct ToyMint(());

impl Backend for Toy {
    const NAME: &'static str = "toy";
    type Mint = ToyMint;
    type Device = ToyDevice;
    type Buffer = ToyBuffer;
    type Region<'a> = ToyRegion<'a>;
    type RegionMut<'a> = ToyRegion<'a>;
    type Queue<'q> = ToyQueue;

    fn shorten<'long: 'short, 'short>(region: ToyRegion<'long>) -> ToyRegion<'short> {
        region
    }

    fn shorten_mut<'long: 'short, 'short>(region: ToyRegion<'long>) -> ToyRegion<'short> {
        region
    }
}

#[derive(Clone, Debug)]
pub struct ToyDevice(u32);

impl ToyDevice {
    /// Lends any addresses, also overlapping and odd ones.
    pub fn lend<'a, T: Element>(&self, start: u64, len: usize) -> Result<View<'a, Toy, T>> {
        let span = Span { allocation: 0, start, len: (len * size_of::<T>()) as u64 };
        View::from_raw(ToyMint(()), self.id(), ToyRegion(span, PhantomData), len)
    }

    pub fn lend_mut<'a, T: Element>(&self, start: u64, len: usize) -> Result<ViewMut<'a, Toy, T>> {
        let span = Span { allocation: 0, start, len: (len * size_of::<T>()) as u64 };
        ViewMut::from_raw(ToyMint(()), self.id(), ToyRegion(span, PhantomData), len)
    }
}

// SAFETY: two ordinals are two devices, and nothing is ever addressed.
unsafe impl Device for ToyDevice {
    type Backend = Toy;

    fn open(spec: &DeviceSpec) -> Result<Self> {
        let ordinal = spec.ordinal_for::<Toy>()?;
        if ordinal > 1 {
            return Err(Error::NoSuchDevice { spec: spec.to_string(), backend: "toy", found: 2 });
        }
        Ok(Self(ordinal))
    }

    fn count() -> Result<usize> {
        Ok(2)
    }

    fn id(&self) -> DeviceId<Toy> {
        DeviceId::mint(ToyMint(()), self.0, 1, self.0.into())
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo::default()
    }

    fn queue(&self) -> Result<ToyQueue> {
        Ok(ToyQueue { device: self.clone(), stream: NEXT_STREAM.fetch_add(1, Ordering::Relaxed) })
    }
}

#[derive(Debug)]
pub struct ToyBuffer {
    id: DeviceId<Toy>,
    span: Span,
}

// SAFETY: id and length are those of the allocation; there are no bytes.
unsafe impl Buffer for ToyBuffer {
    type Backend = Toy;

    fn device_id(&self) -> DeviceId<Toy> {
        self.id
    }

    fn byte_len(&self) -> usize {
        self.span.len as usize
    }

    fn region(&self) -> ToyRegion<'_> {
        ToyRegion(self.span, PhantomData)
    }

    fn region_mut(&mut self) -> ToyRegion<'_> {
        ToyRegion(self.span, PhantomData)
    }
}

#[derive(Clone, Debug)]
pub struct ToyRegion<'a>(Span, PhantomData<&'a ()>);

// SAFETY: the span is all that it is.
unsafe impl Region for ToyRegion<'_> {
    fn span(&self) -> Span {
        self.0
    }

    fn slice(self, bytes: Range<usize>) -> Self {
        let start = self.0.start + bytes.start as u64;
        Self(Span { start, len: bytes.len() as u64, ..self.0 }, PhantomData)
    }
}

#[derive(Debug)]
pub struct ToyQueue {
    device: ToyDevice,
    stream: u64,
}

// SAFETY: every queue is a stream of its own; addresses are given out once; `download` writes all of its destination.
unsafe impl CommandQueue for ToyQueue {
    type Backend = Toy;

    fn device_id(&self) -> DeviceId<Toy> {
        self.device.id()
    }

    fn stream_key(&self) -> u64 {
        self.stream
    }

    fn alloc_zeroed(&mut self, bytes: usize) -> Result<ToyBuffer> {
        let len = bytes as u64;
        let start = NEXT_ADDRESS.fetch_add(len.next_multiple_of(4096) + 4096, Ordering::Relaxed);
        Ok(ToyBuffer { id: self.device_id(), span: Span { allocation: 0, start, len } })
    }

    unsafe fn upload(&mut self, _src: &[u8], _dst: ToyRegion<'_>) -> Result<()> {
        Ok(())
    }

    unsafe fn download(&mut self, _src: ToyRegion<'_>, dst: &mut [u8]) -> Result<()> {
        dst.fill(0);
        Ok(())
    }

    unsafe fn fill(&mut self, _dst: ToyRegion<'_>, _byte: u8) -> Result<()> {
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

fn launched() -> Result<()> {
    LAUNCHES.set(LAUNCHES.get() + 1);
    Ok(())
}

// SAFETY: nothing is written, and there is nothing that could be.
unsafe impl PermuteBackend for Toy {
    fn scratch_bytes(_queue: &ToyQueue, limits: &Limits) -> usize {
        limits.max_routes * 4
    }

    fn supports_capacity(_: &Capacity) -> bool {
        true
    }

    fn supports_replicas() -> bool {
        true
    }

    unsafe fn build(_: &mut ToyQueue, _: PlanMut<'_, Self>, _: BuildArgs<'_, Self>) -> Result<()> {
        launched()
    }

    unsafe fn gather(_: &mut ToyQueue, _: GatherArgs<'_, Self>) -> Result<()> {
        launched()
    }

    unsafe fn combine(_: &mut ToyQueue, _: CombineArgs<'_, Self>) -> Result<()> {
        launched()
    }

    unsafe fn combine_grad(_: &mut ToyQueue, _: CombineGradArgs<'_, Self>) -> Result<()> {
        launched()
    }

    unsafe fn zero_tail(_: &mut ToyQueue, _: ZeroTailArgs<'_, Self>) -> Result<()> {
        launched()
    }

    unsafe fn expand_mask(_: &mut ToyQueue, _: MaskArgs<'_, Self>) -> Result<()> {
        if !KNOWS_MASKS.get() {
            return Err(Error::Unsupported { op: "expand_mask", backend: "toy", reason: "not now".into() });
        }
        launched()
    }

    unsafe fn scatter_mask(_: &mut ToyQueue, _: ScatterMaskArgs<'_, Self>) -> Result<()> {
        launched()
    }

    unsafe fn expand_chunks(_: &mut ToyQueue, _: ChunkArgs<'_, Self>) -> Result<()> {
        launched()
    }

    unsafe fn block_table(_: &mut ToyQueue, _: BlockTableArgs<'_, Self>) -> Result<()> {
        launched()
    }

    unsafe fn split_sizes(_: &mut ToyQueue, _: SplitSizesArgs<'_, Self>) -> Result<()> {
        launched()
    }
}

// SAFETY: as above.
unsafe impl QuantBackend for Toy {
    unsafe fn gather_quant(_: &mut ToyQueue, _: GatherQuantArgs<'_, Self>) -> Result<()> {
        launched()
    }

    unsafe fn swiglu(_: &mut ToyQueue, _: SwigluArgs<'_, Self>) -> Result<()> {
        launched()
    }

    unsafe fn swiglu_quant(_: &mut ToyQueue, _: SwigluQuantArgs<'_, Self>) -> Result<()> {
        launched()
    }
}

/// Products of nothing.
pub struct ToyMatmul;

// SAFETY: as above.
unsafe impl GroupedMatmul<Toy> for ToyMatmul {
    unsafe fn grouped_matmul(&mut self, _: &mut ToyQueue, _: GroupedMatmulArgs<'_, Toy>) -> Result<()> {
        launched()
    }
}

impl MatmulBackend for Toy {
    type Matmul = ToyMatmul;

    fn matmul(_: &ToyQueue) -> Result<ToyMatmul> {
        Ok(ToyMatmul)
    }
}
