//! What a pass feeds against its definition: every policy, steps and refreshes, wild tokens, pages and list entries.

// Helpers too fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use kernel_tests::testing::{
    self,
    scenes::{self, Scene},
};
use ptx::Arch;

fn check(scene: fn(Arch, u64) -> Scene) {
    let first = testing::seed(50);
    for device in testing::devices() {
        for seed in first..first + 60 {
            // In turn: every policy comes up with each.
            let arch = device.runs()[(seed / 6) as usize % device.runs().len()];
            let scene = scene(arch, seed);
            let outcome = scene.launch.run(&device).unwrap();
            if let Err(wrong) = scene.check(&outcome).unwrap() {
                panic!("seed {seed}, {arch:?}: {wrong}");
            }
        }
    }
}

#[test]
fn fed_rows_are_embedded_and_placed() {
    check(scenes::embed);
}

#[test]
fn listed_rows_reach_the_head() {
    check(scenes::head_rows);
}
