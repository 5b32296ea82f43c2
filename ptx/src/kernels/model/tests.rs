use super::*;
use crate::{
    Arch, KernelSpec, generate,
    isa::MmaType::{Bf16, F16},
};

const ARCH: Arch = Arch::Sm80;

fn fields<S: KernelSpec>(spec: &S) -> Vec<&'static str> {
    spec.validate().err().map_or_else(Vec::new, |errors| errors.iter().map(|error| error.field).collect())
}

#[test]
fn widths_are_checked() {
    for width in [0, 4, 12, 32776] {
        assert_eq!(fields(&AddSpec { width, dtype: Bf16, arch: ARCH }), ["width"]);
        assert_eq!(fields(&SwigluSpec { width, dtype: Bf16, arch: ARCH }), ["width"]);
        assert_eq!(fields(&RmsNormSpec { width, dtype: F16, residual: true, arch: ARCH }), ["width"]);
        assert_eq!(fields(&RowsSpec { access: RowAccess::Gather, width, arch: ARCH }), ["width"]);
    }
    for width in [8, 256, 3584, 32768] {
        assert_eq!(fields(&RmsNormSpec { width, dtype: Bf16, residual: false, arch: ARCH }), [""; 0]);
    }
    for head_dim in [0, 8, 72, 272] {
        let spec = RopeSpec { head_dim, dtype: Bf16, bias: true, sections: None, arch: ARCH };
        assert_eq!(fields(&spec), ["head_dim"]);
        let text = spec.validate().expect_err("not allowed").to_string();
        assert!(text.contains("multiple of 16") && text.contains(&head_dim.to_string()), "{text}");
    }
    let sectioned = |sections| RopeSpec { head_dim: 64, dtype: Bf16, bias: true, sections: Some(sections), arch: ARCH };
    for sections in [[8, 8, 8], [4, 20, 8], [u32::MAX - 7, 8, 8], [0, 0, 0]] {
        assert_eq!(fields(&sectioned(sections)), ["sections"]);
    }
    assert_eq!(fields(&sectioned([8, 16, 8])), [""; 0]);
}

#[test]
fn shapes_of_products_are_checked() {
    let spec = LinearSpec { rows: 40, tile: 128, blocks: 132, gated: false, dtype: Bf16, arch: ARCH };
    assert_eq!(fields(&spec), [""; 0]);
    for rows in [0, 4, 12, 72] {
        assert_eq!(fields(&LinearSpec { rows, ..spec }), ["rows"]);
    }
    assert_eq!(fields(&LinearSpec { rows: 1, tile: 32, blocks: 0, ..spec }), ["rows", "tile", "blocks"]);
    assert_eq!(fields(&LinearSpec { blocks: 1025, ..spec }), ["blocks"]);
    // 3 tiles of 4 strips; a gated tile has half as many outputs.
    assert_eq!((spec.tickets(264), LinearSpec { gated: true, ..spec }.tickets(264)), (12, 20));
    assert_eq!(spec.parts_bytes(), 132 * 2 * 128 * 40 * 4);
}

#[test]
fn rings_of_products_fit_and_have_two_stages_at_least() {
    for arch in [Arch::Sm80, Arch::Sm90a] {
        for rows in (8..=64).step_by(8) {
            for tile in [64, 128, 256] {
                let spec = LinearSpec { rows, tile, blocks: 132, gated: false, dtype: Bf16, arch };
                let kernel = generate(&spec).expect("valid");
                let (bytes, limit) = (kernel.meta.shared_bytes, arch.shared_limit());
                assert!(bytes <= limit, "{}: {bytes} bytes", kernel.meta.entry);
                let stage = 2 * (256 + rows * 256 / tile) * 64;
                assert!(bytes >= 2 * stage, "{}: {bytes} bytes", kernel.meta.entry);
            }
        }
    }
}

#[test]
fn entries_are_unique_and_text_is_stable() {
    let mut kernels = Vec::new();
    for dtype in [Bf16, F16] {
        kernels.push(generate(&AddSpec { width: 256, dtype, arch: ARCH }));
        kernels.push(generate(&SwigluSpec { width: 256, dtype, arch: ARCH }));
        for flag in [false, true] {
            let spec = LinearSpec { rows: 8, tile: 128, blocks: 1, gated: flag, dtype, arch: ARCH };
            kernels
                .extend([spec, LinearSpec { rows: 16, ..spec }, LinearSpec { tile: 64, ..spec }].iter().map(generate));
            kernels.push(generate(&LinearSpec { blocks: 2, ..spec }));
            kernels.push(generate(&RmsNormSpec { width: 256, dtype, residual: flag, arch: ARCH }));
            kernels.push(generate(&RopeSpec { head_dim: 64, dtype, bias: flag, sections: None, arch: ARCH }));
        }
    }
    for access in [RowAccess::Gather, RowAccess::Scatter] {
        kernels.push(generate(&RowsSpec { access, width: 256, arch: ARCH }));
    }
    let kernels: Vec<_> = kernels.into_iter().map(|kernel| kernel.expect("valid")).collect();
    let entries: std::collections::HashSet<_> = kernels.iter().map(|kernel| &kernel.meta.entry).collect();
    assert_eq!(entries.len(), kernels.len());
    let again = generate(&AddSpec { width: 256, dtype: Bf16, arch: ARCH }).expect("valid");
    assert_eq!(again.text, kernels[0].text);
}

#[test]
fn grids_cover_the_rows() {
    let add = AddSpec { width: 3584, dtype: Bf16, arch: ARCH };
    assert_eq!(add.grid(7), [7, 2, 1]);
    let narrow = AddSpec { width: 8, dtype: Bf16, arch: ARCH };
    assert_eq!((narrow.grid(7), generate(&narrow).expect("valid").meta.threads), ([7, 1, 1], 32));
    let rope = RopeSpec { head_dim: 128, dtype: Bf16, bias: true, sections: None, arch: ARCH };
    assert_eq!(rope.grid(5, 28, 4), [5, 3, 1]);
}

#[test]
fn rope_frequencies_are_turns() {
    let table = frequencies(10_000.0, 64);
    assert_eq!(table.len(), 32);
    let turns = |value: u64| value as f64 / 2f64.powi(64);
    assert!((turns(table[0]) - 1.0 / std::f64::consts::TAU).abs() < 1e-15);
    assert!((turns(table[16]) - 0.01 / std::f64::consts::TAU).abs() < 1e-15);
}
