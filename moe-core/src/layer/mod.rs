//! A whole MoE layer, from a model's files.
//!
//! [`MoeLayer`] loads the weights of one layer by their Hugging Face names (Qwen3-MoE, Mixtral, DeepSeek-V3) and runs it
//! on any backend that has the operations: router, top-k, plan, gather, gate and up products, SwiGLU, down products,
//! shared experts, combine. Floats stay floats; fp8 weights (compressed-tensors per channel or per block, DeepSeek's
//! 128 x 128 blocks) meet rows that are quantised as they are gathered and activated. With an expert map a layer holds a
//! slice of the experts, and its output is that slice's share of the sum.
//!
//! ```no_run
//! use moe_core::layer::{LayerConfig, LayerOptions, LayerState, MoeLayer, SafeTensors};
//! use moe_core::half::bf16;
//! use moe_core::{Dev, MatmulBackend, Workspace};
//! use moe_cpu::Cpu;
//!
//! let config = LayerConfig::from_json(&std::fs::read_to_string("config.json").unwrap())?;
//! let bytes = std::fs::read("model.safetensors").unwrap();
//! let files = [SafeTensors::deserialize(&bytes).unwrap()];
//! let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
//! let layer = MoeLayer::<Cpu, bf16>::load(&mut queue, config, "model.layers.3", &files, LayerOptions::default())?;
//!
//! let num_tokens = 512;
//! let mut workspace = Workspace::new(&mut queue, layer.limits(num_tokens))?;
//! let mut state = LayerState::<_, _, bf16>::new(&mut queue, &mut workspace, &layer, num_tokens)?;
//! let mut matmul = Cpu::matmul(queue.raw())?; // the backend's own products, or the caller's
//!
//! let hidden_size = layer.config().hidden_size;
//! let x = queue.zeros::<bf16>(num_tokens * hidden_size)?;
//! let mut y = queue.zeros::<bf16>(num_tokens * hidden_size)?;
//! layer.forward(&mut queue, &mut workspace, &mut matmul, &mut state, x.rows(hidden_size)?, y.rows_mut(hidden_size)?)?;
//! # Ok::<(), moe_core::Error>(())
//! ```

mod config;
mod experts;
mod forward;
mod state;
mod tensors;
mod weights;

pub use config::{LayerConfig, Naming, WeightFormat};
pub use forward::Stage;
pub use safetensors::SafeTensors;
pub use state::LayerState;

use crate::tag::{Tag, Untagged};
use crate::{Backend, Buf, DeviceId, Error, Float, Layout, Limits, PlanSpec, Queue, Result};
use tensors::Tensors;
use weights::{Experts, Loading};

fn invalid(what: impl Into<String>, expected: impl Into<String>, got: impl ToString) -> Error {
    Error::InvalidModel { what: what.into(), expected: expected.into(), got: got.to_string() }
}

/// What of a layer is loaded, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerOptions {
    /// `[E]`: the local index of each expert, -1 where it lives elsewhere. All are local without it.
    pub expert_map: Option<Vec<i32>>,
    /// Whether the shared experts are computed here; with expert parallelism by one rank only.
    pub shared_experts: bool,
    /// Quantises the experts' floats to f8e4m3, one scale for each output channel, and their rows per token, dynamically.
    /// Weights that are quantised already stay as they are.
    pub fp8_dynamic: bool,
    /// How the rows of the experts lie. Some products want [`Layout::Aligned`].
    pub layout: Layout,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self { expert_map: None, shared_experts: true, fp8_dynamic: false, layout: Layout::Packed }
    }
}

impl LayerOptions {
    /// A slice of the experts.
    pub fn expert_map(self, map: Vec<i32>) -> Self {
        Self { expert_map: Some(map), ..self }
    }

    /// Leaves the shared experts to another rank.
    pub fn without_shared_experts(self) -> Self {
        Self { shared_experts: false, ..self }
    }

    /// Quantises weights and rows to f8e4m3.
    pub fn fp8_dynamic(self) -> Self {
        Self { fp8_dynamic: true, ..self }
    }

    /// Pads the rows of each expert.
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }
}

/// An MoE layer's weights on a device. Rows, and weights that are floats, are of type `T`.
#[derive(Debug)]
pub struct MoeLayer<B: Backend, T: Float, G: Tag = Untagged> {
    config: LayerConfig,
    layout: Layout,
    /// `[E, H]`.
    gate: Buf<B, T, G>,
    correction_bias: Option<Buf<B, f32, G>>,
    expert_map: Option<Buf<B, i32, G>>,
    num_local_experts: usize,
    experts: Experts<B, T, G>,
    shared: Option<Experts<B, T, G>>,
}

impl<B: Backend, T: Float, G: Tag> MoeLayer<B, T, G> {
    /// Loads the layer whose tensors' names begin with `prefix` ("model.layers.3"), from files that together have them.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] for a tensor that is missing or of another shape or type, or an expert map that is none;
    /// those of allocation and upload.
    pub fn load(
        queue: &mut Queue<'_, B, G>,
        config: LayerConfig,
        prefix: &str,
        files: &[SafeTensors<'_>],
        options: LayerOptions,
    ) -> Result<Self> {
        let tensors = Tensors { files, prefix: format!("{prefix}.{}.", config.block()) };
        let (num_experts, hidden) = (config.router.num_experts(), config.hidden_size);
        for (what, size) in [("hidden_size", hidden), ("the intermediate size", config.intermediate_size)] {
            if size == 0 {
                return Err(invalid(what, "at least 1", 0));
            }
        }
        let local = match &options.expert_map {
            None => (0..num_experts).collect(),
            Some(map) => local_experts(map, num_experts)?,
        };
        let gate = tensors.floats("gate.weight", &[num_experts, hidden])?;
        let gate = queue.upload(&gate.into_iter().map(T::from_f32).collect::<Vec<_>>())?;
        let correction_bias = match config.correction_bias {
            false => None,
            true => Some(queue.upload(&tensors.floats("gate.e_score_correction_bias", &[num_experts])?)?),
        };
        let loading = Loading { stored: config.weights, quantise: options.fp8_dynamic };
        let names: Vec<String> = local.iter().map(|e| format!("experts.{e}.")).collect();
        let experts = Experts::load(queue, &tensors, &config, &names, config.intermediate_size, loading)?;
        let shared = match config.shared_intermediate_size {
            inner if inner > 0 && options.shared_experts => {
                Some(Experts::load(queue, &tensors, &config, &["shared_experts.".into()], inner, loading)?)
            }
            _ => None,
        };
        let expert_map = options.expert_map.map(|map| queue.upload(&map)).transpose()?;
        let (num_local_experts, layout) = (local.len(), options.layout);
        Ok(Self { config, layout, gate, correction_bias, expert_map, num_local_experts, experts, shared })
    }

    /// What it is.
    pub fn config(&self) -> &LayerConfig {
        &self.config
    }

    /// Experts that live here.
    pub fn num_local_experts(&self) -> usize {
        self.num_local_experts
    }

    /// Where it lives.
    pub fn device_id(&self) -> DeviceId<B> {
        self.gate.device_id()
    }

    /// The limits of a workspace for batches of `num_tokens` tokens.
    pub fn limits(&self, num_tokens: usize) -> Limits {
        Limits::new(num_tokens, self.config.router.top_k(), self.config.router.num_experts())
    }

    fn plan_spec(&self, num_tokens: usize) -> PlanSpec {
        PlanSpec::new(num_tokens, self.config.router.top_k(), self.config.router.num_experts())
            .local_experts(self.num_local_experts)
            .layout(self.layout)
    }
}

/// The experts of the local indices, in order.
fn local_experts(map: &[i32], num_experts: usize) -> Result<Vec<usize>> {
    let what = "the expert map";
    if map.len() != num_experts {
        return Err(invalid(what, format!("of {num_experts} experts"), format!("of {}", map.len())));
    }
    let count = map.iter().filter(|local| **local >= 0).count();
    let mut experts = vec![None; count];
    for (expert, local) in map.iter().enumerate().filter(|(_, local)| **local != -1) {
        let slot = usize::try_from(*local).ok().and_then(|local| experts.get_mut(local));
        match slot {
            Some(slot @ None) => *slot = Some(expert),
            _ => {
                let expected = format!("-1 or each of 0..{count} once");
                return Err(invalid(format!("{what}[{expert}]"), expected, local));
            }
        }
    }
    if count == 0 {
        return Err(invalid(what, "of at least one local expert", "of none"));
    }
    Ok(experts.into_iter().flatten().collect())
}
