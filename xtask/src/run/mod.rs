//! `cargo xtask run`: a recorded layer, end to end: router, top-k, plan, gather, experts, combine; with `--quant
//! fp8-dynamic` the experts' weights and rows in f8e4m3. Each stage is timed, and ids, plan and output are compared with
//! recorded answers, quantised stages with the host's.

mod check;
mod clock;
mod layer;
mod quant;
mod stages;
mod trace;
mod whole;

use crate::args::Args;
use crate::backends::{OnBackend, with_backend};
use crate::{Outcome, backends};
use check::Reference;
use layer::Layer;
use moe_core::half::bf16;
use moe_core::layer::LayerOptions;
use moe_core::{DeviceSpec, MatmulBackend, PermuteBackend, QuantBackend, RouterBackend};
use std::path::PathBuf;
use trace::Trace;

/// Runs the layer on a backend and checks the answers.
struct Run {
    layer: Layer,
    trace: Trace,
    dtype: String,
    fp8_dynamic: bool,
}

pub(crate) fn main(mut args: Args) -> Outcome {
    let spec: DeviceSpec = args.option("--backend")?.unwrap_or("cpu".parse().map_err(|e| format!("{e}"))?);
    let quant: Option<String> = args.option("--quant")?;
    let fp8_dynamic = match quant.as_deref() {
        None => false,
        Some("fp8-dynamic") => true,
        Some(other) => return Err(format!("--quant {other}: fp8-dynamic")),
    };
    let dtype: Option<String> = args.option("--dtype")?;
    let dtype = dtype.unwrap_or_else(|| if fp8_dynamic { "bf16" } else { "f32" }.to_owned());
    let data = args.option("--data")?.unwrap_or_else(backends::data_dir);
    let layer: Option<PathBuf> = args.option("--layer")?;
    let file: Option<PathBuf> = args.option("--file")?;
    let tokens = args.option("--tokens")?;
    args.finish()?;
    let layer = Layer::load(&layer.unwrap_or_else(|| data.join("moe_layer.safetensors")))?;
    let trace = Trace::load(&file.unwrap_or_else(|| data.join("trace.safetensors")), &layer, tokens)?;
    let run = Run { layer, trace, dtype, fp8_dynamic };
    match spec.backend() {
        // Backends that have every stage of the layer.
        "cpu" => run.whole::<moe_cpu::Cpu>(&spec, 1e-5),
        _ => with_backend(&spec, run),
    }
}

impl Run {
    /// All of the layer on the backend. Quantised output may differ from the reference by `fp8_limit`.
    fn whole<B: QuantBackend + RouterBackend + MatmulBackend>(self, spec: &DeviceSpec, fp8_limit: f64) -> Outcome {
        let Run { layer, trace, dtype, fp8_dynamic } = &self;
        let plain = LayerOptions::default();
        let (out, expected) = match (dtype.as_str(), fp8_dynamic) {
            ("f32", false) => (whole::forward::<B, f32, f32>(spec, layer, trace, plain)?, (Reference::Float64, 1e-5)),
            ("bf16", false) => {
                (whole::forward::<B, bf16, bf16>(spec, layer, trace, plain)?, (Reference::Float64, 5e-3))
            }
            // Rows in bf16, as they were recorded; the products' results in f32.
            ("bf16", true) => {
                let out = whole::forward::<B, bf16, f32>(spec, layer, trace, plain.fp8_dynamic())?;
                (out, (Reference::Fp8Dynamic, fp8_limit))
            }
            (other, true) => return Err(format!("--dtype {other}: with --quant fp8-dynamic rows are bf16")),
            (other, false) => return Err(format!("--dtype {other}: f32 or bf16")),
        };
        check::check(trace, &out, expected)
    }
}

/// Backends without products of their own: the router and the products run on the CPU.
impl OnBackend for Run {
    fn run<B: PermuteBackend>(self, spec: &DeviceSpec) -> Outcome {
        let Run { layer, trace, dtype, fp8_dynamic } = self;
        if fp8_dynamic {
            return Err(format!("--quant fp8-dynamic: {} has no quantisation and no products yet", B::NAME));
        }
        let (out, limit) = match dtype.as_str() {
            "f32" => (stages::forward::<B, f32>(spec, &layer, &trace)?, 1e-5),
            "bf16" => (stages::forward::<B, bf16>(spec, &layer, &trace)?, 5e-3),
            other => return Err(format!("--dtype {other}: f32 or bf16")),
        };
        check::check(&trace, &out, (Reference::Float64, limit))
    }
}
