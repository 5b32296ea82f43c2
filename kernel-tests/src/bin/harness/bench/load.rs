//! `harness bench load`: how long a kernel's first load takes, from its text and from an image.

use crate::{Outcome, Result, output::say, progress};
use kernel_core::{Device, LoadedKernel, embedded};
use kernel_tests::registry;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Load each kernel from this folder of `cargo xtask images`, too
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Every instantiated kernel that the GPU runs, not only those that each program carries
    #[arg(long)]
    all: bool,
    /// Only kernels whose entry contains TEXT
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// One JSON object a kernel instead of the table
    #[arg(long)]
    json: bool,
}

struct First {
    entry: String,
    bytes: usize,
    text_ms: f64,
    image: Option<Image>,
}

enum Image {
    Loaded { ms: f64 },
    Refused { why: String },
}

pub(crate) fn run(options: &Options) -> Result<Outcome> {
    // SAFETY: the program has one thread so far. The driver reads the variable when it is initialised, which is later:
    // with its cache on, all but the very first run on a machine would measure that.
    unsafe { std::env::set_var("CUDA_CACHE_DISABLE", "1") };
    let device = Device::cuda(0)?;
    let name = device.name();
    let kernels: Vec<_> =
        kernels(&device, options.all)?.into_iter().filter(|k| k.meta.entry.contains(&options.filter)).collect();
    if kernels.is_empty() {
        return Err(format!("no kernel's entry contains '{}'", options.filter).into());
    }
    let bar = progress::bar("loads", kernels.len() as u64);
    let mut firsts = Vec::new();
    device.use_images(None);
    for kernel in &kernels {
        let (ms, _) = time(&device, kernel)?;
        firsts.push(First { entry: kernel.meta.entry.to_string(), bytes: kernel.text.len(), text_ms: ms, image: None });
        bar.inc(1);
    }
    bar.finish_and_clear();
    // Its modules go with it, so that the next device loads anew.
    drop(device);
    if let Some(folder) = &options.images {
        let device = Device::cuda(0)?;
        device.use_images(Some(folder));
        for (kernel, first) in kernels.iter().zip(&mut firsts) {
            let (ms, loaded) = time(&device, kernel)?;
            first.image = Some(match loaded.image() {
                Some(_) => Image::Loaded { ms },
                None => Image::Refused { why: loaded.compile_log().lines().next().unwrap_or_default().into() },
            });
        }
    }
    if options.json {
        firsts.iter().for_each(|first| say!("{}", json(first, &name)));
    } else {
        say!("{}", table(&firsts, &name, options.images.as_deref()));
    }
    let refused = firsts.iter().any(|first| matches!(first.image, Some(Image::Refused { .. })));
    Ok(if refused { Outcome::Failed } else { Outcome::Passed })
}

fn kernels(device: &Device, all: bool) -> Result<Vec<ptx::Kernel>> {
    if all {
        let kernels = registry::kernels()?.into_iter().map(|registered| registered.kernel);
        return Ok(kernels.filter(|kernel| device.runs().contains(&kernel.meta.arch)).collect());
    }
    // Those that a layer has on the device.
    let texts = embedded::KERNELS.iter().flat_map(|kernel| kernel.texts());
    let texts = texts.filter(|(_, meta)| meta.arch == device.arch());
    texts.map(|(text, meta)| Ok(ptx::Kernel { text: text.to_str()?.into(), meta: meta.clone() })).collect()
}

fn time(device: &Device, kernel: &ptx::Kernel) -> Result<(f64, LoadedKernel)> {
    let start = Instant::now();
    let loaded = device.load(kernel)?;
    Ok((start.elapsed().as_secs_f64() * 1e3, loaded))
}

fn table(firsts: &[First], device: &str, images: Option<&Path>) -> String {
    let width = firsts.iter().map(|first| first.entry.len()).max().unwrap_or(0);
    let source = images.map(|folder| format!(", images from {}", folder.display())).unwrap_or_default();
    let mut table = format!("{device}, first load of each kernel, the driver's cache off{source}\n");
    table += &format!("{:width$} {:>10} {:>10} {:>10}\n", "kernel", "text bytes", "text ms", "image ms");
    for First { entry, bytes, text_ms, image } in firsts {
        let image = match image {
            None => String::new(),
            Some(Image::Loaded { ms }) => format!("{ms:>10.2}"),
            Some(Image::Refused { why }) => format!("{:>10} ({why})", "none"),
        };
        table += &format!("{entry:width$} {bytes:>10} {text_ms:>10.1} {image}\n");
    }
    let text = summary(firsts.iter().map(|first| first.text_ms).collect());
    let loaded = firsts.iter().filter_map(|first| match first.image {
        Some(Image::Loaded { ms }) => Some(ms),
        _ => None,
    });
    let loaded: Vec<_> = loaded.collect();
    table += &format!("from text: {text}");
    if images.is_some() {
        table += &format!("\nfrom images: {}", summary(loaded));
    }
    table
}

fn summary(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let Some(last) = times.last() else { return "none".into() };
    let (count, all, median) = (times.len(), times.iter().sum::<f64>(), times[times.len() / 2]);
    format!("{count} kernels in {all:.0} ms, median {median:.2} ms, at most {last:.2} ms")
}

fn json(first: &First, device: &str) -> serde_json::Value {
    let (image_ms, why) = match &first.image {
        None => (None, None),
        Some(Image::Loaded { ms }) => (Some(ms), None),
        Some(Image::Refused { why }) => (None, Some(why)),
    };
    serde_json::json!({
        "device": device, "kernel": first.entry, "text_bytes": first.bytes, "text_ms": first.text_ms,
        "image_ms": image_ms, "no_image": why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(entry: &str, image: Option<Image>) -> First {
        First { entry: entry.into(), bytes: 1000, text_ms: 512.25, image }
    }

    #[test]
    fn the_table_says_which_images_were_used_and_why_not() {
        let firsts = [
            first("dense", Some(Image::Loaded { ms: 1.5 })),
            first("sparse", Some(Image::Refused { why: "no image of sparse".into() })),
        ];
        let expected = "\
GPU, first load of each kernel, the driver's cache off, images from images
kernel text bytes    text ms   image ms
dense        1000      512.2       1.50
sparse       1000      512.2       none (no image of sparse)
from text: 2 kernels in 1024 ms, median 512.25 ms, at most 512.25 ms
from images: 1 kernels in 2 ms, median 1.50 ms, at most 1.50 ms";
        assert_eq!(table(&firsts, "GPU", Some(Path::new("images"))), expected);
        assert_eq!(json(&firsts[1], "GPU")["no_image"], "no image of sparse");
        assert!(table(&[first("dense", None)], "GPU", None).ends_with("at most 512.25 ms"));
    }

    #[test]
    fn the_kernels_are_those_that_the_device_runs() {
        let device = Device::emulator();
        let carried = kernels(&device, false).expect("texts");
        assert!(!carried.is_empty() && carried.iter().all(|kernel| kernel.meta.arch == device.arch()));
        assert!(kernels(&device, true).expect("texts").len() > carried.len());
    }
}
