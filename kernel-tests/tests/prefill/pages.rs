//! A layer over a paged cache: the same bits as over strided keys and values, chunk by chunk as the cache grows.

use super::{Batch, Case, POISON, Sequence, all_patterns, bits, compare, masks};
use kernel_core::{
    Buffer, DType, Device, Index, KvLayout, KvView, Lengths, PlanArgs, RunArgs, SparsePrefill, Stream, TensorView,
};
use kernel_tests::testing;
use ptx::isa::MmaType;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

/// Keys and values of some sequences in pages `[pages, 2, page, heads, head_dim]` of one buffer, keys first, in no order.
struct Cache {
    page: usize,
    /// Elements of a token, and heads in it.
    row: usize,
    heads: usize,
    free: Vec<u32>,
    pages: usize,
    /// Tokens of each sequence, and its pages.
    tokens: Vec<usize>,
    of: Vec<Vec<u32>>,
    width: usize,
    words: Vec<u16>,
    memory: Buffer,
    table: Buffer,
}

impl Cache {
    /// An empty cache with room for `most` tokens of each sequence and some pages more.
    fn new(device: &Device, stream: &Stream, case: &Case, page: usize, most: &[usize], seed: u64) -> Cache {
        let row = case.kv_heads * case.head_dim;
        let pages = most.iter().map(|tokens| tokens.div_ceil(page)).sum::<usize>() + 2;
        let mut free: Vec<u32> = (0..pages as u32).collect();
        free.shuffle(&mut StdRng::seed_from_u64(seed));
        let words = vec![POISON; pages * 2 * page * row];
        let width = most.iter().copied().max().unwrap().div_ceil(page);
        Cache {
            page,
            row,
            heads: case.kv_heads,
            free,
            pages,
            tokens: vec![0; most.len()],
            of: vec![Vec::new(); most.len()],
            width,
            memory: device.upload(stream, &words).unwrap(),
            words,
            table: device.upload(stream, &vec![u32::MAX; width * most.len()]).unwrap(),
        }
    }

    /// Writes the tokens of `data` that the cache does not have yet.
    fn append(&mut self, stream: &Stream, case: &Case, data: &[Sequence]) {
        for (sequence, data) in data.iter().enumerate() {
            for token in self.tokens[sequence]..data.k.len() / self.row {
                if token % self.page == 0 {
                    self.of[sequence].push(self.free.pop().unwrap());
                }
                let page = self.of[sequence][token / self.page] as usize;
                for (side, values) in [&data.k, &data.v].into_iter().enumerate() {
                    let at = ((page * 2 + side) * self.page + token % self.page) * self.row;
                    let values = values[token * self.row..][..self.row].iter();
                    values.enumerate().for_each(|(i, value)| self.words[at + i] = bits(case.dtype, *value));
                }
            }
            self.tokens[sequence] = data.k.len() / self.row;
        }
        self.memory.write(stream, &self.words).unwrap();
        self.table.write(stream, &self.entries()).unwrap();
    }

    fn entries(&self) -> Vec<u32> {
        let entry = |own: &Vec<u32>, i: usize| own.get(i).copied().unwrap_or(u32::MAX);
        self.of.iter().flat_map(|own| (0..self.width).map(move |i| entry(own, i))).collect()
    }

    /// Keys and values.
    fn views(&self, dtype: MmaType) -> [KvView<'_>; 2] {
        let side = self.page * self.row;
        let shape = [self.pages, self.page, self.heads, self.row / self.heads].map(|size| size as u64);
        let strides = [2 * side, self.row, self.row / self.heads, 1].map(|stride| stride as u64);
        let table = TensorView::new(&self.table, DType::U32, &[self.of.len() as u64, self.width as u64]).unwrap();
        [0, 2 * side as u64].map(|offset| KvView::Paged {
            pages: TensorView::strided(&self.memory, offset, dtype.into(), &shape, &strides).unwrap(),
            table,
        })
    }
}

fn layer(case: &Case, device: &Device, arch: ptx::Arch, page: usize) -> SparsePrefill {
    case.builder(arch).kv(KvLayout::Paged { page: page as u32 }).build(device).unwrap()
}

type Results = Vec<Vec<(Vec<u16>, Vec<f32>)>>;

/// Plans and runs, with other keys and values than the batch's own where `cache` is given.
fn run<'w>(
    layer: &SparsePrefill,
    stream: &Stream,
    batch: &Batch<'_>,
    cache: Option<(&Cache, &Buffer)>,
    workspace: &'w Buffer,
) -> (Index<'w>, Results) {
    let mut args = batch.args();
    if let Some((cache, lengths)) = cache {
        [args.k, args.v] = cache.views(batch.case.dtype);
        let lengths = TensorView::new(lengths, DType::U32, &[cache.of.len() as u64]).unwrap();
        args.lengths = Lengths { kv_start: None, kv_length: Some(lengths), ..args.lengths };
    }
    let RunArgs { q, k, lengths, bounds, .. } = args;
    batch.out.fill(stream, 0xFF).unwrap();
    let index = layer.plan(stream, &PlanArgs { q, k, lengths, bounds, workspace: workspace.into() }).unwrap();
    layer.run(stream, &args, &index).unwrap();
    (index, batch.results(stream))
}

/// Rows of a tensor of `[tokens, row]`.
fn rows(values: &[f32], row: usize, range: std::ops::Range<usize>) -> Vec<f32> {
    values[range.start * row..range.end * row].to_vec()
}

fn assert_alike(what: &str, strided: &Results, paged: &Results) {
    let words = |results: &Results| -> Vec<(Vec<u16>, Vec<u32>)> {
        let heads = results.iter().flatten();
        heads.map(|(out, lse)| (out.clone(), lse.iter().map(|x| x.to_bits()).collect())).collect()
    };
    assert!(words(strided) == words(paged), "{what}: other bits than strided");
}

#[test]
fn a_prompt_in_chunks_equals_dense_attention_under_its_masks() {
    // Ends of chunks of each sequence: in the middle of a page, at its end, and a chunk without queries.
    let ends = [[61, 64], [192, 64], [205, 161], [330, 300]];
    for (page, dtype, head_dim) in [(16, MmaType::Bf16, 64), (64, MmaType::F16, 128), (256, MmaType::Bf16, 64)] {
        let patterns = all_patterns();
        let whole = ends[ends.len() - 1].map(|length| (length, length)).to_vec();
        let whole = Case { head_dim, dtype, kv_heads: 2, patterns, sequences: whole, packed: false };
        let (q_row, kv_row) = (whole.heads() * head_dim, whole.kv_heads * head_dim);
        let prompt = whole.data(testing::seed(20));
        for (device, arch) in testing::targets() {
            let stream = Stream::new(&device).unwrap();
            let (plain, paged) = (whole.layer(&device, arch), layer(&whole, &device, arch, page));
            let mut cache = Cache::new(&device, &stream, &whole, page, &ends[ends.len() - 1], 21);
            let mut begins = [0; 2];
            for end in ends {
                let what = format!("{} page {page}, up to {end:?}", arch.target());
                let chunk = |(sequence, begin, end): (&Sequence, usize, usize)| Sequence {
                    q: rows(&sequence.q, q_row, begin..end),
                    k: rows(&sequence.k, kv_row, 0..end),
                    v: rows(&sequence.v, kv_row, 0..end),
                };
                let data: Vec<Sequence> = (0..2).map(|s| chunk((&prompt[s], begins[s], end[s]))).collect();
                let sequences = (0..2).map(|s| (end[s] - begins[s], end[s])).collect();
                let case = Case { sequences, patterns: all_patterns(), ..whole };
                let batch = Batch::new(&device, &stream, &case, &data);
                cache.append(&stream, &case, &data);
                let [own, other] =
                    [&plain, &paged].map(|layer| layer.workspace_bytes(&batch.bounds) as usize).map(|bytes| {
                        let workspace = device.allocate(bytes).unwrap();
                        workspace.fill(&stream, 0xFF).unwrap();
                        workspace
                    });
                let (_, expected) = run(&plain, &stream, &batch, None, &own);
                let (index, found) = run(&paged, &stream, &batch, Some((&cache, &batch.kv_rows)), &other);
                assert!(paged.status(&stream).unwrap().is_clear(), "{what}");
                assert_alike(&what, &expected, &found);
                let words = |workspace: &Buffer| workspace.read::<u8>(&stream).unwrap();
                // What kernels of strided keys take turns by stands behind the index.
                assert!(words(&own).starts_with(&words(&other)), "{what}: another index than of strided keys");
                compare(&what, &batch, &data, &masks(&case, &paged, &index, &stream), &stream);
                begins = end;
            }
        }
    }
}

#[test]
fn packed_queries_read_a_paged_cache() {
    let sequences = vec![(31, 31), (200, 230), (0, 0), (64, 64), (2, 99)];
    let case =
        Case { head_dim: 64, dtype: MmaType::F16, kv_heads: 4, patterns: all_patterns(), sequences, packed: true };
    let data = case.data(testing::seed(22));
    let tokens: Vec<usize> = case.sequences.iter().map(|s| s.1).collect();
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        let batch = Batch::new(&device, &stream, &case, &data);
        let mut cache = Cache::new(&device, &stream, &case, 32, &tokens, 23);
        cache.append(&stream, &case, &data);
        let lengths: Vec<u32> = tokens.iter().map(|tokens| *tokens as u32).collect();
        let lengths = device.upload(&stream, &lengths).unwrap();
        let (plain, paged) = (case.layer(&device, arch), layer(&case, &device, arch, 32));
        let workspace = device.allocate(plain.workspace_bytes(&batch.bounds) as usize).unwrap();
        let (_, expected) = run(&plain, &stream, &batch, None, &workspace);
        let (_, found) = run(&paged, &stream, &batch, Some((&cache, &lengths)), &workspace);
        assert!(paged.status(&stream).unwrap().is_clear());
        assert_alike("packed", &expected, &found);
    }
}

#[test]
fn a_wild_table_entry_is_reported_and_harms_no_other_sequence() {
    let sequences = vec![(60, 150), (120, 150), (40, 99)];
    let case =
        Case { head_dim: 64, dtype: MmaType::Bf16, kv_heads: 2, patterns: all_patterns(), sequences, packed: false };
    let data = case.data(testing::seed(24));
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        let batch = Batch::new(&device, &stream, &case, &data);
        let mut cache = Cache::new(&device, &stream, &case, 16, &[150, 150, 99], 25);
        cache.append(&stream, &case, &data);
        let paged = layer(&case, &device, arch, 16);
        let workspace = device.allocate(paged.workspace_bytes(&batch.bounds) as usize).unwrap();
        let (_, expected) = run(&paged, &stream, &batch, Some((&cache, &batch.kv_rows)), &workspace);
        assert!(paged.status(&stream).unwrap().is_clear());
        for value in [cache.pages as u32, 1 << 24, u32::MAX, 1 << 31] {
            let mut entries = cache.entries();
            entries[cache.width + 3] = value;
            cache.table.write(&stream, &entries).unwrap();
            let (_, found) = run(&paged, &stream, &batch, Some((&cache, &batch.kv_rows)), &workspace);
            let status = paged.status(&stream).unwrap();
            assert!(status.index_out_of_range() && !status.length_cut(), "{value:#x}: {status:?}");
            for sequence in [0, 2] {
                let what = format!("entry {value:#x}, sequence {sequence}");
                assert_alike(&what, &vec![expected[sequence].clone()], &vec![found[sequence].clone()]);
            }
            assert!(found[1].iter().flat_map(|head| &head.1).all(|lse| !lse.is_nan()), "{value:#x}");
        }
    }
}
