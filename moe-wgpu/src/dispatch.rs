//! Recording dispatches: pipelines, bindings and parameters.

use crate::error::{catch, unsupported};
use crate::kernels::{Bind, Constants, Kernel, Pipeline, Variant};
use crate::window::Bound;
use crate::{WgpuDevice, WgpuQueue};
use moe_core::Result;

/// One dispatch of a kernel.
#[derive(Debug)]
pub(crate) struct Dispatch<'a> {
    pub(crate) kernel: &'static Kernel,
    /// What specialises it.
    pub(crate) constants: Constants,
    /// The buffers, in the order of the kernel's bindings, without its parameters.
    pub(crate) buffers: Vec<Bound<'a>>,
    /// The kernel's `Params`, word by word.
    pub(crate) params: Vec<u32>,
    /// Workgroups, in any number.
    pub(crate) groups: u64,
}

impl Dispatch<'_> {
    /// Workgroups as the kernels expect them: x, then y where there are more than one dimension takes.
    fn grid(&self, device: &WgpuDevice, op: &'static str) -> Result<(u32, u32)> {
        let most = u64::from(device.max_groups());
        let y = self.groups.div_ceil(most).max(1);
        if y > most {
            let reason = format!("{} workgroups, max_compute_workgroups_per_dimension is {most}", self.groups);
            return Err(unsupported(op, reason));
        }
        Ok((self.groups.div_ceil(y) as u32, y as u32))
    }

    fn variant(&self) -> Variant {
        let kinds = || self.kernel.binds.iter().filter(|bind| **bind != Bind::Params).zip(&self.buffers);
        let outputs = || kinds().filter(|(bind, _)| **bind == Bind::Output).map(|(_, bound)| bound.buffer);
        let shared = kinds().any(|(bind, bound)| *bind == Bind::Input && outputs().any(|o| o == bound.buffer));
        Variant { kernel: self.kernel, constants: self.constants.clone(), params: self.params.len(), shared }
    }

    /// The bindings, with parameters in a slab where they are not immediate data.
    fn bind(&self, device: &WgpuDevice, pipeline: &Pipeline, slabs: &mut Vec<ParamSlab>) -> wgpu::BindGroup {
        if pipeline.immediates {
            return device.bind_groups().get(pipeline, &self.buffers, || self.create_group(device, pipeline, None));
        }
        if slabs.last().is_none_or(ParamSlab::is_full) {
            slabs.push(ParamSlab::new(device.device()));
        }
        let params = slabs.last_mut().map(|slab| slab.push(&self.params));
        self.create_group(device, pipeline, params)
    }

    fn create_group(
        &self,
        device: &WgpuDevice,
        pipeline: &Pipeline,
        params: Option<wgpu::BufferBinding<'_>>,
    ) -> wgpu::BindGroup {
        let mut buffers = self.buffers.iter();
        let bindings = (0..).zip(self.kernel.binds).filter_map(|(binding, bind)| {
            let resource = match bind {
                Bind::Params => params.clone()?,
                _ => buffers.next()?.binding(),
            };
            Some(wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(resource) })
        });
        let entries: Vec<_> = bindings.collect();
        let (label, layout) = (Some(self.kernel.name), &pipeline.layout);
        device.device().create_bind_group(&wgpu::BindGroupDescriptor { label, layout, entries: &entries })
    }
}

/// Parameters of dispatches that are recorded and not submitted yet, in a mapped buffer, for adapters without immediate
/// data. It is unmapped before the commands are submitted; writing parameters through wgpu's queue instead would not be
/// ordered with the caller's encoder.
#[derive(Debug)]
pub(crate) struct ParamSlab {
    buffer: wgpu::Buffer,
    used: u64,
}

impl ParamSlab {
    /// Bytes of a dispatch's parameters: the largest alignment that a uniform binding may need.
    const ENTRY: u64 = 256;
    const ENTRIES: u64 = 64;

    pub(crate) fn new(device: &wgpu::Device) -> Self {
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("moe-wgpu parameters"),
            size: Self::ENTRY * Self::ENTRIES,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        Self { buffer, used: 0 }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used == Self::ENTRIES
    }

    fn push(&mut self, params: &[u32]) -> wgpu::BufferBinding<'_> {
        let offset = self.used * Self::ENTRY;
        self.used += 1;
        let bytes = bytes_of(params);
        // Mapping fails only where creating the buffer failed, which the caller's error scope reports.
        if let Ok(mut view) = self.buffer.get_mapped_range_mut(offset..offset + Self::ENTRY) {
            view.slice(..bytes.len()).copy_from_slice(&bytes);
        }
        wgpu::BufferBinding { buffer: &self.buffer, offset, size: wgpu::BufferSize::new(Self::ENTRY) }
    }

    pub(crate) fn seal(self) {
        self.buffer.unmap();
    }
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl WgpuQueue<'_> {
    /// Records dispatches that run one after the other, in one pass.
    pub(crate) fn record(&mut self, op: &'static str, dispatches: &[Dispatch<'_>]) -> Result<()> {
        let device = self.device().clone();
        device.lost().check(op, self.id(), || self.first_op())?;
        let mut grids = Vec::with_capacity(dispatches.len());
        for dispatch in dispatches {
            grids.push(dispatch.grid(&device, op)?);
        }
        let variants: Vec<_> = dispatches.iter().map(Dispatch::variant).collect();
        let error = self.with_pass(op, |pass, slabs| {
            catch(device.device(), || {
                for ((dispatch, variant), (x, y)) in dispatches.iter().zip(&variants).zip(grids) {
                    let pipeline = device.pipelines().get(device.device(), variant, device.target());
                    let group = dispatch.bind(&device, &pipeline, slabs);
                    pass.set_pipeline(&pipeline.pipeline);
                    pass.set_bind_group(0, &group, &[]);
                    if pipeline.immediates {
                        pass.set_immediates(0, &bytes_of(&dispatch.params));
                    }
                    pass.dispatch_workgroups(x, y, 1);
                }
            })
            .1
        });
        if let Some(error) = error {
            variants.iter().for_each(|variant| device.pipelines().forget(variant));
            device.bind_groups().clear();
            return Err(self.driver_error(op, op, error));
        }
        Ok(())
    }
}
