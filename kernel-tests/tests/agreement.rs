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

const ARCHITECTURES: [Arch; 2] = [Arch::Sm80, Arch::Sm90a];

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
    let on = |arch| {
        [
            scenes::estimate_statistics(arch, seed),
            scenes::estimate_scores(arch, seed).unwrap(),
            scenes::antidiagonal_sums(arch, seed),
        ]
    };
    ARCHITECTURES.into_iter().flat_map(on).chain([scenes::antidiagonal_select(seed)]).collect()
}

fn sampling(seed: u64) -> Vec<Scene> {
    let selections = ARCHITECTURES.map(|arch| scenes::selection(arch, seed));
    let rows = [
        scenes::rows(Arch::Sm80, seed),
        scenes::rows(Arch::Sm90a, seed),
        scenes::cold_rows(Arch::Sm80, seed),
        scenes::cold_rows(Arch::Sm90a, seed),
        scenes::crowded_rows(seed),
        scenes::draws(seed),
        scenes::changed_rows(seed),
        scenes::credits(seed),
    ];
    let rows = rows.into_iter().chain([scenes::merged_rows(seed).unwrap()]);
    rows.chain(selections).collect()
}

fn moves(seed: u64) -> Vec<Scene> {
    ARCHITECTURES.into_iter().flat_map(|arch| moves_on(arch, seed)).collect()
}

fn moves_on(arch: Arch, seed: u64) -> [Scene; 4] {
    let of = [scenes::gather, scenes::scatter, scenes::embed, scenes::head_rows];
    of.map(|scene| scene(arch, seed))
}

fn model(seed: u64) -> Vec<Scene> {
    ARCHITECTURES.into_iter().flat_map(|arch| model_on(arch, seed)).collect()
}

fn model_on(arch: Arch, seed: u64) -> Vec<Scene> {
    let products = [false, true].map(|gated| scenes::linear(gated, arch, seed));
    let around = [scenes::rms_norm, scenes::rope, scenes::swiglu].map(|scene| scene(arch, seed));
    products.into_iter().chain(around).collect()
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
    [Arch::Sm80, Arch::Sm90a]
        .into_iter()
        .flat_map(|arch| parts(arch).into_iter().chain([scenes::merge(arch, seed)]))
        .collect()
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
fn a_kernel_that_starts_early_computes_the_same_bits() {
    let seed = testing::seed(89);
    println!("seed {seed}");
    let of = |arch: Arch| {
        let scenes = moves_on(arch, seed).into_iter().chain(model_on(arch, seed));
        scenes.chain([scenes::selection(arch, seed)]).collect::<Vec<_>>()
    };
    let [late, early] = ARCHITECTURES.map(of);
    for device in testing::devices() {
        for (late, early) in late.iter().zip(&early) {
            let what = &early.launch.kernel.meta.entry;
            assert!(early.launch.kernel.meta.programmatic && !late.launch.kernel.meta.programmatic, "{what}");
            if !device.runs().contains(&Arch::Sm90a) {
                continue;
            }
            let (one, other) = (run(late, &device), run(early, &device));
            for (name, _) in &early.outputs {
                assert_eq!(one.read::<u8>(name).unwrap(), other.read::<u8>(name).unwrap(), "{what}, {name}");
            }
        }
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
