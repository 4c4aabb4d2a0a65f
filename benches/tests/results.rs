//! What was measured on GPUs is kept in `benches/results/NAME/`: a `STEP.txt` for each step of `xtask/gpu-run.sh`, facts
//! first and then the raw log, and `bench.json`. These tests fail where a result does not belong to the kernels that are
//! in the tree, unless it says so itself with a line `stale: REASON`, and where the figures of the README and of
//! `benches/results/README.md` are not those of the files. `MOE_BLESS=1` writes both anew.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The facts at the head of a result, and its log.
struct Outcome {
    path: PathBuf,
    facts: Vec<(String, String)>,
    log: String,
}

impl Outcome {
    fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|(fact, _)| fact == name).map(|(_, text)| text.as_str())
    }
}

fn outcomes() -> Vec<Outcome> {
    let mut all = Vec::new();
    for machine in fs::read_dir(root().join("benches/results")).unwrap() {
        let machine = machine.unwrap().path();
        let Ok(files) = fs::read_dir(&machine) else { continue }; // README.md
        for path in files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "txt")) {
            let text = fs::read_to_string(&path).unwrap();
            let (head, log) = text.split_once("\n--- log\n").unwrap_or_else(|| panic!("{}: no log", path.display()));
            let facts = head.lines().filter_map(|line| line.split_once(": "));
            let facts = facts.map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
            all.push(Outcome { facts, log: log.to_owned(), path });
        }
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

/// The hashes of the PTX files, as `HASH  ptx/NAME`.
fn committed_ptx() -> Vec<String> {
    let sums = fs::read_to_string(root().join("moe-cuda/ptx/SHA256SUMS")).unwrap();
    sums.lines().filter(|line| line.contains("  ptx/")).map(str::to_owned).collect()
}

/// How `outcome` fails to be a result of these kernels; nothing if it is one.
fn fault(outcome: &Outcome, committed: &[String]) -> Option<String> {
    for name in ["step", "date", "commit", "gpu", "driver", "tests", "status"] {
        if outcome.fact(name).is_none() {
            return Some(format!("lacks the fact {name:?}"));
        }
    }
    if outcome.log.trim().is_empty() {
        return Some("has no log".into());
    }
    if outcome.fact("stale").is_some() {
        return None; // of the tree as it is it says nothing, and the README shows why
    }
    if outcome.fact("status") != Some("0") {
        return Some("did not succeed".into());
    }
    let measured: Vec<&str> =
        outcome.facts.iter().filter(|(name, _)| name == "ptx").map(|(_, text)| text.as_str()).collect();
    let missing = committed.iter().find(|line| !measured.contains(&line.as_str()))?;
    Some(format!("was made with other PTX than {missing}: measure again, or add a line `stale: REASON`"))
}

#[test]
fn results_belong_to_the_kernels_in_the_tree_or_say_that_they_are_stale() {
    let committed = committed_ptx();
    assert!(!committed.is_empty(), "no PTX is committed");
    for outcome in outcomes() {
        if let Some(fault) = fault(&outcome, &committed) {
            panic!("{}: {fault}", outcome.path.display());
        }
    }
}

#[test]
fn a_result_of_other_kernels_is_noticed() {
    let facts = |hash: &str| {
        let facts =
            format!("step: x\ndate: d\ncommit: c\ngpu: g\ndriver: 1\ntests: 1 passed\nstatus: 0\nptx: {hash}  ptx/a");
        facts.lines().map(|l| l.split_once(": ").map(|(a, b)| (a.into(), b.into())).unwrap()).collect::<Vec<_>>()
    };
    let outcome = |facts| Outcome { path: "x".into(), facts, log: "something".into() };
    let committed = ["abc  ptx/a".to_owned()];
    assert!(fault(&outcome(facts("abc")), &committed).is_none());
    assert!(fault(&outcome(facts("abd")), &committed).is_some());
    let mut stale = facts("abd");
    stale.push(("stale".into(), "the plan kernel changed".into()));
    assert!(fault(&outcome(stale), &committed).is_none());
    assert!(fault(&outcome(facts("abc")[1..].to_vec()), &committed).is_some());
}

#[test]
fn the_sanitizer_has_seen_every_kernel_of_the_ptx() {
    let mut kernels = Vec::new();
    for file in fs::read_dir(root().join("moe-cuda/ptx")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "ptx") {
            let text = fs::read_to_string(path).unwrap();
            let names = text.lines().filter_map(|line| line.split_once(".entry ")?.1.split('(').next());
            kernels.extend(names.map(|name| name.trim().to_owned()));
        }
    }
    assert!(!kernels.is_empty(), "no kernel in the PTX");
    let outcomes = outcomes();
    for outcome in outcomes.iter().filter(|o| o.fact("step") == Some("sanitize") && o.fact("stale").is_none()) {
        for kernel in &kernels {
            let line = format!("covered: {kernel}");
            assert!(outcome.log.lines().any(|l| l.trim() == line), "{}: no {kernel}", outcome.path.display());
        }
    }
}

/// The README's figures: for each machine a table from `bench.json`, and a line for each other step.
fn figures() -> String {
    let mut text = String::new();
    let mut machines: BTreeMap<PathBuf, Vec<Outcome>> = BTreeMap::new();
    for outcome in outcomes() {
        machines.entry(outcome.path.parent().unwrap().to_owned()).or_default().push(outcome);
    }
    for (folder, outcomes) in machines {
        let of = |name: &str| outcomes[0].fact(name).unwrap_or_default();
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        writeln!(text, "**{name}**: {}, driver {}\n", of("gpu"), of("driver")).unwrap();
        for outcome in &outcomes {
            let fact = |name: &str| outcome.fact(name).unwrap_or_default();
            let stale = outcome.fact("stale").map(|why| format!("; stale: {why}")).unwrap_or_default();
            let tests = match fact("tests") {
                none if none.starts_with("0 passed") => String::new(),
                tests => format!(": {tests}"),
            };
            let said = outcome.fact("throughput").map(|said| format!("; {said}")).unwrap_or_default();
            writeln!(text, "- {}, {} at {}{tests}{said}{stale}", fact("step"), fact("date"), fact("commit")).unwrap();
        }
        if let Ok(json) = fs::read_to_string(folder.join("bench.json")) {
            let report = moe_benches::report::Report::from_json(&json).unwrap();
            write!(text, "\n{}", moe_benches::markdown::markdown(&report)).unwrap();
        }
        text.push('\n');
    }
    text
}

/// What the README has no room for.
fn more_figures() -> String {
    let mut text = String::from(
        "# What was measured\n\nMade by `benches/tests/results.rs` from the files in these folders; \
         [benches](..) says how it is measured. In each table: time, its ratio to a copy of the same bytes in the same \
         run, and how many times slower the fastest other library is.\n",
    );
    let mut folders: Vec<PathBuf> = outcomes().iter().map(|o| o.path.parent().unwrap().to_owned()).collect();
    folders.dedup();
    for folder in folders {
        let Ok(json) = fs::read_to_string(folder.join("bench.json")) else { continue };
        let report = moe_benches::report::Report::from_json(&json).unwrap();
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        write!(text, "\n## {name}\n\n{}", moe_benches::markdown::more(&report)).unwrap();
    }
    text
}

#[test]
fn the_readmes_show_the_figures_of_the_results() {
    const BEGIN: &str = "<!-- figures: made by benches/tests/results.rs -->\n";
    const END: &str = "<!-- end of figures -->";
    let (path, more_path) = (root().join("README.md"), root().join("benches/results/README.md"));
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the README has a place for figures");
    let (shown, after) = rest.split_once(END).expect("the README's figures end");
    let (figures, more) = (figures(), more_figures());
    if std::env::var_os("MOE_BLESS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{figures}{END}{after}")).unwrap();
        fs::write(&more_path, more).unwrap();
    } else {
        assert!(shown == figures, "the README's figures are not those of benches/results: run with MOE_BLESS=1");
        let shown = fs::read_to_string(&more_path).unwrap_or_default();
        assert!(shown == more, "benches/results/README.md is not of the files beside it: run with MOE_BLESS=1");
    }
}
