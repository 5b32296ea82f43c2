use super::{
    AttentionSpec, KvLayout, MergeSpec, Partition, Pattern,
    expr::{Binary, Expr, SideBuffer, Variable},
};
use crate::{
    Arch, KernelSpec, generate,
    isa::MmaType,
    kernels::meta::{Element, ParameterKind},
};
use std::collections::HashSet;

const PATTERNS: [Pattern; 5] =
    [Pattern::Dense, Pattern::AShape, Pattern::TriShape, Pattern::VerticalSlash, Pattern::BlockSparse];

fn every_shape() -> impl Iterator<Item = AttentionSpec> {
    let sm80 = [64, 128].into_iter().flat_map(|m| [32, 64, 128].map(|n| (Arch::Sm80, (m, n))));
    let sm90 = [(128, 64), (128, 128), (192, 128)].map(|block| (Arch::Sm90a, block));
    let shapes = sm80.chain(sm90).flat_map(|block| [64, 96, 128, 256].map(|d| (block, d)));
    let typed = shapes.flat_map(|shape| [MmaType::Bf16, MmaType::F16].map(|t| (shape, t)));
    typed.flat_map(|(((arch, block), d), t)| {
        PATTERNS.into_iter().flat_map(move |pattern| {
            [true, false].map(|causal| AttentionSpec { causal, ..AttentionSpec::new(pattern, block, d, t, arch) })
        })
    })
}

fn dense() -> AttentionSpec {
    AttentionSpec::new(Pattern::Dense, (64, 64), 64, MmaType::Bf16, Arch::Sm80)
}

fn message(spec: &AttentionSpec) -> String {
    spec.validate().unwrap_err().to_string()
}

#[test]
fn every_supported_shape_generates_the_same_text_twice_under_a_name_of_its_own() {
    let mut names = HashSet::new();
    for spec in every_shape() {
        let Ok(kernel) = generate(&spec) else {
            continue;
        };
        assert_eq!(kernel, spec.build(), "{}", kernel.meta.entry);
        let (used, told) = (kernel.meta.shared_bytes, super::tiling::Tiling::of(&spec).shared_bytes());
        match spec.arch {
            Arch::Sm80 => assert_eq!(used, told, "{}", kernel.meta.entry),
            Arch::Sm90a => assert!((told - 1024..=told).contains(&used), "{}: {used} of {told}", kernel.meta.entry),
        }
        assert!(told <= spec.arch.shared_limit(), "{}", kernel.meta.entry);
        assert!(names.insert(kernel.meta.entry.clone()), "{} twice", kernel.meta.entry);
    }
    // sm_80: every shape of 64, 96 and 128 but the full ones of three patterns, and vertical-slash 64×128 and 128×32 (3 each)
    // and 128×128 at d = 128. sm_90a: seven shapes, of which vertical-slash has three, and dense at d = 256.
    let sm80 = (5 * 18 - 7) + (2 * 18);
    let sm90 = (4 * 7 + 3) + 2 * 7 + 2;
    assert_eq!(names.len(), 2 * (sm80 + sm90));
}

#[test]
fn the_commonest_tile_leaves_room_for_a_second_block_or_an_sm_86() {
    let spec = AttentionSpec::new(Pattern::Dense, (128, 64), 128, MmaType::Bf16, Arch::Sm80);
    assert!(generate(&spec).unwrap().meta.shared_bytes <= 99 * 1024);
}

#[test]
fn expressions_change_the_name_and_add_their_buffers_last() {
    let index = |variable| Box::new(Expr::Index(0, Box::new(Expr::Variable(variable))));
    let mask = Expr::Binary(Binary::Eq, index(Variable::Query), index(Variable::Key));
    let side = vec![SideBuffer { name: "document".into(), element: Element::U32 }];
    let spec = AttentionSpec { mask: Some(mask), side, ..dense() };
    let meta = generate(&spec).unwrap().meta;
    assert_ne!(meta.entry, dense().entry());
    let last = meta.parameters.last().unwrap();
    assert_eq!((&*last.name, last.kind), ("document", ParameterKind::Side(Element::U32)));
}

#[test]
fn every_violation_is_reported_with_what_to_do() {
    let spec = AttentionSpec {
        pattern: Pattern::AShape,
        causal: false,
        head_dim: 80,
        arch: Arch::Sm90a,
        kv: KvLayout::Paged { page: 48 },
        ..dense()
    };
    let fields: Vec<_> = spec.validate().unwrap_err().iter().map(|e| e.field).collect();
    assert_eq!(fields, ["head_dim", "causal", "kv"]);
    assert_eq!(
        message(&AttentionSpec { block: (96, 64), ..dense() }),
        "`block`: (96, 64) is not generated for sm_80 at head_dim 64; rows are 64 or 128 and keys 32 or 64 or 128"
    );
    assert_eq!(
        message(&AttentionSpec { arch: Arch::Sm90a, ..dense() }),
        "`block`: (64, 64) is not generated for sm_90a at head_dim 64; rows are 128 and keys 64 or 128"
    );
    for page in [0, 8, 48, 512] {
        let message = message(&AttentionSpec { kv: KvLayout::Paged { page }, ..dense() });
        assert_eq!(message, format!("`kv`: pages of {page} tokens are not generated; use 16, 32, 64, 128 or 256"));
    }
    let wide = AttentionSpec { pattern: Pattern::VerticalSlash, block: (128, 128), head_dim: 128, ..dense() };
    assert!(message(&wide).contains("bytes of shared memory"), "{}", message(&wide));
    let narrow = AttentionSpec { pattern: Pattern::VerticalSlash, block: (64, 128), ..dense() };
    assert!(message(&narrow).contains("such as (64, 64)"), "{}", message(&narrow));
}

#[test]
fn keys_are_shared_out_by_dense_and_listed_kernels_without_positions() {
    let split = |spec: AttentionSpec| AttentionSpec { causal: false, partition: Partition::Keys, ..spec };
    let names: HashSet<String> = [Pattern::Dense, Pattern::BlockSparse]
        .into_iter()
        .flat_map(|pattern| {
            [(Arch::Sm80, (64, 64)), (Arch::Sm80, (128, 64)), (Arch::Sm90a, (128, 128))].map(|a| (pattern, a))
        })
        .flat_map(|(pattern, (arch, block))| {
            [64, 96, 128].map(|d| AttentionSpec::new(pattern, block, d, MmaType::F16, arch))
        })
        .map(|spec| generate(&split(spec)).unwrap().meta.entry.to_string())
        .collect();
    assert_eq!(names.len(), 18);
    assert!(names.iter().all(|name| name.contains("_full_split_")), "{names:?}");

    let fields = |spec: AttentionSpec| spec.validate().unwrap_err().iter().map(|e| e.field).collect::<Vec<_>>();
    assert_eq!(fields(AttentionSpec { partition: Partition::Keys, ..dense() }), ["causal"]);
    let slashes = AttentionSpec { pattern: Pattern::VerticalSlash, partition: Partition::Keys, ..dense() };
    assert_eq!(fields(slashes), ["pattern", "causal"]);
    let mask = Expr::Binary(Binary::Eq, Box::new(Expr::Variable(Variable::Query)), Box::new(Expr::U32(0)));
    assert_eq!(fields(split(AttentionSpec { mask: Some(mask), ..dense() })), ["partition"]);
    let wide = AttentionSpec::new(Pattern::Dense, (192, 128), 64, MmaType::Bf16, Arch::Sm90a);
    assert_eq!(fields(split(wide)), ["block"]);
    let long = AttentionSpec::new(Pattern::Dense, (128, 64), 256, MmaType::Bf16, Arch::Sm90a);
    assert_eq!(fields(split(long)), ["head_dim"]);

    let merge = MergeSpec { rows: 192, head_dim: 256, dtype: MmaType::Bf16, arch: Arch::Sm80 };
    let fields: Vec<_> = merge.validate().unwrap_err().iter().map(|e| e.field).collect();
    assert_eq!(fields, ["rows", "head_dim"]);
}

#[test]
fn ill_typed_expressions_and_bad_names_are_rejected() {
    let score = AttentionSpec { score: Some(Expr::Variable(Variable::Query)), ..dense() };
    assert_eq!(message(&score), "`score`: must be f32, but the expression is u32");
    let of_score = Expr::Binary(Binary::Gt, Box::new(Expr::Variable(Variable::Score)), Box::new(Expr::F32(0.0)));
    let mask = AttentionSpec { mask: Some(of_score), ..dense() };
    assert!(message(&mask).starts_with("`mask`: a mask does not see the score"), "{}", message(&mask));
    for (name, reason) in
        [("q_row", "a parameter"), ("1st", "no identifier"), ("", "no identifier"), ("ß", "no identifier")]
    {
        let side = vec![SideBuffer { name: name.into(), element: Element::F32 }];
        let spec = AttentionSpec { side, ..dense() };
        assert!(message(&spec).contains(reason), "{}", message(&spec));
    }
    let twice = SideBuffer { name: "slope".into(), element: Element::F32 };
    let spec = AttentionSpec { side: vec![twice.clone(), twice], ..dense() };
    assert!(message(&spec).contains("declared twice"), "{}", message(&spec));
}
