//! The standard cases as prepared launches, with the work that each one counts.

mod attention;
mod decode;
mod index;
mod layer;
mod linear;
mod sampling;
mod step;

pub use attention::{Case, Prepared, Work, cases};
pub use decode::{DecodeCase, DeviceCopy, PreparedDecode, decode_cases};
pub use index::{IndexCase, PreparedIndex, index_cases};
pub use layer::{LayerCase, PreparedLayer, layer_cases};
pub use linear::{LinearCase, PreparedLinear, linear_cases};
pub use sampling::{PreparedSampling, SamplingCase, sampling_cases};
pub use step::{PreparedStep, StepCase, dream_7b, random_model, step_cases, weight_bytes};

/// The heads of a case, as its name says them.
fn heads_text(heads: usize, kv_heads: usize) -> String {
    if heads == kv_heads { format!("{heads} heads") } else { format!("{heads}/{kv_heads} heads") }
}
