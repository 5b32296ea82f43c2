//! The end-to-end harness.
//!
//! Exit status: 0 success, 1 a check failed, 2 the request cannot be carried out (bad arguments, missing files, no
//! device).

mod bench;
mod caches;
mod comparison;
mod demo;
mod eval;
mod generate;
mod inspect;
mod kernels;
mod layer;
mod output;
mod plot;
mod policy;
mod progress;
mod recall;
mod search;
mod session;
mod task;

use clap::{Parser, Subcommand, error::ErrorKind};
use session::Session;
use std::process::ExitCode;

/// Sparse prefill and masked-diffusion decoding, end to end. Without a command: demo.
#[derive(Parser)]
#[command(name = "harness", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    session: session::Options,
}

#[derive(Subcommand)]
enum Command {
    /// Prefill a long prompt densely and sparsely, and decode the answer to its question
    Demo(demo::Options),
    /// Held-out accuracy of dense and sparse prefill, and forward passes per response
    Eval(eval::Options),
    /// Decode prompts by any of the published rules, under any cache policy, into the form of a template
    Generate(generate::Options),
    /// Share of the true attention that each head's pattern keeps, and of the pairs that it visits
    Recall(recall::Options),
    /// Choose the pattern of each head by recall at equal density, and write patterns.json
    Search(search::Options),
    /// Draw a head's mask over its attention, or the order in which a response was decoded
    #[command(subcommand)]
    Plot(plot::Picture),
    /// Device time of the standard cases, and of loading kernels, on a GPU
    #[command(subcommand)]
    Bench(bench::Subject),
    /// List every instantiated kernel, or write their texts
    Kernels(kernels::Options),
}

/// What a subcommand found.
enum Outcome {
    Passed,
    /// A check failed.
    Failed,
}

/// Any failure, with one clear line.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    match arguments().and_then(|cli| cli.map_or(Ok(Outcome::Passed), run)) {
        Ok(Outcome::Passed) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// The command line; `None` where it asked for help or the version, which has been printed.
fn arguments() -> Result<Option<Cli>> {
    Cli::try_parse().map(Some).or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            error.print()?;
            Ok(None)
        }
        // One line: what is wrong and what is allowed, without the usage.
        _ => {
            let text = error.to_string();
            let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
            let lines: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
            Err(lines.join(" ").trim_start_matches("error: ").into())
        }
    })
}

fn run(cli: Cli) -> Result<Outcome> {
    let open = || Session::open(&cli.session);
    match cli.command.unwrap_or_else(|| Command::Demo(demo::Options::default())) {
        Command::Demo(options) => demo::run(&open()?, &options),
        Command::Eval(options) => eval::run(&open()?, &options),
        Command::Generate(options) => generate::run(&open()?, &options),
        Command::Recall(options) => recall::run(&open()?, &options),
        Command::Search(options) => search::run(&open()?, &options),
        Command::Plot(picture) => plot::run(&open()?, &picture),
        Command::Bench(subject) => bench::run(&subject, &cli.session),
        Command::Kernels(options) => kernels::run(&options),
    }
}
