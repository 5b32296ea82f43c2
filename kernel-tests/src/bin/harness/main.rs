//! The end-to-end harness.
//!
//! Exit status: 0 success, 1 a check failed, 2 the request cannot be carried out (bad arguments, missing files, no
//! device).

mod kernels;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Sparse prefill and masked-diffusion decoding, end to end.
#[derive(Parser)]
#[command(name = "harness", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List every instantiated kernel, or write their texts
    Kernels(kernels::Options),
}

/// What a subcommand found: whether its checks passed.
enum Outcome {
    Passed,
}

/// Any failure, with one clear line.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Kernels(options) => kernels::run(&options),
    };
    match result {
        Ok(Outcome::Passed) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
