//! `cargo xtask run`: a recorded layer, end to end: router, top-k, plan, gather, experts, combine. Each stage is timed,
//! and ids, plan and output are compared with recorded answers.

mod check;
mod layer;
mod stages;
mod trace;

use crate::args::Args;
use crate::backends::{OnBackend, with_backend};
use crate::{Outcome, backends};
use layer::Layer;
use moe_core::half::bf16;
use moe_core::{DeviceSpec, PermuteBackend};
use std::path::PathBuf;
use trace::Trace;

/// Runs the layer on a backend and checks the answers.
struct Run {
    layer: Layer,
    trace: Trace,
    dtype: String,
}

pub(crate) fn main(mut args: Args) -> Outcome {
    let spec: DeviceSpec = args.option("--backend")?.unwrap_or("cpu".parse().map_err(|e| format!("{e}"))?);
    let dtype = args.option("--dtype")?.unwrap_or_else(|| "f32".to_owned());
    let data = args.option("--data")?.unwrap_or_else(backends::data_dir);
    let layer: Option<PathBuf> = args.option("--layer")?;
    let file: Option<PathBuf> = args.option("--file")?;
    let tokens = args.option("--tokens")?;
    args.finish()?;
    let layer = Layer::load(&layer.unwrap_or_else(|| data.join("moe_layer.safetensors")))?;
    let trace = Trace::load(&file.unwrap_or_else(|| data.join("trace.safetensors")), &layer, tokens)?;
    with_backend(&spec, Run { layer, trace, dtype })
}

impl OnBackend for Run {
    fn run<B: PermuteBackend>(self, spec: &DeviceSpec) -> Outcome {
        let Run { layer, trace, dtype } = self;
        let (out, limit) = match dtype.as_str() {
            "f32" => (stages::forward::<B, f32>(spec, &layer, &trace)?, 1e-5),
            "bf16" => (stages::forward::<B, bf16>(spec, &layer, &trace)?, 5e-3),
            other => return Err(format!("--dtype {other}: f32 or bf16")),
        };
        check::check(&trace, &out, limit)
    }
}
