//! `cargo xtask doctor`: the backends compiled in, the devices found and why the others cannot be used, and which of
//! them the oracle chooses for a layer.

use crate::Outcome;
use crate::args::Args;
use crate::backends::AnyDevice;
use moe_core::oracle::{Candidate, Op, Opened, OracleError, Quantisation, Sizes, TuningTable, Wish, select};
use moe_core::{DType, Dev, Device, DeviceSpec, DeviceVisitor, Layout, PermuteBackend};
use std::path::{Path, PathBuf};

/// The layers that can be named: K, E and H.
const MODELS: &[(&str, [usize; 3])] =
    &[("dsv3", [8, 256, 7168]), ("qwen3-30b", [8, 128, 2048]), ("mixtral", [2, 8, 4096])];

/// The types of rows that can be named.
const DTYPES: &[DType] = &[DType::BF16, DType::F16, DType::F32, DType::F8E4M3, DType::F8E5M2];

pub(crate) fn main(mut args: Args) -> Outcome {
    let require: Option<DeviceSpec> = args.option("--backend")?;
    let prefer: Option<DeviceSpec> = args.option("--prefer")?;
    let table: Option<PathBuf> = args.option("--table")?;
    let wish = match (require, prefer) {
        (Some(_), Some(_)) => return Err("--backend requires a device, --prefer asks for one: give one of them".into()),
        (Some(spec), None) => wish(&mut args)?.require(spec),
        (None, Some(spec)) => wish(&mut args)?.prefer(spec),
        (None, None) => wish(&mut args)?,
    };
    args.finish()?;

    let before = AnyDevice::candidates(&wish);
    let table = table.map(|path| read_table(&path)).transpose()?.unwrap_or_default();
    if !table.is_empty() {
        tune_all(&table, &before)?;
    }
    let candidates = AnyDevice::candidates(&wish);
    println!("compiled in: {}", AnyDevice::COMPILED_IN.join(", "));
    for (candidate, before) in candidates.iter().zip(&before) {
        show(candidate, before, &table)?;
    }
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

/// The shape that the decision is wanted for: a model by name, any of its sizes replaced.
fn wish(args: &mut Args) -> Result<Wish, String> {
    let model: Option<String> = args.option("--model")?;
    let tokens = args.option("--tokens")?.unwrap_or(4096);
    let mut sizes = sizes(model.as_deref().unwrap_or("dsv3"), tokens)?;
    let mut replace = |name: &str, size: &mut usize| -> Outcome {
        *size = args.option(name)?.unwrap_or(*size);
        Ok(())
    };
    replace("--typical", &mut sizes.typical_tokens)?;
    replace("--top-k", &mut sizes.top_k)?;
    replace("--hidden", &mut sizes.hidden_size)?;
    replace("--experts", &mut sizes.num_experts)?;
    sizes.num_local_experts = sizes.num_experts;
    replace("--local-experts", &mut sizes.num_local_experts)?;
    let dtype: Option<String> = args.option("--dtype")?;
    let mut wish = Wish::new(sizes, self::dtype(dtype.as_deref())?);
    if let Some(names) = args.option::<String>("--op")? {
        wish = wish.ops(&names.split(',').map(op).collect::<Result<Vec<_>, _>>()?);
    }
    if let Some(text) = args.option::<String>("--layout")? {
        wish = wish.layout(layout(&text)?);
    }
    if let Some(name) = args.option::<String>("--quant")? {
        wish = wish.quantisation(quantisation(&name)?);
    }
    Ok(if args.flag("--training") { wish.training() } else { wish })
}

/// "gather", "combine_grad", "weighted-gather".
fn op(name: &str) -> Result<Op, String> {
    let word = |op: &Op| op.name().replace(' ', "-");
    let names = || Op::ALL.iter().map(word).collect::<Vec<_>>().join(", ");
    let known = Op::ALL.iter().find(|op| word(op) == name);
    known.copied().ok_or_else(|| format!("--op {name}: there are {}", names()))
}

/// The names of `bench`: "fp8_token", "fp8_block", "mxfp8", "nvfp4".
fn quantisation(name: &str) -> Result<Quantisation, String> {
    match name {
        "fp8_token" => Ok(Quantisation::PerToken),
        "fp8_block" => Ok(Quantisation::Block128),
        "mxfp8" => Ok(Quantisation::Mxfp8),
        "nvfp4" => Ok(Quantisation::Nvfp4),
        _ => Err(format!("--quant {name}: there are fp8_token, fp8_block, mxfp8, nvfp4")),
    }
}

/// "packed", "aligned:128", "padded:512".
fn layout(text: &str) -> Result<Layout, String> {
    let bad = || format!("--layout {text}: packed, aligned:N or padded:N");
    let (name, n) = text.split_once(':').unwrap_or((text, ""));
    match (name, n.parse()) {
        ("packed", _) if n.is_empty() => Ok(Layout::Packed),
        ("aligned", Ok(n)) => Ok(Layout::Aligned(n)),
        ("padded", Ok(n)) => Ok(Layout::Padded(n)),
        _ => Err(bad()),
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

/// A device, its knobs, and what the table changes for it.
fn show(candidate: &Candidate<AnyDevice>, before: &Candidate<AnyDevice>, table: &TuningTable) -> Outcome {
    let Opened { id, info, capabilities, device, paths, .. } = match candidate.outcome() {
        Ok(opened) => opened,
        Err(reason) => {
            println!("{}: cannot be used: {reason}", candidate.name());
            return Ok(());
        }
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
    device.visit(Knobs(table)).map_err(|e| e.to_string())?;
    let old = before.outcome().map_or(&[][..], |opened| &opened.paths);
    for path in paths.iter().filter(|_| !table.is_empty()) {
        match old.iter().find(|old| old.what == path.what) {
            Some(old) if old.taken == path.taken => {
                println!("  with the table as without: {}: {}", path.what, path.taken)
            }
            Some(old) => println!("  with the table: {}: {} (without: {})", path.what, path.taken, old.taken),
            None => println!("  with the table: {}: {}", path.what, path.taken),
        }
    }
    Ok(())
}

/// Shows what can be tuned on a device, and the values that a table gives it.
struct Knobs<'a>(&'a TuningTable);

impl DeviceVisitor for Knobs<'_> {
    type Output = moe_core::Result<()>;

    fn visit<B: PermuteBackend>(self, device: &Dev<B>) -> Self::Output {
        let (table, knobs, name) = (self.0, device.raw().knobs(), device.info().name);
        let tuned = table.tuned(B::NAME, &name, knobs)?;
        if !table.is_empty() && !knobs.is_empty() && !knobs.iter().any(|knob| tuned.is_measured(knob)) {
            println!("  the table has nothing for [{}: {name}]", B::NAME);
        }
        for knob in knobs {
            let built_in = knob.format(knob.built_in);
            match table.entry(B::NAME, &name, knob.key) {
                Some(entry) => {
                    let value = knob.format(tuned.get(knob));
                    println!("  {} {value} (built in: {built_in}): measured: {}", knob.key, entry.measurement);
                }
                None => println!("  can be tuned: {} (built in: {built_in}): {}", knob.key, knob.about),
            }
        }
        Ok(())
    }
}

fn read_table(path: &Path) -> Result<TuningTable, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("--table {}: {e}", path.display()))?;
    text.parse().map_err(|e| format!("--table {}: {e}", path.display()))
}

/// Gives a measured table to the devices that can be tuned.
fn tune_all(table: &TuningTable, candidates: &[Candidate<AnyDevice>]) -> Outcome {
    let opened = candidates.iter().filter_map(|candidate| candidate.outcome().ok());
    for opened in opened {
        opened.device.visit(Tune(table)).map_err(|e| format!("--table: {e}"))?;
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

    #[test]
    fn any_shape_can_be_asked_for_and_mistakes_are_named() {
        let shape = "--backend cpu --tokens 64 --typical 8 --top-k 2 --experts 12 --local-experts 3 --hidden 96";
        assert_eq!(run(&format!("{shape} --op gather,weighted-gather --layout aligned:16")), Ok(()));
        assert!(run("--op unpermute").unwrap_err().contains("combine_grad"));
        assert_eq!(run("--backend cpu --op route,gather --quant mxfp8 --tokens 16"), Ok(()));
        assert!(run("--quant int4").unwrap_err().contains("nvfp4"));
        assert!(run("--quant mxfp8 --dtype f8e4m3").unwrap_err().contains("quantised"));
        assert!(run("--layout aligned").unwrap_err().contains("aligned:N"));
        assert!(run("--backend cpu --top-k 9 --experts 8 --local-experts 9").is_err());
    }

    #[test]
    fn a_table_is_read_and_one_that_no_device_takes_is_an_error() {
        let path = std::env::temp_dir().join(format!("moe-doctor-{}.txt", std::process::id()));
        let doctor = |table: &str| {
            std::fs::write(&path, table).unwrap();
            run(&format!("--backend cpu --op gather --tokens 64 --table {}", path.display()))
        };
        let name = Dev::<moe_cpu::Cpu>::open(&"cpu".parse().unwrap()).unwrap().info().name;
        assert_eq!(doctor(&format!("[cpu: {name}]\nstream_bytes 4096  # a test\n")), Ok(()));
        assert!(doctor(&format!("[cpu: {name}]\nstream_byte 4096\n")).unwrap_err().contains("stream_byte"));
        assert!(doctor("stream_bytes").unwrap_err().contains("line 1"));
        assert_eq!(doctor("[cpu: some other machine]\nstream_bytes 4096\n"), Ok(()));
        std::fs::remove_file(path).unwrap();
    }
}
