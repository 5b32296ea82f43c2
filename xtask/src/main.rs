//! Developer commands: `cargo xtask …`. Depends on none of our crates, so that it builds while they do not.
mod bundle;
mod ptxas;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use workspace::Workspace;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The ptxas gate, then every test of the workspace
    Test(test::Options),
    /// Assemble every kernel with several ptxas releases; fail on an error, a spill or a performance warning
    Ptxas(ptxas::Options),
    /// Pack what another machine (a GPU, no Rust) needs to test and measure into `bundle/`
    Bundle,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = || {
        let workspace = Workspace::find()?;
        match arguments.command {
            Command::Test(options) => test::run(&workspace, &options),
            Command::Ptxas(options) => ptxas::run(&workspace, &options),
            Command::Bundle => bundle::run(&workspace),
        }
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `NAME=1` turns what would be a loud skip into a failure.
fn required(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| value == "1")
}
