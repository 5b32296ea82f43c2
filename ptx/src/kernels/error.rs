//! Why a spec cannot be generated.

use std::{borrow::Cow, error::Error, fmt};

/// One violation: the field of the spec that is wrong, and a sentence that says what was given and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// Field of the spec, as the macro spells it (`block`, `head_dim`, …).
    pub field: &'static str,
    /// What was given, what is allowed, what to do.
    pub message: Cow<'static, str>,
}

/// All violations of one spec, reported together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecErrors(Vec<SpecError>);

impl SpecErrors {
    /// `Ok` if nothing is wrong.
    pub fn check(errors: Vec<SpecError>) -> Result<(), SpecErrors> {
        if errors.is_empty() { Ok(()) } else { Err(SpecErrors(errors)) }
    }

    /// The violations, in the order of the spec's fields.
    pub fn iter(&self) -> impl Iterator<Item = &SpecError> {
        self.0.iter()
    }
}

impl IntoIterator for SpecErrors {
    type Item = SpecError;
    type IntoIter = std::vec::IntoIter<SpecError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl SpecError {
    /// A violation of `field`.
    pub fn new(field: &'static str, message: impl Into<Cow<'static, str>>) -> SpecError {
        SpecError { field, message: message.into() }
    }
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            write!(f, "{}`{}`: {}", if i == 0 { "" } else { "; " }, error.field, error.message)?;
        }
        Ok(())
    }
}

impl Error for SpecErrors {}
