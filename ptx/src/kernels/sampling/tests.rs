use super::{LogitsType, RowMergeSpec, SamplerSpec, SelectionSpec};
use crate::{Arch, generate};

#[test]
fn every_kernel_generates_and_is_named_by_its_spec() {
    for dtype in [LogitsType::Bf16, LogitsType::F16, LogitsType::F32] {
        for (guided, name) in [(false, ""), (true, "_guided")] {
            for arch in [Arch::Sm80, Arch::Sm90a] {
                let spec = SamplerSpec { dtype, guided, arch };
                let kernel = generate(&spec).expect("valid");
                assert_eq!(kernel.meta.entry, format!("sampler_{}{name}_{}", dtype.name(), arch.name()));
                assert_eq!(kernel, generate(&spec).expect("valid"));
            }
        }
    }
    for window in [256, 512, 1024] {
        for arch in [Arch::Sm80, Arch::Sm90a] {
            let spec = SelectionSpec::of(window, arch);
            let kernel = generate(&spec).expect("valid");
            let entry = format!("selection_w{window}_{}", spec.arch.name());
            assert_eq!((kernel.meta.entry.as_ref(), kernel.meta.threads), (entry.as_str(), window));
        }
    }
}

#[test]
fn other_architectures_are_told_what_to_use() {
    let error = generate(&SelectionSpec { window: 1024, arch: Arch::Sm90a }).expect_err("no such kernel").to_string();
    assert!(error.contains("`arch`") && error.contains("use sm_80"), "{error}");
    let sampler = SamplerSpec { dtype: LogitsType::Bf16, guided: false, arch: Arch::Sm90a };
    let error = generate(&RowMergeSpec { sampler }).expect_err("no such kernel").to_string();
    assert!(error.contains("`sampler.arch`") && error.contains("use sm_80"), "{error}");
}

#[test]
fn windows_are_powers_of_two_that_a_block_has_threads_for() {
    for window in [0, 128, 300, 2048] {
        let error = generate(&SelectionSpec { window, arch: Arch::Sm80 }).expect_err("no such kernel").to_string();
        assert!(error.contains("`window`") && error.contains(&window.to_string()), "{error}");
    }
}
