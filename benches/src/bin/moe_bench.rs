//! Measures the backends and their peers; see `moe-bench --help`.
#![forbid(unsafe_code)]

use moe_benches::args::{Args, HELP};
use moe_benches::report::Report;
use moe_benches::{Result, figures, html, suite, table, tune};
use std::process::ExitCode;

fn main() -> ExitCode {
    match Args::parse(std::env::args().skip(1)).and_then(|args| run(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("moe-bench: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every bar is met.
fn run(args: &Args) -> Result<bool> {
    if args.help {
        print!("{HELP}");
        return Ok(true);
    }
    if args.tune {
        tune::run(args)?;
        return Ok(true);
    }
    let others = args.merge.iter().map(|path| Report::load(path)).collect::<Result<Vec<_>>>()?;
    let mut report = match (args.run, args.figures) {
        (false, _) => Report::default(),
        (true, true) => figures::run(args)?,
        (true, false) => suite::run(args)?,
    };
    others.into_iter().for_each(|other| report.merge(other));

    print!("{}", table::render(&report));
    for line in report.runs.iter().flat_map(|run| &run.skipped) {
        println!("skipped: {line}");
    }
    std::fs::create_dir_all(&args.out)?;
    let (json, page) = (args.out.join("bench.json"), args.out.join("bench.html"));
    std::fs::write(&json, report.to_json()?)?;
    std::fs::write(&page, html::render(&report)?)?;
    println!("\nwrote {} and {}", json.display(), page.display());

    let figures = figures::judge(&report);
    if args.figures {
        println!();
        figures.iter().for_each(|figure| println!("{figure}"));
    }
    Ok(!args.figures || (!figures.is_empty() && figures.iter().all(|figure| figure.met())))
}
