//! The project's own commands: `cargo xtask help` lists them.
#![forbid(unsafe_code)]

mod args;
mod backends;
mod doctor;
mod eplb;
mod gate;
mod pack;
mod ptx;
mod run;

use args::Args;
use std::process::ExitCode;

/// What a command came to: an `Err` holds the reason, in words.
type Outcome = Result<(), String>;

const HELP: &str = "\
usage: cargo xtask COMMAND [OPTIONS]

  run      the recorded layer, end to end, checked against recorded answers
             --backend NAME[:INDEX]   cpu (default), cuda, wgpu
             --dtype f32|bf16         type of the rows (default f32; with --quant bf16)
             --quant fp8-dynamic      experts' weights and rows in f8e4m3, scaled per channel and per token
             --file TRACE             another trace (default: the recorded one)
             --layer WEIGHTS          another layer's weights
             --tokens N               only the first N tokens
             --data DIR               where the recorded files are (default benches/data)
  bench    all backends and peers side by side; `cargo xtask bench --help` lists its options
             --tune                   measures the thresholds of the kernels on this machine, for `doctor --table`
  doctor   which backends this machine has and why not the others, and which one is chosen for a layer
             --model NAME             dsv3 (default), qwen3-30b, mixtral
             --tokens N --typical N   largest batch (default 4096), and what it mostly has (default the same)
             --top-k N --experts N --local-experts N --hidden N   other sizes than the model's
             --op A,B                 of plan, gather, weighted-gather, combine, combine_grad, route
                                      (default: plan, gather, combine)
             --quant FORMAT           rows quantised on the way: fp8_token, fp8_block, mxfp8, nvfp4
             --layout LAYOUT          packed (default), aligned:N, padded:N
             --dtype TYPE             bf16 (default), f16, f32, f8e4m3, f8e5m2
             --training               the gradients as well
             --backend NAME[:INDEX]   this one and no other
             --prefer NAME[:INDEX]    this one where it can do the work
             --table FILE             measured thresholds, as `bench --tune` writes them: shows what they change
  eplb     what balancing experts over GPUs gains, on recorded and on drifting routing; a table and a picture
             --trace recorded|drift   only one of them
             --gpus N --nodes N --groups N --replicas N
             --step-tokens N --window STEPS --interval STEPS --max-moves N
             --layers N --experts N --top-k N --tokens N --skew X --hold TOKENS --seed N   the drift
             --data DIR --out DIR     (defaults benches/data, target/eplb)
  test     the whole gate: fmt, clippy, docs, all tests, packaging
             --full                   every case of the conformance suite, not a covering selection
  gpu-pack one folder with all that a GPU machine without cargo needs, and a script that runs it there
             --out DIR                (default .gpu-pack)
  ptx      compiles the CUDA kernels to the PTX that moe-cuda carries, and looks for register spills
             --check                  compares with what is committed instead
             --toolkit DIR            an unpacked toolkit (default: pinned wheels, downloaded to target)
";

fn main() -> ExitCode {
    let mut args = Args::new(std::env::args().skip(1));
    let outcome = match args.command().as_deref() {
        Some("run") => run::main(args),
        Some("doctor") => doctor::main(args),
        Some("eplb") => eplb::main(args),
        Some("test") => gate::main(args),
        Some("bench") => gate::bench(args),
        Some("gpu-pack") => pack::main(args),
        Some("ptx") => ptx::main(args),
        Some("help" | "--help" | "-h") | None => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(format!("there is no command {other:?}; `cargo xtask help` lists them")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}
