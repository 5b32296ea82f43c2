//! Developer commands: `cargo xtask …`. Depends on none of our crates, so that it builds while they do not.
mod bundle;
// The names and seals of images must be the same where they are written and where they are read. The file uses nothing
// of its crate, so that this one still builds while that does not.
#[path = "../../ptx/src/image.rs"]
#[allow(unreachable_pub, reason = "written as a part of the crate `ptx`")]
mod image;
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
    /// Assemble kernels ahead of time, for programs to load instead of compiling texts (`LACUNA_IMAGES=DIR`)
    Images(ptxas::images::Options),
    /// Pack what another machine (a GPU, no Rust) needs to test and measure into `bundle/`
    Bundle(bundle::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = || {
        let workspace = Workspace::find()?;
        match arguments.command {
            Command::Test(options) => test::run(&workspace, &options),
            Command::Ptxas(options) => ptxas::run(&workspace, &options),
            Command::Images(options) => ptxas::images::run(&workspace, &options),
            Command::Bundle(options) => bundle::run(&workspace, &options),
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
