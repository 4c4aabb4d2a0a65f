//! What a layer is, from a model's `config.json`.

use super::invalid;
use crate::{Result, Router, Scoring};
use serde_json::Value;

/// How the tensors of a layer are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Naming {
    /// `mlp.gate`, `mlp.experts.N.{gate,up,down}_proj`.
    Qwen3Moe,
    /// `block_sparse_moe.gate`, `block_sparse_moe.experts.N.{w1,w3,w2}`.
    Mixtral,
    /// As Qwen3, with `mlp.shared_experts.{gate,up,down}_proj` and `mlp.gate.e_score_correction_bias`.
    DeepSeekV3,
}

/// How the weights of the experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// f32, f16 or bf16.
    Float,
    /// f8e4m3 with one scale for each output channel (or one for all); activations are quantised per token.
    Fp8PerChannel,
    /// f8e4m3 with one scale for 128 x 128 weights; activations are quantised per 128 elements.
    Fp8Block128,
}

/// The numbers that shape an MoE layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// How its tensors are called.
    pub naming: Naming,
    /// H.
    pub hidden_size: usize,
    /// I, of one routed expert.
    pub intermediate_size: usize,
    /// I of the shared experts together, 0 where there are none.
    pub shared_intermediate_size: usize,
    /// From logits to experts: their number, top-k, scoring, groups.
    pub router: Router,
    /// Whether the router has a bias for the choice.
    pub correction_bias: bool,
    /// How the experts' weights are stored.
    pub weights: WeightFormat,
}

impl LayerConfig {
    /// Reads a `config.json`. Known are the model types `qwen3_moe`, `mixtral` and `deepseek_v3`; quantised weights in
    /// the formats of compressed-tensors and of DeepSeek (`quant_method` "compressed-tensors" and "fp8").
    ///
    /// # Errors
    /// [`Error::InvalidModel`](crate::Error::InvalidModel), with the key.
    pub fn from_json(text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text).map_err(|e| invalid("config.json", "JSON", e))?;
        let keys = Keys { json: &json, path: "" };
        let act = keys.text("hidden_act")?;
        if act != "silu" {
            return Err(invalid("hidden_act", "silu", act));
        }
        let (hidden_size, top_k) = (keys.number("hidden_size")?, keys.number("num_experts_per_tok")?);
        let mut config = match keys.text("model_type")? {
            "qwen3_moe" => {
                let router = Router::new(keys.number("num_experts")?, top_k);
                let router = if keys.flag("norm_topk_prob")? { router.renormalize() } else { router };
                let inner = keys.number("moe_intermediate_size")?;
                Self::new(Naming::Qwen3Moe, hidden_size, inner, router)
            }
            "mixtral" => {
                let router = Router::new(keys.number("num_local_experts")?, top_k).renormalize();
                Self::new(Naming::Mixtral, hidden_size, keys.number("intermediate_size")?, router)
            }
            "deepseek_v3" => {
                let scoring = match keys.text("scoring_func")? {
                    "sigmoid" => Scoring::Sigmoid,
                    "softmax" => Scoring::Softmax,
                    other => return Err(invalid("scoring_func", "sigmoid or softmax", other)),
                };
                let mut router = Router::new(keys.number("n_routed_experts")?, top_k).scoring(scoring);
                if keys.flag("norm_topk_prob")? {
                    router = router.renormalize();
                }
                router = router.scaling_factor(keys.float("routed_scaling_factor")?);
                let groups = (keys.number("n_group")?, keys.number("topk_group")?);
                if groups.0 > 1 {
                    router = router.groups(groups.0, groups.1);
                }
                let inner = keys.number("moe_intermediate_size")?;
                let mut config = Self::new(Naming::DeepSeekV3, hidden_size, inner, router);
                config.correction_bias = match keys.get("topk_method").and_then(Value::as_str) {
                    Some("noaux_tc") | None => true,
                    Some(other) => return Err(invalid("topk_method", "noaux_tc", other)),
                };
                config.shared_intermediate_size = inner * keys.optional("n_shared_experts")?.unwrap_or(0);
                config
            }
            other => return Err(invalid("model_type", "qwen3_moe, mixtral or deepseek_v3", other)),
        };
        if let Some(quantization) = keys.get("quantization_config").filter(|value| !value.is_null()) {
            config.weights = weight_format(&Keys { json: quantization, path: "quantization_config." })?;
        }
        Ok(config)
    }

    /// A layer without shared experts, correction bias or quantisation.
    pub fn new(naming: Naming, hidden_size: usize, intermediate_size: usize, router: Router) -> Self {
        let (shared_intermediate_size, correction_bias, weights) = (0, false, WeightFormat::Float);
        Self { naming, hidden_size, intermediate_size, shared_intermediate_size, router, correction_bias, weights }
    }

    /// The name of the layer's part of the tensors' names.
    pub(super) fn block(&self) -> &'static str {
        if self.naming == Naming::Mixtral { "block_sparse_moe" } else { "mlp" }
    }

    /// What gate, up and down are called.
    pub(super) fn projections(&self) -> [&'static str; 3] {
        if self.naming == Naming::Mixtral { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] }
    }
}

fn weight_format(keys: &Keys<'_>) -> Result<WeightFormat> {
    match keys.text("quant_method")? {
        "fp8" => {
            let scheme = keys.get("activation_scheme").and_then(Value::as_str).unwrap_or("dynamic");
            if scheme != "dynamic" {
                return Err(keys.invalid("activation_scheme", "dynamic", scheme));
            }
            match keys.get("weight_block_size").filter(|value| !value.is_null()) {
                None => Ok(WeightFormat::Fp8PerChannel),
                Some(block) if is_128(block) => Ok(WeightFormat::Fp8Block128),
                Some(block) => Err(keys.invalid("weight_block_size", "[128, 128]", block)),
            }
        }
        "compressed-tensors" => {
            let groups = keys.get("config_groups").and_then(Value::as_object);
            let groups = groups.ok_or_else(|| keys.invalid("config_groups", "an object", "nothing"))?;
            let mut formats = groups.iter().map(|(name, group)| {
                let path = format!("{}config_groups.{name}.", keys.path);
                compressed_tensors_group(&Keys { json: group, path: &path })
            });
            let first = formats.next().ok_or_else(|| keys.invalid("config_groups", "one group", "none"))??;
            for other in formats {
                if other? != first {
                    return Err(keys.invalid("config_groups", "groups of one format", "several"));
                }
            }
            Ok(first)
        }
        other => Err(keys.invalid("quant_method", "fp8 or compressed-tensors", other)),
    }
}

fn compressed_tensors_group(keys: &Keys<'_>) -> Result<WeightFormat> {
    let null = Value::Null;
    let part = |key: &str| keys.get(key).unwrap_or(&null);
    let (weights, inputs) = (part("weights"), part("input_activations"));
    if weights["num_bits"] != 8 || weights["type"] != "float" {
        return Err(keys.invalid("weights", "8 bits of type float", weights));
    }
    if inputs["dynamic"] != true {
        return Err(keys.invalid("input_activations", "dynamic", inputs));
    }
    match weights["strategy"].as_str() {
        Some("channel" | "tensor") if inputs["strategy"] == "token" => Ok(WeightFormat::Fp8PerChannel),
        Some("block") if is_128(&weights["block_structure"]) => Ok(WeightFormat::Fp8Block128),
        _ => {
            let expected = "channel or tensor with inputs per token, or block with block_structure [128, 128]";
            Err(keys.invalid("weights.strategy", expected, weights))
        }
    }
}

fn is_128(value: &Value) -> bool {
    value.as_array().is_some_and(|sizes| sizes.len() == 2 && sizes.iter().all(|size| *size == 128))
}

/// An object and the way to it.
struct Keys<'a> {
    json: &'a Value,
    path: &'a str,
}

impl<'a> Keys<'a> {
    fn invalid(&self, key: &str, expected: &str, got: impl ToString) -> crate::Error {
        invalid(format!("{}{key}", self.path), expected, got)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key)
    }

    fn field<T>(&self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        let value = self.get(key).ok_or_else(|| self.invalid(key, expected, "nothing"))?;
        read(value).ok_or_else(|| self.invalid(key, expected, value))
    }

    fn number(&self, key: &str) -> Result<usize> {
        self.field(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).filter(|value| !value.is_null()).map(|_| self.number(key)).transpose()
    }

    fn float(&self, key: &str) -> Result<f32> {
        self.field(key, "a number", |value| value.as_f64().map(|x| x as f32))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.field(key, "true or false", Value::as_bool)
    }

    fn text(&self, key: &str) -> Result<&'a str> {
        self.field(key, "a string", Value::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN: &str = r#"{"model_type": "qwen3_moe", "hidden_act": "silu", "hidden_size": 2048, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": true}"#;
    const DEEPSEEK: &str = r#"{"model_type": "deepseek_v3", "hidden_act": "silu", "hidden_size": 7168,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
        "norm_topk_prob": true, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4,
        "routed_scaling_factor": 2.5, "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
        "quant_method": "fp8", "weight_block_size": [128, 128]}}"#;
    const MIXTRAL: &str = r#"{"model_type": "mixtral", "hidden_act": "silu", "hidden_size": 4096,
        "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14336, "quantization_config":
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float",
        "strategy": "channel"}, "input_activations": {"dynamic": true, "strategy": "token", "num_bits": 8}}}}}"#;

    #[test]
    fn configs_of_three_families() {
        let qwen = LayerConfig::from_json(QWEN).unwrap();
        let router = Router::new(128, 8).renormalize();
        assert_eq!(qwen, LayerConfig::new(Naming::Qwen3Moe, 2048, 768, router));
        let router = Router::new(256, 8).scoring(Scoring::Sigmoid).renormalize().scaling_factor(2.5).groups(8, 4);
        let deepseek = LayerConfig {
            shared_intermediate_size: 2048,
            correction_bias: true,
            weights: WeightFormat::Fp8Block128,
            ..LayerConfig::new(Naming::DeepSeekV3, 7168, 2048, router)
        };
        assert_eq!(LayerConfig::from_json(DEEPSEEK).unwrap(), deepseek);
        let router = Router::new(8, 2).renormalize();
        let mixtral = LayerConfig {
            weights: WeightFormat::Fp8PerChannel,
            ..LayerConfig::new(Naming::Mixtral, 4096, 14336, router)
        };
        assert_eq!(LayerConfig::from_json(MIXTRAL).unwrap(), mixtral);
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let error = |text: &str| LayerConfig::from_json(text).unwrap_err().to_string();
        assert!(error("{").starts_with("cannot load the model: config.json is "), "{}", error("{"));
        let without = QWEN.replace("\"num_experts\": 128,", "");
        assert_eq!(error(&without), "cannot load the model: num_experts is nothing, expected a whole number");
        let other = QWEN.replace("qwen3_moe", "llama");
        let expected = "cannot load the model: model_type is llama, expected qwen3_moe, mixtral or deepseek_v3";
        assert_eq!(error(&other), expected);
        let gelu = QWEN.replace("silu", "gelu");
        assert_eq!(error(&gelu), "cannot load the model: hidden_act is gelu, expected silu");
        let fixed = DEEPSEEK.replace("dynamic", "static");
        let expected = "cannot load the model: quantization_config.activation_scheme is static, expected dynamic";
        assert_eq!(error(&fixed), expected);
        let block = DEEPSEEK.replace("[128, 128]", "[64, 64]");
        let expected = "cannot load the model: quantization_config.weight_block_size is [64,64], expected [128, 128]";
        assert_eq!(error(&block), expected);
        let bits = MIXTRAL.replace("\"num_bits\": 8, \"type\"", "\"num_bits\": 4, \"type\"");
        assert!(error(&bits).contains("quantization_config.config_groups.group_0.weights is"), "{}", error(&bits));
    }
}
