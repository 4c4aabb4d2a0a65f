//! What operations are recorded into.

use crate::buffer::{WgpuBuffer, WgpuRegion, WgpuRegionMut};
use crate::dispatch::{Dispatch, ParamSlab};
use crate::error::{backend, catch, unsupported};
use crate::kernels::{COPY_BYTES, Constants};
use crate::window::Bound;
use crate::{Wgpu, WgpuDevice};
use moe_core::{CommandQueue, Device, DeviceId, Error, Result};
use std::sync::mpsc;

/// Records operations: into the encoder of the device, or into the caller's ([`WgpuDevice::record`]).
///
/// Queues that the device makes share its encoder, so that their work runs in the order in which it was recorded. It is
/// submitted by [`submit`](Self::submit), by what waits for results, and when such a queue is dropped; a failure then is
/// reported by the next check of any queue of the device.
#[derive(Debug)]
pub struct WgpuQueue<'q> {
    device: WgpuDevice,
    lent: Option<(&'q mut wgpu::CommandEncoder, Recording)>,
}

/// What is recorded and not submitted.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// The pass that operations are recorded into, for as long as nothing else is: each pass costs the host and the GPU
    /// about as much as a dispatch.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    params: Vec<ParamSlab>,
    /// The first operation that is recorded.
    first_op: Option<&'static str>,
    /// The first operation that was submitted and is not known to have run.
    submitted: Option<&'static str>,
    /// How often was submitted.
    submissions: u64,
}

/// Bytes that an upload or a download stages at once.
const STAGE: u64 = 64 << 20;

impl Recording {
    fn begin(&mut self, op: &'static str) {
        self.first_op.get_or_insert(op);
    }

    /// Ends what is open, so that commands can be submitted.
    fn seal(&mut self) {
        self.pass = None;
        self.params.drain(..).for_each(ParamSlab::seal);
    }
}

fn begin_pass(encoder: &mut wgpu::CommandEncoder) -> wgpu::ComputePass<'static> {
    let descriptor = wgpu::ComputePassDescriptor { label: Some("moe-wgpu"), timestamp_writes: None };
    encoder.begin_compute_pass(&descriptor).forget_lifetime()
}

impl<'q> WgpuQueue<'q> {
    pub(crate) fn own(device: WgpuDevice) -> Self {
        Self { device, lent: None }
    }

    pub(crate) fn lent(device: WgpuDevice, encoder: &'q mut wgpu::CommandEncoder) -> Self {
        Self { device, lent: Some((encoder, Recording::default())) }
    }

    /// The device it feeds.
    pub fn device(&self) -> &WgpuDevice {
        &self.device
    }

    pub(crate) fn id(&self) -> DeviceId<Wgpu> {
        self.device.id()
    }

    /// Submits what is recorded, without waiting for it. A queue that records into the caller's encoder leaves that to
    /// the caller.
    ///
    /// # Errors
    /// What is wrong with recorded commands, or [`Error::DeviceLost`].
    pub fn submit(&mut self) -> Result<()> {
        self.flush("submit")
    }

    /// Records a part of `op` outside of passes.
    pub(crate) fn with_encoder<R>(
        &mut self,
        op: &'static str,
        record: impl FnOnce(&mut wgpu::CommandEncoder) -> R,
    ) -> R {
        match &mut self.lent {
            Some((encoder, recording)) => {
                recording.begin(op);
                recording.pass = None;
                record(encoder)
            }
            None => {
                let mut recording = self.device.recording();
                recording.begin(op);
                recording.pass = None;
                record(recording.encoder.get_or_insert_with(|| self.device.create_encoder()))
            }
        }
    }

    /// Records a part of `op` into a compute pass.
    pub(crate) fn with_pass<R>(
        &mut self,
        op: &'static str,
        record: impl FnOnce(&mut wgpu::ComputePass<'static>, &mut Vec<ParamSlab>) -> R,
    ) -> R {
        match &mut self.lent {
            Some((encoder, recording)) => {
                recording.begin(op);
                let Recording { pass, params, .. } = recording;
                record(pass.get_or_insert_with(|| begin_pass(encoder)), params)
            }
            None => {
                let mut recording = self.device.recording();
                recording.begin(op);
                let Recording { pass, params, encoder, .. } = &mut *recording;
                let pass =
                    pass.get_or_insert_with(|| begin_pass(encoder.get_or_insert_with(|| self.device.create_encoder())));
                record(pass, params)
            }
        }
    }

    /// The first operation that can have failed: of those that are not known to have run, the one recorded first.
    pub(crate) fn first_op(&self) -> &'static str {
        let first = |recording: &Recording| recording.submitted.or(recording.first_op).unwrap_or("unknown");
        match &self.lent {
            Some((_, recording)) => first(recording),
            None => first(&self.device.recording()),
        }
    }

    /// All submissions up to this one have run.
    fn ran(&self, submissions: u64) {
        let mut recording = self.device.recording();
        if recording.submissions == submissions {
            recording.submitted = None;
        }
    }

    fn flush(&mut self, op: &'static str) -> Result<()> {
        if let Some((_, recording)) = &mut self.lent {
            recording.seal();
            return Ok(());
        }
        // The lock is kept while submitting, so that nothing that is recorded meanwhile runs first.
        let mut recording = self.device.recording();
        recording.seal();
        let first_op = recording.first_op.take().unwrap_or(op);
        let Some(encoder) = recording.encoder.take() else { return Ok(()) };
        let first_op = *recording.submitted.get_or_insert(first_op);
        recording.submissions += 1;
        let (_, error) = catch(self.device.device(), || self.device.wgpu_queue().submit([encoder.finish()]));
        drop(recording);
        match error {
            Some(error) => Err(self.driver_error(op, first_op, error)),
            None => Ok(()),
        }
    }

    pub(crate) fn driver_error(&self, op: &'static str, first_op: &'static str, error: wgpu::Error) -> Error {
        if let Err(lost) = self.device.lost().check(op, self.id(), || self.first_op()) {
            return lost;
        }
        backend(op, format!("{error} (first operation that can have failed: {first_op})"))
    }

    /// Submits and waits.
    fn finish(&mut self, op: &'static str) -> Result<()> {
        if self.lent.is_some() {
            let reason = "it records into the caller's encoder; submit that and use a queue of the device".into();
            return Err(unsupported(op, reason));
        }
        self.flush(op)?;
        let submissions = self.device.recording().submissions;
        let (poll, error) = catch(self.device.device(), || {
            self.device.device().poll(wgpu::PollType::Wait { submission_index: None, timeout: None })
        });
        self.report(op)?;
        if let Some(error) = error {
            return Err(self.driver_error(op, self.first_op(), error));
        }
        poll.map_err(|error| backend(op, error))?;
        self.ran(submissions);
        Ok(())
    }

    /// Failures that are known.
    fn report(&self, op: &'static str) -> Result<()> {
        self.device.lost().check(op, self.id(), || self.first_op())?;
        match self.device.take_deferred() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn create_buffer(
        &self,
        op: &'static str,
        size: u64,
        usage: wgpu::BufferUsages,
        mapped_at_creation: bool,
    ) -> Result<wgpu::Buffer> {
        self.device.lost().check(op, self.id(), || self.first_op())?;
        let memory = || Error::OutOfMemory { op, device: self.id().erase(), bytes: size as usize };
        if size > self.device.max_buffer() {
            return Err(memory());
        }
        let descriptor = wgpu::BufferDescriptor { label: Some("moe-wgpu"), size, usage, mapped_at_creation };
        let (buffer, error) = catch(self.device.device(), || self.device.device().create_buffer(&descriptor));
        match error {
            None => Ok(buffer),
            Some(wgpu::Error::OutOfMemory { .. }) => Err(memory()),
            Some(error) => Err(self.driver_error(op, self.first_op(), error)),
        }
    }

    /// Whether a copy command can move these bytes; a kernel must where it cannot.
    fn copyable(region: &WgpuRegion<'_>, usage: wgpu::BufferUsages) -> bool {
        (region.start | region.len).is_multiple_of(4) && region.buffer.usage().contains(usage)
    }

    /// Records the kernel that moves bytes of any alignment, or fills them.
    pub(crate) fn copy_bytes(
        &mut self,
        op: &'static str,
        from: Option<&WgpuRegion<'_>>,
        to: &WgpuRegion<'_>,
        byte: u8,
    ) -> Result<()> {
        let device = self.device.clone();
        let most = (device.max_binding() - device.offset_alignment() - 16) & !3;
        let mut done = 0;
        while done < to.len {
            let len = most.min(to.len - done);
            let part = |region: &WgpuRegion<'_>| region.start + done..region.start + done + len;
            let out = Bound::new(&device, op, "dst", &to.elsewhere(part(to)))?;
            let src = match from {
                Some(from) => Bound::new(&device, op, "src", &from.elsewhere(part(from)))?,
                None => out,
            };
            let words = (u64::from(out.base % 4) + len).div_ceil(4);
            let params = vec![src.base, out.base, len as u32, words as u32, u32::from(byte) * 0x0101_0101];
            let constants = Constants::default().flag("FILL", from.is_none());
            let groups = words.div_ceil(256);
            self.record(op, &[Dispatch { kernel: &COPY_BYTES, constants, buffers: vec![src, out], params, groups }])?;
            done += len;
        }
        Ok(())
    }

    /// Copies one stage of device bytes to the host.
    fn read_stage(&mut self, src: &WgpuRegion<'_>, dst: &mut [u8]) -> Result<()> {
        let op = "download";
        let head = (src.start % 4) as usize;
        let size = (src.start % 4 + src.len).next_multiple_of(4);
        let stage = self.create_buffer(op, size, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST, false)?;
        let (mut from, mut start) = (src.buffer.clone(), src.start - head as u64);
        if !from.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
            let between = self.create_buffer(op, size, usage, false)?;
            let to = head as u64..head as u64 + src.len;
            self.copy_bytes(op, Some(src), &WgpuRegion::new(&between, to), 0)?;
            (from, start) = (between, 0);
        }
        self.with_encoder(op, |encoder| encoder.copy_buffer_to_buffer(&from, start, &stage, 0, size));
        self.flush(op)?;
        let (send, receive) = mpsc::channel();
        let ((), error) = catch(self.device.device(), || {
            stage.map_async(wgpu::MapMode::Read, .., move |result| drop(send.send(result)));
        });
        if let Some(error) = error {
            return Err(self.driver_error(op, self.first_op(), error));
        }
        self.finish(op)?;
        match receive.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(backend(op, error)),
            Err(error) => return Err(backend(op, error)),
        }
        let view = stage.get_mapped_range(..).map_err(|error| backend(op, error))?;
        dst.copy_from_slice(&view[head..head + dst.len()]);
        Ok(())
    }
}

// SAFETY: the id is the device's. The device's queues share one encoder, wgpu runs submissions of a device in order and
// puts barriers between uses of a buffer, so no work overlaps in time and one stream key is right for all; what goes
// into a caller's encoder runs where the caller submits it. `alloc_zeroed` gives a buffer
// at least as long as asked for and says the length asked for; `upload` copies the host's bytes into a mapped buffer and
// `read_stage` fills all of the host's.
unsafe impl CommandQueue for WgpuQueue<'_> {
    type Backend = Wgpu;

    fn device_id(&self) -> DeviceId<Wgpu> {
        self.device.id()
    }

    fn stream_key(&self) -> u64 {
        0
    }

    fn alloc_zeroed(&mut self, bytes: usize) -> Result<WgpuBuffer> {
        // Saturates for lengths that no device has.
        let size = (bytes as u64).saturating_add(15).max(16) & !15;
        let buffer = self.create_buffer("alloc_zeroed", size, WgpuBuffer::USAGE, false)?;
        Ok(WgpuBuffer::new(buffer, bytes, self.id(), self.device.bind_groups().clone()))
    }

    unsafe fn upload(&mut self, src: &[u8], dst: WgpuRegionMut<'_>) -> Result<()> {
        let (op, dst) = ("upload", dst.0);
        for (i, part) in src.chunks(STAGE as usize).enumerate() {
            let start = dst.start + i as u64 * STAGE;
            let to = WgpuRegion::new(dst.buffer, start..start + part.len() as u64);
            let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::STORAGE;
            let stage = self.create_buffer(op, to.len.next_multiple_of(4).max(16), usage, true)?;
            let mut view = stage.get_mapped_range_mut(..).map_err(|error| backend(op, error))?;
            view.slice(..part.len()).copy_from_slice(part);
            drop(view);
            stage.unmap();
            if Self::copyable(&to, wgpu::BufferUsages::COPY_DST) {
                self.with_encoder(op, |encoder| encoder.copy_buffer_to_buffer(&stage, 0, to.buffer, to.start, to.len));
            } else {
                self.copy_bytes(op, Some(&WgpuRegion::new(&stage, 0..to.len)), &to, 0)?;
            }
        }
        Ok(())
    }

    unsafe fn download(&mut self, src: WgpuRegion<'_>, dst: &mut [u8]) -> Result<()> {
        if dst.is_empty() {
            return self.synchronize();
        }
        if self.lent.is_some() {
            return self.finish("download");
        }
        for (i, part) in dst.chunks_mut(STAGE as usize).enumerate() {
            let start = src.start + i as u64 * STAGE;
            self.read_stage(&WgpuRegion::new(src.buffer, start..start + part.len() as u64), part)?;
        }
        Ok(())
    }

    unsafe fn fill(&mut self, dst: WgpuRegionMut<'_>, byte: u8) -> Result<()> {
        let dst = dst.0;
        if byte == 0 && Self::copyable(&dst, wgpu::BufferUsages::COPY_DST) {
            self.with_encoder("fill", |encoder| encoder.clear_buffer(dst.buffer, dst.start, Some(dst.len)));
            return Ok(());
        }
        self.copy_bytes("fill", None, &dst, byte)
    }

    fn check(&mut self) -> Result<()> {
        let submissions = self.device.recording().submissions;
        let (polled, error) = catch(self.device.device(), || self.device.device().poll(wgpu::PollType::Poll));
        self.report("check")?;
        if let Some(error) = error {
            return Err(self.driver_error("check", self.first_op(), error));
        }
        if polled.map_err(|error| backend("check", error))?.is_queue_empty() {
            self.ran(submissions);
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        self.finish("synchronize")
    }
}

impl Drop for WgpuQueue<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.flush("drop of a queue") {
            self.device.defer(error);
        }
    }
}
