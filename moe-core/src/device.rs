//! An opened device, as a user holds it.

use crate::check::Check;
use crate::identity::{DeviceId, DeviceSpec};
use crate::tag::{Brand, StaticTag, Tag, Untagged};
use crate::{Backend, Buf, Device, DeviceInfo, Element, Queue, Result, RoutePlan, View, ViewMut, Workspace};
use std::marker::PhantomData;

/// An opened device of backend `B`. Cheap to clone; a clone is the same device.
///
/// The origin of this crate, as a test: what was asked for without an index works with everything on device 0.
///
/// ```
/// use moe_core::{Dev, DeviceSpec, Limits, Workspace};
/// # use moe_cpu::Cpu;
/// // A person wrote "cpu" (or "cuda"); somebody else opened "cpu:0". It is one device.
/// let asked: DeviceSpec = "cpu".parse()?;
/// let scratch_device = Dev::<Cpu>::open(&asked)?;
/// let tensor_device = Dev::<Cpu>::open(&"cpu:0".parse()?)?;
/// assert_eq!(scratch_device.id(), tensor_device.id());
/// assert_eq!(scratch_device.id().to_string(), "cpu:0"); // canonical: the index is always there
///
/// let mut queue = scratch_device.queue()?;
/// let workspace = Workspace::new(&mut queue, Limits::new(8, 2, 4))?;
/// let hidden_states = tensor_device.queue()?.upload(&[1.0f32; 16])?;
/// assert_eq!(workspace.device_id(), hidden_states.device_id()); // true, and the only comparison that compiles
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Dev<B: Backend, G: Tag = Untagged> {
    raw: B::Device,
    tag: PhantomData<G>,
}

impl<B: Backend, G: Tag> Clone for Dev<B, G> {
    fn clone(&self) -> Self {
        Self::new(self.raw.clone())
    }
}

impl<B: Backend> Dev<B> {
    /// Opens the device that a specification asks for; without an index the first one. Opening a device twice gives
    /// one shared device with equal ids.
    ///
    /// # Errors
    /// [`WrongBackend`](crate::Error::WrongBackend), [`BackendUnavailable`](crate::Error::BackendUnavailable) with the
    /// reason, or [`NoSuchDevice`](crate::Error::NoSuchDevice).
    pub fn open(spec: &DeviceSpec) -> Result<Self> {
        B::Device::open(spec).map(Self::new)
    }

    /// Wraps a backend's device, as one that adopted a caller's context does.
    pub fn from_raw(raw: B::Device) -> Self {
        Self::new(raw)
    }

    /// Runs `f` with this device under a brand of its own. Inside, using a buffer of another device, branded or not,
    /// is a compile error; buffers come in through [`adopt`](Self::adopt), and results leave with
    /// [`Buf::unbrand`].
    ///
    /// ```
    /// # use moe_core::Dev;
    /// # use moe_cpu::Cpu;
    /// let dev = Dev::<Cpu>::open(&"cpu".parse()?)?;
    /// let buf = dev.queue()?.upload(&[1i32, 2, 3])?;
    /// let out = dev.branded(|dev| {
    ///     let buf = dev.adopt(buf)?; // checked at run time, like every call; in the scope by the types too
    ///     Ok::<_, moe_core::Error>(buf.unbrand())
    /// })?;
    /// assert_eq!(out.len(), 3);
    /// # Ok::<(), moe_core::Error>(())
    /// ```
    pub fn branded<R>(&self, f: impl for<'id> FnOnce(&Dev<B, Brand<'id>>) -> R) -> R {
        f(&Dev::new(self.raw.clone()))
    }

    /// This device under a static tag, see [`device_tag!`](crate::device_tag).
    ///
    /// # Errors
    /// [`Error::TagClaimed`](crate::Error::TagClaimed) if another device has the tag.
    pub fn claim<S: StaticTag>(&self) -> Result<Dev<B, S>> {
        S::claim().make(std::any::type_name::<S>(), self.id())?;
        Ok(Dev::new(self.raw.clone()))
    }
}

impl<B: Backend, G: Tag> Dev<B, G> {
    fn new(raw: B::Device) -> Self {
        Self { raw, tag: PhantomData }
    }

    /// The canonical identity.
    pub fn id(&self) -> DeviceId<B> {
        self.raw.id()
    }

    /// What to tell people about it.
    pub fn info(&self) -> DeviceInfo {
        self.raw.info()
    }

    /// The backend's own device.
    pub fn raw(&self) -> &B::Device {
        &self.raw
    }

    /// A queue that the device makes: a new stream, a command encoder, or for the CPU nothing.
    ///
    /// # Errors
    /// What the driver says.
    pub fn queue(&self) -> Result<Queue<'static, B, G>> {
        Ok(Queue::new(self.raw.queue()?))
    }

    /// A caller's queue under this device's tag.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) if it feeds another device.
    pub fn adopt_queue<'q>(&self, queue: B::Queue<'q>) -> Result<Queue<'q, B, G>> {
        use crate::CommandQueue;
        self.check("adopt_queue").device("queue", queue.device_id())?;
        Ok(Queue::new(queue))
    }

    /// Takes an untagged buffer into this device's tag.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) if it lives elsewhere.
    pub fn adopt<T: Element>(&self, buf: Buf<B, T>) -> Result<Buf<B, T, G>> {
        self.check("adopt").device("buffer", buf.device_id())?;
        Ok(buf.retag())
    }

    /// Takes an untagged view into this device's tag.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) if its memory is elsewhere.
    pub fn adopt_view<'a, T: Element>(&self, view: View<'a, B, T>) -> Result<View<'a, B, T, G>> {
        self.check("adopt_view").device("view", view.device_id())?;
        Ok(view.retag())
    }

    /// Takes an untagged view to write into this device's tag.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) if its memory is elsewhere.
    pub fn adopt_view_mut<'a, T: Element>(&self, view: ViewMut<'a, B, T>) -> Result<ViewMut<'a, B, T, G>> {
        self.check("adopt_view_mut").device("view", view.device_id())?;
        Ok(view.retag())
    }

    /// Takes an untagged plan into this device's tag.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) if it lives elsewhere.
    pub fn adopt_plan(&self, plan: RoutePlan<B>) -> Result<RoutePlan<B, G>> {
        self.check("adopt_plan").device("plan", plan.device_id())?;
        Ok(plan.retag())
    }

    /// Takes an untagged workspace into this device's tag.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) if it lives elsewhere.
    pub fn adopt_workspace(&self, workspace: Workspace<B>) -> Result<Workspace<B, G>> {
        self.check("adopt_workspace").device("workspace", workspace.device_id())?;
        Ok(workspace.retag())
    }

    fn check(&self, op: &'static str) -> Check<B> {
        Check { op, device: self.id() }
    }
}
