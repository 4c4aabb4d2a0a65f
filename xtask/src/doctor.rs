//! `cargo xtask doctor`: the backends compiled in, the devices found and why the others cannot be used, and which of
//! them the oracle chooses for a layer.

use crate::Outcome;
use crate::args::Args;
use crate::backends::AnyDevice;
use moe_core::oracle::{Candidate, Opened, OracleError, Sizes, TuningTable, Wish, select};
use moe_core::{DType, Dev, Device, DeviceSpec, DeviceVisitor, PermuteBackend};
use std::path::PathBuf;

/// The layers that can be named: K, E and H.
const MODELS: &[(&str, [usize; 3])] =
    &[("dsv3", [8, 256, 7168]), ("qwen3-30b", [8, 128, 2048]), ("mixtral", [2, 8, 4096])];

/// The types of rows that can be named.
const DTYPES: &[DType] = &[DType::BF16, DType::F16, DType::F32, DType::F8E4M3, DType::F8E5M2];

pub(crate) fn main(mut args: Args) -> Outcome {
    let model: Option<String> = args.option("--model")?;
    let dtype: Option<String> = args.option("--dtype")?;
    let tokens = args.option("--tokens")?.unwrap_or(4096);
    let require: Option<DeviceSpec> = args.option("--backend")?;
    let prefer: Option<DeviceSpec> = args.option("--prefer")?;
    let training = args.flag("--training");
    let table: Option<PathBuf> = args.option("--table")?;
    args.finish()?;

    let mut wish = Wish::new(sizes(model.as_deref().unwrap_or("dsv3"), tokens)?, self::dtype(dtype.as_deref())?);
    wish = match (require, prefer) {
        (Some(_), Some(_)) => return Err("--backend requires a device, --prefer asks for one: give one of them".into()),
        (Some(spec), None) => wish.require(spec),
        (None, Some(spec)) => wish.prefer(spec),
        (None, None) => wish,
    };
    if training {
        wish = wish.training();
    }
    if let Some(path) = table {
        tune_all(&path, &wish)?;
    }

    let candidates = AnyDevice::candidates(&wish);
    println!("compiled in: {}", AnyDevice::COMPILED_IN.join(", "));
    candidates.iter().for_each(show);
    println!();
    match select(&wish, candidates) {
        Ok(selection) => {
            print!("{}", selection.report);
            Ok(())
        }
        Err(error) => {
            // The message of `NoDevice` ends with the report.
            if let (Some(report), OracleError::Unmet { .. }) = (error.report(), &error) {
                print!("{report}");
            }
            Err(error.to_string())
        }
    }
}

fn sizes(model: &str, tokens: usize) -> Result<Sizes, String> {
    let names = || MODELS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let known = MODELS.iter().find(|(name, _)| *name == model);
    let (_, [top_k, experts, hidden]) = known.ok_or_else(|| format!("--model {model}: there are {}", names()))?;
    Ok(Sizes::new(tokens, *top_k, *experts, *hidden))
}

fn dtype(name: Option<&str>) -> Result<DType, String> {
    let Some(name) = name else { return Ok(DType::BF16) };
    let names = || DTYPES.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ");
    let known = DTYPES.iter().find(|dtype| dtype.name() == name);
    known.copied().ok_or_else(|| format!("--dtype {name}: there are {}", names()))
}

fn show(candidate: &Candidate<AnyDevice>) {
    let Opened { id, info, capabilities, device, .. } = match candidate.outcome() {
        Ok(opened) => opened,
        Err(reason) => return println!("{}: cannot be used: {reason}", candidate.name()),
    };
    let memory = match info.memory_bytes {
        Some(bytes) => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        None => "memory unknown".into(),
    };
    println!("{id}: {}, {memory}", info.name);
    println!("  {capabilities}");
    for (what, text) in &info.details {
        println!("  {what}: {text}");
    }
    device.visit(Knobs);
}

/// Shows what can be tuned on a device.
struct Knobs;

impl DeviceVisitor for Knobs {
    type Output = ();

    fn visit<B: PermuteBackend>(self, device: &Dev<B>) {
        for knob in device.raw().knobs() {
            println!("  can be tuned: {} (built in: {}): {}", knob.key, knob.format(knob.built_in), knob.about);
        }
    }
}

/// Gives a measured table to the devices that can be tuned.
fn tune_all(path: &PathBuf, wish: &Wish) -> Outcome {
    let text = std::fs::read_to_string(path).map_err(|e| format!("--table {}: {e}", path.display()))?;
    let table: TuningTable = text.parse().map_err(|e| format!("--table {}: {e}", path.display()))?;
    for candidate in AnyDevice::candidates(wish) {
        if let Ok(opened) = candidate.outcome() {
            opened.device.visit(Tune(&table)).map_err(|e| format!("--table {}: {e}", path.display()))?;
        }
    }
    Ok(())
}

struct Tune<'a>(&'a TuningTable);

impl DeviceVisitor for Tune<'_> {
    type Output = moe_core::Result<()>;

    fn visit<B: PermuteBackend>(self, device: &Dev<B>) -> Self::Output {
        if device.raw().knobs().is_empty() { Ok(()) } else { device.raw().tune(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &str) -> Outcome {
        main(Args::new(words.split_whitespace().map(str::to_owned)))
    }

    #[test]
    fn names_that_do_not_exist_are_refused_with_those_that_do() {
        assert!(run("--model gpt").unwrap_err().contains("mixtral"));
        assert!(run("--dtype f64").unwrap_err().contains("bf16"));
        assert!(run("--backend cpu --prefer cpu").is_err());
    }

    #[test]
    fn the_choice_is_shown_and_a_required_device_that_is_not_there_is_an_error() {
        assert_eq!(run("--model mixtral --tokens 8 --backend cpu --training"), Ok(()));
        assert!(run("--backend tpu").unwrap_err().contains("would work: "));
        assert!(run("--backend cpu --dtype f8e4m3 --training").unwrap_err().contains("combine_grad"));
    }
}
