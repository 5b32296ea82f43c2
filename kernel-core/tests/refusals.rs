//! What the host can know is refused before anything is launched, in words that help.
#![allow(clippy::unwrap_used, reason = "tests")]

use kernel_core::{
    Attention, AttentionArgs, AttentionKernel, Bounds, Buffer, DType, DecodeArgs, DecodeAttention,
    DecodeAttentionBuilder, Decoder, Device, Error, HeadPattern, Index, KvLayout, KvView, LayerPatterns, Lengths,
    PlanArgs, RunArgs, SamplerKernel, Selection, SparsePrefill, SparsePrefillBuilder, Stream, TensorView, Workspace,
    index::{BlockLists, HeadLists, MergeRule, MergedRanges, MergedRangesArgs, TokenLists},
    sampling::{Credit, Logits, Request, Room, Trajectory},
};
use ptx::{
    Arch,
    isa::MmaType,
    kernels::{
        attention::{
            AttentionSpec, Partition, Pattern,
            expr::{Binary, Expr, SideBuffer, Variable},
        },
        meta::Element,
    },
};

/// A device with memory for everything; outputs are poisoned.
struct Bench {
    device: Device,
    stream: Stream,
    memory: Buffer,
    out: Buffer,
}

const POISON: u8 = 0xA5;

impl Bench {
    fn new() -> Bench {
        let device = Device::emulator();
        let stream = Stream::new(&device).unwrap();
        let memory = device.allocate(1 << 20).unwrap();
        memory.fill(&stream, 0).unwrap();
        let out = device.allocate(1 << 16).unwrap();
        out.fill(&stream, POISON).unwrap();
        Bench { device, stream, memory, out }
    }

    fn view(&self, dtype: DType, shape: &[u64]) -> TensorView<'_> {
        TensorView::new(&self.memory, dtype, shape).unwrap()
    }

    fn kernel(&self, pattern: Pattern, change: impl FnOnce(&mut AttentionSpec)) -> Attention {
        let mut spec = AttentionSpec::new(pattern, (64, 64), 64, MmaType::Bf16, Arch::Sm80);
        change(&mut spec);
        AttentionKernel::generate(&spec).unwrap().build(&self.device).unwrap()
    }

    /// Two sequences of 20 queries and 40 keys, 4 heads on 2.
    fn args(&self) -> AttentionArgs<'_> {
        let out = TensorView::new(&self.out, DType::Bf16, &[2, 20, 4, 64]).unwrap();
        let keys = self.view(DType::Bf16, &[2, 40, 2, 64]);
        AttentionArgs::new(self.view(DType::Bf16, &[2, 20, 4, 64]), keys, keys, out)
    }

    /// The error of a run, after which the output must be untouched.
    fn refused(&self, kernel: &Attention, args: &AttentionArgs<'_>) -> String {
        let error = kernel.run(&self.stream, args).unwrap_err();
        assert!(self.out.read::<u8>(&self.stream).unwrap().iter().all(|byte| *byte == POISON), "written: {error}");
        error.to_string()
    }
}

#[test]
fn shapes_and_types_of_attention() {
    let bench = Bench::new();
    let kernel = bench.kernel(Pattern::Dense, |_| {});
    assert!(kernel.run(&bench.stream, &bench.args()).is_ok());
    bench.out.fill(&bench.stream, POISON).unwrap();
    let args = bench.args();
    let refused = |args: AttentionArgs<'_>, expected: &str| {
        let text = bench.refused(&kernel, &args);
        assert!(text.contains(expected), "expected `{expected}`, got `{text}`");
    };
    let bf16 = |shape: &[u64]| bench.view(DType::Bf16, shape);
    refused(
        AttentionArgs { q: bench.view(DType::F16, &[2, 20, 4, 64]), ..args },
        "tensor q: has elements F16, needs Bf16",
    );
    refused(
        AttentionArgs { q: bf16(&[2, 20, 4, 128]), ..args },
        "tensor q: has shape [2, 20, 4, 128], needs [batch, seq, heads, head_dim]",
    );
    refused(AttentionArgs { k: bf16(&[2, 40, 3, 64]).into(), ..args }, "needs the heads and dimensions of k");
    refused(
        AttentionArgs { k: bf16(&[2, 40, 3, 64]).into(), v: bf16(&[2, 40, 3, 64]).into(), ..args },
        "tensor k: has 3 heads, which must divide the 4 heads of q",
    );
    refused(
        AttentionArgs { v: bf16(&[2, 39, 2, 64]).into(), ..args },
        "tensor v: has 39 rows, fewer than the bound 40",
    );
    refused(
        AttentionArgs { out: bf16(&[2, 20, 2, 64]), ..args },
        "tensor out: has shape [2, 20, 2, 64], needs that of q",
    );
    refused(AttentionArgs { bounds: Bounds { batch: 3, ..args.bounds }, ..args }, "= [3, _, _, 64]");
    refused(
        AttentionArgs { bounds: Bounds { max_q: 21, ..args.bounds }, ..args },
        "tensor q: has 20 rows, fewer than the bound 21",
    );
    refused(
        AttentionArgs { lse: Some(bench.view(DType::F32, &[2, 20, 4])), ..args },
        "tensor lse: has shape [2, 20, 4], needs [batch, heads, seq] = [2, 4, 20]",
    );
    refused(
        AttentionArgs { lse: Some(bench.view(DType::Bf16, &[2, 4, 20])), ..args },
        "tensor lse: has elements Bf16, needs F32",
    );
    refused(
        AttentionArgs {
            lengths: Lengths { kv_length: Some(bench.view(DType::U32, &[3])), ..Lengths::default() },
            ..args
        },
        "tensor kv_length: has shape [3], needs [batch] = [2]",
    );
    refused(
        AttentionArgs {
            lengths: Lengths { q_start: Some(bench.view(DType::U32, &[3])), ..Lengths::default() },
            ..args
        },
        "has a batch dimension and starting rows",
    );
    refused(AttentionArgs { scale: f32::NAN, ..args }, "scale: is NaN; it must be finite");
    refused(AttentionArgs { softcap: Some(30.0), ..args }, "softcap: is 30, but the kernel has none");
    refused(
        AttentionArgs { heads: Some(bench.view(DType::U32, &[5])), ..args },
        "tensor heads: lists 5 heads; q has 4",
    );
    refused(
        AttentionArgs { status: Some(bench.view(DType::U32, &[2])), ..args },
        "tensor status: has shape [2], needs [1]",
    );
    refused(
        AttentionArgs { turns: Some(bench.view(DType::U32, &[2])), ..args },
        "tensor turns: has shape [2], needs [1]",
    );
    refused(AttentionArgs { side: &[("slope", args.q)], ..args }, "tensor slope: is no side buffer of this kernel");
    let paged = KvView::Paged { pages: bf16(&[4, 16, 2, 64]), table: bench.view(DType::U32, &[2, 4]) };
    refused(AttentionArgs { k: paged, ..args }, "tensor k: lies in pages, which this kernel does not read");
    let shifted = TensorView::strided(&bench.memory, 2, DType::Bf16, &[2, 20, 4, 64], &[5120, 256, 64, 1]).unwrap();
    refused(AttentionArgs { q: shifted, ..args }, "no multiple of 16; align or pad it");
    let broadcast = TensorView::strided(&bench.memory, 0, DType::Bf16, &[2, 20, 4, 64], &[5120, 0, 64, 1]).unwrap();
    refused(AttentionArgs { out: broadcast, ..args }, "an output cannot be broadcast");
    let other = Device::emulator();
    let foreign = other.allocate(1 << 16).unwrap();
    refused(
        AttentionArgs { q: TensorView::new(&foreign, DType::Bf16, &[2, 20, 4, 64]).unwrap(), ..args },
        "the tensor belongs to another device",
    );
    let stream = Stream::new(&other).unwrap();
    assert!(matches!(kernel.run(&stream, &bench.args()), Err(Error::ForeignDevice { what: "kernel" })));
}

#[test]
fn pages_of_a_cache() {
    let bench = Bench::new();
    let kernel = bench.kernel(Pattern::Dense, |spec| spec.kv = KvLayout::Paged { page: 16 });
    let bf16 = |shape: &[u64]| bench.view(DType::Bf16, shape);
    let table = |shape: &[u64]| bench.view(DType::U32, shape);
    let paged = |pages: &[u64], entries: &[u64]| KvView::Paged { pages: bf16(pages), table: table(entries) };
    let cache = paged(&[5, 16, 2, 64], &[2, 3]);
    let args = AttentionArgs { k: cache, v: cache, ..bench.args() };
    assert!(kernel.run(&bench.stream, &args).is_ok());
    bench.out.fill(&bench.stream, POISON).unwrap();
    let refused = |args: AttentionArgs<'_>, expected: &str| {
        let text = bench.refused(&kernel, &args);
        assert!(text.contains(expected), "expected `{expected}`, got `{text}`");
    };
    refused(
        AttentionArgs { k: bench.args().k, ..args },
        "tensor k: has no pages; this kernel reads pages of 16 tokens",
    );
    refused(
        AttentionArgs { k: paged(&[5, 32, 2, 64], &[2, 3]), ..args },
        "tensor k: has shape [5, 32, 2, 64], needs [pages, page, heads, head_dim] = [_, 16, _, 64]",
    );
    refused(
        AttentionArgs { k: paged(&[5, 16, 2, 64], &[3, 3]), ..args },
        "tensor page table: has shape [3, 3], needs [batch, pages of a sequence] = [2, _]",
    );
    refused(
        AttentionArgs { k: paged(&[5, 16, 2, 64], &[2, 2]), ..args },
        "tensor page table: has 2 pages of 16 tokens for a sequence, room for 32, fewer than the bound 40",
    );
    let floats = KvView::Paged { pages: bf16(&[5, 16, 2, 64]), table: bench.view(DType::F32, &[2, 3]) };
    refused(AttentionArgs { k: floats, ..args }, "tensor page table: has elements F32, needs U32");
    refused(AttentionArgs { v: paged(&[5, 16, 2, 64], &[2, 4]), ..args }, "tensor v: has another page table than k");
    refused(AttentionArgs { v: paged(&[4, 16, 2, 64], &[2, 3]), ..args }, "another number of pages");
    refused(AttentionArgs { v: paged(&[5, 16, 1, 64], &[2, 3]), ..args }, "needs the heads and dimensions of k");
    refused(
        AttentionArgs { lengths: Lengths { kv_start: Some(table(&[3])), ..Lengths::default() }, ..args },
        "tensor k: lies in pages, which have no starting rows; drop kv_start and give kv_length",
    );
    let odd = TensorView::strided(&bench.memory, 0, DType::Bf16, &[5, 16, 2, 64], &[2052, 128, 64, 1]).unwrap();
    let odd = KvView::Paged { pages: odd, table: table(&[2, 3]) };
    refused(AttentionArgs { k: odd, ..args }, "tensor k: its page stride is 4104 bytes, no multiple of 16");
    // SAFETY: the launch is refused.
    let far = unsafe {
        TensorView::from_raw(bench.memory.address(), DType::Bf16, &[5, 16, 2, 64], &[1 << 31, 128, 64, 1]).unwrap()
    };
    let far = KvView::Paged { pages: far, table: table(&[2, 3]) };
    refused(AttentionArgs { v: far, ..args }, "tensor v: has a stride of 4294967296 bytes between pages or rows");
    let other = Device::emulator();
    let foreign = other.allocate(1 << 10).unwrap();
    let foreign = TensorView::new(&foreign, DType::U32, &[2, 3]).unwrap();
    let foreign = KvView::Paged { pages: bf16(&[5, 16, 2, 64]), table: foreign };
    refused(AttentionArgs { k: foreign, ..args }, "the tensor belongs to another device");

    let layer = SparsePrefill::builder().heads(4).kv_heads(2).head_dim(64).kv(KvLayout::Paged { page: 24 });
    let error = layer.build(&bench.device).err().unwrap().to_string();
    assert!(error.contains("`kv`: pages of 24 tokens are not generated; use 16, 32"), "{error}");
}

/// A kernel for `sm_90a` reads through tensor maps, which have rules of their own.
#[test]
fn tensors_that_bulk_copies_cannot_read() {
    let bench = Bench::new();
    let kernel = bench.kernel(Pattern::Dense, |spec| (spec.arch, spec.block) = (Arch::Sm90a, (128, 64)));
    assert_eq!(kernel.arch(), Arch::Sm90a);
    let args = bench.args();
    // SAFETY: the launches are refused.
    let far = |shape: &[u64], strides: &[u64]| unsafe {
        TensorView::from_raw(bench.memory.address(), DType::Bf16, shape, strides).unwrap()
    };
    let refused = |args: AttentionArgs<'_>, tensor: &str, why: &str| {
        let error = kernel.run(&bench.stream, &args).unwrap_err();
        let named = matches!(&error, Error::Tensor { tensor: named, .. } if named == tensor);
        let text = bench.refused(&kernel, &args);
        assert!(named && text.contains(why), "expected {tensor} and `{why}`, got `{text}`");
    };
    let stride = "stride of 1099511627776 bytes; it must be a multiple of 16 below 2⁴⁰; lay it out otherwise, or use a";
    let (q, keys) = (&[2, 20, 4, 64][..], &[2, 40, 2, 64][..]);
    refused(AttentionArgs { q: far(q, &[1 << 39, 256, 64, 1]), ..args }, "q", stride);
    refused(AttentionArgs { q: far(q, &[5120, 1 << 39, 64, 1]), ..args }, "q", stride);
    refused(AttentionArgs { k: far(keys, &[5120, 128, 1 << 39, 1]).into(), ..args }, "k", stride);
    refused(AttentionArgs { v: far(keys, &[1 << 39, 128, 64, 1]).into(), ..args }, "v", stride);
    refused(AttentionArgs { v: far(keys, &[5120, 132, 64, 1]).into(), ..args }, "v", "its row stride is 264 bytes");
    let shifted = TensorView::strided(&bench.memory, 8, DType::Bf16, keys, &[5120, 128, 64, 1]).unwrap();
    refused(AttentionArgs { k: shifted.into(), ..args }, "k", "bytes, no multiple of 16; align or pad it");
    // A dimension of one entry has no stride; the output has no map.
    let one = far(&[1, 20, 4, 64], &[1 << 39, 256, 64, 1]);
    let out = TensorView::new(&bench.out, DType::Bf16, &[1, 20, 4, 64]).unwrap();
    let keys = bench.view(DType::Bf16, &[1, 40, 2, 64]);
    kernel.run(&bench.stream, &AttentionArgs::new(one, keys, keys, out)).unwrap();
    bench.out.fill(&bench.stream, POISON).unwrap();
    // Blocks that take turns are counted in 32 bits, however few they are.
    let (q, keys) = (&[65_535, 1 << 22, 4, 64], &[65_535, 40, 2, 64]);
    let q = far(q, &[1 << 30, 256, 64, 1]);
    let keys = far(keys, &[5120, 128, 64, 1]);
    let turns = Some(bench.view(DType::U32, &[1]));
    let text = bench.refused(&kernel, &AttentionArgs { turns, ..AttentionArgs::new(q, keys, keys, q) });
    assert!(text.contains("grid [4294967295, 1, 1] exceeds"), "{text}");
    // Nor is anything wrong with tensors that are empty.
    let none = bench.view(DType::Bf16, &[2, 0, 2, 64]);
    let bounds = Bounds { max_kv: 0, ..args.bounds };
    kernel.run(&bench.stream, &AttentionArgs { k: none.into(), v: none.into(), bounds, ..args }).unwrap();
}

#[test]
fn selections_of_attention() {
    let bench = Bench::new();
    let refused = |pattern, selection, expected: &str| {
        let kernel = bench.kernel(pattern, |_| {});
        let text = bench.refused(&kernel, &AttentionArgs { selection, ..bench.args() });
        assert!(text.contains(expected), "expected `{expected}`, got `{text}`");
    };
    let u32s = |shape: &[u64]| bench.view(DType::U32, shape);
    refused(Pattern::AShape, Selection::Dense, "index: given nothing; a kernel of pattern a_shape needs windows");
    refused(
        Pattern::Dense,
        Selection::Windows(u32s(&[4, 2])),
        "index: given windows; a kernel of pattern dense needs nothing",
    );
    refused(Pattern::AShape, Selection::Windows(u32s(&[4, 3])), "needs [heads, window sizes] = [4, 2]");
    refused(Pattern::TriShape, Selection::Windows(u32s(&[4, 2])), "needs [heads, window sizes] = [4, 3]");
    let lists = |counts: &[u64], entries: &[u64]| HeadLists { counts: u32s(counts), entries: u32s(entries) };
    let index = Index::from_vertical_slash(lists(&[2, 3], &[2, 4, 8]), lists(&[2, 4], &[2, 4, 8]));
    refused(
        Pattern::VerticalSlash,
        Selection::VerticalSlash(index.vertical_slash.unwrap()),
        "tensor offset counts: has shape [2, 3]",
    );
    let index = Index::from_vertical_slash(lists(&[2, 4], &[2, 4, 1]), lists(&[2, 4], &[2, 3, 8]));
    refused(
        Pattern::VerticalSlash,
        Selection::VerticalSlash(index.vertical_slash.unwrap()),
        "tensor columns: has shape [2, 3, 8]",
    );
    let lists = |rows, capacity| BlockLists { counts: u32s(&[2, 1, rows]), indices: u32s(&[2, 1, rows, capacity]) };
    let blocks = |full| Selection::BlockSparse(Index::from_flex(lists(1, 4), full).block_sparse.unwrap());
    refused(Pattern::BlockSparse, blocks(Some(lists(1, 5))), "lay them out alike");
    let empty = Index::from_flex(lists(0, 4), None).block_sparse.unwrap();
    refused(
        Pattern::BlockSparse,
        Selection::BlockSparse(empty),
        "have 0 row blocks; 20 queries in blocks of 64 need 1",
    );
}

#[test]
fn tensors_of_merged_ranges() {
    let bench = Bench::new();
    let kernel = MergedRanges::build(&bench.device, MergeRule::Extended).unwrap();
    let i32s = |shape: &[u64]| bench.view(DType::I32, shape);
    let out = |shape: &[u64]| TensorView::new(&bench.out, DType::I32, shape).unwrap();
    // Two sequences of 100 queries and 200 keys, 4 heads with lists of their own.
    let args = MergedRangesArgs {
        lengths: Lengths::default(),
        bounds: Bounds { batch: 2, max_q: 100, max_kv: 200 },
        verticals: TokenLists { entries: i32s(&[2, 4, 8]), counts: None },
        slashes: TokenLists { entries: i32s(&[1, 4, 16]), counts: Some(i32s(&[4])) },
        block_count: out(&[2, 4, 2]),
        block_offset: out(&[2, 4, 2, 16]),
        column_count: out(&[2, 4, 2]),
        column_index: out(&[2, 4, 2, 8]),
        status: None,
    };
    let refused = |args: MergedRangesArgs<'_>, expected: &str| {
        let text = kernel.run(&bench.stream, &args).unwrap_err().to_string();
        assert!(text.contains(expected), "expected `{expected}`, got `{text}`");
        let untouched = bench.out.read::<u8>(&bench.stream).unwrap().iter().all(|byte| *byte == POISON);
        assert!(untouched, "written: {text}");
    };
    let beyond = Bounds { max_kv: (1 << 30) + 1, ..args.bounds };
    refused(MergedRangesArgs { bounds: beyond, ..args }, "positions are i32: allow at most 1073741824");
    let longer = Bounds { max_q: 129, ..args.bounds };
    refused(MergedRangesArgs { bounds: longer, ..args }, "has 2 row blocks; 129 queries in blocks of 64 need 3");
    refused(MergedRangesArgs { block_count: out(&[3, 4, 2]), ..args }, "tensor block_count: has shape [3, 4, 2]");
    let floats = TensorView::new(&bench.out, DType::F32, &[2, 4, 2]).unwrap();
    refused(MergedRangesArgs { block_count: floats, ..args }, "tensor block_count: has elements F32, needs I32");
    refused(MergedRangesArgs { column_count: out(&[2, 4, 3]), ..args }, "tensor column_count: has shape [2, 4, 3]");
    let narrow = out(&[2, 4, 2, 15]);
    refused(MergedRangesArgs { block_offset: narrow, ..args }, "[batch, heads, row blocks, capacity] = [2, 4, 2, 16]");
    refused(MergedRangesArgs { column_index: narrow, ..args }, "tensor column_index: has shape [2, 4, 2, 15]");
    let gaps = TensorView::strided(&bench.out, 0, DType::I32, &[2, 4, 2, 8], &[128, 32, 16, 1]).unwrap();
    refused(MergedRangesArgs { column_index: gaps, ..args }, "tensor column_index: has strides [128, 32, 16, 1]");
    let three = TokenLists { entries: i32s(&[2, 3, 8]), ..args.verticals };
    refused(MergedRangesArgs { verticals: three, ..args }, "tensor verticals: has shape [2, 3, 8]");
    let counts = TokenLists { counts: Some(i32s(&[3])), ..args.slashes };
    refused(MergedRangesArgs { slashes: counts, ..args }, "tensor slash_counts: has shape [3]");
    let status = Some(bench.view(DType::U32, &[2]));
    refused(MergedRangesArgs { status, ..args }, "tensor status: has shape [2]");
    let elsewhere = Device::emulator();
    let foreign = elsewhere.allocate(64).unwrap();
    let counts = TokenLists { counts: Some(TensorView::new(&foreign, DType::I32, &[4]).unwrap()), ..args.slashes };
    refused(MergedRangesArgs { slashes: counts, ..args }, "belongs to another device");
    assert!(kernel.run(&bench.stream, &args).is_ok());
}

#[test]
fn side_buffers_and_softcap_of_attention() {
    let bench = Bench::new();
    let kernel = bench.kernel(Pattern::Dense, |spec| {
        spec.softcap = true;
        spec.side = vec![SideBuffer { name: "bias".into(), element: Element::F32 }];
        let bias = Expr::Index(0, Box::new(Expr::Variable(Variable::Head)));
        spec.score = Some(Expr::Binary(Binary::Add, Box::new(Expr::Variable(Variable::Score)), Box::new(bias)));
    });
    let bias = [("bias", bench.view(DType::F32, &[4]))];
    let args = AttentionArgs { softcap: Some(30.0), side: &bias, ..bench.args() };
    let text = bench.refused(&kernel, &AttentionArgs { softcap: None, ..args });
    assert_eq!(text, "softcap: is None; this kernel needs a finite number above 0");
    let text = bench.refused(&kernel, &AttentionArgs { side: &[], ..args });
    assert!(text.contains("parameter `bias`: not set"), "{text}");
    let wrong = [("bias", bench.view(DType::U32, &[4]))];
    let text = bench.refused(&kernel, &AttentionArgs { side: &wrong, ..args });
    assert!(text.contains("tensor bias: has elements U32"), "{text}");
    let twice = [bias[0], bias[0]];
    let text = bench.refused(&kernel, &AttentionArgs { side: &twice, ..args });
    assert!(text.contains("parameter `bias`: set twice"), "{text}");
    assert!(kernel.run(&bench.stream, &args).is_ok());
}

#[test]
fn specs_report_everything_at_once() {
    let mut spec = AttentionSpec::new(Pattern::AShape, (48, 64), 80, MmaType::Bf16, Arch::Sm80);
    spec.causal = false;
    let text = AttentionKernel::generate(&spec).unwrap_err().to_string();
    assert!(text.contains("`head_dim`") && text.contains("`causal`"), "{text}");
}

#[test]
fn one_kernel_for_several_architectures() {
    let device = Device::emulator();
    let both = [Arch::Sm80, Arch::Sm90a];
    let spec = |block| AttentionSpec::new(Pattern::Dense, block, 64, MmaType::Bf16, Arch::Sm80);
    let kernel = AttentionKernel::generate_for(&spec((128, 64)), &both).unwrap();
    assert_eq!(kernel.texts().map(|(_, meta)| meta.arch).collect::<Vec<_>>(), both);
    assert_eq!(kernel.build(&device).unwrap().arch(), Arch::Sm80, "what most GPUs run");
    for arch in both {
        assert_eq!(kernel.build_for(&device, arch).unwrap().arch(), arch);
    }
    let embedded = kernel_core::attention!(
        pattern = dense,
        block = (128, 64),
        head_dim = 64,
        dtype = bf16,
        arch = [sm_80, sm_90a]
    );
    let texts = |kernel: &AttentionKernel| kernel.texts().map(|(text, _)| text.to_owned()).collect::<Vec<_>>();
    assert_eq!(texts(&kernel), texts(&embedded));

    let hopper = AttentionKernel::generate_for(&spec((192, 128)), &both[1..]).unwrap();
    assert_eq!(hopper.build(&device).unwrap().arch(), Arch::Sm90a, "the only text there is");
    let text = hopper.build_for(&device, Arch::Sm80).err().unwrap().to_string();
    assert_eq!(text, "arch: is sm_80; the kernel has a text for sm_90a");
    let text = AttentionKernel::generate_for(&spec((64, 64)), &both).unwrap_err().to_string();
    assert!(text.contains("(64, 64) is not generated for sm_90a"), "{text}");
}

#[test]
fn a_layer_falls_back_only_if_it_may() {
    let device = Device::emulator();
    let patterns = [HeadPattern::BlockSparse { blocks: 2 }, HeadPattern::Dense];
    let layer = || SparsePrefill::builder().heads(2).head_dim(64).patterns(LayerPatterns::from_iter(patterns));
    let groups = |builder: SparsePrefillBuilder| -> Vec<_> {
        let layer = builder.build(&device).unwrap();
        layer.groups().map(|group| (group.facts.pattern, group.facts.block, group.arch)).collect()
    };
    let (dense, sparse) = (Pattern::Dense, Pattern::BlockSparse);
    assert_eq!(groups(layer()), [(dense, (128, 64), Arch::Sm80), (sparse, (64, 64), Arch::Sm80)]);
    let hopper = || layer().arch(Arch::Sm90a);
    assert_eq!(groups(hopper()), [(dense, (192, 128), Arch::Sm90a), (sparse, (128, 64), Arch::Sm90a)]);

    // The caller's own lists have rows of 64, which sm_90a has not.
    let small = || hopper().block(sparse, (128, 128)).block(sparse, (64, 64));
    match small().build(&device).err() {
        Some(error @ Error::NeedsFallback { pattern: "block_sparse", arch: Arch::Sm90a, .. }) => {
            let text = error.to_string();
            assert!(text.contains("(64, 64) is not generated for sm_90a"), "{text}");
            assert!(text.contains("allow the fallback to sm_80"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let fallen = groups(small().fallback(true));
    assert_eq!(fallen, [(dense, (192, 128), Arch::Sm90a), (sparse, (64, 64), Arch::Sm80)]);

    // A fallback is of no use where sm_80 has no kernel either.
    for builder in [hopper().head_dim(80), hopper().block(sparse, (96, 64)), hopper().head_dim(256)] {
        let error = builder.fallback(true).build(&device).err().unwrap();
        assert!(matches!(error, Error::Spec(_)), "{error}");
    }
    // Dense heads of 256 exist on sm_90a alone.
    let wide = |arch| layer().head_dim(256).patterns(LayerPatterns::uniform(2, HeadPattern::Dense)).arch(arch);
    assert_eq!(groups(wide(Arch::Sm90a)), [(dense, (128, 64), Arch::Sm90a)]);
    assert!(matches!(wide(Arch::Sm80).build(&device), Err(Error::Spec(_))));
}

#[test]
fn settings_of_a_layer() {
    let device = Device::emulator();
    let builder = || SparsePrefill::builder().dense_below(0).heads(4).kv_heads(2).head_dim(64);
    let antidiagonal = |stride, threshold| {
        let pattern = HeadPattern::Antidiagonal { stride, threshold, blocks: 9 };
        builder().patterns(LayerPatterns::uniform(4, pattern))
    };
    let all = |pattern| builder().patterns(LayerPatterns::uniform(4, pattern));
    let flex = |share, threshold| all(HeadPattern::Flex { share, threshold, blocks: 9 });
    for (builder, expected) in [
        (builder().kv_heads(3), "heads: 4 query heads and 3 KV heads; the second must divide the first"),
        (builder().heads(0), "heads: 0 query heads"),
        (builder().dtype(DType::F32), "dtype: is F32; use Bf16 or F16"),
        (builder().scale(f32::INFINITY), "scale: is inf"),
        (builder().softcap(0.0), "softcap: is 0"),
        (builder().head_dim(80), "head_dim"),
        (
            builder().patterns(LayerPatterns::uniform(5, HeadPattern::Dense)),
            "patterns: head 4 has a pattern, the layer has 4 heads; take their range",
        ),
        (
            builder().patterns(LayerPatterns::uniform(4, HeadPattern::BlockSparse { blocks: 9 })).max_kv(1 << 30),
            "key_blocks",
        ),
        (antidiagonal(8, 0.0), "patterns: head 0 has the threshold 0; it must be above 0 and at most 1"),
        (antidiagonal(8, 1.5), "patterns: head 0 has the threshold 1.5"),
        (antidiagonal(8, f32::NAN), "patterns: head 0 has the threshold NaN"),
        (antidiagonal(12, 0.9), "patterns: head 0 has the stride 12; use 8 or 16"),
        (antidiagonal(16, 1.0).max_kv(1 << 30), "key_blocks"),
        (flex(0.0, 0.1), "patterns: head 0 has the share 0; it must be above 0 and at most 1"),
        (flex(1.001, 0.1), "patterns: head 0 has the share 1.001"),
        (flex(f32::NAN, 0.1), "patterns: head 0 has the share NaN"),
        (flex(0.9, -0.1), "patterns: head 0 has the threshold -0.1; it must be finite, 0 or more"),
        (flex(0.9, f32::INFINITY), "patterns: head 0 has the threshold inf"),
        (flex(0.9, f32::NAN), "patterns: head 0 has the threshold NaN"),
        (flex(0.9, 0.1).max_kv(1 << 30), "key_blocks"),
        (all(HeadPattern::FlexBlockSparse { blocks: (-0.5, 9) }), "patterns: head 0 has the share -0.5"),
        (
            all(HeadPattern::FlexVerticalSlash { columns: (0.9, 30), slashes: (2.0, 50) }),
            "patterns: head 0 has the share 2; it must be above 0 and at most 1",
        ),
    ] {
        let Err(error) = builder.build(&device) else { panic!("accepted: {expected}") };
        assert!(error.to_string().contains(expected), "expected `{expected}`, got `{error}`");
    }
}

/// Rows of a box lie 16 apart, and so do its limits. Nothing is launched for the other heads either.
#[test]
fn plans_that_bulk_copies_cannot_read() {
    let bench = Bench::new();
    let antidiagonal = HeadPattern::Antidiagonal { stride: 16, threshold: 0.9, blocks: 9 };
    let patterns = [HeadPattern::VerticalSlash { columns: 30, slashes: 100 }, antidiagonal];
    let layer = SparsePrefill::builder().dense_below(0).heads(2).kv_heads(2).head_dim(64).arch(Arch::Sm90a);
    let layer = layer.patterns(LayerPatterns::from_iter(patterns)).build(&bench.device).unwrap();
    let bounds = Bounds { batch: 2, max_q: 20, max_kv: 40 };
    let memory = bench.device.allocate(layer.workspace_bytes(&bounds) as usize).unwrap();
    memory.fill(&bench.stream, POISON).unwrap();
    let (q, k) = (bench.view(DType::Bf16, &[2, 20, 2, 64]), bench.view(DType::Bf16, &[2, 40, 2, 64]));
    let lengths = Lengths::default();
    let plan = PlanArgs { q, k: k.into(), lengths, bounds, workspace: Workspace::from(&memory) };
    let refused = |plan: PlanArgs<'_, '_>, tensor: &str| {
        let error = layer.plan(&bench.stream, &plan).unwrap_err();
        let named = matches!(&error, Error::Tensor { tensor: named, .. } if named == tensor);
        let text = error.to_string();
        assert!(named && text.contains("stride of 1099511627776 bytes; it must be"), "{text}");
        assert!(memory.read::<u8>(&bench.stream).unwrap().iter().all(|byte| *byte == POISON), "written");
    };
    // SAFETY: the launches are refused.
    let far = |shape: &[u64], strides: &[u64]| unsafe {
        TensorView::from_raw(bench.memory.address(), DType::Bf16, shape, strides).unwrap()
    };
    refused(PlanArgs { q: far(&[2, 20, 2, 64], &[5120, 1 << 35, 64, 1]), ..plan }, "q");
    let far_keys = PlanArgs { k: far(&[2, 40, 2, 64], &[1 << 39, 128, 64, 1]).into(), ..plan };
    refused(far_keys, "k");
    layer.plan(&bench.stream, &plan).unwrap();

    // Of queries the estimate of vertical-slash heads has no map.
    let chosen = HeadPattern::Flex { share: 0.9, threshold: 0.1, blocks: 9 };
    for pattern in [HeadPattern::VerticalSlash { columns: 30, slashes: 100 }, chosen] {
        let layer = SparsePrefill::builder().dense_below(0).heads(2).kv_heads(2).head_dim(64).arch(Arch::Sm90a);
        let layer = layer.patterns(LayerPatterns::from_iter([pattern; 2])).build(&bench.device).unwrap();
        let memory = bench.device.allocate(layer.workspace_bytes(&bounds) as usize).unwrap();
        let planned = |args: &PlanArgs<'_, '_>| {
            layer.plan(&bench.stream, &PlanArgs { workspace: Workspace::from(&memory), ..*args }).map(drop)
        };
        assert!(matches!(planned(&far_keys), Err(Error::Tensor { tensor, .. }) if tensor == "k"), "{pattern:?}");
        planned(&plan).unwrap();
    }
}

#[test]
fn plans_and_runs_of_a_layer() {
    let bench = Bench::new();
    let patterns = [
        HeadPattern::VerticalSlash { columns: 30, slashes: 100 },
        HeadPattern::BlockSparse { blocks: 2 },
        HeadPattern::Dense,
        HeadPattern::Dense,
    ];
    let layer = SparsePrefill::builder().dense_below(0).heads(4).kv_heads(2).head_dim(64).max_kv(64);
    let layer = layer.patterns(LayerPatterns::from_iter(patterns)).build(&bench.device).unwrap();
    let bounds = Bounds { batch: 2, max_q: 20, max_kv: 40 };
    let bytes = layer.workspace_bytes(&bounds);
    assert!(bytes > 0 && bytes.is_multiple_of(256));
    let memory = bench.device.allocate(bytes as usize).unwrap();
    memory.fill(&bench.stream, POISON).unwrap();
    let (q, k) = (bench.view(DType::Bf16, &[2, 20, 4, 64]), bench.view(DType::Bf16, &[2, 40, 2, 64]));
    let lengths = Lengths::default();
    let plan = PlanArgs { q, k: k.into(), lengths, bounds, workspace: Workspace::from(&memory) };
    let refused = |plan: PlanArgs<'_, '_>, expected: &str| {
        let text = layer.plan(&bench.stream, &plan).unwrap_err().to_string();
        assert!(text.contains(expected), "expected `{expected}`, got `{text}`");
        assert!(memory.read::<u8>(&bench.stream).unwrap().iter().all(|byte| *byte == POISON), "written");
    };
    let short = bench.device.allocate(bytes as usize - 1).unwrap();
    let expected = format!("the workspace has {} bytes and needs {bytes} for these bounds", bytes - 1);
    refused(PlanArgs { workspace: Workspace::from(&short), ..plan }, &expected);
    refused(
        PlanArgs { q: bench.view(DType::Bf16, &[2, 20, 2, 64]), ..plan },
        "tensor q: has 2 heads; the layer was built for 4",
    );
    refused(PlanArgs { k: bench.view(DType::Bf16, &[2, 40, 4, 64]).into(), ..plan }, "tensor k: has 4 heads");
    let long = Bounds { max_kv: 65, ..bounds };
    let keys = bench.view(DType::Bf16, &[2, 65, 2, 64]);
    let large = bench.device.allocate(layer.workspace_bytes(&long) as usize).unwrap();
    let workspace = Workspace::from(&large);
    refused(
        PlanArgs { k: keys.into(), bounds: long, workspace, ..plan },
        "bounds: max_kv is 65; the layer was built for 64",
    );

    let index = layer.plan(&bench.stream, &plan).unwrap();
    let out = TensorView::new(&bench.out, DType::Bf16, &[2, 20, 4, 64]).unwrap();
    let run = RunArgs { q, k: k.into(), v: k.into(), lengths, bounds, out, lse: None };
    let refused = |index: &Index<'_>, run: &RunArgs<'_>, expected: &str| {
        let text = layer.run(&bench.stream, run, index).unwrap_err().to_string();
        assert!(text.contains(expected), "expected `{expected}`, got `{text}`");
        assert!(bench.out.read::<u8>(&bench.stream).unwrap().iter().all(|byte| *byte == POISON), "written");
    };
    refused(&Index::default(), &run, "index: has no vertical-slash part, which this layer needs");
    refused(&Index { block_sparse: None, ..index }, &run, "index: has no block-sparse part");
    let other = Bounds { batch: 1, ..bounds };
    let (q1, k1) = (bench.view(DType::Bf16, &[1, 20, 4, 64]), bench.view(DType::Bf16, &[1, 40, 2, 64]));
    let out1 = TensorView::new(&bench.out, DType::Bf16, &[1, 20, 4, 64]).unwrap();
    let foreign = RunArgs { q: q1, k: k1.into(), v: k1.into(), bounds: other, out: out1, ..run };
    refused(&index, &foreign, "tensor offsets: has shape [2, 1, 2], needs [batch, heads, capacity] = [1, 1, _]");
    layer.run(&bench.stream, &run, &index).unwrap();
    assert!(layer.status(&bench.stream).unwrap().is_clear());
}

#[test]
fn batches_of_a_decoder() {
    let bench = Bench::new();
    let new =
        |logits, requests, block, rows| Decoder::new(&bench.device, logits, Room { requests, block, rows, vocab: 100 });
    let vocab = |vocab| Decoder::new(&bench.device, DType::F32, Room { requests: 1, block: 8, rows: 8, vocab });
    for (result, expected) in [
        (new(DType::U32, 1, 8, 8), "logits: of type U32; use Bf16, F16 or F32"),
        (new(DType::F32, 0, 8, 8), "requests: 0; a batch has 1 to 1024"),
        (new(DType::F32, 1, 0, 8), "block: 0; a request decodes 1 to 1024 positions"),
        (new(DType::F32, 1, 1025, 8), "block: 1025; a request decodes 1 to 1024 positions"),
        (new(DType::F32, 1, 8, 0), "rows: is 0"),
        (vocab(0), "vocab: 0; rows have 1 to 524288 tokens"),
        (vocab(524_289), "vocab: 524289; rows have 1 to 524288 tokens"),
    ] {
        let Err(error) = result else { panic!("accepted: {expected}") };
        assert!(error.to_string().contains(expected), "expected `{expected}`, got `{error}`");
    }
    const SAMPLER: SamplerKernel = kernel_core::sampler!(dtype = f32);
    let room = Room { requests: 1, block: 9, rows: 8, vocab: 100 };
    let decoder = Decoder::with_kernel(&bench.device, &SAMPLER, room).unwrap();
    let tokens = bench.view(DType::U32, &[10]);
    let request = Request::greedy(0, 0..8, 0, 99, 0.9);
    let start = |requests: &[Request]| decoder.start(&bench.stream, requests, &tokens).unwrap_err().to_string();
    assert_eq!(start(&[]), "requests: 0 given; the decoder was built for 1");
    assert_eq!(
        start(&[Request { first_token: 3, ..request.clone() }]),
        "tensor tokens: has 10 elements; the window of request 0 ends at 11"
    );
    assert_eq!(
        start(&[Request { window: 0..9, ..request.clone() }]),
        "requests: decode 9 positions at a time; the decoder has room for 8"
    );
    assert_eq!(
        start(&[Request { window: 0..10, ..request.clone() }]),
        "request: 0: decodes 10 positions at a time; the decoder has room for 9"
    );
    assert_eq!(
        start(&[Request { window: 0..11, block: 8, ..request.clone() }]),
        "tensor tokens: has 10 elements; the window of request 0 ends at 11"
    );
    let mut guided = request.clone();
    guided.draw.guidance = 1.5;
    assert!(start(&[guided]).contains("request: 0: asks for guidance; build the decoder with a kernel"));
    let mut credited = request.clone();
    credited.draw.credit = Some(Credit::default());
    assert_eq!(start(&[credited]), "request: 0: has credits; build the decoder `with_credits`");
    let mut biased = request.clone();
    biased.draw.biases = vec![(100, 1.0)];
    assert_eq!(start(&[biased]), "request: 0: has a bias for token 100; rows have 100 tokens");
    decoder.start(&bench.stream, &[request], &tokens).unwrap();
    let step = |values, trajectory: &Trajectory<'_>| {
        let logits = Logits { values, gathered: true, guide_offset: 0 };
        decoder.step(&bench.stream, &logits, &tokens, trajectory).unwrap_err().to_string()
    };
    let none = Trajectory::default();
    assert_eq!(step(bench.view(DType::Bf16, &[8, 100]), &none), "tensor logits: has elements Bf16, needs F32");
    assert!(step(bench.view(DType::F32, &[0, 100]), &none).contains("rows must be at least 1"));
    assert!(step(bench.view(DType::F32, &[8, 101]), &none).contains("tokens 1 to 100"));
    let steps = Trajectory { steps: Some(bench.view(DType::U32, &[9])), ..none };
    let entropy = Trajectory { entropy: Some(bench.view(DType::U32, &[10])), ..none };
    assert!(
        step(bench.view(DType::F32, &[8, 100]), &steps)
            .contains("tensor trajectory steps: has shape [9], needs [tokens] = [10]")
    );
    assert!(step(bench.view(DType::F32, &[8, 100]), &entropy).contains("tensor trajectory entropy: has elements U32"));
}

#[test]
fn settings_of_decoding() {
    let device = Device::emulator();
    let refused = |change: fn(DecodeAttentionBuilder) -> DecodeAttentionBuilder, expected: &str| {
        let builder = change(DecodeAttention::builder().heads(4).kv_heads(2).head_dim(64));
        let text = builder.build(&device).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(expected), "expected `{expected}`, got `{text}`");
    };
    refused(|b| b.heads(0), "0 query heads");
    refused(|b| b.kv_heads(3), "the second must divide the first");
    refused(|b| b.head_dim(80), "80 is not generated");
    refused(|b| b.head_dim(256).arch(Arch::Sm90a), "256 is not shared out by keys");
    refused(|b| b.dtype(DType::F32), "use Bf16 or F16");
    refused(|b| b.scale(f32::NAN), "must be finite");
    refused(|b| b.softcap(0.0), "a finite number above 0");
    refused(|b| b.kv(KvLayout::Paged { page: 48 }), "pages of 48 tokens");
    refused(|b| b.block((96, 64)), "(96, 64) is not generated");
    refused(|b| b.parts(0, 32), "use 1 key or more");
    refused(|b| b.parts(512, 33), "1 to 32");
    let spec = AttentionSpec::new(Pattern::Dense, (64, 64), 64, MmaType::Bf16, Arch::Sm80);
    let spec = AttentionSpec { causal: false, partition: Partition::Keys, ..spec };
    assert!(AttentionKernel::generate(&spec).unwrap_err().to_string().contains("use DecodeAttention"));
}

#[test]
fn tensors_of_decoding() {
    let bench = Bench::new();
    let builder = || DecodeAttention::builder().heads(4).kv_heads(2).head_dim(64).parts(64, 32);
    let kernel = builder().build(&bench.device).unwrap();
    let workspace = bench.device.allocate(1 << 20).unwrap();
    let out = TensorView::new(&bench.out, DType::Bf16, &[2, 20, 4, 64]).unwrap();
    let keys = bench.view(DType::Bf16, &[2, 200, 2, 64]);
    let args = DecodeArgs {
        q: bench.view(DType::Bf16, &[2, 20, 4, 64]),
        k: keys.into(),
        v: keys.into(),
        out,
        lse: None,
        lengths: Lengths::default(),
        bounds: Bounds { batch: 2, max_q: 20, max_kv: 200 },
        blocks: None,
        workspace: Workspace::from(&workspace),
    };
    let refused = |args: DecodeArgs<'_>, expected: &str| {
        let error = kernel.run(&bench.stream, &args).unwrap_err();
        assert!(bench.out.read::<u8>(&bench.stream).unwrap().iter().all(|byte| *byte == POISON), "written: {error}");
        assert!(error.to_string().contains(expected), "expected `{expected}`, got `{error}`");
    };
    refused(DecodeArgs { bounds: Bounds { batch: 2, max_q: 21, max_kv: 200 }, ..args }, "fewer than the bound 21");
    refused(DecodeArgs { bounds: Bounds { batch: 2, max_q: 1 << 30, max_kv: 200 }, ..args }, "heads that share keys");
    let one = bench.view(DType::Bf16, &[2, 200, 1, 64]).into();
    refused(DecodeArgs { k: one, v: one, ..args }, "has 1 heads; the kernel was built for 2");
    refused(DecodeArgs { v: one, ..args }, "needs the heads and dimensions of k");
    refused(DecodeArgs { out: bench.view(DType::Bf16, &[2, 20, 2, 64]), ..args }, "needs that of q");
    let lse = Some(bench.view(DType::F32, &[2, 4, 19]));
    refused(DecodeArgs { lse, ..args }, "[batch, heads, seq]");
    let lists = HeadLists { counts: bench.view(DType::U32, &[2, 2]), entries: bench.view(DType::U32, &[2, 2, 4]) };
    refused(DecodeArgs { blocks: Some(lists), ..args }, "build the kernel with lists(true)");
    let needed = kernel.workspace_bytes(&args.bounds);
    assert!(needed > 0 && needed < 1 << 20, "{needed}");
    let small = bench.device.allocate(needed as usize - 1).unwrap();
    refused(DecodeArgs { workspace: Workspace::from(&small), ..args }, &needed.to_string());
    assert!(kernel.run(&bench.stream, &args).is_ok());

    let kernel = builder().lists(true).build(&bench.device).unwrap();
    let run = |lists| kernel.run(&bench.stream, &DecodeArgs { blocks: Some(lists), ..args });
    let text = |lists| run(lists).unwrap_err().to_string();
    let counts = bench.view(DType::U32, &[2, 4]);
    assert!(text(HeadLists { counts, ..lists }).contains("block counts"));
    let entries = bench.view(DType::F32, &[2, 2, 4]);
    assert!(text(HeadLists { entries, ..lists }).contains("block ids"));
    assert!(run(lists).is_ok());
}
