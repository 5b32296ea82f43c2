//! `cargo xtask bundle`: all that a machine with a GPU, and without Rust, needs to test and measure.
//!
//! `bundle/run.sh` is the only file to call there. Test binaries travel as a nextest archive, since nextest runs every
//! test in a process of its own: on CUDA an illegal address poisons the process, and must not fail its neighbours.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::Result;
use crate::workspace::{Workspace, answers, on_path, stdout, stream};

/// The packages whose tests a GPU can make fail.
const PACKAGES: [&str; 2] = ["kernel-core", "kernel-tests"];
/// What they read of other packages at run time: the golden text.
const READ: [&str; 4] = ["Cargo.toml", ".config", "models", "ptx"];
/// Programs and images travel packed; `run.sh` unpacks them. Gzip, because zstd may be missing there.
const PROGRAMS: &str = "programs.tar.gz";
const PACKED: [&str; 3] = ["bin", "benches", "images"];
const LIMIT: u64 = 50 << 20;
const RUN: &str = include_str!("bundle/run.sh");

#[derive(clap::Args)]
pub(crate) struct Options {
    /// A folder that `cargo xtask images` has filled: the GPU's tests load kernels from it
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let nextest = on_path("cargo-nextest").ok_or("no cargo-nextest on PATH: `cargo install --locked cargo-nextest`")?;
    let bundle = workspace.root.join("bundle");
    if bundle.exists() {
        fs::remove_dir_all(&bundle)?;
    }
    for folder in ["bin", "benches", "images", "source"] {
        fs::create_dir_all(bundle.join(folder))?;
    }
    if let Some(images) = &options.images {
        copy_images(images, &bundle.join("images"))?;
    }

    let archive = ["nextest", "archive", "--cargo-profile", "gpu", "--zstd-level", "15", "--archive-file"];
    stream(workspace.cargo(&archive).arg(bundle.join("tests.tar.zst")).args(selected()))?;

    let harness = ["build", "--profile", "gpu", "--package", "kernel-tests", "--bin", "harness"];
    for (name, program) in executables(workspace, &harness)? {
        fs::copy(program, bundle.join("bin").join(name))?;
    }
    let corpus = ["build", "--profile", "gpu", "--package", "kernel-tests", "--example", "corpus"];
    for (name, program) in executables(workspace, &corpus)? {
        fs::copy(program, bundle.join("bin").join(name))?;
    }
    let benches = ["bench", "--profile", "gpu", "--package", "kernel-benches", "--no-run"];
    for (name, program) in executables(workspace, &benches)? {
        fs::copy(program, bundle.join("benches").join(name))?;
    }
    strip(&nextest, &bundle.join("bin/cargo-nextest"))?;
    for file in sources(workspace)? {
        let copy = bundle.join("source").join(&file);
        if let Some(folder) = copy.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(workspace.root.join(&file), copy)?;
    }
    pack(&bundle)?;
    let script = bundle.join("run.sh");
    fs::write(&script, RUN)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;

    let mut total = 0;
    for part in ["tests.tar.zst", PROGRAMS, "source", "run.sh"] {
        let bytes = size(&bundle.join(part))?;
        total += bytes;
        println!("{:>7.2} MiB  {part}", mebibytes(bytes));
    }
    println!("{:>7.2} MiB  in {}", mebibytes(total), bundle.display());
    if total > LIMIT {
        return Err(format!("the bundle is larger than {} MiB", LIMIT >> 20).into());
    }
    Ok(())
}

fn selected() -> impl Iterator<Item = &'static str> {
    PACKAGES.into_iter().flat_map(|package| ["--package", package])
}

/// Runs a cargo command that builds, and returns each program it made with the name of its target.
fn executables(workspace: &Workspace, arguments: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    eprintln!("$ cargo {}", arguments.join(" "));
    let messages = stdout(workspace.cargo(arguments).arg("--message-format=json-render-diagnostics"))?;
    Ok(programs(&messages))
}

fn programs(messages: &str) -> Vec<(String, PathBuf)> {
    let program = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, PathBuf::from(message["executable"].as_str()?)))
    };
    messages.lines().filter_map(program).collect()
}

/// The files that tests and the harness read at run time, relative to the root: the workspace's manifest and nextest's
/// configuration, the models, and of each package all that is not Rust.
fn sources(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(&workspace.root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]);
    let listed = stdout(git.args(READ).args(PACKAGES))?;
    let mut files: Vec<_> = listed.split_terminator('\0').map(PathBuf::from).collect();
    // What is listed but was deleted and not committed is not there.
    files.retain(|file| {
        file.extension().is_none_or(|extension| extension != "rs") && workspace.root.join(file).is_file()
    });
    Ok(files)
}

fn copy_images(from: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(from).map_err(|error| format!("--images {}: {error}", from.display()))?;
    let mut found = false;
    for entry in entries {
        let file = entry?.path();
        if let Some(name) = file.file_name().filter(|_| file.extension().is_some_and(|end| end == "cubin")) {
            fs::copy(&file, to.join(name))?;
            found = true;
        }
    }
    if found { Ok(()) } else { Err(format!("--images {}: no images there", from.display()).into()) }
}

/// Packs `bin`, `benches` and `images`.
fn pack(bundle: &Path) -> Result<()> {
    stream(Command::new("tar").current_dir(bundle).args(["-czf", PROGRAMS]).args(PACKED))?;
    for folder in PACKED {
        fs::remove_dir_all(bundle.join(folder))?;
    }
    Ok(())
}

/// Copies a program without its symbols, or as it is where there is no `strip`.
fn strip(program: &Path, copy: &Path) -> Result<()> {
    if !answers(Command::new("strip").arg("-o").arg(copy).arg(program)) {
        fs::copy(program, copy)?;
    }
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    if path.is_dir() {
        fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
    } else {
        Ok(fs::metadata(path)?.len())
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"kernel_tests"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"harness"},"executable":"/t/gpu/harness"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(programs(messages), [("harness".to_owned(), PathBuf::from("/t/gpu/harness"))]);
    }

    #[test]
    fn the_script_says_what_it_does_when_called_without_a_command() {
        let output = Command::new("bash").args(["-c", RUN, "run.sh"]).output().expect("bash runs");
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8_lossy(&output.stderr);
        for command in ["test", "sanitize", "bench", "demo", "harness"] {
            assert!(said.contains(&format!("run.sh {command}")), "{said}");
        }
    }
}
