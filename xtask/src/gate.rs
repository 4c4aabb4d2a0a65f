//! `cargo xtask test`: the whole gate. Each step prints how long it took; the end says how many tests ran on which
//! backend and what was skipped why.

use crate::Outcome;
use crate::args::Args;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The crates that are published.
const LIBRARIES: &[&str] = &["moe-core", "moe-cpu", "moe-cuda", "moe-wgpu"];

pub(crate) fn main(mut args: Args) -> Outcome {
    let full = args.flag("--full");
    args.finish()?;
    let mut tally = Tally::default();
    step("format", cargo(&["fmt", "--all", "--check"]))?;
    step("lints", cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]))?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--all-features"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    step("docs", doc)?;
    tests(full, &mut tally)?;
    let mut package = vec!["package", "--allow-dirty", "--quiet"];
    package.extend(LIBRARIES.iter().flat_map(|name| ["-p", name]));
    step("packages", cargo(&package))?;
    tally.print();
    tally.verdict()
}

/// `cargo xtask bench`: a package of its own, so that the other commands build without the peers.
pub(crate) fn bench(args: Args) -> Outcome {
    let mut command = cargo(&["run", "--release", "-p", "moe-benches", "--bin", "moe-bench", "--"]);
    command.args(args.rest());
    run(&mut command)
}

pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

fn run(command: &mut Command) -> Outcome {
    let status = command.status().map_err(|e| format!("{command:?}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
}

fn step(name: &str, mut command: Command) -> Outcome {
    println!("== {name}");
    let start = Instant::now();
    run(&mut command)?;
    println!("== {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// All tests of the workspace, doc-tests and compile-fail tests included. Their output is shown and read: the lines
/// that count tests, and the lines in which a test says what it skipped or how many cases it covered.
fn tests(full: bool, tally: &mut Tally) -> Outcome {
    println!("== tests");
    let start = Instant::now();
    tally.binaries = test_binaries()?;
    let mut command = cargo(&["test", "--workspace", "--all-features", "--no-fail-fast", "--", "--show-output"]);
    if full {
        command.env("MOE_FULL", "1");
    }
    // One pipe for both streams keeps the headers (stderr) and the counts (stdout) in order.
    let (reader, writer) = std::io::pipe().map_err(|e| e.to_string())?;
    let stderr = writer.try_clone().map_err(|e| e.to_string())?;
    let mut child = command.stdout(writer).stderr(stderr).stdin(Stdio::null()).spawn().map_err(|e| e.to_string())?;
    drop(command); // closes our ends of the pipe
    for line in BufReader::new(reader).lines() {
        let line = line.map_err(|e| e.to_string())?;
        tally.read(&line);
        println!("{line}");
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    println!("== tests: {:.0} s", start.elapsed().as_secs_f64());
    if status.success() {
        return Ok(());
    }
    tally.print();
    Err(format!("cargo test: {status}"))
}

/// Builds all tests; gives the file name of each test binary and the crate it belongs to.
fn test_binaries() -> Result<Vec<(String, &'static str)>, String> {
    let mut command = cargo(&["test", "--workspace", "--all-features", "--no-run", "--message-format=json"]);
    let output = command.stderr(Stdio::inherit()).output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(format!("cargo test --no-run: {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| Some((file_name(field(line, "executable")?), group(field(line, "package_id")?))))
        .collect())
}

/// A text field of a JSON object on one line.
pub(crate) fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("\"{name}\":\""))?;
    Some(rest.split_once('"')?.0)
}

pub(crate) fn file_name(path: &str) -> String {
    path.rsplit(['/', '\\']).next().unwrap_or(path).to_owned()
}

/// What the tests said.
#[derive(Default)]
struct Tally {
    /// Test binaries and their groups.
    binaries: Vec<(String, &'static str)>,
    /// The group whose tests run now.
    group: &'static str,
    /// Passed, failed and ignored tests of each group.
    counts: BTreeMap<&'static str, [usize; 3]>,
    skipped: Vec<String>,
    covered: Vec<String>,
}

impl Tally {
    fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some(path) = line.strip_prefix("Running ").or_else(|| line.strip_prefix("Doc-tests ")) {
            let path = path.trim_end_matches(')');
            let known = self.binaries.iter().find(|(binary, _)| path.ends_with(binary.as_str()));
            self.group = known.map_or_else(|| group(path), |(_, group)| group);
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                let words = rest.split([' ', '.', ';']).filter(|w| !w.is_empty()).collect::<Vec<_>>();
                let at = words.iter().position(|w| *w == what);
                at.and_then(|at| words[at - 1].parse::<usize>().ok()).unwrap_or(0)
            };
            let sums = self.counts.entry(self.group).or_default();
            for (sum, what) in sums.iter_mut().zip(["passed", "failed", "ignored"]) {
                *sum += count(what);
            }
        } else if let Some(what) = line.strip_prefix("skipped: ") {
            self.skipped.push(format!("{}: {what}", self.group));
        } else if let Some(what) = line.strip_prefix("covered: ") {
            self.covered.push(format!("{}: {what}", self.group));
        }
    }

    fn print(&self) {
        println!("\ntests by backend");
        for (group, [passed, failed, ignored]) in &self.counts {
            println!("  {group:<6} {passed:>4} passed, {failed} failed, {ignored} ignored");
        }
        let lists = [("cases", &self.covered), ("skipped", &self.skipped)];
        for (title, lines) in lists {
            if !lines.is_empty() {
                println!("{title}");
            }
            let mut times: BTreeMap<&String, usize> = BTreeMap::new();
            lines.iter().for_each(|line| *times.entry(line).or_default() += 1);
            for (line, n) in times {
                println!("  {line}{}", if n > 1 { format!(" ({n} tests)") } else { String::new() });
            }
        }
        let sum = |i: usize| self.counts.values().map(|c| c[i]).sum::<usize>();
        println!("{} passed, {} failed, {} skipped", sum(0), sum(1), sum(2) + self.skipped.len());
    }

    fn verdict(&self) -> Outcome {
        match self.counts.get("cpu") {
            Some([passed, 0, _]) if *passed > 0 => Ok(()),
            _ => Err("no test ran on the CPU backend".into()),
        }
    }
}

/// The backend that a crate is, from its name or a path.
fn group(path: &str) -> &'static str {
    let has = |name: &str| path.contains(&format!("moe_{name}")) || path.contains(&format!("moe-{name}"));
    match () {
        () if has("cuda") => "cuda",
        () if has("wgpu") => "wgpu",
        () if has("cpu") => "cpu",
        () if has("core") => "core",
        () => "tools",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_skips_are_read_from_the_test_runner() {
        let json =
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w/moe-cuda#0.1.0","executable":"/t/gpu-4b1"}"#;
        let binary = (file_name(field(json, "executable").unwrap()), group(field(json, "package_id").unwrap()));
        let mut tally = Tally { binaries: vec![binary], ..Tally::default() };
        let lines = "
     Running unittests src/lib.rs (target/debug/deps/moe_cpu-427ab8b0a71b4fb0)
test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
   Doc-tests moe_cpu
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running tests/gpu.rs (target/debug/deps/gpu-4b1)
skipped: no CUDA driver
test result: FAILED. 0 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        lines.lines().for_each(|line| tally.read(line));
        assert_eq!(tally.counts["cpu"], [7, 0, 1]);
        assert_eq!(tally.counts["cuda"], [0, 3, 0]);
        assert_eq!(tally.skipped, ["cuda: no CUDA driver"]);
        assert!(tally.verdict().is_ok());
        assert!(Tally::default().verdict().is_err());
    }
}
