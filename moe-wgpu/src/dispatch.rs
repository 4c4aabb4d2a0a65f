//! Recording dispatches: pipelines, bindings and parameters.

use crate::error::{catch, unsupported};
use crate::kernels::{Bind, Kernel};
use crate::window::Bound;
use crate::{WgpuDevice, WgpuQueue};
use moe_core::Result;

/// One dispatch of a kernel.
#[derive(Debug)]
pub(crate) struct Dispatch<'a> {
    pub(crate) kernel: &'static Kernel,
    /// `const` declarations that specialise it.
    pub(crate) constants: String,
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
        let y = self.groups.div_ceil(most);
        if y > most {
            let reason = format!("{} workgroups, max_compute_workgroups_per_dimension is {most}", self.groups);
            return Err(unsupported(op, reason));
        }
        Ok((self.groups.div_ceil(y) as u32, y as u32))
    }

    fn shared(&self) -> bool {
        let kinds = || self.kernel.binds.iter().filter(|bind| **bind != Bind::Params).zip(&self.buffers);
        let outputs = || kinds().filter(|(bind, _)| **bind == Bind::Output).map(|(_, bound)| bound.buffer);
        kinds().any(|(bind, bound)| *bind == Bind::Input && outputs().any(|output| output == bound.buffer))
    }
}

/// `const` declarations.
#[derive(Default)]
pub(crate) struct Constants(String);

impl Constants {
    pub(crate) fn unit(self, vectors: bool) -> Self {
        Self(self.0 + if vectors { "alias Unit = vec4<u32>;\n" } else { "alias Unit = u32;\n" })
    }

    pub(crate) fn number(self, name: &str, value: u32) -> Self {
        Self(self.0 + &format!("const {name}: u32 = {value}u;\n"))
    }

    pub(crate) fn flag(self, name: &str, value: bool) -> Self {
        Self(self.0 + &format!("const {name}: bool = {value};\n"))
    }

    pub(crate) fn done(self) -> String {
        self.0
    }
}

/// Parameters of dispatches that are recorded and not submitted yet, in a mapped buffer. It is unmapped before the
/// commands are submitted; writing parameters through wgpu's queue instead would not be ordered with the caller's
/// encoder.
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
        let bytes: Vec<u8> = params.iter().flat_map(|word| word.to_le_bytes()).collect();
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

impl WgpuQueue<'_> {
    /// Records dispatches that run one after the other.
    pub(crate) fn record(&mut self, op: &'static str, dispatches: &[Dispatch<'_>]) -> Result<()> {
        let device = self.device().clone();
        device.lost().check(op, self.id(), op)?;
        let mut grids = Vec::with_capacity(dispatches.len());
        for dispatch in dispatches {
            grids.push(dispatch.grid(&device, op)?);
        }
        let (error, first_op) = self.with(op, |encoder, params| {
            catch(device.device(), || {
                let mut pass =
                    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(op), ..Default::default() });
                for (dispatch, (x, y)) in dispatches.iter().zip(grids) {
                    let Dispatch { kernel, constants, buffers, .. } = dispatch;
                    let shared = dispatch.shared();
                    let pipeline =
                        device.pipelines().get(device.device(), kernel, constants, shared, device.native_f16());
                    if params.last().is_none_or(ParamSlab::is_full) {
                        params.push(ParamSlab::new(device.device()));
                    }
                    let Some(slab) = params.last_mut() else { continue };
                    let param = slab.push(&dispatch.params);
                    let mut bounds = buffers.iter();
                    let entries: Vec<_> = (0..)
                        .zip(kernel.binds)
                        .filter_map(|(binding, bind)| {
                            let resource = match bind {
                                Bind::Params => param.clone(),
                                _ => {
                                    let Bound { buffer, offset, size, .. } = *bounds.next()?;
                                    wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) }
                                }
                            };
                            Some(wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(resource) })
                        })
                        .collect();
                    let group = device.device().create_bind_group(&wgpu::BindGroupDescriptor {
                        label: Some(kernel.name),
                        layout: &pipeline.layout,
                        entries: &entries,
                    });
                    pass.set_pipeline(&pipeline.pipeline);
                    pass.set_bind_group(0, &group, &[]);
                    pass.dispatch_workgroups(x, y, 1);
                }
            })
            .1
        });
        if let Some(error) = error {
            for dispatch in dispatches {
                device.pipelines().forget(dispatch.kernel);
            }
            return Err(self.driver_error(op, first_op, error));
        }
        Ok(())
    }
}
