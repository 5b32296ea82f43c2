//! [`Error`]: what was given, what is needed, what to do.

use ptx::{Arch, SpecErrors};
use std::borrow::Cow;

/// Everything that can go wrong. Nothing has been launched or written when one is returned, unless it says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No CUDA driver on this machine.
    #[error("no NVIDIA driver: {reason}; install one, or run on the embedded backend")]
    DriverNotFound {
        /// What the dynamic loader said.
        reason: String,
    },
    /// The driver sees no such GPU.
    #[error("no GPU {ordinal}: the driver sees {count}; check CUDA_VISIBLE_DEVICES, or run on the embedded backend")]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// The devices there are.
        count: usize,
    },
    /// The GPU is older than every kernel.
    #[error("{name} has compute capability {major}.{minor}; the kernels need 8.0 or later")]
    DeviceTooOld {
        /// The GPU's name.
        name: String,
        /// Compute capability, first digit.
        major: i32,
        /// Compute capability, second digit.
        minor: i32,
    },
    /// A call into the driver failed.
    #[error("{call} failed with CUDA error {code}: {text}")]
    Driver {
        /// The driver function.
        call: &'static str,
        /// The `CUresult`.
        code: u32,
        /// The driver's words for it.
        text: String,
    },
    /// The driver could not compile a kernel's text.
    #[error(
        "the driver refused kernel {entry} (PTX {}.{}; this driver is for CUDA {}.{}): {log}",
        .isa.0, .isa.1, .driver / 1000, .driver % 1000 / 10
    )]
    Compile {
        /// Entry point.
        entry: String,
        /// PTX ISA version of the text.
        isa: (u8, u8),
        /// CUDA version of the driver, as `cuDriverGetVersion` gives it.
        driver: i32,
        /// The driver's log.
        log: String,
    },
    /// The kernel is for another GPU.
    #[error("kernel {entry} is for {}; {name} has compute capability {major}.{minor}: generate it for {}", .needs.target(), .has.target())]
    Architecture {
        /// Entry point.
        entry: String,
        /// What its text is for.
        needs: Arch,
        /// The GPU's name.
        name: String,
        /// Compute capability, first digit.
        major: i32,
        /// Compute capability, second digit.
        minor: i32,
        /// What the GPU runs.
        has: Arch,
    },
    /// The kernel's shared memory does not fit.
    #[error(
        "kernel {entry} needs {needed} bytes of shared memory a block; the device has {limit}: choose a smaller block"
    )]
    SharedMemory {
        /// Entry point.
        entry: String,
        /// What it needs.
        needed: u32,
        /// What there is.
        limit: u32,
    },
    /// The embedded backend stopped a kernel or refused an access.
    #[error("embedded backend, {what}: {report}")]
    Emulator {
        /// The kernel or the operation.
        what: String,
        /// Its report.
        report: String,
    },
    /// Device memory could not be allocated.
    #[error("cannot allocate {bytes} bytes of device memory: {reason}")]
    Allocation {
        /// Bytes asked for.
        bytes: usize,
        /// Why not.
        reason: String,
    },
    /// Something of one device was used with another.
    #[error("the {what} belongs to another device than the stream; use one device for both")]
    ForeignDevice {
        /// What does not belong.
        what: &'static str,
    },
    /// A kernel argument is missing, set twice, unknown or of the wrong kind.
    #[error("kernel {entry}, parameter `{parameter}`: {message}")]
    Argument {
        /// Entry point.
        entry: String,
        /// Parameter.
        parameter: String,
        /// What is wrong with it.
        message: String,
    },
    /// The grid is larger than CUDA allows.
    #[error("kernel {entry}: grid {grid:?} exceeds [2147483647, 65535, 65535]; split the batch or the heads")]
    Grid {
        /// Entry point.
        entry: String,
        /// Blocks along x, y, z.
        grid: [u32; 3],
    },
    /// An access past the end of a buffer.
    #[error("{what} needs {needed} bytes; the buffer has {available}")]
    OutOfBounds {
        /// The access.
        what: String,
        /// Bytes it reaches to.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// Not possible while a graph is being captured, or no capture to end.
    #[error("{what} during the capture of a graph; {instead}")]
    Capture {
        /// What was tried.
        what: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// A tensor that does not fit the call.
    #[error("tensor {tensor}: {message}")]
    Tensor {
        /// Which one.
        tensor: Cow<'static, str>,
        /// What is wrong with it, and what is needed.
        message: String,
    },
    /// A setting that does not fit the others.
    #[error("{setting}: {message}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What is wrong with it, and what is needed.
        message: String,
    },
    /// The index is none for this kernel.
    #[error("index: {message}")]
    Index {
        /// What is wrong with it, and what is needed.
        message: String,
    },
    /// The workspace is too small.
    #[error("the workspace has {given} bytes and needs {needed} for these bounds; ask `workspace_bytes`")]
    Workspace {
        /// Bytes given.
        given: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// A file of per-head patterns that does not follow the schema.
    #[error("pattern file, layer {layer}, head {head}: {message}")]
    Pattern {
        /// Layer, from 0.
        layer: usize,
        /// Query head as the file writes it, or "all".
        head: String,
        /// What is wrong there, and what is allowed.
        message: String,
    },
    /// Heads whose kernel is generated for `sm_80` alone.
    #[error("{pattern} heads have no kernel for {}: {errors}; change that, or allow the fallback to sm_80", .arch.target())]
    NeedsFallback {
        /// Their pattern.
        pattern: &'static str,
        /// The architecture asked for, or the device's own.
        arch: Arch,
        /// What that architecture does not have.
        errors: SpecErrors,
    },
    /// A kernel specification that cannot be generated.
    #[error("kernel specification: {0}")]
    Spec(#[from] SpecErrors),
}

/// Devices, kernels and errors go from thread to thread.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Error>();
    shared::<crate::Device>();
    shared::<crate::Buffer>();
    shared::<crate::Stream>();
    shared::<crate::LoadedKernel>();
    shared::<crate::Graph>();
};
