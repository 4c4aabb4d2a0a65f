//! The kernels: WGSL text with its constants, compiled once per device when first used.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

/// What a binding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bind {
    Input,
    Output,
    Params,
}
use Bind::{Input, Output, Params};

/// A kernel: the same name as its entry point, the files that make it up, and its bindings in order.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    parts: &'static [&'static str],
    pub(crate) binds: &'static [Bind],
}

macro_rules! wgsl {
    ($($file:literal),*) => { &[$(include_str!(concat!("kernels/", $file, ".wgsl"))),*] };
}

const PLAN: &[Bind] = &[Input, Input, Input, Output, Output, Output, Params];
const GATHER: &[Bind] = &[Input, Input, Input, Output, Params];
const ZERO_ROWS: &[Bind] = &[Input, Output, Params];
const COMBINE_1: &[Bind] = &[Input, Input, Input, Input, Output, Params, Input];
const COMBINE_4: &[Bind] = &[Input, Input, Input, Input, Output, Params, Input, Input, Input, Input];

macro_rules! kernels {
    ($($id:ident = $name:literal, $binds:expr, $($file:literal)*;)*) => { $(
        pub(crate) static $id: Kernel = Kernel { name: $name, parts: wgsl!($($file),*), binds: $binds };
    )* };
}
kernels! {
    PLAN_COUNT = "moe_plan_count", PLAN, "plan" "plan_count";
    PLAN_SCAN = "moe_plan_scan", PLAN, "plan" "plan_scan";
    PLAN_SCATTER = "moe_plan_scatter", PLAN, "plan" "plan_scatter";
    GATHER_TOKENS = "moe_gather_tokens", GATHER, "gather" "gather_tokens";
    GATHER_WORDS = "moe_gather_words", GATHER, "gather" "gather_words";
    ZERO_ROWS_VEC = "moe_zero_rows_vec", ZERO_ROWS, "zero_rows" "zero_rows_vec";
    ZERO_ROWS_WORDS = "moe_zero_rows_words", ZERO_ROWS, "zero_rows" "zero_rows_words";
    COMBINE_VEC_1 = "moe_combine_vec", COMBINE_1, "combine" "combine_rows_1" "combine_vec";
    COMBINE_VEC_4 = "moe_combine_vec", COMBINE_4, "combine" "combine_rows_4" "combine_vec";
    COMBINE_WORDS_1 = "moe_combine_words", COMBINE_1, "combine" "combine_rows_1" "combine_words";
    COMBINE_WORDS_4 = "moe_combine_words", COMBINE_4, "combine" "combine_rows_4" "combine_words";
    COMBINE_GRAD_WEIGHTS = "moe_combine_grad_weights", GATHER, "combine_grad";
    COPY_BYTES = "moe_copy_bytes", ZERO_ROWS, "copy_bytes";
}

const NUMBERS: &str = include_str!("kernels/numbers.wgsl");
const F16_INT: &str = include_str!("kernels/numbers_f16_int.wgsl");
const F16_NATIVE: &str = include_str!("kernels/numbers_f16_native.wgsl");

/// A compiled kernel.
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

type Key = (&'static str, usize, String, bool);

/// A device's compiled kernels.
#[derive(Default)]
pub(crate) struct Pipelines {
    compiled: Mutex<HashMap<Key, Arc<Pipeline>>>,
    probe: OnceLock<wgpu::BindGroupLayout>,
}

impl fmt::Debug for Pipelines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pipelines")
    }
}

impl Pipelines {
    /// The kernel with these constants. `shared` where an input lies in the buffer of an output: wgpu wants one kind
    /// of use for a buffer in a dispatch, so inputs are then bound for writing too.
    pub(crate) fn get(
        &self,
        device: &wgpu::Device,
        kernel: &'static Kernel,
        constants: &str,
        shared: bool,
        native_f16: bool,
    ) -> Arc<Pipeline> {
        let key = (kernel.name, kernel.binds.len(), constants.to_owned(), shared);
        // Nothing panics while the lock is held but wgpu itself; a poisoned map is still a good one.
        let mut compiled = self.compiled.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(pipeline) = compiled.get(&key) {
            return pipeline.clone();
        }
        let mut text = [constants, NUMBERS, if native_f16 { F16_NATIVE } else { F16_INT }].concat();
        text.extend(kernel.parts.iter().copied());
        if shared {
            text = text.replace("var<storage, read>", "var<storage, read_write>");
        }
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let layout = layout(device, kernel, shared);
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.name),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false, // no kernel reads what it has not written
                ..Default::default()
            },
            cache: None,
        });
        let pipeline = Arc::new(Pipeline { pipeline, layout });
        compiled.insert(key, pipeline.clone());
        pipeline
    }

    /// Forgets a kernel whose compilation failed, so that the next use reports it again.
    pub(crate) fn forget(&self, kernel: &'static Kernel) {
        let mut compiled = self.compiled.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        compiled.retain(|(name, ..), _| *name != kernel.name);
    }

    /// Binds a buffer as storage and throws the binding away: wgpu reports an error if it cannot be bound here.
    pub(crate) fn try_bind(&self, device: &wgpu::Device, buffer: &wgpu::Buffer) {
        let layout = self.probe.get_or_init(|| {
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("moe-wgpu lent"),
                entries: &[entry(0, Output, false)],
            })
        });
        let binding = wgpu::BufferBinding { buffer, offset: 0, size: wgpu::BufferSize::new(buffer.size().min(4)) };
        let _bound = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("moe-wgpu lent"),
            layout,
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(binding) }],
        });
    }
}

fn layout(device: &wgpu::Device, kernel: &Kernel, shared: bool) -> wgpu::BindGroupLayout {
    let entries: Vec<_> = kernel.binds.iter().enumerate().map(|(i, bind)| entry(i as u32, *bind, shared)).collect();
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name), entries: &entries })
}

fn entry(binding: u32, bind: Bind, shared: bool) -> wgpu::BindGroupLayoutEntry {
    let ty = match bind {
        Params => wgpu::BufferBindingType::Uniform,
        Input => wgpu::BufferBindingType::Storage { read_only: !shared },
        Output => wgpu::BufferBindingType::Storage { read_only: false },
    };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}
