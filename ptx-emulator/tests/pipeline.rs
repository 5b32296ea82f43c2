//! Warp-specialised kernels: producers and consumers, and what the sanitizer says when one synchronisation is missing.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::pipeline::{replace, run, source};

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

#[test]
fn explore() {
    let text = source(6);
    let mut names: Vec<&str> = text.lines().filter_map(|l| l.split_once("//").map(|(_, n)| n)).collect();
    names.sort(); names.dedup();
    for name in names {
        if name.contains("Warpgroup 1") || name.contains("O in") { continue; }
        let mutant = replace(&text, name, "");
        for seed in 0..4 {
            let result = std::panic::catch_unwind(|| run(&mutant, 6, seed));
            match result {
                Err(_) => println!("## {name} {seed}: WRONG"),
                Ok(Ok(())) => println!("## {name} {seed}: passed"),
                Ok(Err(e)) => println!("## {name} {seed}: {}", e.to_string().lines().take(2).map(|l| l.trim().chars().take(230).collect::<String>()).collect::<Vec<_>>().join(" | ")),
            }
        }
    }
}
