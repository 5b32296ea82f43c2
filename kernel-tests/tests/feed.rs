//! What a pass feeds against its definition: every policy, steps and refreshes, wild tokens, pages and list entries.

// Helpers too fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use kernel_tests::testing::{
    self,
    scenes::{self, Scene},
};

fn check(scene: fn(u64) -> Scene) {
    let first = testing::seed(50);
    for device in testing::devices() {
        for seed in first..first + 60 {
            let scene = scene(seed);
            let outcome = scene.launch.run(&device).unwrap();
            if let Err(wrong) = scene.check(&outcome).unwrap() {
                panic!("seed {seed}: {wrong}");
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
