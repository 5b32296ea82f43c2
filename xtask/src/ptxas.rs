//! The ptxas gate: every kernel, assembled by several releases of ptxas.
//!
//! A driver compiles PTX with the ptxas of its own CUDA release, so a text that one release assembles well may be
//! spilled, serialised or refused by another. The gate needs no GPU.

mod assemble;
mod find;
pub(crate) mod images;
mod products;
mod report;

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::workspace::{Workspace, stream};
use crate::{Result, required};
use assemble::Kernel;
use find::Found;
use report::Row;

#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Assemble the `.ptx` files of this folder instead of the kernels that the harness emits
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One line per kernel and ptxas release
    #[arg(short, long)]
    verbose: bool,
}

/// `cargo xtask ptxas`: a failure where no ptxas can be had.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let found = find::assemblers(&workspace.target)?;
    if found.assemblers.is_empty() {
        return Err(format!("no ptxas: {}", found.missing.join("; ")).into());
    }
    gate(workspace, options, &found)
}

/// The gate as a part of `cargo xtask test`: where no ptxas can be had it says so loudly and passes, unless
/// `REQUIRE_PTXAS=1`. Returns whether it ran.
pub(crate) fn run_if_found(workspace: &Workspace) -> Result<bool> {
    let found = find::assemblers(&workspace.target)?;
    if found.assemblers.is_empty() && !required("REQUIRE_PTXAS") {
        for reason in &found.missing {
            eprintln!("{reason}");
        }
        eprintln!("WARNING: the ptxas gate did NOT run: no ptxas was found and none could be installed.");
        return Ok(false);
    }
    gate(workspace, &Options::default(), &found)?;
    Ok(true)
}

fn gate(workspace: &Workspace, options: &Options, found: &Found) -> Result<()> {
    if !found.missing.is_empty() {
        let missing = found.missing.join("\n  ");
        if required("REQUIRE_PTXAS") {
            return Err(format!("REQUIRE_PTXAS=1, but these ptxas releases are missing:\n  {missing}").into());
        }
        eprintln!("WARNING: the ptxas gate runs WITHOUT these releases:\n  {missing}");
    }
    let kernels = kernels(workspace, options.dir.as_deref())?;
    let hopper = kernels.iter().any(|kernel| kernel.target == assemble::HOPPER);
    let disassembler = match hopper.then(|| find::disassembler(&workspace.target, &found.assemblers)) {
        None => None,
        Some(Ok(program)) => Some(program),
        Some(Err(reason)) if required("REQUIRE_PTXAS") => {
            return Err(format!("REQUIRE_PTXAS=1, but there is no disassembler: {reason}").into());
        }
        Some(Err(reason)) => {
            eprintln!("WARNING: the gate does NOT look at the products of {}: {reason}", assemble::HOPPER);
            None
        }
    };
    let pairs: Vec<_> =
        kernels.iter().flat_map(|kernel| found.assemblers.iter().map(move |assembler| (kernel, assembler))).collect();
    let cache = workspace.target.join("ptxas/cache");
    let rows = pairs
        .into_par_iter()
        .map(|(kernel, assembler)| {
            Ok(Row {
                kernel: kernel.name.clone(),
                target: kernel.target.clone(),
                release: assembler.release,
                verdict: assemble::verdict(kernel, assembler, disassembler.as_deref(), &cache)?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    if options.verbose {
        print!("{}", report::table(&rows));
    }
    print!("{}", report::summary(&rows));
    let problems = report::problems(&rows);
    if problems.is_empty() {
        return Ok(());
    }
    for problem in &problems {
        eprintln!("{problem}");
    }
    Err(format!("the ptxas gate found {} problem(s)", problems.len()).into())
}

/// The texts of a folder, or those that the harness emits.
fn kernels(workspace: &Workspace, folder: Option<&Path>) -> Result<Vec<Kernel>> {
    folder.map_or_else(|| emit_kernels(workspace), read_kernels)
}

fn emit_kernels(workspace: &Workspace) -> Result<Vec<Kernel>> {
    let folder = workspace.target.join("ptxas/kernels");
    // Texts of kernels that no longer exist must not be assembled.
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let run = ["run", "--release", "--quiet", "--package", "kernel-tests", "--bin", "harness", "--"];
    stream(workspace.cargo(&run).args(["kernels", "--emit"]).arg(&folder).stdout(std::process::Stdio::null()))?;
    read_kernels(&folder)
}

fn read_kernels(folder: &Path) -> Result<Vec<Kernel>> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "ptx"));
    files.sort();
    if files.is_empty() {
        return Err(format!("{}: no .ptx file, so nothing would be checked", folder.display()).into());
    }
    files.into_iter().map(Kernel::read).collect()
}
