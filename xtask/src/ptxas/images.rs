//! `cargo xtask images`: kernels assembled ahead of time, which `kernel_core` loads instead of their texts.

use std::fs;
use std::path::PathBuf;

use rayon::prelude::*;

use super::assemble;
use super::find;
use crate::workspace::Workspace;
use crate::{Result, image};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// GPUs to assemble for, such as sm_86; a text is assembled for those that run it
    #[arg(long, value_name = "ARCH", value_delimiter = ',', default_value = "sm_80,sm_90,sm_90a")]
    arch: Vec<String>,
    /// Where images go; those of other texts stay there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Assemble the `.ptx` files of this folder, each named after its entry, instead of the kernels that the harness emits
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let found = find::assemblers(&workspace.target)?;
    let assembler = found.portable().ok_or_else(|| format!("no ptxas: {}", found.missing.join("; ")))?;
    for arch in &options.arch {
        number(arch).ok_or_else(|| format!("--arch {arch}: expected a GPU architecture such as sm_80 or sm_90a"))?;
    }
    let kernels = super::kernels(workspace, options.dir.as_deref())?;
    fs::create_dir_all(&options.out).map_err(|error| format!("{}: {error}", options.out.display()))?;
    let pairs: Vec<_> = kernels
        .iter()
        .flat_map(|kernel| options.arch.iter().map(move |arch| (kernel, arch)))
        .filter(|(kernel, arch)| runs(arch, &kernel.target))
        .collect();
    let sizes = pairs
        .into_par_iter()
        .map(|(kernel, arch)| {
            let text = kernel.text.as_bytes();
            let file = options.out.join(image::file_name(&kernel.name, text, arch));
            // What ptxas writes is no image before it is sealed.
            let cubin = file.with_extension("unsealed");
            assemble::assemble(kernel, assembler, arch, &cubin)?
                .map_err(|said| format!("{} for {arch}, ptxas {}: {said}", kernel.name, assembler.release))?;
            let image = image::sealed(text, &fs::read(&cubin)?);
            image::code(text, &image).ok_or_else(|| format!("{}: what ptxas wrote is no code", cubin.display()))?;
            fs::write(&cubin, &image)?;
            fs::rename(&cubin, &file)?;
            Ok(image.len())
        })
        .collect::<Result<Vec<_>>>()?;
    if sizes.is_empty() {
        return Err(format!("none of the kernels runs on {}", options.arch.join(" or ")).into());
    }
    let mebibytes = sizes.iter().sum::<usize>() as f64 / f64::from(1 << 20);
    println!("{} images by ptxas {}, {mebibytes:.1} MiB, in {}", sizes.len(), assembler.release, options.out.display());
    Ok(())
}

/// Whether code for `arch` can be made of text for `target`: that of an architecture with a letter is for it alone.
fn runs(arch: &str, target: &str) -> bool {
    match (number(arch), number(target)) {
        (Some((arch, "")), Some((target, ""))) => target <= arch,
        _ => arch == target,
    }
}

/// `sm_90a` as 90 and `a`.
fn number(arch: &str) -> Option<(u32, &str)> {
    let number = arch.strip_prefix("sm_")?;
    let (digits, letter) = number.split_at(number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len()));
    matches!(letter, "" | "a" | "f").then_some((digits.parse().ok()?, letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_assembled_for_what_runs_it() {
        for (arch, target, expected) in [
            ("sm_80", "sm_80", true),
            ("sm_90", "sm_80", true),
            ("sm_120", "sm_80", true),
            ("sm_80", "sm_90", false),
            ("sm_90a", "sm_90a", true),
            ("sm_90", "sm_90a", false),
            ("sm_100a", "sm_90a", false),
            ("sm_90a", "sm_80", false),
        ] {
            assert_eq!(runs(arch, target), expected, "{arch} of {target}");
        }
    }

    #[test]
    fn architectures_are_read() {
        assert_eq!(number("sm_90a"), Some((90, "a")));
        assert_eq!(number("sm_120"), Some((120, "")));
        assert!([number("sm_"), number("90"), number("sm_9x"), number("sm_é")].iter().all(Option::is_none));
    }
}
