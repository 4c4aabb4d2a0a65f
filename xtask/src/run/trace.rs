//! Tokens that enter a layer, and recorded answers.

use super::layer::{Layer, floats};
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

/// Recorded tokens. Answers that a file lacks are not compared.
pub(crate) struct Trace {
    pub(crate) num_tokens: usize,
    /// `[T, H]`.
    pub(crate) hidden_states: Vec<f32>,
    /// `[T, K]`.
    pub(crate) topk_ids: Option<Vec<i32>>,
    /// `[T, K]`.
    pub(crate) topk_weights: Option<Vec<f32>>,
    /// Rows to routes, as vLLM's permute answered.
    pub(crate) vllm_source: Option<Vec<i32>>,
    /// Routes to rows.
    pub(crate) vllm_slot: Option<Vec<i32>>,
    /// First rows of the experts.
    pub(crate) vllm_offsets: Option<Vec<i32>>,
    /// `[T, H]`, the layer's output computed in float64.
    pub(crate) output: Option<Vec<f32>>,
    /// `[T, H]`, the same with weights and rows quantised to f8e4m3.
    pub(crate) output_fp8: Option<Vec<f32>>,
}

impl Trace {
    /// Loads the first `tokens` tokens of a trace, or all.
    pub(crate) fn load(path: &Path, layer: &Layer, tokens: Option<usize>) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::parse(&bytes, layer, tokens).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn parse(bytes: &[u8], layer: &Layer, tokens: Option<usize>) -> Result<Self, String> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let f32s = |name: &str| tensors.tensor(name).ok().map(|t| floats(name, &t)).transpose();
        let i32s = |name: &str| tensors.tensor(name).ok().map(|t| integers(name, &t)).transpose();

        let mut hidden_states = f32s("hidden_states")?.ok_or("no hidden_states")?;
        let (hidden, top_k) = (layer.hidden_size, layer.top_k);
        if !hidden_states.len().is_multiple_of(hidden) {
            return Err(format!("hidden_states is no multiple of the layer's hidden size, {hidden}"));
        }
        let recorded = hidden_states.len() / hidden;
        let num_tokens = tokens.unwrap_or(recorded);
        if num_tokens > recorded {
            return Err(format!("--tokens {num_tokens}: the trace has {recorded}"));
        }
        hidden_states.truncate(num_tokens * hidden);
        let first = |values: Option<Vec<f32>>, cols: usize| values.map(|v| v[..num_tokens * cols].to_vec());

        // vLLM's answer is for all tokens. Rows keep their order when later tokens are taken away.
        let routes = (num_tokens * top_k) as i32;
        let source = i32s("vllm.permuted_idx")?.map(|s| s.into_iter().filter(|x| *x < routes).collect::<Vec<_>>());
        let (mut slot, mut offsets) = (i32s("vllm.inv_permuted_idx")?, i32s("vllm.expert_first_token_offset")?);
        if num_tokens < recorded {
            let all = i32s("vllm.permuted_idx")?.unwrap_or_default();
            let kept_before = |row: i32| all[..row as usize].iter().filter(|x| **x < routes).count() as i32;
            for rows in [&mut slot, &mut offsets].into_iter().flatten() {
                rows.iter_mut().for_each(|row| *row = kept_before(*row));
            }
        }
        Ok(Self {
            num_tokens,
            topk_ids: i32s("topk_ids")?.map(|ids| ids[..num_tokens * top_k].to_vec()),
            topk_weights: first(f32s("topk_weights")?, top_k),
            vllm_source: source,
            vllm_slot: slot.map(|slot| slot[..num_tokens * top_k].to_vec()),
            vllm_offsets: offsets,
            output: first(f32s("output_f64_reference")?, hidden),
            output_fp8: first(f32s("output_fp8_dynamic_reference")?, hidden),
            hidden_states,
        })
    }
}

fn integers(name: &str, tensor: &safetensors::tensor::TensorView<'_>) -> Result<Vec<i32>, String> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::I32 => Ok(data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()),
        Dtype::I64 => {
            let wide = data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b));
            wide.map(|x| i32::try_from(x).map_err(|_| format!("{name} holds {x}, past i32"))).collect()
        }
        other => Err(format!("{name} is {other:?}, expected I32 or I64")),
    }
}
