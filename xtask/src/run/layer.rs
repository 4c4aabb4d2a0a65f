//! A layer's weights, from a safetensors file with Hugging Face names.

use moe_core::Router;
use moe_core::half::bf16;
use moe_core::layer::{LayerConfig, Naming};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::Path;

/// The weights in f32 (exact, they come in bf16 or f32) and the numbers that shape the layer.
pub(crate) struct Layer {
    /// The file.
    pub(crate) bytes: Vec<u8>,
    /// What the tensors' names begin with, up to "mlp".
    pub(crate) prefix: String,
    pub(crate) top_k: usize,
    pub(crate) num_experts: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) norm_topk_prob: bool,
    /// `[E, H]`.
    pub(crate) router: Vec<f32>,
    /// Each `[I, H]`.
    pub(crate) gate_proj: Vec<Vec<f32>>,
    /// Each `[I, H]`.
    pub(crate) up_proj: Vec<Vec<f32>>,
    /// Each `[H, I]`.
    pub(crate) down_proj: Vec<Vec<f32>>,
}

impl Layer {
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::parse(&bytes).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let text = |key: &str| metadata.get(key).ok_or(format!("metadata lacks {key}"));
        let number = |key: &str| text(key)?.parse::<usize>().map_err(|e| format!("metadata {key}: {e}"));
        for (key, known) in [("scoring", "softmax"), ("act", "silu")] {
            if text(key)? != known {
                return Err(format!("metadata {key} is {:?}, only {known:?} is known", text(key)?));
            }
        }
        let (num_experts, hidden_size) = (number("num_experts")?, number("hidden_size")?);
        let intermediate_size = number("moe_intermediate_size")?;

        let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let gate = tensors.names().into_iter().find(|name| name.ends_with(".mlp.gate.weight"));
        let prefix =
            gate.and_then(|name| name.strip_suffix("gate.weight")).ok_or("no router weight (*.mlp.gate.weight)")?;
        let weight = |name: String, shape: [usize; 2]| matrix(&tensors, &format!("{prefix}{name}"), shape);
        let experts = |proj: &str, shape: [usize; 2]| {
            (0..num_experts).map(|e| weight(format!("experts.{e}.{proj}.weight"), shape)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            bytes: bytes.to_vec(),
            prefix: prefix.trim_end_matches(".mlp.").to_owned(),
            top_k: number("top_k")?,
            num_experts,
            hidden_size,
            intermediate_size,
            norm_topk_prob: text("norm_topk_prob")? == "true",
            router: weight("gate.weight".into(), [num_experts, hidden_size])?,
            gate_proj: experts("gate_proj", [intermediate_size, hidden_size])?,
            up_proj: experts("up_proj", [intermediate_size, hidden_size])?,
            down_proj: experts("down_proj", [hidden_size, intermediate_size])?,
        })
    }
}

impl Layer {
    /// What the layer is.
    pub(crate) fn config(&self) -> LayerConfig {
        let router = Router::new(self.num_experts, self.top_k);
        let router = if self.norm_topk_prob { router.renormalize() } else { router };
        LayerConfig::new(Naming::Qwen3Moe, self.hidden_size, self.intermediate_size, router)
    }
}

fn matrix(tensors: &SafeTensors<'_>, name: &str, shape: [usize; 2]) -> Result<Vec<f32>, String> {
    let tensor = tensors.tensor(name).map_err(|e| format!("{name}: {e}"))?;
    if tensor.shape() != shape {
        return Err(format!("{name} has shape {:?}, expected {shape:?}", tensor.shape()));
    }
    floats(name, &tensor)
}

/// A tensor's floats, widened to f32.
pub(crate) fn floats(name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => Ok(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::BF16 => Ok(data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        other => Err(format!("{name} is {other:?}, expected F32 or BF16")),
    }
}
