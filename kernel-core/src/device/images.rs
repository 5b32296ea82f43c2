//! Kernels assembled ahead of time: the folder that `cargo xtask images` fills.

use super::kernel::Source;
use ptx::{Arch, image};
use std::{
    fmt::Write,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The code of a kernel, and the file it came from.
pub(super) struct Image {
    pub(super) file: PathBuf,
    pub(super) code: Vec<u8>,
}

/// Reads the image of a text for a GPU of compute capability `capability`.
///
/// # Errors
/// Why there is none, in words: the caller compiles the text instead and keeps the note.
pub(super) fn find(folder: &Path, source: &Source<'_>, capability: (i32, i32)) -> Result<Image, String> {
    let (entry, text) = (&source.meta.entry, source.text.to_bytes());
    let mut note = String::new();
    for architecture in architectures(source.meta.arch, capability) {
        let file = folder.join(image::file_name(entry, text, &architecture));
        let reason = match fs::read(&file) {
            Ok(bytes) => match image::code(text, &bytes) {
                Some(code) => return Ok(Image { file, code: code.to_vec() }),
                None => "damaged, or of another text".into(),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => error.to_string(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(note, "image {} is not used: {reason}", file.display());
    }
    if note.is_empty() {
        note = format!("no image of {entry} for compute capability {}.{}", capability.0, capability.1);
        note += &format!(" in {}\n", folder.display());
    }
    Err(note)
}

/// The architectures whose code a GPU runs, the best first: those of its own generation up to itself. Text for `sm_90a`
/// has images for that alone.
fn architectures(text: Arch, (major, minor): (i32, i32)) -> Vec<String> {
    match text {
        Arch::Sm80 => (0..=minor).rev().map(|minor| format!("sm_{major}{minor}")).collect(),
        Arch::Sm90a if (major, minor) == (9, 0) => vec![text.target().into()],
        Arch::Sm90a => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptx::KernelMeta;

    const TEXT: &std::ffi::CStr = c".version 8.0";

    fn meta(arch: Arch) -> KernelMeta {
        let parameters = (&[]).into();
        KernelMeta {
            entry: "k".into(),
            arch,
            isa: (8, 0),
            threads: 32,
            shared_bytes: 0,
            programmatic: false,
            parameters,
        }
    }

    /// Writes an image of `TEXT` for an architecture, in which its name is the code, changed by `change`.
    fn write(folder: &Path, architecture: &str, change: impl Fn(&mut Vec<u8>)) {
        let code = ["\x7fELF", architecture].concat();
        let mut file = image::sealed(TEXT.to_bytes(), code.as_bytes());
        change(&mut file);
        fs::write(folder.join(image::file_name("k", TEXT.to_bytes(), architecture)), file).unwrap();
    }

    /// The architecture of the image that is found.
    fn found(folder: &Path, arch: Arch, capability: (i32, i32)) -> Result<String, String> {
        let image = find(folder, &Source { text: TEXT.into(), meta: &meta(arch) }, capability)?;
        Ok(String::from_utf8(image.code[4..].to_vec()).unwrap())
    }

    #[test]
    fn an_image_is_for_its_generation_and_no_older_gpu() {
        let folder = tempfile::tempdir().unwrap();
        for architecture in ["sm_80", "sm_86", "sm_90", "sm_90a"] {
            write(folder.path(), architecture, |_| {});
        }
        let code = |arch, capability| found(folder.path(), arch, capability).ok();
        for (capability, expected) in
            [((8, 0), Some("sm_80")), ((8, 6), Some("sm_86")), ((8, 9), Some("sm_86")), ((9, 0), Some("sm_90"))]
        {
            assert_eq!(code(Arch::Sm80, capability).as_deref(), expected, "{capability:?}");
        }
        assert_eq!(code(Arch::Sm80, (10, 0)), None);
        assert_eq!(code(Arch::Sm90a, (9, 0)).as_deref(), Some("sm_90a"));
        assert_eq!(code(Arch::Sm90a, (10, 0)), None);
    }

    #[test]
    fn what_is_missing_or_damaged_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let found = |arch| found(folder.path(), arch, (9, 0)).unwrap_err();
        let note = found(Arch::Sm90a);
        assert!(note.starts_with("no image of k for compute capability 9.0 in "), "{note}");
        let changes: [fn(&mut Vec<u8>); 3] = [Vec::clear, |file| file.truncate(9), |file| file[5] ^= 1];
        for change in changes {
            write(folder.path(), "sm_90a", change);
            let note = found(Arch::Sm90a);
            assert!(note.contains("sm_90a.cubin is not used: damaged"), "{note}");
        }
        // Not readable: a folder where a file should be.
        fs::create_dir(folder.path().join(image::file_name("k", TEXT.to_bytes(), "sm_90"))).unwrap();
        let note = found(Arch::Sm80);
        assert!(note.contains("sm_90.cubin is not used: "), "{note}");
    }

    #[test]
    fn a_damaged_image_does_not_hide_an_older_one() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "sm_86", |file| file.truncate(9));
        write(folder.path(), "sm_80", |_| {});
        assert_eq!(found(folder.path(), Arch::Sm80, (8, 6)).unwrap(), "sm_80");
    }
}
