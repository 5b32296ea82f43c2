//! Which programs the gate uses. Of ptxas `$PTXAS` alone if it is set; else the one on `PATH`, and from PyPI every release
//! of the matrix that it is not. Of nvdisasm `$NVDISASM`, else the one on `PATH`, else the one from PyPI.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::{answers, on_path, stdout};
use crate::{Result, required};

/// The oldest release that knows `sm_90a`, and one of each later generation of the compiler.
const MATRIX: [(Release, &str); 4] = [
    (Release(12, 0, 140), "nvidia-cuda-nvcc-cu12"),
    (Release(12, 4, 131), "nvidia-cuda-nvcc-cu12"),
    (Release(12, 9, 86), "nvidia-cuda-nvcc-cu12"),
    (Release(13, 0, 88), "nvidia-cuda-nvcc"),
];

/// Reads the code of every ptxas of the matrix.
const DISASSEMBLER: (Release, &str) = (Release(13, 5, 37), "nvidia-cuda-nvdisasm");

/// A CUDA release, as `ptxas --version` and `nvdisasm --version` give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release(pub(super) u32, pub(super) u32, pub(super) u32);

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}.{}", self.0, self.1, self.2))
    }
}

impl Release {
    /// From the line `Cuda compilation tools, release 12.0, V12.0.140`.
    fn parse(version: &str) -> Option<Self> {
        let (_, number) = version.split_once(", V")?;
        let mut parts = number.split_whitespace().next()?.splitn(3, '.').map(str::parse);
        Some(Self(parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?))
    }

    /// The newest PTX ISA version that this release reads (PTX ISA, "Release Notes"). It must be known beforehand:
    /// ptxas 12.0 crashes on a newer one.
    pub(super) fn isa(self) -> (u32, u32) {
        match (self.0, self.1) {
            (..=10, _) => (6, 0),
            (11, minor) => (7, minor),
            (12, minor @ ..=5) => (8, minor),
            (12, minor) => (8, minor - 1),
            (major, minor) => (major - 4, minor),
        }
    }
}

pub(super) struct Assembler {
    pub(super) release: Release,
    pub(super) program: PathBuf,
}

impl Assembler {
    fn probe(program: PathBuf) -> Result<Self> {
        let text = stdout(Command::new(&program).arg("--version"))?;
        let release = Release::parse(&text).ok_or_else(|| format!("{}: no release in:\n{text}", program.display()))?;
        Ok(Self { release, program })
    }
}

/// The programs to use, and why each release of the matrix that is not among them is missing.
pub(super) struct Found {
    pub(super) assemblers: Vec<Assembler>,
    pub(super) missing: Vec<String>,
}

impl Found {
    /// The ptxas whose code most drivers load: they take that of their own CUDA generation and of older ones. So the last
    /// release of the oldest generation.
    pub(super) fn portable(&self) -> Option<&Assembler> {
        let oldest = self.assemblers.iter().map(|assembler| assembler.release.0).min()?;
        self.assemblers.iter().rfind(|assembler| assembler.release.0 == oldest)
    }
}

/// A disassembler, or why there is none.
pub(super) fn disassembler(target: &Path, assemblers: &[Assembler]) -> std::result::Result<PathBuf, String> {
    if let Some(program) = std::env::var_os("NVDISASM") {
        let probed = Assembler::probe(program.into()).map_err(|error| format!("$NVDISASM: {error}"))?;
        return Ok(probed.program);
    }
    // One that is older than a ptxas may not read what that makes.
    let newest = assemblers.iter().map(|assembler| assembler.release).max();
    let found = on_path("nvdisasm").and_then(|program| Assembler::probe(program).ok());
    if let Some(found) = found.filter(|found| Some(found.release) >= newest) {
        return Ok(found.program);
    }
    let (release, package) = DISASSEMBLER;
    wheel(target, "nvdisasm", release, package).map_err(|error| format!("nvdisasm {release}: {error}"))
}

pub(super) fn assemblers(target: &Path) -> Result<Found> {
    if let Some(program) = std::env::var_os("PTXAS") {
        let assembler = Assembler::probe(program.into()).map_err(|error| format!("$PTXAS: {error}"))?;
        return Ok(Found { assemblers: vec![assembler], missing: Vec::new() });
    }
    let mut found = Found { assemblers: Vec::new(), missing: Vec::new() };
    if let Some(program) = on_path("ptxas") {
        found.assemblers.push(Assembler::probe(program)?);
    }
    for (release, package) in MATRIX {
        if found.assemblers.iter().any(|known| (known.release.0, known.release.1) == (release.0, release.1)) {
            continue;
        }
        match wheel(target, "ptxas", release, package).and_then(Assembler::probe) {
            Ok(assembler) => found.assemblers.push(assembler),
            Err(error) => found.missing.push(format!("ptxas {release}: {error}")),
        }
    }
    found.assemblers.sort_by_key(|assembler| assembler.release);
    Ok(found)
}

/// Takes a program out of a PyPI wheel, once.
fn wheel(target: &Path, name: &str, release: Release, package: &str) -> Result<PathBuf> {
    let folder = target.join("ptxas");
    let program = folder.join(release.to_string()).join(name);
    if program.is_file() {
        return Ok(program);
    }
    let python = ["python3", "python"]
        .into_iter()
        .find(|python| answers(Command::new(python).args(["-m", "pip", "--version"])))
        .ok_or("no python3 with pip to install it from PyPI")?;
    eprintln!("installing {name} {release} under {}", folder.display());
    let unpacked = folder.join(format!("unpacking-{release}"));
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    // Without a network the default of five retries would hold up every test run for minutes.
    let retries = if required("REQUIRE_PTXAS") { "5" } else { "1" };
    stdout(
        Command::new(python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"])
            .args(["--no-deps", "--only-binary=:all:", "--retries", retries, "--target"])
            .arg(&unpacked)
            .arg(format!("{package}=={release}")),
    )?;
    let inside = ["nvidia/cuda_nvcc/bin", "nvidia/cu13/bin"]
        .map(|layout| unpacked.join(layout).join(name))
        .into_iter()
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{package} {release}: no {name} in the wheel"))?;
    fs::create_dir_all(folder.join(release.to_string()))?;
    fs::rename(inside, &program)?;
    fs::remove_dir_all(&unpacked)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_is_read_from_the_version_text() {
        let text = "ptxas: NVIDIA (R) Ptx optimizing assembler\nCopyright (c) 2005-2023 NVIDIA Corporation\n\
                    Built on Fri_Jan__6_16:43:29_PST_2023\nCuda compilation tools, release 12.0, V12.0.140\n\
                    Build cuda_12.0.r12.0/compiler.32267302_0\n";
        assert_eq!(Release::parse(text), Some(Release(12, 0, 140)));
        assert_eq!(Release::parse("ptxas: something else"), None);
        assert_eq!(Release::parse("release 12.0, V12.x"), None);
    }

    #[test]
    fn releases_sort_by_number_and_print_padded() {
        assert!(Release(12, 9, 86) < Release(13, 0, 88) && Release(12, 4, 131) < Release(12, 9, 86));
        assert_eq!(format!("{:<9}|", Release(13, 0, 88)), "13.0.88  |");
    }

    #[test]
    fn images_are_made_by_the_last_release_of_the_oldest_generation() {
        let assemblers = |releases: &[Release]| {
            let assembler = |&release| Assembler { release, program: PathBuf::new() };
            Found { assemblers: releases.iter().map(assembler).collect(), missing: Vec::new() }
        };
        let portable = |releases: &[Release]| assemblers(releases).portable().map(|assembler| assembler.release);
        let [old, last, new] = [Release(12, 0, 140), Release(12, 9, 86), Release(13, 0, 88)];
        assert_eq!(portable(&[old, last, new]), Some(last));
        assert_eq!(portable(&[new]), Some(new));
        assert_eq!(portable(&[]), None);
    }

    #[test]
    fn each_release_reads_its_documented_isa() {
        let isa = |major, minor| Release(major, minor, 0).isa();
        assert_eq!([isa(11, 8), isa(12, 0), isa(12, 4), isa(12, 5)], [(7, 8), (8, 0), (8, 4), (8, 5)]);
        assert_eq!([isa(12, 6), isa(12, 8), isa(12, 9), isa(13, 0)], [(8, 5), (8, 7), (8, 8), (9, 0)]);
    }
}
