//! Every kernel that is instantiated: what the ptxas gate assembles, `harness kernels` lists and the golden texts watch.

use crate::model::linear::few_rows;
use kernel_core::embedded;
use ptx::{
    Arch, Kernel, KernelSpec, SpecErrors, generate,
    isa::MmaType,
    kernels::{
        attention::{
            AttentionSpec, KvLayout, MergeSpec, Partition, Pattern,
            expr::{Binary, Expr, ExprType, SideBuffer, Variable},
        },
        feed::{EmbedSpec, HeadRowsSpec},
        index::{
            AntidiagonalSelectSpec, AntidiagonalSumsSpec, BlockSparseSelectSpec, EstimatePass, EstimateSpec,
            KeyMeansSpec, MergeRule, MergedRangesSpec, PatternChoiceSpec, VerticalSlashSelectSpec,
        },
        meta::Element,
        model::{AddSpec, LinearSpec, RmsNormSpec, RopeSpec, RowAccess, RowsSpec, SwigluSpec},
        sampling::{LogitsType, RowMergeSpec, SamplerSpec, SelectionSpec},
    },
};
use std::collections::HashSet;

/// What a kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Attention.
    Attention,
    /// Builds sparse indices.
    Index,
    /// Draws tokens and selects positions.
    Sampling,
    /// What a transformer needs around attention.
    Model,
}

impl Family {
    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Attention => "attention",
            Family::Index => "index",
            Family::Sampling => "sampling",
            Family::Model => "model",
        }
    }
}

/// One instantiated kernel.
#[derive(Clone, Debug)]
pub struct Registered {
    /// What it is for.
    pub family: Family,
    /// Text and launch facts.
    pub kernel: Kernel,
}

impl Registered {
    /// Name of the entry point.
    pub fn entry(&self) -> &str {
        &self.kernel.meta.entry
    }
}

/// Why the registry is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A spec of the registry is rejected.
    #[error("the registry asks for a {} kernel that is not generated: {errors}", family.name())]
    Spec {
        /// Family of the spec.
        family: Family,
        /// What is wrong with it.
        errors: SpecErrors,
    },
    /// Two specs have one entry name.
    #[error("two kernels of the registry are called {entry}; entry names must tell specs apart")]
    DuplicateEntry {
        /// The name.
        entry: String,
    },
}

const ARCH: Arch = Arch::Sm80;
const ARCHITECTURES: [Arch; 2] = [Arch::Sm80, Arch::Sm90a];
const DTYPES: [MmaType; 2] = [MmaType::Bf16, MmaType::F16];
const HEAD_DIMS: [u32; 3] = [64, 96, 128];
const KEY_BLOCKS: [u32; 3] = [32, 64, 128];
const PATTERNS: [Pattern; 5] =
    [Pattern::Dense, Pattern::AShape, Pattern::TriShape, Pattern::VerticalSlash, Pattern::BlockSparse];
/// Hidden and feed-forward widths: the records model, Qwen2 0.5B and 7B (Dream, Dimple), Llama 8B (LLaDA).
const WIDTHS: [(u32, u32); 4] = [(256, 448), (896, 4864), (3584, 18944), (4096, 14336)];
/// Most keys that a block-sparse selection is instantiated for.
const LONGEST: u32 = 1 << 17;

/// All instantiated kernels, family by family, each with a name of its own.
///
/// # Errors
/// [`Error`], which the tests of this module rule out.
pub fn kernels() -> Result<Vec<Registered>, Error> {
    let mut list = List::default();
    attention(&mut list)?;
    hopper_attention(&mut list)?;
    paged_attention(&mut list)?;
    decode_attention(&mut list)?;
    index(&mut list)?;
    sampling(&mut list)?;
    model(&mut list)?;
    Ok(list.kernels)
}

#[derive(Default)]
struct List {
    kernels: Vec<Registered>,
    entries: HashSet<String>,
}

impl List {
    fn add<S: KernelSpec>(&mut self, family: Family, spec: &S) -> Result<(), Error> {
        let kernel = generate(spec).map_err(|errors| Error::Spec { family, errors })?;
        if !self.entries.insert(kernel.meta.entry.to_string()) {
            return Err(Error::DuplicateEntry { entry: kernel.meta.entry.to_string() });
        }
        self.kernels.push(Registered { family, kernel });
        Ok(())
    }
}

/// Every tile of every pattern once, and for the tiles used by default also the other type, full attention and soft-cap.
fn attention(list: &mut List) -> Result<(), Error> {
    let mut add = |spec: AttentionSpec| list.add(Family::Attention, &spec);
    for pattern in PATTERNS {
        for head_dim in HEAD_DIMS {
            for block in [64, 128].into_iter().flat_map(|rows| KEY_BLOCKS.map(|keys| (rows, keys))) {
                let spec = AttentionSpec::new(pattern, block, head_dim, MmaType::Bf16, ARCH);
                // Not every tile fits in shared memory, and vertical-slash has rows in multiples of keys.
                if spec.validate().is_err() {
                    continue;
                }
                let default = block == (64, 64) || block == (128, 64) && !selects_blocks(pattern);
                if default && head_dim != 96 {
                    let half = AttentionSpec { dtype: MmaType::F16, ..spec.clone() };
                    if !pattern.needs_causal() {
                        add(AttentionSpec { causal: false, ..spec.clone() })?;
                        add(AttentionSpec { causal: false, ..half.clone() })?;
                    }
                    add(half)?;
                }
                if block == (64, 64) && head_dim == 128 {
                    add(AttentionSpec { softcap: true, ..spec.clone() })?;
                }
                add(spec)?;
            }
        }
    }
    Ok(())
}

/// As [`attention`], in the tiles of sm_90a, and with expressions: there each of them is one more chance for `ptxas` to
/// serialise the products.
fn hopper_attention(list: &mut List) -> Result<(), Error> {
    let mut add = |spec: AttentionSpec| list.add(Family::Attention, &spec);
    for pattern in PATTERNS {
        for head_dim in [64, 96, 128, 256] {
            for block in [128, 192].into_iter().flat_map(|rows| [64, 128].map(|keys| (rows, keys))) {
                let spec = AttentionSpec::new(pattern, block, head_dim, MmaType::Bf16, Arch::Sm90a);
                // 192 rows are for heads of 64, heads of 256 for dense.
                if spec.validate().is_err() {
                    continue;
                }
                let default = match (selects_blocks(pattern), head_dim) {
                    (true, _) => (128, 64),
                    (false, 64) => (192, 128),
                    (false, 256) => (128, 64),
                    (false, _) => (128, 128),
                };
                let full = AttentionSpec { causal: false, ..spec.clone() };
                if block == default && head_dim != 96 {
                    let f16 = |spec: &AttentionSpec| AttentionSpec { dtype: MmaType::F16, ..spec.clone() };
                    add(f16(&spec))?;
                    if !pattern.needs_causal() {
                        add(f16(&full))?;
                        add(full)?;
                    }
                } else if block == (128, 128) && head_dim == 128 && pattern == Pattern::BlockSparse {
                    add(full)?;
                }
                if block == default && head_dim == 128 {
                    add(AttentionSpec { softcap: true, ..spec.clone() })?;
                    if matches!(pattern, Pattern::Dense | Pattern::VerticalSlash) {
                        add(of_documents(spec.clone()))?;
                    }
                }
                add(spec)?;
            }
        }
    }
    Ok(())
}

/// The default tiles over a paged cache: pages smaller than a block of keys, as large, and larger.
fn paged_attention(list: &mut List) -> Result<(), Error> {
    for (pattern, arch, head_dim) in PATTERNS
        .into_iter()
        .flat_map(|pattern| [(pattern, Arch::Sm80), (pattern, Arch::Sm90a)])
        .flat_map(|(pattern, arch)| [64, 128].map(|head_dim| (pattern, arch, head_dim)))
    {
        let block = embedded::block(pattern, head_dim, arch);
        for page in [16, if head_dim == 64 { 64 } else { 256 }] {
            let kv = KvLayout::Paged { page };
            let spec = AttentionSpec::new(pattern, block, head_dim, MmaType::Bf16, arch);
            list.add(Family::Attention, &AttentionSpec { kv, ..spec })?;
        }
    }
    Ok(())
}

/// Attention whose blocks share keys, in the tiles used by default, and what merges the parts.
fn decode_attention(list: &mut List) -> Result<(), Error> {
    for (arch, keys, dtype, head_dim) in [(Arch::Sm80, 64), (Arch::Sm90a, 128), (Arch::Sm90a, 64)]
        .into_iter()
        .flat_map(|(arch, keys)| DTYPES.map(|dtype| (arch, keys, dtype)))
        .flat_map(|(arch, keys, dtype)| HEAD_DIMS.map(|head_dim| (arch, keys, dtype, head_dim)))
    {
        for pattern in [Pattern::Dense, Pattern::BlockSparse] {
            let spec = AttentionSpec::new(pattern, (128, keys), head_dim, dtype, arch);
            let spec = AttentionSpec { causal: false, partition: Partition::Keys, ..spec };
            list.add(Family::Attention, &spec)?;
            if dtype == MmaType::Bf16 && head_dim != 96 {
                for page in [16, 128] {
                    let kv = KvLayout::Paged { page };
                    list.add(Family::Attention, &AttentionSpec { kv, ..spec.clone() })?;
                }
                if head_dim == 128 {
                    list.add(Family::Attention, &AttentionSpec { softcap: true, ..spec })?;
                }
            }
        }
    }
    for (head_dim, dtype) in HEAD_DIMS.into_iter().flat_map(|head_dim| DTYPES.map(|dtype| (head_dim, dtype))) {
        for arch in [Arch::Sm80, Arch::Sm90a] {
            list.add(Family::Attention, &MergeSpec { rows: 128, head_dim, dtype, arch })?;
        }
    }
    Ok(())
}

/// The kernel with `s - slope[head] * (q - k) as f32` (ALiBi) for a score and `document[q] == document[k]` for a mask.
fn of_documents(spec: AttentionSpec) -> AttentionSpec {
    let variable = |variable| Box::new(Expr::Variable(variable));
    let binary = |op, a, b| Box::new(Expr::Binary(op, a, b));
    let read = |buffer, index| Box::new(Expr::Index(buffer, variable(index)));
    let distance = binary(Binary::Sub, variable(Variable::Query), variable(Variable::Key));
    let distance = Box::new(Expr::Cast(distance, ExprType::F32));
    let bias = binary(Binary::Mul, read(0, Variable::Head), distance);
    let buffer = |name: &str, element| SideBuffer { name: name.into(), element };
    AttentionSpec {
        score: Some(Expr::Binary(Binary::Sub, variable(Variable::Score), bias)),
        mask: Some(Expr::Binary(Binary::Eq, read(1, Variable::Query), read(1, Variable::Key))),
        side: vec![buffer("slope", Element::F32), buffer("document", Element::U32)],
        ..spec
    }
}

/// Whether each row block has key blocks of its own, so that small row blocks select best.
fn selects_blocks(pattern: Pattern) -> bool {
    matches!(pattern, Pattern::VerticalSlash | Pattern::BlockSparse)
}

fn index(list: &mut List) -> Result<(), Error> {
    let family = Family::Index;
    for dtype in DTYPES {
        for head_dim in HEAD_DIMS {
            for pass in [EstimatePass::Statistics, EstimatePass::Scores] {
                for (heads, arch) in [1, 2, 4].into_iter().flat_map(|heads| ARCHITECTURES.map(|arch| (heads, arch))) {
                    list.add(family, &EstimateSpec { pass, heads, head_dim, dtype, kv: KvLayout::Strided, arch })?;
                }
            }
            for block in KEY_BLOCKS {
                list.add(family, &KeyMeansSpec { block, head_dim, dtype, kv: KvLayout::Strided, arch: ARCH })?;
            }
            for block in [64, 128] {
                let key_blocks = LONGEST / block;
                list.add(family, &PatternChoiceSpec { block, key_blocks, head_dim, dtype, arch: ARCH })?;
            }
            for block in [(64, 64), (128, 64), (128, 128)] {
                for causal in [true, false] {
                    let key_blocks = LONGEST / block.1;
                    list.add(
                        family,
                        &BlockSparseSelectSpec { block, key_blocks, head_dim, dtype, causal, arch: ARCH },
                    )?;
                }
            }
        }
    }
    let (kv, dtype) = (KvLayout::Paged { page: 16 }, MmaType::Bf16);
    for head_dim in [64, 128] {
        for pass in [EstimatePass::Statistics, EstimatePass::Scores] {
            for (heads, arch) in [1, 4].into_iter().flat_map(|heads| ARCHITECTURES.map(|arch| (heads, arch))) {
                list.add(family, &EstimateSpec { pass, heads, head_dim, dtype, kv, arch })?;
            }
        }
        list.add(family, &KeyMeansSpec { block: 64, head_dim, dtype, kv, arch: ARCH })?;
        for arch in ARCHITECTURES {
            list.add(family, &AntidiagonalSumsSpec { stride: 16, block: 64, head_dim, dtype, kv, arch })?;
        }
    }
    for stride in [8, 16] {
        for block in [64, 128] {
            for head_dim in HEAD_DIMS {
                for arch in ARCHITECTURES {
                    let (dtype, kv) = (MmaType::Bf16, KvLayout::Strided);
                    let spec = AntidiagonalSumsSpec { stride, block, head_dim, dtype, kv, arch };
                    list.add(family, &spec)?;
                    if head_dim != 96 {
                        list.add(family, &AntidiagonalSumsSpec { dtype: MmaType::F16, ..spec })?;
                    }
                }
            }
        }
        for block in [(64, 64), (128, 64), (128, 128)] {
            let key_blocks = LONGEST / block.1;
            list.add(family, &AntidiagonalSelectSpec { stride, block, key_blocks, arch: ARCH })?;
        }
    }
    for block in KEY_BLOCKS {
        list.add(family, &VerticalSlashSelectSpec { block, arch: ARCH })?;
    }
    let rules = [MergeRule::Original, MergeRule::Extended];
    rules.into_iter().try_for_each(|rule| list.add(family, &MergedRangesSpec { rule, arch: ARCH }))
}

fn sampling(list: &mut List) -> Result<(), Error> {
    for dtype in [LogitsType::Bf16, LogitsType::F16, LogitsType::F32] {
        for guided in [false, true] {
            let sampler = SamplerSpec { dtype, guided, arch: ARCH };
            list.add(Family::Sampling, &sampler)?;
            list.add(Family::Sampling, &RowMergeSpec { sampler })?;
            list.add(Family::Sampling, &SamplerSpec { arch: Arch::Sm90a, ..sampler })?;
        }
    }
    let windows = [256, 512, 1024];
    windows.into_iter().try_for_each(|window| list.add(Family::Sampling, &SelectionSpec { window, arch: ARCH }))?;
    [256, 512].into_iter().try_for_each(|window| list.add(Family::Sampling, &SelectionSpec::of(window, Arch::Sm90a)))
}

fn model(list: &mut List) -> Result<(), Error> {
    ARCHITECTURES.into_iter().try_for_each(|arch| model_for(list, arch))
}

fn model_for(list: &mut List, arch: Arch) -> Result<(), Error> {
    let family = Family::Model;
    few_rows::specs(arch).try_for_each(|spec| list.add(family, &spec))?;
    // As no model here has them.
    let spec = LinearSpec { rows: 64, tile: 64, blocks: 132, gated: false, dtype: MmaType::F16, arch };
    list.add(family, &spec)?;
    list.add(family, &LinearSpec { gated: true, ..spec })?;
    for dtype in DTYPES {
        for (hidden, intermediate) in WIDTHS {
            list.add(family, &AddSpec { width: hidden, dtype, arch })?;
            list.add(family, &SwigluSpec { width: intermediate, dtype, arch })?;
            for residual in [false, true] {
                list.add(family, &RmsNormSpec { width: hidden, dtype, residual, arch })?;
            }
        }
        for head_dim in HEAD_DIMS {
            for bias in [false, true] {
                list.add(family, &RopeSpec { head_dim, dtype, bias, sections: None, arch })?;
            }
        }
        // Qwen2.5-VL, and so Dimple.
        let sections = Some([16, 24, 24]);
        list.add(family, &RopeSpec { head_dim: 128, dtype, bias: true, sections, arch })?;
    }
    for (width, _) in WIDTHS {
        for access in [RowAccess::Gather, RowAccess::Scatter] {
            list.add(family, &RowsSpec { access, width, arch })?;
        }
        for axes in [false, true] {
            list.add(family, &EmbedSpec { width, axes, arch })?;
        }
        list.add(family, &HeadRowsSpec { width, arch })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_one_module_with_the_entry_that_its_facts_name() {
        let kernels = kernels().expect("the registry's specs are valid and named apart");
        assert!(kernels.len() > 100, "{} kernels", kernels.len());
        for Registered { kernel, .. } in &kernels {
            let (text, meta) = (&kernel.text, &kernel.meta);
            let entry = format!(".visible .entry {}(", meta.entry);
            assert_eq!(text.matches(".entry ").count(), 1, "{}", meta.entry);
            assert!(text.contains(&entry), "{} has no `{entry}`", meta.entry);
            assert!(text.contains(&format!(".version {}.{}", meta.isa.0, meta.isa.1)), "{}", meta.entry);
            assert!(text.contains(&format!(".target {}", meta.arch.target())), "{}", meta.entry);
        }
    }

    #[test]
    fn the_same_specs_give_the_same_text() {
        let (first, second) = (kernels().expect("valid"), kernels().expect("valid"));
        assert_eq!(first.len(), second.len());
        for (a, b) in first.iter().zip(&second) {
            assert_eq!(a.kernel, b.kernel, "{}", a.entry());
        }
    }

    #[test]
    fn a_second_kernel_of_one_name_is_an_error() {
        let mut list = List::default();
        let spec = AddSpec { width: 256, dtype: MmaType::Bf16, arch: ARCH };
        list.add(Family::Model, &spec).expect("valid");
        let error = list.add(Family::Model, &spec).expect_err("a duplicate");
        assert!(error.to_string().contains("add_w256"), "{error}");
    }
}
