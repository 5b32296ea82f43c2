//! Warp-specialised kernels: producers and consumers, and what the sanitizer says when one synchronisation is missing.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::kind;
use common::pipeline::{launch_on, module, replace, run, source, stage};
use proptest::prelude::*;
use ptx_emulator::ReportKind;

#[test]
fn a_producer_and_two_consumers_agree() {
    for tiles in [1, 2, 3, 6] {
        for seed in 0..6 {
            if let Err(error) = run(&source(tiles), tiles, seed) {
                panic!("{tiles} tiles, seed {seed}: {error}");
            }
        }
    }
}

/// The report without (or with another line for) a synchronisation, the same kind whatever the schedule.
fn mutant(name: &str, by: &str, expected: ReportKind) {
    let mutant = replace(&source(6), name, by);
    for seed in 0..4 {
        assert_eq!(kind(run(&mutant, 6, seed)), expected, "seed {seed}, without `{name}`");
    }
}

#[test]
fn every_removed_synchronisation_is_caught() {
    mutant("mbarrier fence", "", ReportKind::Mbarrier);
    mutant("block barrier", "", ReportKind::Mbarrier);
    mutant("q expect", "", ReportKind::Deadlock);
    mutant("q full", "", ReportKind::AsyncRead);
    for tile in ["k", "v"] {
        mutant(&format!("{tile} full"), "", ReportKind::AsyncRead);
        mutant(&format!("{tile} empty"), "", ReportKind::Mbarrier);
        mutant(&format!("{tile} expect"), "", ReportKind::Deadlock);
        mutant(&format!("{tile} release"), "", ReportKind::Deadlock);
    }
    for product in ["score", "value"] {
        mutant(&format!("{product} fence"), "", ReportKind::MatrixFence);
        mutant(&format!("{product} commit"), "", ReportKind::MatrixRegister);
        mutant(&format!("{product} wait"), "", ReportKind::MatrixRegister);
    }
    mutant("first wait", "", ReportKind::MatrixRegister);
    mutant("last wait", "", ReportKind::MatrixRegister);
    mutant("first turn", "", ReportKind::Deadlock);
    mutant("next turn", "", ReportKind::Deadlock);
    mutant("epilogue barrier", "", ReportKind::SharedRace);
    // Without turns the warpgroups only get in each other's way.
    run(&replace(&source(6), "turn", ""), 6, 1).unwrap();
}

#[test]
fn a_stage_released_too_early_is_caught() {
    let text = source(6);
    let release = text.lines().find(|line| line.ends_with("//v release")).unwrap();
    // The release of V moves from behind the wait to before it.
    let early = format!("{}{release}\nwgmma.wait_group.sync.aligned 0;", stage(1).replace('\n', ""));
    let text = replace(&replace(&text, "v release", ""), "value wait", &early);
    for seed in 0..4 {
        let found = kind(run(&text, 6, seed));
        assert!(matches!(found, ReportKind::AsyncRead | ReportKind::SharedRace), "{found:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Statements and operands cut, doubled and exchanged: a report, a wrong result or a right one, but no panic.
    #[test]
    fn mutated_kernels_never_panic(
        edits in prop::collection::vec((0usize..3, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..4),
        operands: bool,
    ) {
        let text = source(3);
        let mut pieces: Vec<&str> =
            text.split_inclusive(|c: char| c == ';' || (operands && (c.is_whitespace() || ",[]+".contains(c)))).collect();
        for (kind, at, other) in edits {
            let (at, other) = (at.index(pieces.len()), other.index(pieces.len()));
            match kind {
                0 => pieces[at] = "",
                1 => pieces.swap(at, other),
                _ => pieces[at] = pieces[other],
            }
        }
        if let Ok(module) = module(&pieces.concat()) {
            let _ = launch_on(&module, 3, 1, 1 << 16);
        }
    }
}
