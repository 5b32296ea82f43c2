//! Mutants of generated kernels: each has one seeded mistake in its text, and each must be caught without a GPU, by the
//! sanitizer of the embedded backend or by the reference. The table is printed.

// Helpers too fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

mod attention;
mod early;
mod hopper;
mod index;
mod model;
mod mutation;
mod sampling;

use kernel_core::{Device, Error};
use kernel_tests::testing::{self, scenes::Scene};
use mutation::{
    Change::{Drop, Later, Swap},
    Mutation, in_section, mutation,
};
use std::{collections::BTreeSet, fmt::Write as _, io::Write as _};

/// Those of every kernel.
fn mutants(seed: u64) -> impl Iterator<Item = (Scene, Vec<Mutation>)> {
    let of_each =
        [attention::mutants, index::mutants, sampling::mutants, model::mutants, hopper::mutants, early::mutants];
    of_each.into_iter().flat_map(move |mutants| mutants(seed))
}

/// How a mutant was caught; `Err` if it was not.
fn caught(scene: &Scene, text: &str) -> Result<String, String> {
    match scene.launch.run_text(&Device::emulator(), text) {
        Err(Error::Emulator { report, .. }) if report.starts_with("PTX line") => {
            Err(format!("does not even parse, which shows nothing: {report}"))
        }
        Err(Error::Emulator { report, .. }) => Ok(format!("sanitizer: {}", report.split(':').next().unwrap())),
        Err(error) => Err(format!("could not be launched: {error}")),
        Ok(outcome) => match scene.check(&outcome).unwrap() {
            Ok(()) => Err("SURVIVED".into()),
            Err(wrong) => Ok(format!("reference: {wrong}")),
        },
    }
}

#[test]
fn every_mutant_is_caught() {
    let seed = testing::seed(90);
    let mut table = format!("\nmutants, seed {seed}\n");
    let (mut kinds, mut by_reference, mut count, mut survivors) = (BTreeSet::new(), 0, 0, Vec::new());
    for (scene, mutations) in mutants(seed) {
        let kernel = &scene.launch.kernel;
        let entry = &kernel.meta.entry;
        let original = scene.launch.run(&Device::emulator()).unwrap_or_else(|error| panic!("{entry}: {error}"));
        scene.check(&original).unwrap().unwrap_or_else(|wrong| panic!("{entry} itself fails: {wrong}"));
        writeln!(table, "  {entry}").unwrap();
        for mutation in mutations {
            let verdict = mutation.apply(&kernel.text).and_then(|text| caught(&scene, &text));
            let (Ok(line) | Err(line)) = &verdict;
            writeln!(table, "    {:<48} {line:.120}", mutation.what).unwrap();
            count += 1;
            match &verdict {
                Ok(line) if line.starts_with("sanitizer") => drop(kinds.insert(line.clone())),
                Ok(_) => by_reference += 1,
                Err(line) => survivors.push(format!("{entry}: {}: {line}", mutation.what)),
            }
        }
    }
    writeln!(table, "  {count} mutants, {} survivors; {by_reference} caught by the reference", survivors.len())
        .unwrap();
    // Past the capture of the test harness: the list belongs to the output.
    std::io::stdout().write_all(table.as_bytes()).unwrap();
    assert!(survivors.is_empty(), "not caught:\n{}", survivors.join("\n"));
    assert!(count >= 80 && by_reference >= 10 && kinds.len() >= 4, "{count} mutants, {kinds:?}");
}

#[test]
fn a_mistake_that_fits_nowhere_is_an_error() {
    let text = "{\n    bar.sync 0;\n    ret;\n}\n";
    let apply = |mutation: Mutation| mutation.apply(text);
    assert_eq!(apply(mutation("", "bar.sync", 0, Drop)).unwrap(), "{\n    ret;\n}\n");
    assert_eq!(apply(mutation("", "bar.sync", 0, Later)).unwrap(), "{\n    ret;\n    bar.sync 0;\n}\n");
    assert!(apply(mutation("", "bar.sync", 1, Drop)).is_err());
    assert!(apply(in_section("// columns", "", "bar.sync", 0, Drop)).is_err());
    assert!(apply(mutation("", "bar.sync", 0, Swap("wait", "arrive"))).is_err());
    assert!(apply(mutation("", "bar.sync", 0, Swap("0", "0"))).is_err());
}
