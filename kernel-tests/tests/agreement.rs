//! The embedded backend against real hardware: the same seeded launches agree bit for bit where a kernel selects, counts,
//! draws or copies, and to rounding where it computes.
//!
//! Those named `gpu_` need a GPU: without one they say so and do nothing, or fail under `REQUIRE_GPU=1`.

// Helpers too fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use kernel_core::Device;
use kernel_tests::testing::{
    self,
    scenes::{self, Scene},
};
use ptx::{
    Arch,
    kernels::{attention::Pattern, index::MergeRule},
};

const PATTERNS: [Pattern; 5] =
    [Pattern::Dense, Pattern::AShape, Pattern::TriShape, Pattern::VerticalSlash, Pattern::BlockSparse];

fn index(seed: u64) -> Vec<Scene> {
    let merged = [MergeRule::Original, MergeRule::Extended].map(|rule| scenes::merged_ranges(rule, seed));
    let native = [
        scenes::vertical_slash(seed),
        scenes::key_means(seed),
        scenes::block_sparse(seed),
        scenes::pattern_choice(seed),
    ];
    native.into_iter().chain(merged).collect()
}

fn estimate(seed: u64) -> Vec<Scene> {
    vec![
        scenes::estimate_statistics(seed),
        scenes::estimate_scores(seed).unwrap(),
        scenes::antidiagonal_sums(seed),
        scenes::antidiagonal_select(seed),
    ]
}

fn sampling(seed: u64) -> Vec<Scene> {
    let (changed, credits) = (scenes::changed_rows(seed), scenes::credits(seed));
    vec![scenes::rows(seed), scenes::draws(seed), changed, credits, scenes::selection(seed)]
}

fn moves(seed: u64) -> Vec<Scene> {
    vec![scenes::gather(seed), scenes::scatter(seed), scenes::embed(seed), scenes::head_rows(seed)]
}

fn model(seed: u64) -> Vec<Scene> {
    let products = [false, true].map(|gated| scenes::linear(gated, seed));
    products.into_iter().chain([scenes::rms_norm(seed), scenes::rope(seed), scenes::swiglu(seed)]).collect()
}

fn attention(seed: u64) -> Vec<Scene> {
    let on = |arch: Arch| {
        let causal = PATTERNS.into_iter().map(move |pattern| scenes::attention(pattern, arch, seed));
        causal.chain([scenes::dense_full(arch, seed)])
    };
    on(Arch::Sm80).chain(on(Arch::Sm90a)).collect()
}

fn paged(seed: u64) -> Vec<Scene> {
    let on = |arch: Arch| PATTERNS.into_iter().map(move |pattern| scenes::paged(pattern, arch, seed));
    on(Arch::Sm80).chain(on(Arch::Sm90a)).collect()
}

fn decode(seed: u64) -> Vec<Scene> {
    let patterns = [Pattern::Dense, Pattern::BlockSparse];
    let parts = |arch: Arch| patterns.map(|pattern| scenes::attention_parts(pattern, arch, seed));
    parts(Arch::Sm80).into_iter().chain(parts(Arch::Sm90a)).chain([scenes::merge(seed)]).collect()
}

/// Runs a scene and checks it against its reference.
fn run(scene: &Scene, device: &Device) -> testing::launch::Outcome {
    let what = format!("{} on {}", scene.launch.kernel.meta.entry, device.name());
    let outcome = scene.launch.run(device).unwrap_or_else(|error| panic!("{what}: {error}"));
    scene.check(&outcome).unwrap().unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
    outcome
}

fn agree(scenes: impl Fn(u64) -> Vec<Scene>, default: u64) {
    let seed = testing::seed(default);
    println!("seed {seed}");
    let Some(gpu) = testing::gpu() else { return };
    for scene in scenes(seed).iter().filter(|scene| gpu.runs().contains(&scene.launch.kernel.meta.arch)) {
        let (on_gpu, emulated) = (run(scene, &gpu), run(scene, &Device::emulator()));
        let verdict = scene.agree(&on_gpu, &emulated).unwrap();
        verdict.unwrap_or_else(|wrong| panic!("{}, GPU against emulator: {wrong}", scene.launch.kernel.meta.entry));
    }
}

#[test]
fn every_scene_equals_its_reference_without_a_gpu() {
    let seed = testing::seed(80);
    println!("seed {seed}");
    let device = Device::emulator();
    for family in [index, estimate, sampling, moves, model, attention, paged, decode] {
        family(seed).iter().for_each(|scene| drop(run(scene, &device)));
    }
}

#[test]
fn a_difference_between_devices_is_seen() {
    // The launch of another seed stands for a device that computes something else.
    for (one, other) in index(1).iter().zip(index(2)).chain(attention(1).iter().zip(attention(2))) {
        let (a, b) = (run(one, &Device::emulator()), run(&other, &Device::emulator()));
        assert!(one.agree(&a, &a).unwrap().is_ok());
        assert!(one.agree(&a, &b).unwrap().is_err(), "{}", one.launch.kernel.meta.entry);
    }
}

#[test]
fn gpu_small_indices_agree_bit_for_bit() {
    agree(index, 81);
}

#[test]
fn gpu_small_estimates_agree() {
    agree(estimate, 82);
}

#[test]
fn gpu_small_draws_and_selections_agree() {
    agree(sampling, 83);
}

#[test]
fn gpu_small_rows_are_moved_alike() {
    agree(moves, 84);
}

#[test]
fn gpu_small_model_kernels_agree() {
    agree(model, 85);
}

#[test]
fn gpu_small_attention_agrees() {
    agree(attention, 86);
}

#[test]
fn gpu_small_attention_over_pages_agrees() {
    agree(paged, 87);
}

#[test]
fn gpu_small_decoding_agrees() {
    agree(decode, 88);
}

#[test]
fn gpu_agreement_holds_for_many_seeds() {
    for seed in 100..110 {
        for family in [index, estimate, sampling, moves, model, attention, paged, decode] {
            agree(family, seed);
        }
    }
}
