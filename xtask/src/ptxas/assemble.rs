//! One kernel text through one ptxas: what it says, and what that means.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::find::Assembler;
use super::products::{self, Products};
use crate::Result;

/// A PTX text and what its header asks for.
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) target: String,
    file: PathBuf,
    pub(super) text: String,
    isa: (u32, u32),
}

impl Kernel {
    pub(super) fn read(file: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (isa, target) = header(&text).ok_or_else(|| {
            format!("{}: no `.version X.Y` and `.target sm_NN` lines, which every PTX text begins with", file.display())
        })?;
        Ok(Self { name, target, file, text, isa })
    }
}

fn header(text: &str) -> Option<((u32, u32), String)> {
    let value = |directive: &str| text.lines().find_map(|line| line.trim().strip_prefix(directive)?.split(',').next());
    let (major, minor) = value(".version ")?.trim().split_once('.')?;
    let target = value(".target ")?.trim();
    Some(((major.parse().ok()?, minor.parse().ok()?), target.to_owned()))
}

/// What ptxas made of a kernel.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// The text needs a newer PTX ISA than this release reads.
    TooNew {
        needs: (u32, u32),
        reads: (u32, u32),
    },
    /// Not assembled, and what ptxas said.
    Failed(String),
    Assembled(Usage),
}

/// What `ptxas -v` reports of the entry functions of a text: the largest value of each, and the sum of the spills.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) entries: u32,
    pub(super) registers: u32,
    pub(super) stack: u32,
    pub(super) spill_stores: u32,
    pub(super) spill_loads: u32,
    /// Static shared memory; what a launch adds is not known to ptxas.
    pub(super) shared: u32,
    /// Warnings, and lines on lost performance: those ptxas calls `info`.
    pub(super) warnings: Vec<String>,
    /// Of a text that may have products of warpgroups, where there is a disassembler.
    pub(super) products: Option<Products>,
}

/// The only target whose warps multiply as groups.
pub(super) const HOPPER: &str = "sm_90a";

/// Assembles a kernel, or remembers what came of it; and disassembles it, if there are products to look at.
pub(super) fn verdict(
    kernel: &Kernel,
    assembler: &Assembler,
    disassembler: Option<&Path>,
    cache: &Path,
) -> Result<Verdict> {
    let reads = assembler.release.isa();
    if kernel.isa > reads {
        return Ok(Verdict::TooNew { needs: kernel.isa, reads });
    }
    let disassembler = disassembler.filter(|_| kernel.target == HOPPER);
    let cached = cache.join(assembler.release.to_string()).join(format!("{:016x}", hash(&kernel.text)));
    let listed = cached.with_extension("products");
    let known = fs::read_to_string(&cached).ok().zip(match disassembler {
        Some(_) => fs::read_to_string(&listed).ok().map(Some),
        None => Some(None),
    });
    let (said, listing) = match known {
        Some(known) => known,
        None => {
            fs::create_dir_all(cached.parent().ok_or("the cache has no folder")?)?;
            let cubin = cached.with_extension(format!("{}.cubin", kernel.name));
            let said = match assemble(kernel, assembler, &kernel.target, &cubin)? {
                Ok(said) => said,
                Err(said) => return Ok(Verdict::Failed(said)),
            };
            let listing = disassembler.map(|program| products::disassemble(program, &cubin)).transpose();
            // A crash leaves it, and a file that stays behind costs only space.
            let _ = fs::remove_file(&cubin);
            let listing = match listing {
                Ok(listing) => listing,
                Err(error) => return Ok(Verdict::Failed(error.to_string())),
            };
            if let Some(listing) = &listing {
                keep(&listed, listing, &kernel.name)?;
            }
            keep(&cached, &said, &kernel.name)?;
            (said, listing)
        }
    };
    let products = listing.map(|listing| Products::count(&listing));
    Ok(Verdict::Assembled(Usage { products, ..usage(&said) }))
}

/// Runs ptxas. What it said, as a failure if it made no cubin.
pub(super) fn assemble(
    kernel: &Kernel,
    assembler: &Assembler,
    target: &str,
    cubin: &Path,
) -> Result<std::result::Result<String, String>> {
    let mut command = Command::new(&assembler.program);
    command.arg("-v").arg(format!("-arch={target}")).arg(&kernel.file).arg("-o").arg(cubin);
    let output = command.output().map_err(|error| format!("{}: {error}", assembler.program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(Ok(said.into_owned()));
    }
    Ok(Err(format!("{}\n({})", said.trim_end(), output.status)))
}

/// Written aside and renamed, so that an interrupted run leaves no half of an answer.
fn keep(file: &Path, text: &str, name: &str) -> Result<()> {
    let aside = file.with_extension(format!("{name}.new"));
    fs::write(&aside, text)?;
    Ok(fs::rename(&aside, file)?)
}

/// Names a text in the cache. Another toolchain may hash differently: then the cache is cold, no more.
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Reads what `ptxas -v` prints on stderr.
fn usage(output: &str) -> Usage {
    let mut usage = Usage::default();
    for line in output.lines() {
        if line.contains("Compiling entry function") {
            usage.entries += 1;
        }
        if ["warning : ", "(C75", "Performance Loss"].iter().any(|mark| line.contains(mark)) {
            usage.warnings.push(message(line));
        }
        let number = |unit: &str| number_before(line, unit).unwrap_or(0);
        usage.registers = usage.registers.max(number(" registers"));
        usage.stack = usage.stack.max(number(" bytes stack frame"));
        usage.shared = usage.shared.max(number(" bytes smem"));
        usage.spill_stores += number(" bytes spill stores");
        usage.spill_loads += number(" bytes spill loads");
    }
    usage
}

/// The text of a diagnostic, without the program's name and the severity.
fn message(line: &str) -> String {
    line.split_once(" : ").map_or(line, |(_, text)| text).trim().to_owned()
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (before, _) = line.split_once(unit)?;
    before.rsplit(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Recorded from the releases named.
    const CLEAN_12_0: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'scale' for 'sm_80'
ptxas info    : Function properties for scale
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, 1024 bytes smem, 372 bytes cmem[0]
";
    const SPILL_13_0: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spill' for 'sm_80'
ptxas info    : Function properties for spill
    232 bytes stack frame, 228 bytes spill stores, 228 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 232 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compile time = 9.012 ms
";
    const SERIALISED_12_4: &str = "\
ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma instructions reading accumulator registers of  a wgmma between start and end of the pipeline stage in the function 'serial'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'serial' for 'sm_90a'
ptxas info    : Function properties for serial
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers
";
    const WAIT_INJECTED_12_9: &str = "\
ptxas info    : (C7517) warpgroup.wait is injected in around line 19 by compiler to allow use of registers defined by GMMA in function 'serial'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'serial' for 'sm_90a'
ptxas info    : Function properties for serial
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers
ptxas info    : Compile time = 3.051 ms
";

    #[test]
    fn resources_are_read_from_the_report() {
        let expected = Usage { entries: 1, registers: 12, shared: 1024, ..Usage::default() };
        assert_eq!(usage(CLEAN_12_0), expected);
    }

    #[test]
    fn spills_and_stack_are_read_from_the_report() {
        let expected =
            Usage { entries: 1, registers: 24, stack: 232, spill_stores: 228, spill_loads: 228, ..Usage::default() };
        assert_eq!(usage(SPILL_13_0), expected);
    }

    #[test]
    fn spills_of_several_functions_add_up() {
        let usage = usage(&[SPILL_13_0, CLEAN_12_0, SPILL_13_0].concat());
        assert_eq!((usage.entries, usage.registers, usage.spill_stores, usage.shared), (3, 24, 456, 1024));
    }

    #[test]
    fn performance_warnings_are_found_though_they_are_info() {
        let warnings = usage(SERIALISED_12_4).warnings;
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("(C7514) Potential Performance Loss: wgmma"), "{warnings:?}");
        // This one does not say that performance is lost.
        let warnings = usage(WAIT_INJECTED_12_9).warnings;
        assert!(matches!(warnings.as_slice(), [only] if only.starts_with("(C7517) warpgroup.wait")), "{warnings:?}");
        let setmaxnreg = "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to \
                          determine register count at entry.\n";
        assert_eq!(usage(setmaxnreg).warnings.len(), 1);
        assert!(usage(SPILL_13_0).warnings.is_empty());
    }

    #[test]
    fn warnings_are_found_with_and_without_a_line_number() {
        let output = "\
ptxas scale.ptx, line 29; warning : .minnctapersm is ignored when neither .maxntid nor .reqntid is specified.
ptxas warning : Value of threads per SM for entry scale is out of range. .minnctapersm will be ignored
";
        let expected = [
            ".minnctapersm is ignored when neither .maxntid nor .reqntid is specified.",
            "Value of threads per SM for entry scale is out of range. .minnctapersm will be ignored",
        ];
        assert_eq!(usage(output).warnings, expected);
    }

    #[test]
    fn header_gives_isa_and_target() {
        let text = "// generated\n.version 8.0\n.target sm_90a, debug\n.address_size 64\n";
        assert_eq!(header(text), Some(((8, 0), "sm_90a".to_owned())));
        assert_eq!(header(".version 8\n.target sm_80\n"), None);
        assert_eq!(header(".version 7.0\n"), None);
    }
}
