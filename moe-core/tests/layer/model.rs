//! Small made-up models: their files, and their answers in float64.

use moe_core::float8::F8E4M3;
use moe_core::half::bf16;
use moe_core::layer::Naming;
use safetensors::tensor::{Dtype, TensorView};

/// Random numbers from -1 to 1 (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Numbers of at most `size`, which bf16 has.
    pub(crate) fn matrix(&mut self, len: usize, size: f32) -> Vec<f32> {
        (0..len).map(|_| bf16::from_f32(self.unit() * size).to_f32()).collect()
    }
}

/// How the file has the experts' weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stored {
    Bf16,
    /// compressed-tensors: `weight_scale` `[N, 1]`.
    PerChannel,
    /// compressed-tensors: `weight_scale` per 128 x 128.
    Block,
    /// DeepSeek: `weight_scale_inv` per 128 x 128.
    BlockInv,
}

/// A projection `[n, k]`.
struct Linear {
    name: String,
    n: usize,
    k: usize,
    /// What it stands for.
    weights: Vec<f64>,
    /// The file's bytes, and the scales'.
    bytes: Vec<u8>,
    scales: Option<(String, Vec<u8>, Vec<usize>)>,
}

impl Linear {
    fn new(name: String, n: usize, k: usize, stored: Stored, rng: &mut Rng) -> Self {
        let floats = rng.matrix(n * k, 2.0 / (k as f32).sqrt());
        let block = match stored {
            Stored::Bf16 => {
                let bytes = floats.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect();
                let weights = floats.iter().map(|w| f64::from(*w)).collect();
                return Self { name, n, k, weights, bytes, scales: None };
            }
            Stored::PerChannel => [1, k],
            _ => [128, 128],
        };
        // Any scales will do, as long as each block has another.
        let [rows, cols] = [n.div_ceil(block[0]), k.div_ceil(block[1])];
        let scales: Vec<f32> = (0..rows * cols).map(|i| (1.0 + i as f32 % 7.0) / 1024.0).collect();
        let scale = |i: usize| scales[i / k / block[0] * cols + i % k / block[1]];
        let values: Vec<F8E4M3> = floats.iter().enumerate().map(|(i, w)| F8E4M3::from_f32(w / scale(i))).collect();
        let weights = values.iter().enumerate().map(|(i, v)| f64::from(v.to_f32()) * f64::from(scale(i))).collect();
        let suffix = if stored == Stored::BlockInv { "weight_scale_inv" } else { "weight_scale" };
        let scale_bytes = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let scales = Some((format!("{name}.{suffix}"), scale_bytes, vec![rows, cols]));
        Self { bytes: values.iter().map(|v| v.to_bits()).collect(), name, n, k, weights, scales }
    }

    fn apply(&self, x: &[f64]) -> Vec<f64> {
        self.weights.chunks_exact(self.k).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }
}

/// Gate, up, down.
type Expert = [Linear; 3];

/// A layer with its answers.
pub(crate) struct Model {
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
    pub(crate) naming: Naming,
    stored: Stored,
    router: Vec<f32>,
    bias: Option<Vec<f32>>,
    routed: Vec<Expert>,
    shared: Option<Expert>,
}

/// Groups of experts and how many are taken, and the scaling factor, of the DeepSeek models here.
pub(crate) const GROUPS: (usize, usize) = (4, 2);
pub(crate) const SCALING: f64 = 2.5;

impl Model {
    pub(crate) fn new(naming: Naming, stored: Stored, rng: &mut Rng) -> Self {
        let (hidden, inner, experts, top_k) = (160, 128, 8, 3);
        let deepseek = naming == Naming::DeepSeekV3;
        let block = if naming == Naming::Mixtral { "block_sparse_moe" } else { "mlp" };
        let projections =
            if naming == Naming::Mixtral { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
        let expert = |name: String, inner: usize, rng: &mut Rng| -> Expert {
            let shapes = [(inner, hidden), (inner, hidden), (hidden, inner)];
            std::array::from_fn(|i| {
                let name = format!("model.layers.7.{block}.{name}.{}", projections[i]);
                Linear::new(name, shapes[i].0, shapes[i].1, stored, rng)
            })
        };
        let routed = (0..experts).map(|e| expert(format!("experts.{e}"), inner, rng)).collect();
        let shared = deepseek.then(|| expert("shared_experts".into(), 2 * inner, rng));
        let router = rng.matrix(experts * hidden, 0.3);
        let bias = deepseek.then(|| rng.matrix(experts, 0.2));
        Self { hidden, inner, experts, top_k, naming, stored, router, bias, routed, shared }
    }

    /// The model's `config.json`.
    pub(crate) fn config(&self) -> String {
        let Self { hidden, inner, experts, top_k, .. } = self;
        let family = match self.naming {
            Naming::Mixtral => {
                format!(r#""model_type": "mixtral", "num_local_experts": {experts}, "intermediate_size": {inner}"#)
            }
            Naming::DeepSeekV3 => format!(
                r#""model_type": "deepseek_v3", "n_routed_experts": {experts}, "moe_intermediate_size": {inner},
                "n_shared_experts": 2, "norm_topk_prob": true, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
                "n_group": {}, "topk_group": {}, "routed_scaling_factor": {SCALING}"#,
                GROUPS.0, GROUPS.1
            ),
            _ => format!(
                r#""model_type": "qwen3_moe", "num_experts": {experts}, "moe_intermediate_size": {inner},
                "norm_topk_prob": true"#
            ),
        };
        let inputs = r#""input_activations": {"dynamic": true, "strategy": "token"}"#;
        let quantisation = match self.stored {
            Stored::Bf16 => String::new(),
            Stored::PerChannel => format!(
                r#", "quantization_config": {{"quant_method": "compressed-tensors", "config_groups": {{"group_0":
                {{"weights": {{"num_bits": 8, "type": "float", "strategy": "channel"}}, {inputs}}}}}}}"#
            ),
            Stored::Block => r#", "quantization_config": {"quant_method": "compressed-tensors", "config_groups":
                {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure":
                [128, 128]}, "input_activations": {"dynamic": true, "strategy": "group", "group_size": 128}}}}"#
                .into(),
            Stored::BlockInv => r#", "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic",
                "weight_block_size": [128, 128]}"#
                .into(),
        };
        format!(
            r#"{{"hidden_act": "silu", "hidden_size": {hidden}, "num_experts_per_tok": {top_k}, {family}{quantisation}}}"#
        )
    }

    /// The model's file.
    pub(crate) fn file(&self) -> Vec<u8> {
        let block = if self.naming == Naming::Mixtral { "block_sparse_moe" } else { "mlp" };
        let router: Vec<u8> = self.router.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect();
        let bias: Option<Vec<u8>> = self.bias.as_ref().map(|b| b.iter().flat_map(|b| b.to_le_bytes()).collect());
        let mut views = Vec::new();
        let mut add = |name: String, dtype: Dtype, shape: Vec<usize>, bytes| {
            views.push((name, TensorView::new(dtype, shape, bytes).unwrap()));
        };
        add(format!("model.layers.7.{block}.gate.weight"), Dtype::BF16, vec![self.experts, self.hidden], &router);
        if let Some(bias) = &bias {
            add("model.layers.7.mlp.gate.e_score_correction_bias".into(), Dtype::F32, vec![self.experts], bias);
        }
        let dtype = if self.stored == Stored::Bf16 { Dtype::BF16 } else { Dtype::F8_E4M3 };
        for linear in self.routed.iter().chain(&self.shared).flatten() {
            add(format!("{}.weight", linear.name), dtype, vec![linear.n, linear.k], &linear.bytes);
            if let Some((name, bytes, shape)) = &linear.scales {
                add(name.clone(), Dtype::F32, shape.clone(), bytes);
            }
        }
        safetensors::serialize(views, None).unwrap()
    }

    /// Experts and weights of a token, from its logits.
    fn route(&self, x: &[f64]) -> Vec<(usize, f64)> {
        let rows = self.router.chunks_exact(self.hidden);
        let logits: Vec<f64> = rows.map(|w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect();
        let Some(bias) = &self.bias else {
            let mut order: Vec<usize> = (0..self.experts).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            order.truncate(self.top_k);
            let sum: f64 = order.iter().map(|e| logits[*e].exp()).sum();
            return order.into_iter().map(|e| (e, logits[e].exp() / sum)).collect();
        };
        let score: Vec<f64> = logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect();
        let key: Vec<f64> = score.iter().zip(bias).map(|(s, b)| s + f64::from(*b)).collect();
        let size = self.experts / GROUPS.0;
        let value = |group: usize| {
            let mut keys = key[group * size..][..size].to_vec();
            keys.sort_by(|a, b| b.total_cmp(a));
            keys[0] + keys[1]
        };
        let mut groups: Vec<usize> = (0..GROUPS.0).collect();
        groups.sort_by(|a, b| value(*b).total_cmp(&value(*a)));
        groups.truncate(GROUPS.1);
        let mut order: Vec<usize> = (0..self.experts).filter(|e| groups.contains(&(e / size))).collect();
        order.sort_by(|a, b| key[*b].total_cmp(&key[*a]));
        order.truncate(self.top_k);
        let sum: f64 = order.iter().map(|e| score[*e]).sum();
        order.into_iter().map(|e| (e, score[e] / sum * SCALING)).collect()
    }

    /// An expert's answer. Rows are quantised where the weights are, or where `fp8`.
    fn expert(&self, [gate, up, down]: &Expert, x: &[f64]) -> Vec<f64> {
        let x = self.quantised(x);
        let act = gate.apply(&x).into_iter().zip(up.apply(&x)).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
        let act: Vec<f64> = match self.stored {
            Stored::Bf16 => act.collect(),
            _ => act.map(|y| bf16::from_f32(y as f32).to_f64()).collect(),
        };
        down.apply(&self.quantised(&act))
    }

    /// What a quantised row stands for.
    fn quantised(&self, x: &[f64]) -> Vec<f64> {
        let block = match self.stored {
            Stored::Bf16 => return x.to_vec(),
            Stored::PerChannel => x.len(),
            _ => 128,
        };
        x.chunks(block)
            .flat_map(|x| {
                let amax = x.iter().fold(0f64, |max, x| max.max(x.abs())) as f32;
                let scale = (amax * (1.0f64 / 448.0) as f32).max(1e-12);
                x.iter().map(move |x| {
                    let y = (*x as f32 / scale).clamp(-448.0, 448.0);
                    f64::from(F8E4M3::from_f32(y).to_f32()) * f64::from(scale)
                })
            })
            .collect()
    }

    /// The layer's answer, of the experts that `local` names (the shared ones with `shared`).
    pub(crate) fn answer(&self, x: &[f32], local: impl Fn(usize) -> bool, shared: bool) -> Vec<f64> {
        let mut out = Vec::new();
        for x in x.chunks_exact(self.hidden) {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let mut y = match self.shared.as_ref().filter(|_| shared) {
                Some(expert) => self.expert(expert, &x),
                None => vec![0.0; self.hidden],
            };
            for (expert, weight) in self.route(&x).into_iter().filter(|(e, _)| local(*e)) {
                let rows = self.expert(&self.routed[expert], &x);
                y.iter_mut().zip(rows).for_each(|(y, row)| *y += weight * row);
            }
            out.extend(y);
        }
        out
    }
}
