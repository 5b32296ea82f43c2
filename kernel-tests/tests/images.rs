//! Images of `cargo xtask images` on a GPU. A bundle brings them (`cargo xtask bundle --images DIR`); elsewhere the
//! variable `TEST_IMAGES` names the folder.
#![allow(clippy::unwrap_used, reason = "tests")]

use half::bf16;
use kernel_core::{Arguments, Device, Stream};
use kernel_tests::{registry, testing};
use ptx::{Arch, Kernel, image, isa::MmaType, kernels::model::AddSpec};
use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
};

/// The GPU and the images for it. Where there are none this says so.
fn gpu_and_images() -> Option<(Device, PathBuf)> {
    let device = testing::gpu()?;
    let Some(folder) = env::var_os("TEST_IMAGES") else {
        // Past the capture of the test harness, which hides what passing tests print.
        drop(writeln!(std::io::stderr(), "NOT RUN: TEST_IMAGES names no folder of images"));
        return None;
    };
    Some((device, folder.into()))
}

/// A small kernel of the registry.
const SPEC: AddSpec = AddSpec { width: 256, dtype: MmaType::Bf16, arch: Arch::Sm80 };

/// The kernel of [`SPEC`]; a comment gives it a text of its own, so that it is loaded again.
fn add(comment: &str) -> Kernel {
    let mut kernel = ptx::generate(&SPEC).unwrap();
    kernel.text += comment;
    kernel
}

/// The images of a kernel in a folder, whatever they are for.
fn files(folder: &Path, kernel: &Kernel) -> Vec<PathBuf> {
    let start = image::file_name(&kernel.meta.entry, kernel.text.as_bytes(), "");
    let start = start.split('.').next().unwrap();
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start)).collect()
}

#[test]
fn gpu_every_kernel_loads_from_its_image() {
    let Some((device, folder)) = gpu_and_images() else { return };
    device.use_images(Some(&folder));
    for registry::Registered { kernel, .. } in registry::kernels().unwrap() {
        if !device.runs().contains(&kernel.meta.arch) {
            continue;
        }
        assert!(!files(&folder, &kernel).is_empty(), "{} has no image: of another version?", kernel.meta.entry);
        let loaded = device.load(&kernel).unwrap();
        assert!(loaded.image().is_some(), "{}: {}", kernel.meta.entry, loaded.compile_log());
    }
}

/// What happens to the image of the plain text before it becomes that of another.
enum Damage {
    None,
    /// Its end is cut off.
    Cut,
    /// It bears another text's name.
    Renamed,
    /// Sealed with the text that it is named after, and all but its signature zero: only the driver can tell.
    Zeros,
    Missing,
}

#[test]
fn gpu_a_bad_image_breaks_nothing() {
    let Some((device, folder)) = gpu_and_images() else { return };
    let stream = Stream::new(&device).unwrap();
    let plain = add("");
    let images = files(&folder, &plain);
    let cases = [
        ("// image\n", Damage::None, None),
        ("// cut\n", Damage::Cut, Some("damaged")),
        ("// renamed\n", Damage::Renamed, Some("of another text")),
        ("// zeros\n", Damage::Zeros, Some("the driver refused")),
        ("// missing\n", Damage::Missing, Some("no image of")),
    ];
    for (comment, damage, note) in cases {
        let kernel = add(comment);
        let text = kernel.text.as_bytes();
        let own = tempfile::tempdir().unwrap();
        for file in &images {
            let bytes = fs::read(file).unwrap();
            let mut code = image::code(plain.text.as_bytes(), &bytes).unwrap().to_vec();
            let bytes = match damage {
                Damage::None => image::sealed(text, &code),
                Damage::Cut => image::sealed(text, &code)[..code.len() / 2].to_vec(),
                Damage::Renamed => bytes,
                Damage::Zeros => {
                    code[4..].fill(0);
                    image::sealed(text, &code)
                }
                Damage::Missing => continue,
            };
            let architecture = file.file_stem().unwrap().to_str().unwrap().rsplit('.').next().unwrap();
            fs::write(own.path().join(image::file_name(&kernel.meta.entry, text, architecture)), bytes).unwrap();
        }
        device.use_images(Some(own.path()));
        let loaded = device.load(&kernel);
        device.use_images(None);
        let loaded = loaded.unwrap();
        let log = loaded.compile_log();
        assert_eq!(loaded.image().is_none(), note.is_some(), "{comment}: {log}");
        assert!(note.is_none_or(|note| log.contains(note)), "no {note:?} in {log}");

        let numbers: Vec<bf16> = (0..256u16).map(|i| bf16::from_f32(f32::from(i))).collect();
        let data = device.upload(&stream, &numbers).unwrap();
        let arguments = Arguments::new(loaded.meta());
        let arguments = ["a", "b", "out"].into_iter().fold(arguments, |a, name| a.pointer(name, data.address()));
        let arguments = ["a_row", "b_row", "out_row"].into_iter().fold(arguments, |a, name| a.u64(name, 512));
        loaded.launch(&stream, SPEC.grid(1), &arguments).unwrap();
        let twice: Vec<bf16> = numbers.iter().map(|n| bf16::from_f32(2.0 * n.to_f32())).collect();
        assert_eq!(data.read::<bf16>(&stream).unwrap(), twice, "{comment}");
    }
}
