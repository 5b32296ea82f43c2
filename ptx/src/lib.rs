//! PTX as data: a typed builder, a tile vocabulary and the kernel generators.
//!
//! The crate is pure: no I/O, no GPU, no `unsafe`, no dependency. Three rooms, each using only the one before it:
//!
//! | room | what it holds |
//! |---|---|
//! | [`isa`] | registers, operands and one method an instruction; the printer |
//! | [`tile`] | what kernels are written in: swizzled layouts, fragments, pipelines, softmax, Philox |
//! | [`kernels`] | a spec beside its generator for every kernel |
//!
//! Beside them, [`image`] names the files of kernels that were assembled ahead of time.
//!
//! [`generate`] is the one door: the same spec gives the same text, byte for byte, whether a macro calls it at compile
//! time or an engine at run time.
#![forbid(unsafe_code)]

pub mod image;
pub mod isa;
pub mod kernels;
pub mod tile;

pub use isa::Arch;
pub use kernels::{
    KernelSpec,
    error::{SpecError, SpecErrors},
    generate, generate_all,
    meta::{BoxShape, Kernel, KernelMeta, Parameter, ParameterKind},
};
