//! `cargo xtask gpu-pack`: one folder with everything that a GPU machine without cargo needs: the benchmark, this
//! program, the tests of the GPU backends, the recorded data, and a script that runs them.

use crate::Outcome;
use crate::args::Args;
use crate::gate::{cargo, field, file_name};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The largest folder that is still handed over, in MiB.
const LIMIT_MIB: f64 = 60.0;

pub(crate) fn main(mut args: Args) -> Outcome {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let folder = args.option("--out")?.unwrap_or_else(|| root.join(".gpu-pack"));
    args.finish()?;
    let io = |e: std::io::Error| format!("{}: {e}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(io)?;
    }
    for sub in ["tests/cuda", "tests/wgpu", "benches/data", "benches/peers", "moe-cuda/ptx"] {
        fs::create_dir_all(folder.join(sub)).map_err(io)?;
    }
    let programs = executables(&["build", "--bins", "-p", "xtask", "-p", "moe-benches"])?;
    for path in programs.iter().filter(|path| ["xtask", "moe-bench"].contains(&file_name(path).as_str())) {
        strip(path, &folder.join(file_name(path)))?;
    }
    for (backend, package) in [("cuda", "moe-cuda"), ("wgpu", "moe-wgpu")] {
        for path in executables(&["test", "--no-run", "--tests", "-p", package])? {
            // `name-hash`: the hash would only make the folder's contents differ from build to build.
            let name = file_name(&path);
            let name = name.rsplit_once('-').map_or(name.as_str(), |(name, _)| name).to_owned();
            strip(&path, &folder.join("tests").join(backend).join(name))?;
        }
    }
    // The programs share most of their code, so that together they shrink to a fifth.
    archive(&folder, &["xtask", "moe-bench", "tests"], "programs.tar.xz")?;
    copy_all(&root.join("benches/data"), &folder.join("benches/data"))?;
    copy_all(&root.join("benches/peers"), &folder.join("benches/peers"))?;
    copy_all(&root.join("moe-cuda/ptx"), &folder.join("moe-cuda/ptx"))?;
    fs::write(folder.join("commit"), commit(root)).map_err(io)?;
    fs::copy(root.join("xtask/gpu-run.sh"), folder.join("run.sh")).map_err(io)?;

    let mib = size(&folder).map_err(io)? as f64 / f64::from(1 << 20);
    println!("{}: {mib:.1} MiB; on the GPU machine: {}/run.sh OUT [STEP…]", folder.display(), folder.display());
    if mib > LIMIT_MIB {
        return Err(format!("{mib:.1} MiB is more than {LIMIT_MIB} MiB"));
    }
    Ok(())
}

/// Builds in release and gives the paths of what came out.
fn executables(what: &[&str]) -> Result<Vec<String>, String> {
    let mut command = cargo(what);
    command.args(["--release", "--all-features", "--message-format=json"]);
    let output = command.stderr(Stdio::inherit()).output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| field(line, "executable")).map(str::to_owned).collect())
}

fn strip(from: &str, to: &Path) -> Outcome {
    let status = Command::new("strip").arg("-o").arg(to).arg(from).status().map_err(|e| format!("strip: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("strip {from}: {status}")) }
}

/// Moves some of a folder into an archive in it.
fn archive(folder: &Path, what: &[&str], name: &str) -> Outcome {
    let mut tar = Command::new("tar");
    tar.current_dir(folder).env("XZ_OPT", "-T0").args(["-cJf", name, "--remove-files"]).args(what);
    let status = tar.status().map_err(|e| format!("tar: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{tar:?}: {status}")) }
}

/// Copies the files of a folder, not its sub-folders.
fn copy_all(from: &Path, to: &Path) -> Outcome {
    let io = |e: std::io::Error| format!("{}: {e}", from.display());
    for entry in fs::read_dir(from).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_type().map_err(io)?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).map_err(io)?;
        }
    }
    Ok(())
}

/// The commit, with a mark if the tree differs from it.
fn commit(root: &Path) -> String {
    let git = |args: &[&str]| Command::new("git").current_dir(root).args(args).output().ok();
    let hash = git(&["rev-parse", "--short=12", "HEAD"]).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|o| !o.stdout.is_empty());
    format!("{}{}\n", hash.unwrap_or_default(), if dirty { "+changes" } else { "" })
}

fn size(folder: &PathBuf) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}
