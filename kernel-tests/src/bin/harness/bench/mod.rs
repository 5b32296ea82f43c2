//! `harness bench`: device time of the standard cases, in one table with the peers'; first loads are in [`load`].

mod attention;
mod decode;
mod index;
mod layer;
mod linear;
mod load;
mod sampling;
mod step;
mod table;

use crate::{Outcome, Result, session};

/// What is measured.
#[derive(clap::Subcommand)]
pub(crate) enum Subject {
    /// Attention kernels on the standard workloads
    Attention(attention::Options),
    /// Attention of decoding: a block of queries over a long prefix
    Decode(decode::Options),
    /// Plans alone: the index of a layer from its queries and keys
    Index(index::Options),
    /// Plan and attention of a layer, beside dense attention
    Layer(layer::Options),
    /// Products of few rows and a model's weights, beside cuBLASLt
    Linear(linear::Options),
    /// Sampling of masked positions: the row kernel and the selection
    Sampling(sampling::Options),
    /// A decoding step of a 7B model with random weights
    Step(step::Options),
    /// First load of each kernel, from its text and from an image
    Load(load::Options),
}

pub(crate) fn run(subject: &Subject, session: &session::Options) -> Result<Outcome> {
    match subject {
        Subject::Attention(options) => attention::run(options, session),
        Subject::Decode(options) => decode::run(options, session),
        Subject::Index(options) => index::run(options, session),
        Subject::Layer(options) => layer::run(options, session),
        Subject::Linear(options) => linear::run(options, session),
        Subject::Sampling(options) => sampling::run(options, session),
        Subject::Step(options) => step::run(options, session),
        Subject::Load(options) => load::run(options),
    }
}
