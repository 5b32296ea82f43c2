//! What is right: attention in double precision, the token mask of every pattern, masked-token decoding, and the
//! measure of error.

pub mod attention;
pub mod error;
pub mod feed;
pub mod index;
pub mod mask;
pub mod merged_ranges;
pub mod sampling;
pub mod transformer;

pub use attention::{Problem, attention, plain};
pub use error::{assert_close, relative_error};
pub use mask::Mask;
