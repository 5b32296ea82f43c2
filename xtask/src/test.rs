//! `cargo xtask test`: the one command that tests everything.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::workspace::{Workspace, answers, stream};
use crate::{Result, ptxas};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also the cases that the suites leave out by default (sets LACUNA_FULL=1)
    #[arg(long)]
    full: bool,
}

struct Step {
    name: &'static str,
    outcome: &'static str,
    took: Duration,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let tests = |arguments: &[&str]| {
        let mut command = workspace.cargo(arguments);
        if options.full {
            command.env("LACUNA_FULL", "1");
        }
        command
    };
    let nextest = answers(Command::new("cargo-nextest").args(["nextest", "--version"]));

    // All is built before anything runs: what does not compile is said once.
    let build: &[&str] = if nextest { &["nextest", "run", "--no-run"] } else { &["test", "--no-run"] };
    stream(tests(build).args(["--release", "--workspace"]))?;

    // Every step runs, whatever became of the one before it.
    let mut steps =
        vec![timed("ptxas gate", || Ok(if ptxas::run_if_found(workspace)? { "passed" } else { "DID NOT RUN" }))];
    if nextest {
        steps.push(timed("doctests", || {
            stream(&mut tests(&["test", "--release", "--workspace", "--doc", "--no-fail-fast"]))?;
            Ok("passed")
        }));
        steps.push(timed("tests", || {
            stream(&mut tests(&["nextest", "run", "--release", "--workspace", "--no-fail-fast"]))?;
            Ok("passed")
        }));
    } else {
        steps.push(timed("tests", || {
            stream(&mut tests(&["test", "--release", "--workspace", "--no-fail-fast"]))?;
            Ok("passed")
        }));
    }

    for step in &steps {
        eprintln!("{:10}  {:11}  {:6.1} s", step.name, step.outcome, step.took.as_secs_f64());
    }
    let failed: Vec<_> = steps.iter().filter(|step| step.outcome == FAILED).map(|step| step.name).collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
}

const FAILED: &str = "FAILED";

fn timed(name: &'static str, step: impl FnOnce() -> Result<&'static str>) -> Step {
    let start = Instant::now();
    let outcome = step().unwrap_or_else(|error| {
        eprintln!("{name}: {error}");
        FAILED
    });
    Step { name, outcome, took: start.elapsed() }
}
