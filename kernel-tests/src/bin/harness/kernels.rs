//! `harness kernels`: what is instantiated.

use crate::{Outcome, Result, output::say};
use kernel_tests::registry::{self, Registered};
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write each text to DIR, named after its entry, beside the table
    #[arg(long, value_name = "DIR")]
    emit: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let kernels = registry::kernels()?;
    if let Some(folder) = &options.emit {
        emit(&kernels, folder)?;
    }
    say!("{}", table(&kernels));
    Ok(Outcome::Passed)
}

fn emit(kernels: &[Registered], folder: &Path) -> Result<()> {
    let cannot = |path: &Path, error| format!("cannot write {}: {error}", path.display());
    fs::create_dir_all(folder).map_err(|error| cannot(folder, error))?;
    for kernel in kernels {
        let path = folder.join(format!("{}.ptx", kernel.entry()));
        fs::write(&path, &kernel.kernel.text).map_err(|error| cannot(&path, error))?;
    }
    Ok(())
}

fn table(kernels: &[Registered]) -> String {
    let width = kernels.iter().map(|kernel| kernel.entry().len()).max().unwrap_or(0);
    let row = |cells: [&str; 8]| {
        let [family, entry, arch, isa, threads, shared, parameters, text] = cells;
        format!("{family:9} {entry:width$} {arch:7} {isa:>4} {threads:>7} {shared:>7} {parameters:>10} {text:>7}\n")
    };
    let mut table = row(["family", "entry", "target", "ISA", "threads", "shared", "parameters", "text"]);
    let mut bytes = 0;
    for registered in kernels {
        let meta = &registered.kernel.meta;
        bytes += registered.kernel.text.len();
        table += &row([
            registered.family.name(),
            &meta.entry,
            meta.arch.target(),
            &format!("{}.{}", meta.isa.0, meta.isa.1),
            &meta.threads.to_string(),
            &meta.shared_bytes.to_string(),
            &meta.parameters.len().to_string(),
            &registered.kernel.text.len().to_string(),
        ]);
    }
    // Writing to a string cannot fail.
    let _ = write!(table, "{} kernels, {bytes} bytes of text; shared and text in bytes", kernels.len());
    table
}
