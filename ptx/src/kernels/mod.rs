//! The kernels: each spec beside its generator.

pub mod attention;
pub(crate) mod batch;
pub mod error;
pub mod feed;
pub mod index;
pub(crate) mod kv;
pub mod meta;
pub mod model;
pub mod sampling;

use error::{SpecError, SpecErrors};
use meta::Kernel;

/// The description of one kernel: everything known at compile time.
pub trait KernelSpec {
    /// Checks the description; every violation is reported, each naming its field and saying what is allowed.
    fn validate(&self) -> Result<(), SpecErrors>;

    /// The kernel for a description that [`KernelSpec::validate`] has accepted.
    fn build(&self) -> Kernel;
}

/// Generates the kernel that `spec` describes. The same spec gives the same text, byte for byte.
pub fn generate<S: KernelSpec>(spec: &S) -> Result<Kernel, SpecErrors> {
    spec.validate()?;
    Ok(spec.build())
}

/// The kernels of several descriptions, in their order. What is wrong with any of them is reported together, and once where
/// several share it.
pub fn generate_all<S: KernelSpec>(specs: &[S]) -> Result<Vec<Kernel>, SpecErrors> {
    let mut found: Vec<SpecError> = Vec::new();
    for error in specs.iter().filter_map(|spec| spec.validate().err()).flat_map(SpecErrors::into_iter) {
        if !found.contains(&error) {
            found.push(error);
        }
    }
    SpecErrors::check(found)?;
    Ok(specs.iter().map(KernelSpec::build).collect())
}
