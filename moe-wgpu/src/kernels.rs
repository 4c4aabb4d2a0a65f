//! The kernels: WGSL text with its constants, compiled once per device when first used.

use crate::template::expand;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// Compiled kernels by address of the kernel, which is never followed, constants, and whether a buffer is shared.
type Compiled = HashMap<(usize, Constants, bool), Arc<Pipeline>>;

/// What a binding is. Parameters come last; where they are immediate data they take no binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bind {
    Input,
    Output,
    Params,
}
use Bind::{Input, Output, Params};

/// A kernel: the same name as its entry point, the files that make it up, and its bindings.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    parts: &'static [&'static str],
    pub(crate) binds: &'static [Bind],
}

macro_rules! wgsl {
    ($($file:literal),*) => { &[$(include_str!(concat!("kernels/", $file, ".wgsl"))),*] };
}

const PLAN: &[Bind] = &[Input, Input, Input, Input, Input, Output, Output, Output, Params];
const GATHER: &[Bind] = &[Input, Input, Input, Output, Params];
const ZERO_ROWS: &[Bind] = &[Output, Params, Input];
const ONE_TO_ONE: &[Bind] = &[Input, Output, Params];
const TWO_TO_ONE: &[Bind] = &[Input, Input, Output, Params];
const TWO_TO_TWO: &[Bind] = &[Input, Input, Output, Output, Params];
const BLOCK_TABLES: &[Bind] = &[Input, Output, Output, Output, Params];
const COMBINE_1: &[Bind] = &[Input, Input, Input, Input, Output, Params, Input];
const COMBINE_4: &[Bind] = &[Input, Input, Input, Input, Output, Params, Input, Input, Input, Input];

macro_rules! kernels {
    ($($id:ident = $name:literal, $binds:expr, $($file:literal)*;)*) => { $(
        pub(crate) static $id: Kernel =
            Kernel { name: $name, parts: wgsl!($($file),*), binds: $binds };
    )* };
}
#[rustfmt::skip]
kernels! {
    PLAN_SMALL = "moe_plan_small", PLAN,
        "plan" "workgroup" "plan_tile" "plan_rank" "plan_experts" "plan_small";
    PLAN_SMALL_SUBGROUPS = "moe_plan_small", PLAN,
        "plan" "subgroups" "plan_rank_subgroups" "plan_experts" "plan_small";
    PLAN_HISTOGRAM = "moe_plan_histogram", PLAN, "plan" "plan_histogram";
    PLAN_PLACE = "moe_plan_place", PLAN,
        "plan" "workgroup" "plan_tile" "plan_rank" "plan_experts" "plan_place";
    PLAN_PLACE_SUBGROUPS = "moe_plan_place", PLAN,
        "plan" "subgroups" "plan_rank_subgroups" "plan_experts" "plan_place";
    PLAN_COUNT = "moe_plan_count", PLAN, "plan" "plan_count";
    PLAN_SCAN = "moe_plan_scan", PLAN, "plan" "workgroup" "plan_scan";
    PLAN_SCATTER = "moe_plan_scatter", PLAN, "plan" "plan_tile" "plan_scatter";
    GATHER_TOKENS = "moe_gather_tokens", GATHER, "gather" "gather_tokens";
    GATHER_WORDS = "moe_gather_words", GATHER, "gather" "gather_words";
    ZERO_ROWS_VEC = "moe_zero_rows_vec", ZERO_ROWS, "zero_rows" "zero_rows_plan" "zero_rows_vec";
    ZERO_ROWS_WORDS = "moe_zero_rows_words", ZERO_ROWS, "zero_rows" "zero_rows_plan" "zero_rows_words";
    COMBINE_VEC_1 = "moe_combine_vec", COMBINE_1, "combine" "combine_rows_1" "combine_vec";
    COMBINE_VEC_4 = "moe_combine_vec", COMBINE_4, "combine" "combine_rows_4" "combine_vec";
    COMBINE_WORDS_1 = "moe_combine_words", COMBINE_1, "combine" "combine_rows_1" "combine_words";
    COMBINE_WORDS_4 = "moe_combine_words", COMBINE_4, "combine" "combine_rows_4" "combine_words";
    COMBINE_GRAD_WEIGHTS = "moe_combine_grad_weights", GATHER, "combine_grad";
    ZERO_ROWS_ALL = "moe_zero_rows_words", &[Output, Params], "zero_rows" "zero_rows_all" "zero_rows_words";
    COPY_BYTES = "moe_copy_bytes", ONE_TO_ONE, "copy_bytes";
    PLAN_CAPACITY_SCAN = "moe_plan_capacity_scan", TWO_TO_ONE,
        "plan_capacity" "workgroup" "plan_capacity_scan";
    PLAN_CAPACITY_SELECT = "moe_plan_capacity_select", TWO_TO_ONE,
        "plan_capacity" "workgroup" "plan_capacity_select";
    PLAN_OVERFLOW = "moe_plan_overflow", ONE_TO_ONE, "plan_overflow";
    EXPAND_MASK = "moe_expand_mask", TWO_TO_TWO, "workgroup" "expand_mask";
    MASK_PROBS = "moe_mask_probs", TWO_TO_ONE, "mask_probs";
    SCATTER_MASK = "moe_scatter_mask", TWO_TO_ONE, "scatter_mask";
    CHUNK_ENDS = "moe_chunk_ends", TWO_TO_TWO, "expand_chunks";
    CHUNK_IDS = "moe_chunk_ids", TWO_TO_TWO, "expand_chunks";
    BLOCK_TABLE = "moe_block_table", BLOCK_TABLES, "block_table";
    SPLIT_SIZES = "moe_split_sizes", ONE_TO_ONE, "split_sizes";
    ADD_LOAD = "moe_add_load", ONE_TO_ONE, "add_load";
}

const NUMBERS: &str = include_str!("kernels/numbers.wgsl");
const F16_INT: &str = include_str!("kernels/numbers_f16_int.wgsl");
const F16_NATIVE: &str = include_str!("kernels/numbers_f16_native.wgsl");
const UNIFORM: &str = "var<uniform> p: Params;";

/// A `const` of WGSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Constant {
    Number(&'static str, u32),
    Flag(&'static str, bool),
    /// `Unit`: 16 bytes, or a word.
    Unit(bool),
}

/// What specialises a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Constants(Vec<Constant>);

impl Constants {
    pub(crate) fn unit(self, vectors: bool) -> Self {
        self.with(Constant::Unit(vectors))
    }

    pub(crate) fn number(self, name: &'static str, value: u32) -> Self {
        self.with(Constant::Number(name, value))
    }

    pub(crate) fn flag(self, name: &'static str, value: bool) -> Self {
        self.with(Constant::Flag(name, value))
    }

    fn with(mut self, constant: Constant) -> Self {
        self.0.push(constant);
        self
    }

    fn value(&self, name: &str) -> Option<u32> {
        self.0.iter().find_map(|constant| match constant {
            Constant::Number(n, value) if *n == name => Some(*value),
            _ => None,
        })
    }

    fn text(&self) -> String {
        let line = |constant: &Constant| match constant {
            Constant::Number(name, value) => format!("const {name}: u32 = {value}u;\n"),
            Constant::Flag(name, value) => format!("const {name}: bool = {value};\n"),
            Constant::Unit(true) => "alias Unit = vec4<u32>;\n".to_owned(),
            Constant::Unit(false) => "alias Unit = u32;\n".to_owned(),
        };
        self.0.iter().map(line).collect()
    }
}

/// What kernels are compiled for, the same for all of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) native_f16: bool,
    /// The most bytes of parameters that travel as immediate data; 0 without the feature.
    pub(crate) immediates: u32,
}

/// A compiled kernel.
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    /// Whether parameters are immediate data.
    pub(crate) immediates: bool,
    /// No other pipeline of the process has it.
    pub(crate) number: u64,
}

static COMPILED: AtomicU64 = AtomicU64::new(0);

/// A kernel, how many words of parameters it has, and what specialises it. `shared` where an input lies in the buffer
/// of an output: wgpu wants one kind of use for a buffer in a dispatch, so inputs are then bound for writing too.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    pub(crate) kernel: &'static Kernel,
    pub(crate) constants: Constants,
    pub(crate) params: usize,
    pub(crate) shared: bool,
}

/// A device's compiled kernels.
#[derive(Default)]
pub(crate) struct Pipelines {
    compiled: Mutex<Compiled>,
    probe: OnceLock<wgpu::BindGroupLayout>,
}

impl fmt::Debug for Pipelines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pipelines")
    }
}

impl Variant {
    fn key(&self) -> (usize, Constants, bool) {
        (std::ptr::from_ref(self.kernel) as usize, self.constants.clone(), self.shared)
    }

    fn immediates(&self, target: Target) -> bool {
        self.params * 4 <= target.immediates as usize
    }

    fn text(&self, target: Target) -> String {
        let f16 = if target.native_f16 { F16_NATIVE } else { F16_INT };
        let mut text = [&self.constants.text(), NUMBERS, f16].concat();
        for part in self.kernel.parts {
            text.push_str(&expand(part, &|name| self.constants.value(name)));
        }
        if self.immediates(target) {
            let line = text.lines().find(|line| line.ends_with(UNIFORM)).unwrap_or(UNIFORM).to_owned();
            text = text.replace(&line, "var<immediate> p: Params;");
        }
        if self.shared {
            text = text.replace("var<storage, read>", "var<storage, read_write>");
        }
        text
    }

    fn compile(&self, device: &wgpu::Device, target: Target) -> Pipeline {
        let kernel = self.kernel;
        let immediates = self.immediates(target);
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(self.text(target).into()),
        });
        let kinds = kernel.binds.iter().enumerate().filter(|(_, bind)| !(immediates && **bind == Params));
        let entries: Vec<_> = kinds.map(|(i, bind)| entry(i as u32, *bind, self.shared)).collect();
        let layout = device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: if immediates { self.params as u32 * 4 } else { 0 },
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
        Pipeline { pipeline, layout, immediates, number: COMPILED.fetch_add(1, Relaxed) }
    }
}

impl Pipelines {
    fn compiled(&self) -> MutexGuard<'_, HashMap<(usize, Constants, bool), Arc<Pipeline>>> {
        // Nothing panics while the lock is held but wgpu itself; a poisoned map is still a good one.
        self.compiled.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The compiled kernel.
    pub(crate) fn get(&self, device: &wgpu::Device, variant: &Variant, target: Target) -> Arc<Pipeline> {
        let mut compiled = self.compiled();
        let key = variant.key();
        if let Some(pipeline) = compiled.get(&key) {
            return pipeline.clone();
        }
        let pipeline = Arc::new(variant.compile(device, target));
        compiled.insert(key, pipeline.clone());
        pipeline
    }

    /// Forgets a kernel whose compilation failed, so that the next use reports it again.
    pub(crate) fn forget(&self, variant: &Variant) {
        self.compiled().remove(&variant.key());
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
