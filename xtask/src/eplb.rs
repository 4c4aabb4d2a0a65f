//! `cargo xtask eplb`: what balancing the experts over GPUs gains, replayed on recorded routing and on made-up routing
//! whose popular experts drift. Prints a table for each and writes a picture of both.

use crate::args::Args;
use crate::{Outcome, backends};
use moe_core::eplb::{Drift, SimConfig, SimReport, Trace, simulate};
use safetensors::{Dtype, SafeTensors};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The experts of the recorded model.
const RECORDED_EXPERTS: usize = 32;

/// What the command line says of the simulation; a trace adds what depends on its experts.
struct Settings {
    gpus: usize,
    nodes: usize,
    groups: usize,
    replicas: Option<usize>,
    step_tokens: usize,
    window: usize,
    interval: usize,
    max_moves: Option<usize>,
}

pub(crate) fn main(mut args: Args) -> Outcome {
    let settings = Settings {
        gpus: args.option("--gpus")?.unwrap_or(8),
        nodes: args.option("--nodes")?.unwrap_or(1),
        groups: args.option("--groups")?.unwrap_or(1),
        replicas: args.option("--replicas")?,
        step_tokens: args.option("--step-tokens")?.unwrap_or(512),
        window: args.option("--window")?.unwrap_or(8),
        interval: args.option("--interval")?.unwrap_or(4),
        max_moves: args.option("--max-moves")?,
    };
    let drift = Drift {
        layers: args.option("--layers")?.unwrap_or(4),
        experts: args.option("--experts")?.unwrap_or(256),
        top_k: args.option("--top-k")?.unwrap_or(8),
        tokens: args.option("--tokens")?.unwrap_or(32_768),
        skew: args.option("--skew")?.unwrap_or(0.6),
        hold: args.option("--hold")?.unwrap_or(2_048),
        seed: args.option("--seed")?.unwrap_or(1),
    };
    let source: Option<String> = args.option("--trace")?;
    let data = args.option("--data")?.unwrap_or_else(backends::data_dir);
    let out = args.option("--out")?.unwrap_or_else(default_out);
    args.finish()?;
    let (recorded, drifting) = match source.as_deref() {
        None => (true, true),
        Some("recorded") => (true, false),
        Some("drift") => (false, true),
        Some(other) => return Err(format!("--trace {other}: recorded or drift")),
    };

    let mut runs = Vec::new();
    if recorded {
        let trace = load(&data.join("routing_ids.safetensors"))?;
        runs.push(Run::new("recorded", "Recorded routing", &trace, &settings)?);
    }
    if drifting {
        let trace = Trace::drift(&drift).map_err(|e| e.to_string())?;
        runs.push(Run::new("drift", "Drifting routing", &trace, &settings)?);
    }
    for run in &runs {
        println!("{}\n\n{}", run.title, run.report);
        println!("{}\n", run.summary());
    }
    write(&out, &runs)
}

/// `target/eplb` of the workspace, or of the current folder where there is no workspace (a packed folder).
fn default_out() -> PathBuf {
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let base = if workspace.is_dir() { workspace } else { Path::new(".") };
    base.join("target/eplb")
}

/// One simulation.
struct Run {
    name: &'static str,
    title: String,
    report: SimReport,
}

impl Run {
    fn new(name: &'static str, what: &str, trace: &Trace, settings: &Settings) -> Result<Self, String> {
        let Settings { gpus, nodes, groups, step_tokens, window, interval, max_moves, .. } = *settings;
        if gpus == 0 {
            return Err("--gpus 0: at least 1".into());
        }
        // Without another wish an eighth more slots than experts, and as many on every GPU.
        let spare = (trace.experts() / 8).max(1);
        let replicas = settings.replicas.unwrap_or((trace.experts() + spare).next_multiple_of(gpus));
        let config = SimConfig { replicas, groups, nodes, gpus, step_tokens, window, interval, max_moves };
        let report = simulate(trace, &config).map_err(|e| format!("{name}: {e}"))?;
        let (layers, experts, k) = (trace.layers(), trace.experts(), trace.top_k());
        let on = format!("{experts} experts in {replicas} slots on {gpus} GPUs");
        let title = format!("{what}: {layers} layers, top-{k}, {on}, {step_tokens} tokens a step");
        Ok(Self { name, title, report })
    }

    fn summary(&self) -> String {
        let Some((before, after, even)) = self.report.means() else {
            return "no step followed a rebalance: fewer steps than the interval".into();
        };
        let gpus: usize = self.report.rows.iter().map(|row| row.across_gpus).sum();
        let slowest = self.report.slowest_rebalance().unwrap_or_default();
        // A step ends with its fullest GPU: its load is mean / balancedness.
        let gain = 100.0 * (1.0 - before / after);
        format!(
            "balancedness (mean / max rows of a GPU) {before:.3} before, {after:.3} after ({even:.3} if copies shared \
             evenly): the fullest GPU has {gain:.0} % fewer rows; {} expert copies, {gpus} of them to another GPU; \
             slowest rebalance {slowest:.1?}",
            self.report.total_moves()
        )
    }
}

/// The choices of all layers, u8 `[T, K]` each, in the order of the layers.
fn load(path: &Path) -> Result<Trace, String> {
    let error = |e: String| format!("{}: {e}", path.display());
    let bytes = std::fs::read(path).map_err(|e| error(e.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| error(e.to_string()))?;
    let mut layers = Vec::new();
    let mut top_k = None;
    while let Ok(ids) = tensors.tensor(&format!("layer{}.topk_ids", layers.len())) {
        let (Dtype::U8, [_, k]) = (ids.dtype(), ids.shape()) else {
            let got = format!("{:?} {:?}", ids.dtype(), ids.shape());
            return Err(error(format!("layer{}.topk_ids is {got}, expected U8 [tokens, top_k]", layers.len())));
        };
        if *top_k.get_or_insert(*k) != *k {
            return Err(error(format!("layer{} has another top_k", layers.len())));
        }
        layers.push(ids.data());
    }
    Trace::from_u8(RECORDED_EXPERTS, top_k.unwrap_or(0), &layers).map_err(|e| error(e.to_string()))
}

/// A picture of each run as SVG, and one page with all of them; no file refers to another.
fn write(out: &Path, runs: &[Run]) -> Outcome {
    let io = |e: std::io::Error| format!("{}: {e}", out.display());
    std::fs::create_dir_all(out).map_err(io)?;
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Expert load balancing</title>\n\
         <style>body{font-family:sans-serif;max-width:860px;margin:2em auto;line-height:1.4}\
         svg{width:100%;height:auto}</style></head><body>\n<h1>Expert load balancing</h1>\n",
    );
    for run in runs {
        let svg = run.report.svg(&run.title);
        std::fs::write(out.join(format!("{}.svg", run.name)), &svg).map_err(io)?;
        // Writing to a String cannot fail.
        let _ = writeln!(page, "{svg}<p>{}</p>", run.summary());
    }
    page.push_str("</body></html>\n");
    std::fs::write(out.join("eplb.html"), page).map_err(io)?;
    let page = out.join("eplb.html");
    println!("pictures: {}", page.canonicalize().unwrap_or(page).display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &str) -> Outcome {
        main(Args::new(words.split_whitespace().map(str::to_owned)))
    }

    #[test]
    fn both_traces_are_replayed_and_drawn_into_one_page_that_needs_no_other_file() {
        let out = std::env::temp_dir().join(format!("moe-xtask-eplb-{}", std::process::id()));
        run(&format!("--experts 16 --top-k 2 --tokens 4096 --layers 1 --out {}", out.display())).unwrap();
        let page = std::fs::read_to_string(out.join("eplb.html")).unwrap();
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("Recorded routing: 4 layers, top-4, 32 experts in 40 slots on 8 GPUs"), "{page}");
        assert!(!page.contains("href") && !page.contains("src="));
        for name in ["recorded.svg", "drift.svg"] {
            assert!(std::fs::read_to_string(out.join(name)).unwrap().starts_with("<svg"));
        }
        std::fs::remove_dir_all(out).unwrap();
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_by_name() {
        assert!(run("--trace both").unwrap_err().contains("recorded or drift"));
        assert!(run("--trace recorded --gpus 0").unwrap_err().contains("--gpus"));
        assert!(run("--trace recorded --replicas 33").unwrap_err().contains("gpus"));
        assert!(run("--trace recorded --interval 0").unwrap_err().contains("interval"));
    }
}
