//! A model on a device.

use crate::{Result, policy};
use kernel_core::{Device, Error, HeadPatterns, Stream};
use kernel_tests::model::{Config, Folder, Transformer};
use ptx::Arch;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where kernels run; `auto` takes CUDA if there is a GPU, else the emulator
    #[arg(long, value_enum, default_value_t = Choice::Auto, global = true)]
    device: Choice,
    /// Model folder: config.json, model.safetensors, tokenizer.json, patterns.json
    #[arg(long, value_name = "DIR", default_value = "models/records", global = true)]
    model: PathBuf,
    /// Architecture of the attention kernels; the device's best without it
    #[arg(long, value_enum, global = true)]
    arch: Option<Target>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Target {
    #[value(name = "sm_80")]
    Sm80,
    #[value(name = "sm_90a")]
    Sm90a,
}

impl Options {
    /// The architecture asked for, or the best that `device` runs.
    pub(crate) fn arch(&self, device: &Device) -> Arch {
        match self.arch {
            Some(Target::Sm80) => Arch::Sm80,
            Some(Target::Sm90a) => Arch::Sm90a,
            None => device.arch(),
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Choice {
    Auto,
    Cuda,
    Emulator,
}

/// A loaded model and where it runs.
pub(crate) struct Session {
    pub(crate) folder: PathBuf,
    pub(crate) device: Device,
    /// The device in words, and why it is not a GPU.
    pub(crate) device_text: String,
    pub(crate) stream: Stream,
    /// Of the attention kernels.
    pub(crate) arch: Arch,
    pub(crate) config: Config,
    pub(crate) transformer: Transformer,
}

impl Session {
    /// Checks the folder as a whole, then opens the device and loads the model.
    pub(crate) fn open(options: &Options) -> Result<Session> {
        let folder = find(&options.model)?;
        let Folder { config, weights, .. } = Folder::load(&folder)?;
        let (device, device_text) = open(options.device)?;
        let stream = Stream::new(&device)?;
        let arch = options.arch(&device);
        let transformer = Transformer::new(&stream, &config, &weights, arch)?;
        Ok(Session { folder, device, device_text, stream, arch, config, transformer })
    }

    /// The pattern of every head, from `patterns.json`.
    pub(crate) fn patterns(&self) -> Result<HeadPatterns> {
        policy::read(self, &self.folder.join("patterns.json"), "`harness search` writes it")
    }

    /// Device and attention kernels in a line.
    pub(crate) fn device_line(&self) -> String {
        format!("{}, {} attention kernels", self.device_text, self.arch.target())
    }

    /// The model in a line.
    pub(crate) fn model_text(&self) -> String {
        let Config { layers, hidden, heads, kv_heads, head_dim, .. } = self.config;
        format!(
            "{}: {layers} layers of width {hidden}, {heads} query and {kv_heads} KV heads of {head_dim}",
            self.folder.display()
        )
    }
}

fn open(choice: Choice) -> Result<(Device, String)> {
    let cuda = || {
        let device = Device::cuda(0)?;
        let text = format!("{} (CUDA)", device.name());
        Ok((device, text))
    };
    match choice {
        Choice::Emulator => Ok((Device::emulator(), "emulator".into())),
        Choice::Cuda => cuda().map_err(|error: Error| error.into()),
        Choice::Auto => Ok(cuda().unwrap_or_else(|error| {
            // What the loader tried is of interest to those who asked for CUDA.
            let reason = match error {
                Error::DriverNotFound { .. } => "there is no NVIDIA driver".into(),
                other => other.to_string(),
            };
            (Device::emulator(), format!("emulator, since {reason}"))
        })),
    }
}

/// The folder as given, or else as seen from where the harness was built.
fn find(given: &Path) -> Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let candidates = [given.to_path_buf(), built.join("..").join(given)];
    candidates.iter().find(|folder| folder.is_dir()).cloned().ok_or_else(|| {
        format!("there is no model folder {}; give one that exists with --model DIR", given.display()).into()
    })
}
