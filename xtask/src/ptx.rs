//! `cargo xtask ptx`: compiles `moe-cuda/kernels/*.cu` to the PTX that the crate carries, with one pinned compiler.
//!
//! The text is made to depend on the sources alone: compiled in the sources' folder, without line information, with the
//! compiler's hints for the assembler taken out, and under the oldest PTX ISA that ptxas takes it as, so that old drivers
//! load it. `--check` compares with what is committed instead of writing, and assembles each kernel for every GPU
//! generation that is supported, without register spills.

use crate::Outcome;
use crate::args::Args;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;

/// The pinned wheels.
const WHEELS: &str = include_str!("../cuda-13.0.txt");
/// Virtual architectures: the base, and the one of Hopper for files whose code differs there.
const VIRTUAL: [u32; 2] = [80, 90];
/// What ptxas assembles for.
const REAL: [u32; 3] = [80, 90, 100];
/// PTX ISA versions, ascending: the first that ptxas takes a file as is the one it gets.
const ISAS: [&str; 18] = [
    "7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "7.7", "7.8", "8.0", "8.1", "8.2", "8.3", "8.4", "8.5", "8.6",
    "8.7", "9.0",
];
const TRIES: u32 = 3;

pub(crate) fn main(mut args: Args) -> Outcome {
    let check = args.flag("--check");
    let toolkit = args.option::<PathBuf>("--toolkit")?;
    args.finish()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let toolkit = match toolkit {
        Some(path) => path,
        None => install(&root.join("target/cuda-13.0"))?,
    };
    let tools = Tools { bin: toolkit.join("nvidia/cu13/bin"), work: root.join("target/ptx") };
    fs::create_dir_all(&tools.work).map_err(|e| format!("{}: {e}", tools.work.display()))?;
    let crate_dir = root.join("moe-cuda");
    let (kernels, committed) = (crate_dir.join("kernels"), crate_dir.join("ptx"));
    let made = compile_all(&tools, &kernels)?;
    let mut spilled = Vec::new();
    for (name, text) in &made {
        spilled.extend(assemble(&tools, name, text)?);
    }
    let sums = sums(&crate_dir, &tools.work, &made)?;
    let mut wanted: BTreeMap<String, String> = made;
    wanted.insert("SHA256SUMS".into(), sums);
    if check { compare(&committed, &wanted) } else { write(&committed, &wanted) }?;
    if spilled.is_empty() { Ok(()) } else { Err(format!("registers are spilled: {}", spilled.join("; "))) }
}

struct Tools {
    bin: PathBuf,
    work: PathBuf,
}

/// The unpacked wheels; downloads what is not there. A download that fails is tried again, and is a failure in the end.
fn install(dir: &Path) -> Result<PathBuf, String> {
    let mark = dir.join(".wheels");
    if fs::read_to_string(&mark).is_ok_and(|text| text == WHEELS) {
        return Ok(dir.to_owned());
    }
    fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda-13.0.txt");
    let wheels = dir.join("wheels");
    let mut last = String::new();
    for attempt in 1..=TRIES {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]);
        pip.args(["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_17_x86_64"]);
        pip.args(["--platform", "manylinux2010_x86_64", "--platform", "manylinux_2_12_x86_64"]);
        pip.arg("--dest").arg(&wheels).arg("-r").arg(&requirements);
        match run(&mut pip) {
            Ok(_) => {
                unpack(&wheels, dir)?;
                fs::write(&mark, WHEELS).map_err(|e| format!("{}: {e}", mark.display()))?;
                return Ok(dir.to_owned());
            }
            Err(error) => last = error,
        }
        eprintln!("ptx: download {attempt} of {TRIES} failed");
        if attempt < TRIES {
            sleep(Duration::from_secs(5 * u64::from(attempt)));
        }
    }
    Err(format!("the compiler could not be downloaded, so nothing was checked: {last}"))
}

/// Wheels are zip files; Python has one reader for sure. It does not restore the right to execute.
fn unpack(wheels: &Path, dir: &Path) -> Outcome {
    for entry in fs::read_dir(wheels).map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&path).arg(dir))?;
    }
    let cu13 = dir.join("nvidia/cu13");
    run(Command::new("chmod").arg("-R").arg("a+x").arg(cu13.join("bin")).arg(cu13.join("nvvm/bin")))?;
    Ok(())
}

/// The PTX of all sources, by file name.
fn compile_all(tools: &Tools, kernels: &Path) -> Result<BTreeMap<String, String>, String> {
    let mut made = BTreeMap::new();
    for source in files(kernels, "cu")? {
        let stem = source.trim_end_matches(".cu");
        let base = compile(tools, kernels, &source, VIRTUAL[0])?;
        let hopper = compile(tools, kernels, &source, VIRTUAL[1])?;
        if body(&base) != body(&hopper) {
            made.insert(format!("{stem}.sm{}.ptx", VIRTUAL[1]), lower(tools, &hopper, VIRTUAL[1])?);
        }
        made.insert(format!("{stem}.sm{}.ptx", VIRTUAL[0]), lower(tools, &base, VIRTUAL[0])?);
    }
    Ok(made)
}

fn compile(tools: &Tools, kernels: &Path, source: &str, arch: u32) -> Result<String, String> {
    let out = tools.work.join("compiled.ptx");
    let mut nvcc = Command::new(tools.bin.join("nvcc"));
    // In the sources' own folder, so that no path of this machine gets into the text.
    nvcc.current_dir(kernels).args(["-ptx", "-std=c++17", "-O3", &format!("-arch=compute_{arch}"), source]);
    nvcc.arg("-o").arg(absolute(&out)?);
    run(&mut nvcc)?;
    fs::read_to_string(&out).map_err(|e| format!("{}: {e}", out.display()))
}

/// What tells two compilations apart besides the target.
fn body(text: &str) -> String {
    lines(text, |line| !line.starts_with(".target "))
}

fn lines(text: &str, keep: impl Fn(&str) -> bool) -> String {
    text.lines().filter(|line| keep(line)).map(|line| format!("{line}\n")).collect()
}

/// The same code under the oldest PTX ISA that holds it. `used_bytes_mask` tells the assembler which bytes of a load
/// matter; it changes no result and would ask for PTX 8.3.
fn lower(tools: &Tools, text: &str, arch: u32) -> Result<String, String> {
    let plain = lines(text, |line| !line.trim_start().starts_with(".pragma \"used_bytes_mask"));
    for isa in ISAS {
        let text = lines(&plain, |_| true)
            .lines()
            .map(|line| if line.starts_with(".version ") { format!(".version {isa}\n") } else { format!("{line}\n") })
            .collect::<String>();
        if ptxas(tools, &text, arch).is_ok() {
            return Ok(text);
        }
    }
    ptxas(tools, &plain, arch).map(|_| plain)
}

fn ptxas(tools: &Tools, text: &str, arch: u32) -> Result<String, String> {
    let input = tools.work.join("input.ptx");
    fs::write(&input, text).map_err(|e| format!("{}: {e}", input.display()))?;
    let mut command = Command::new(tools.bin.join("ptxas"));
    command.args(["-v", &format!("-arch=sm_{arch}")]).arg(&input).arg("-o").arg(tools.work.join("output.cubin"));
    let output = run(&mut command)?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Assembles for all GPUs that load the file; gives the kernels that spill registers.
fn assemble(tools: &Tools, name: &str, text: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    let lowest = if name.contains(".sm90.") { 90 } else { 80 };
    for arch in REAL.into_iter().filter(|arch| *arch >= lowest) {
        let report = ptxas(tools, text, arch)?;
        let spills = spills(&report);
        let most = report.lines().filter_map(registers).max().unwrap_or(0);
        println!("ptx: {name} for sm_{arch}: at most {most} registers, {} kernels spill", spills.len());
        all.extend(spills.iter().map(|(kernel, line)| format!("{name} for sm_{arch}: {kernel}: {line}")));
    }
    Ok(all)
}

/// The kernels for which ptxas reports spills, with its words.
fn spills(report: &str) -> Vec<(String, String)> {
    let mut kernel = "";
    let mut found = Vec::new();
    for line in report.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            kernel = name.trim();
        } else if line.contains("bytes spill stores") && !line.contains(" 0 bytes spill stores, 0 bytes spill loads") {
            found.push((kernel.to_owned(), line.trim().to_owned()));
        }
    }
    found
}

fn registers(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("Used ")?;
    rest.split_once(" registers")?.0.trim().parse().ok()
}

/// What `sha256sum` says of the sources and of the texts that were made of them.
fn sums(crate_dir: &Path, work: &Path, made: &BTreeMap<String, String>) -> Result<String, String> {
    let mut sums = String::new();
    let kernels = crate_dir.join("kernels");
    let mut sources = files(&kernels, "cu")?;
    sources.extend(files(&kernels, "cuh")?);
    sources.sort();
    for name in sources {
        sums += &format!("{}  kernels/{name}\n", sha256(&kernels.join(&name))?);
    }
    for (name, text) in made {
        let path = work.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        sums += &format!("{}  ptx/{name}\n", sha256(&path)?);
    }
    Ok(sums)
}

fn sha256(path: &Path) -> Result<String, String> {
    let output = run(Command::new("sha256sum").arg(path))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().next().map(str::to_owned).ok_or_else(|| format!("sha256sum said nothing of {path:?}"))
}

fn write(dir: &Path, wanted: &BTreeMap<String, String>) -> Outcome {
    fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    for name in files(dir, "ptx")? {
        if !wanted.contains_key(&name) {
            fs::remove_file(dir.join(&name)).map_err(|e| format!("{name}: {e}"))?;
        }
    }
    for (name, text) in wanted {
        fs::write(dir.join(name), text).map_err(|e| format!("{name}: {e}"))?;
    }
    println!("ptx: wrote {} files to {}", wanted.len(), dir.display());
    Ok(())
}

fn compare(dir: &Path, wanted: &BTreeMap<String, String>) -> Outcome {
    let mut wrong: Vec<String> = files(dir, "ptx")?.into_iter().filter(|name| !wanted.contains_key(name)).collect();
    for (name, text) in wanted {
        if fs::read_to_string(dir.join(name)).ok().as_ref() != Some(text) {
            wrong.push(name.clone());
        }
    }
    if wrong.is_empty() {
        println!("ptx: {} files are as committed", wanted.len());
        return Ok(());
    }
    Err(format!("not what the sources give: {}; run `cargo xtask ptx`", wrong.join(", ")))
}

/// The names of a folder's files with an ending, sorted.
fn files(dir: &Path, ending: &str) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| Path::new(name).extension().is_some_and(|e| e == ending))
        .collect();
    names.sort();
    Ok(names)
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn run(command: &mut Command) -> Result<Output, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}: {}", output.status, said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spill_names_its_kernel_and_its_absence_names_none() {
        let report = "ptxas info    : Function properties for moe_a\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes \
                      spill loads\nptxas info    : Used 40 registers, 392 bytes cmem[0]\nptxas info    : Function \
                      properties for moe_b\n    8 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n";
        let found = spills(report);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, "moe_b");
        assert_eq!(report.lines().find_map(registers), Some(40));
    }

    #[test]
    fn compilations_that_differ_in_their_target_alone_are_the_same() {
        assert_eq!(body(".version 9.0\n.target sm_80\nret;\n"), body(".version 9.0\n.target sm_90\nret;\n"));
        assert_ne!(body(".target sm_80\nret;\n"), body(".target sm_90\nbar;\n"));
    }

    #[test]
    fn every_wheel_is_pinned_by_version_and_hash() {
        let wheels: Vec<&str> = WHEELS.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(wheels.len(), 5);
        assert!(wheels.iter().all(|line| line.contains("==13.0.") && line.contains(" --hash=sha256:")), "{wheels:?}");
    }
}
