//! The load of the last steps, summed on the device and read back while it works on.
#![allow(unsafe_code)] // calls a backend's checked operation

use super::window::LoadTotals;
use crate::plan::MAX_INDEX;
use crate::raw::Section;
use crate::tag::{Tag, Untagged};
use crate::{Buf, CommandQueue, DeviceId, Error, PermuteBackend, Queue, Readback, Result, RoutePlan};

/// Sums the `logical_load` of plans on their device, for each layer, over windows of W steps, and reads each window
/// back without making the stream wait.
///
/// ```
/// use moe_core::eplb::LoadRecorder;
/// use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
/// # use moe_cpu::Cpu;
/// # let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
/// # let mut workspace = Workspace::new(&mut queue, Limits::new(3, 1, 4))?;
/// # let ids = queue.upload(&[1i32, 1, 3])?;
/// let mut recorder = LoadRecorder::new(&mut queue, 1, 4, 2)?; // 1 layer, 4 experts, windows of 2 steps
/// let spec = PlanSpec::new(3, 1, 4).with_logical_load();
/// for _step in 0..2 {
///     let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(ids.view()))?;
///     recorder.record(&mut queue, 0, &plan)?;
///     recorder.end_step(&mut queue)?;
/// }
/// let totals = recorder.poll()?.expect("on a CPU it is there at once");
/// assert_eq!((totals.steps(), totals.sums()), (2, &[0, 4, 0, 2][..]));
/// # Ok::<(), moe_core::Error>(())
/// ```
///
/// A step costs one addition of E numbers for each layer on the device, and a window one copy of 4·L·E bytes to the
/// host. The totals go to [`Balancer::submit`](super::Balancer::submit), added up over ranks
/// ([`LoadTotals::add`]) where there are several. Where a backend has no kernel of its own for the addition, it is made
/// on the host and the stream waits ([`PermuteBackend::add_load`]).
#[derive(Debug)]
pub struct LoadRecorder<B: PermuteBackend, G: Tag = Untagged> {
    /// u32 `[L, E]`.
    sums: Buf<B, u32, G>,
    experts: usize,
    window: usize,
    stream: u64,
    /// Steps in the sums.
    steps: usize,
    /// `[L]`: routes that went into the sums, which bounds each of them.
    routes: Vec<u64>,
    pending: Option<(Readback, usize)>,
}

impl<B: PermuteBackend, G: Tag> LoadRecorder<B, G> {
    /// Sums of zero on the queue's device, for its stream.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a number is 0 or the table too large, [`Error::OutOfMemory`], or what the driver
    /// says.
    pub fn new(queue: &mut Queue<'_, B, G>, layers: usize, experts: usize, window: usize) -> Result<Self> {
        const OP: &str = "LoadRecorder::new";
        for (arg, got) in [("layers", layers), ("experts", experts), ("window", window)] {
            if got == 0 {
                let expected = "at least 1".into();
                return Err(Error::InvalidArgument { op: OP, arg, expected, got: "0".into() });
            }
        }
        let len = layers.checked_mul(experts).filter(|len| *len <= MAX_INDEX / 4);
        let len = len.ok_or_else(|| Error::InvalidArgument {
            op: OP,
            arg: "layers x experts",
            expected: format!("at most {}", MAX_INDEX / 4),
            got: format!("{layers} x {experts}"),
        })?;
        let (sums, stream) = (queue.zeros(len)?, queue.raw().stream_key());
        Ok(Self { sums, experts, window, stream, steps: 0, routes: vec![0; layers], pending: None })
    }

    /// Where the sums live.
    pub fn device_id(&self) -> DeviceId<B> {
        self.sums.device_id()
    }

    /// Steps that are in the sums and not on their way to the host.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Adds the load of a layer's plan, which was built with
    /// [`with_logical_load`](crate::PlanSpec::with_logical_load). Enqueued; allocates nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a layer that is not below L, a plan without load, or after 2³² routes of a layer
    /// without a read-back; [`Error::Shape`] for another number of experts; [`Error::PlanNotBuilt`],
    /// [`Error::DeviceMismatch`], [`Error::StreamMismatch`], or what the driver says.
    pub fn record(&mut self, queue: &mut Queue<'_, B, G>, layer: usize, plan: &RoutePlan<B, G>) -> Result<()> {
        const OP: &str = "LoadRecorder::record";
        self.check_queue(OP, queue)?;
        let invalid = |arg, expected: String, got: String| Error::InvalidArgument { op: OP, arg, expected, got };
        if plan.device_id() != self.device_id() {
            let (expected, got) = (self.device_id().erase(), plan.device_id().erase());
            return Err(Error::DeviceMismatch { op: OP, arg: "plan", expected, got });
        }
        let built = plan.built(OP)?;
        let Some(load) = built.arrays.logical_load else {
            return Err(invalid("plan", "built with logical_load".into(), "without".into()));
        };
        if load.len != self.experts {
            let text = |n: usize| format!("{n} experts");
            return Err(Error::Shape { op: OP, arg: "plan", expected: text(self.experts), got: text(load.len) });
        }
        let layers = self.routes.len();
        let Some(routes) = self.routes.get_mut(layer) else {
            return Err(invalid("layer", format!("below {layers}"), layer.to_string()));
        };
        let sum = *routes + built.arrays.shape.num_routes() as u64;
        if sum > u64::from(u32::MAX) {
            let expected = "at most 2^32 - 1 routes of a layer between read-backs";
            return Err(invalid("plan", expected.into(), sum.to_string()));
        }
        let at = Section { offset: layer * self.experts * 4, len: self.experts };
        // SAFETY: checked above: plan, sums and queue are on one device; the plan is built and has a load of E
        // elements; `at` is E elements of layer `layer` of L, inside the sums, which overlap no plan.
        unsafe { B::add_load(queue.raw_mut(), built, self.sums.raw_mut(), at) }?;
        *routes = sum;
        Ok(())
    }

    /// Ends a step, in which each layer was recorded once. With the W-th step, the sums are sent to the host and start
    /// from zero: enqueued, without waiting. While an earlier window has not been taken by [`poll`](Self::poll), this
    /// one goes on: it then has more steps, and [`LoadTotals::steps`] says how many.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`], [`Error::StreamMismatch`], or what the driver says.
    pub fn end_step(&mut self, queue: &mut Queue<'_, B, G>) -> Result<()> {
        self.check_queue("LoadRecorder::end_step", queue)?;
        self.steps += 1;
        if self.steps < self.window || self.pending.is_some() {
            return Ok(());
        }
        // SAFETY: `check_queue` made sure of the device.
        let readback = unsafe { queue.raw_mut().start_download(self.sums.view().into_region()) }?;
        queue.fill(self.sums.view_mut(), 0)?;
        self.pending = Some((readback, self.steps));
        self.steps = 0;
        self.routes.fill(0);
        Ok(())
    }

    /// A window that has arrived, without waiting; each is given once.
    ///
    /// # Errors
    /// What the driver says, of the copy or of work that was enqueued before it; the window is lost then.
    pub fn poll(&mut self) -> Result<Option<LoadTotals>> {
        let Some((readback, steps)) = self.pending.take() else { return Ok(None) };
        match readback.poll()? {
            Ok(bytes) => Ok(Some(self.totals(&bytes, steps))),
            Err(readback) => {
                self.pending = Some((readback, steps));
                Ok(None)
            }
        }
    }

    /// Waits for the window that is on its way, if there is one.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn wait(&mut self) -> Result<Option<LoadTotals>> {
        let Some((readback, steps)) = self.pending.take() else { return Ok(None) };
        Ok(Some(self.totals(&readback.wait()?, steps)))
    }

    fn totals(&self, bytes: &[u8], steps: usize) -> LoadTotals {
        let sums = bytes.as_chunks().0.iter().map(|b| u64::from(u32::from_ne_bytes(*b)));
        LoadTotals::from_sums(self.routes.len(), self.experts, steps, sums.collect())
    }

    fn check_queue(&self, op: &'static str, queue: &Queue<'_, B, G>) -> Result<()> {
        let (expected, got) = (self.device_id(), queue.device_id());
        if expected != got {
            let (expected, got) = (expected.erase(), got.erase());
            return Err(Error::DeviceMismatch { op, arg: "queue", expected, got });
        }
        if self.stream != queue.raw().stream_key() {
            return Err(Error::StreamMismatch { op, arg: "recorder", device: got.erase() });
        }
        Ok(())
    }
}
