use super::{Confidence, LogitsType, SamplerSpec, SelectionSpec};
use crate::{Arch, generate};

#[test]
fn every_kernel_generates_and_is_named_by_its_spec() {
    for dtype in [LogitsType::Bf16, LogitsType::F16, LogitsType::F32] {
        for confidence in [Confidence::Probability, Confidence::Margin, Confidence::NegativeEntropy] {
            let spec = SamplerSpec { dtype, confidence, arch: Arch::Sm80 };
            let kernel = generate(&spec).expect("valid");
            assert_eq!(kernel.meta.entry, format!("sampler_{}_{}_sm80", dtype.name(), confidence.name()));
            assert_eq!(kernel, generate(&spec).expect("valid"));
        }
    }
    assert_eq!(generate(&SelectionSpec { arch: Arch::Sm80 }).expect("valid").meta.entry, "selection_sm80");
}

#[test]
fn other_architectures_are_told_what_to_use() {
    let error = generate(&SelectionSpec { arch: Arch::Sm90a }).expect_err("no such kernel").to_string();
    assert!(error.contains("`arch`") && error.contains("use sm_80"), "{error}");
}
