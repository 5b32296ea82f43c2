//! Where tests run: on the embedded backend everywhere, and by the same code on the GPU where there is one.

pub mod launch;
pub mod rules;
pub mod scenes;

use kernel_core::{Device, Error};
use ptx::Arch;
use std::{env, io::Write, sync::OnceLock};

/// The devices a test runs on. `TEST_DEVICES` narrows them to `emulator` or `cuda`.
///
/// Without a GPU only the embedded backend is left, which is said loudly; `REQUIRE_GPU=1` makes it a failure.
pub fn devices() -> Vec<Device> {
    let wanted = wanted();
    let mut devices = Vec::new();
    if matches!(wanted.as_str(), "all" | "emulator") {
        devices.push(Device::emulator());
    }
    devices.extend(gpu());
    assert!(!devices.is_empty(), "TEST_DEVICES must be `emulator`, `cuda` or `all`, found `{wanted}`");
    devices
}

/// The devices, each with every architecture whose text it runs.
pub fn targets() -> Vec<(Device, Arch)> {
    let each = |device: Device| device.runs().iter().map(move |&arch| (device.clone(), arch));
    devices().into_iter().flat_map(each).collect()
}

/// The GPU, for a test that needs one; `None` where there is none, which is said loudly, or where `TEST_DEVICES` is
/// `emulator`. `REQUIRE_GPU=1` makes absence a failure.
pub fn gpu() -> Option<Device> {
    static CUDA: OnceLock<Result<Device, Error>> = OnceLock::new();
    let wanted = wanted();
    if !matches!(wanted.as_str(), "all" | "cuda") {
        return None;
    }
    match CUDA.get_or_init(|| Device::cuda(0)) {
        Ok(device) => Some(device.clone()),
        Err(error) => {
            let required = wanted == "cuda" || env::var("REQUIRE_GPU").is_ok_and(|v| v == "1");
            assert!(!required, "a GPU is required and there is none: {error}");
            static SAID: OnceLock<()> = OnceLock::new();
            // Past the capture of the test harness, which hides what passing tests print.
            SAID.get_or_init(|| drop(writeln!(std::io::stderr(), "NOT RUN ON A GPU: {error}")));
            None
        }
    }
}

fn wanted() -> String {
    env::var("TEST_DEVICES").unwrap_or_else(|_| "all".into())
}

/// Whether the long versions of the tests are asked for (`cargo xtask test --full`).
pub fn full() -> bool {
    env::var("LACUNA_FULL").is_ok_and(|v| v == "1")
}

/// The seed of a test's random inputs: `TEST_SEED`, or `default`. Tests print it.
pub fn seed(default: u64) -> u64 {
    match env::var("TEST_SEED") {
        Ok(text) => text.parse().expect("TEST_SEED must be a whole number"),
        Err(_) => default,
    }
}
