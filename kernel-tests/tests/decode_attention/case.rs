//! One step of decoding, checked against the oracle.

use half::{bf16, f16};
use kernel_core::{
    Bounds, Buffer, DType, DecodeArgs, DecodeAttention, Device, Error, KvLayout, KvView, Lengths, Status, Stream,
    TensorView, Workspace, index::HeadLists,
};
use kernel_tests::oracle::{self, Mask, Problem, error, mask::BlockSparse};
use ptx::{Arch, isa::MmaType};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// What nobody may write, or count: NaN.
const POISON: u16 = 0xFFFF;
/// Rows of a cache behind the longest request.
const SUFFIX: usize = 5;

/// A step: requests of (query rows, keys).
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) dtype: MmaType,
    pub(crate) lengths: Vec<(usize, usize)>,
    /// Tokens of a page, of a paged cache.
    pub(crate) page: Option<usize>,
    /// Queries one request after the other instead of padded.
    pub(crate) packed: bool,
    pub(crate) lse: bool,
    pub(crate) softcap: Option<f32>,
    /// Least keys of a part, and the limit.
    pub(crate) parts: (u32, u32),
    /// Rows and keys of a tile, where not the default.
    pub(crate) block: Option<(u32, u32)>,
    /// Share of the key blocks that are listed.
    pub(crate) density: Option<f64>,
    /// Bounds beyond the lengths.
    pub(crate) slack: usize,
    pub(crate) seed: u64,
}

/// Rounded values of each request and head, `[rows, head_dim]`, and the listed blocks of each KV head.
pub(crate) struct Inputs {
    pub(crate) q: Vec<Vec<Vec<f32>>>,
    pub(crate) k: Vec<Vec<Vec<f32>>>,
    pub(crate) v: Vec<Vec<Vec<f32>>>,
    pub(crate) lists: Vec<Vec<Vec<u32>>>,
}

/// What was written, by request and query head: elements as bits, and LSE.
#[derive(PartialEq)]
pub(crate) struct Outcome {
    pub(crate) out: Vec<Vec<Vec<u16>>>,
    pub(crate) lse: Vec<Vec<Vec<u32>>>,
    pub(crate) status: Status,
}

/// What differs from the plain launch: called with the name and the words of a device array.
pub(crate) type Tamper<'t> = &'t dyn Fn(&str, &mut Vec<u32>);

impl Case {
    pub(crate) fn new(heads: usize, kv_heads: usize, lengths: Vec<(usize, usize)>, seed: u64) -> Case {
        Case {
            heads,
            kv_heads,
            head_dim: 64,
            dtype: MmaType::Bf16,
            lengths,
            page: None,
            packed: false,
            lse: true,
            softcap: None,
            parts: (128, 32),
            block: None,
            density: None,
            slack: 0,
            seed,
        }
    }

    fn max(&self, of: impl Fn(&(usize, usize)) -> usize) -> usize {
        self.lengths.iter().map(of).max().unwrap_or(0) + self.slack
    }

    pub(crate) fn bounds(&self) -> Bounds {
        let [max_q, max_kv] = [self.max(|l| l.0), self.max(|l| l.1)].map(|most| most as u32);
        Bounds { batch: self.lengths.len() as u32, max_q, max_kv }
    }

    pub(crate) fn build(&self, device: &Device, arch: Arch) -> Result<DecodeAttention, Error> {
        let mut builder = DecodeAttention::builder()
            .heads(self.heads as u32)
            .kv_heads(self.kv_heads as u32)
            .head_dim(self.head_dim as u32)
            .dtype(self.dtype.into())
            .arch(arch)
            .lists(self.density.is_some())
            .parts(self.parts.0, self.parts.1);
        if let Some(page) = self.page {
            builder = builder.kv(KvLayout::Paged { page: page as u32 });
        }
        builder = self.block.into_iter().fold(builder, |builder, block| builder.block(block));
        self.softcap.into_iter().fold(builder, |builder, softcap| builder.softcap(softcap)).build(device)
    }

    /// Inputs from the seed: those of a request depend on nothing but its place.
    pub(crate) fn inputs(&self, key_block: u32) -> Inputs {
        let mut inputs = Inputs { q: Vec::new(), k: Vec::new(), v: Vec::new(), lists: Vec::new() };
        for (request, &(q_len, kv_len)) in self.lengths.iter().enumerate() {
            let mut rng = StdRng::seed_from_u64(self.seed + 1000 * request as u64);
            let mut tensor = |heads: usize, rows: usize| -> Vec<Vec<f32>> {
                let element = |rng: &mut StdRng| value(self.dtype, bits(self.dtype, normal(rng))) as f32;
                (0..heads).map(|_| (0..rows * self.head_dim).map(|_| element(&mut rng)).collect()).collect()
            };
            inputs.q.push(tensor(self.heads, q_len));
            inputs.k.push(tensor(self.kv_heads, kv_len));
            inputs.v.push(tensor(self.kv_heads, kv_len));
            let blocks = (kv_len as u32).div_ceil(key_block);
            let mut list = || (0..blocks).filter(|_| rng.random_bool(self.density.unwrap_or(1.0))).collect();
            inputs.lists.push((0..self.kv_heads).map(|_| list()).collect());
        }
        inputs
    }

    /// Launches on `device` and compares with the oracle.
    pub(crate) fn check(&self, device: &Device, arch: Arch) {
        let kernel = self.build(device, arch).unwrap();
        let inputs = self.inputs(kernel.key_block());
        let found = self.launch(&kernel, device, &inputs, &|_, _| ());
        assert!(found.status.is_clear(), "{}: status", self.describe(arch));
        self.compare(&inputs, &found, kernel.key_block(), arch);
    }

    fn describe(&self, arch: Arch) -> String {
        let Case { heads, kv_heads, head_dim, lengths, page, parts, density, seed, .. } = self;
        let arch = arch.target();
        format!("{arch} {heads}/{kv_heads} heads d{head_dim} {lengths:?} {page:?} {parts:?} {density:?} seed {seed}")
    }

    /// Fails where `found` is not what the oracle says.
    pub(crate) fn compare(&self, inputs: &Inputs, found: &Outcome, key_block: u32, arch: Arch) {
        let what = self.describe(arch);
        let (mut out, mut reference, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        for (request, &(q_len, kv_len)) in self.lengths.iter().enumerate() {
            for head in 0..self.heads {
                let kv_head = head / (self.heads / self.kv_heads);
                let mask = match self.density {
                    None => Mask::dense(q_len, kv_len, false),
                    Some(_) => {
                        let partial = vec![inputs.lists[request][kv_head].clone(); q_len.div_ceil(64)];
                        let lists = BlockSparse { full: vec![Vec::new(); partial.len()], partial };
                        Mask::block_sparse(q_len, kv_len, (64, key_block as usize), false, &lists, |_, _| true)
                    }
                };
                let problem = Problem {
                    q: &inputs.q[request][head],
                    k: &inputs.k[request][kv_head],
                    v: &inputs.v[request][kv_head],
                    head_dim: self.head_dim,
                    mask: &mask,
                    scale: (self.head_dim as f64).powf(-0.5),
                    softcap: self.softcap.map(f64::from),
                    score: None,
                };
                let (expected, sums) = oracle::attention(&problem);
                plain.extend(oracle::plain(&problem, |x| error::round(self.dtype, x)));
                reference.extend(expected);
                out.extend(found.out[request][head].iter().map(|&word| value(self.dtype, word)));
                for (row, (&own, sum)) in found.lse[request][head].iter().zip(sums).enumerate() {
                    let own = f64::from(f32::from_bits(own));
                    assert!(
                        own == sum || (own - sum).abs() < 1e-3,
                        "{what}: LSE of request {request} head {head} row {row} is {own}, not {sum}"
                    );
                }
            }
        }
        oracle::assert_close(&what, self.dtype, &out, &reference, &plain);
    }

    /// Launches on `device`, after `tamper` has changed the words of arrays; what must not be written is checked here.
    pub(crate) fn launch(
        &self,
        kernel: &DecodeAttention,
        device: &Device,
        inputs: &Inputs,
        tamper: Tamper<'_>,
    ) -> Outcome {
        let stream = Stream::new(device).unwrap();
        let words = |name: &str, mut words: Vec<u32>| {
            tamper(name, &mut words);
            words.resize(words.len().max(1), 0);
            device.upload(&stream, &words).unwrap()
        };
        let (batch, d) = (self.lengths.len(), self.head_dim);
        let bounds = self.bounds();
        let (max_q, max_kv) = (bounds.max_q as usize, bounds.max_kv as usize + SUFFIX);

        // Queries and output: padded or packed rows.
        let starts: Vec<usize> =
            self.lengths.iter().scan(0, |next, l| Some(std::mem::replace(next, *next + l.0))).collect();
        let total: usize = self.lengths.iter().map(|l| l.0).sum();
        let row_of =
            |request: usize, row: usize| if self.packed { starts[request] + row } else { request * max_q + row };
        let query_rows = if self.packed { total } else { batch * max_q };
        let mut q = vec![POISON; query_rows * self.heads * d];
        self.each(&inputs.q, |request, head, row, values| {
            put(self.dtype, &mut q, (row_of(request, row) * self.heads + head) * d, values);
        });
        let q = device.upload(&stream, &q).unwrap();
        let out = device.upload(&stream, &vec![POISON; query_rows * self.heads * d]).unwrap();
        let lse = device.upload(&stream, &vec![u32::MAX; self.heads * query_rows]).unwrap();
        let shape = |heads: usize| match self.packed {
            true => vec![total, heads, d],
            false => vec![batch, max_q, heads, d],
        };
        let view = |buffer, heads| TensorView::new(buffer, self.dtype.into(), &wide(&shape(heads))).unwrap();
        let lse_shape = if self.packed { vec![self.heads, total] } else { vec![batch, self.heads, max_q] };

        // Keys and values: a cache with a stale suffix, or pages in no order.
        let page = self.page.unwrap_or(max_kv);
        let width = max_kv.div_ceil(page);
        let mut pages: Vec<u32> = (0..(batch * width) as u32 + 2).collect();
        if self.page.is_some() {
            pages.shuffle(&mut StdRng::seed_from_u64(self.seed));
        }
        let table: Vec<u32> = (0..batch * width)
            .map(|i| if i % width * page < self.lengths[i / width].1 { pages[i] } else { u32::MAX })
            .collect();
        let side = |values: &[Vec<Vec<f32>>]| {
            let mut cache = vec![POISON; (pages.len() * page * self.kv_heads * d).max(8)];
            self.each(values, |request, head, row, values| {
                let page_of = if self.page.is_some() { pages[request * width + row / page] as usize } else { request };
                put(self.dtype, &mut cache, ((page_of * page + row % page) * self.kv_heads + head) * d, values);
            });
            device.upload(&stream, &cache).unwrap()
        };
        let (k, v) = (side(&inputs.k), side(&inputs.v));
        let table = words("page_table", table);
        let kv = |buffer| match self.page {
            None => {
                TensorView::new(buffer, self.dtype.into(), &wide(&[batch, max_kv, self.kv_heads, d])).unwrap().into()
            }
            Some(page) => KvView::Paged {
                pages: TensorView::new(buffer, self.dtype.into(), &wide(&[pages.len(), page, self.kv_heads, d]))
                    .unwrap(),
                table: TensorView::new(&table, DType::U32, &wide(&[batch, width])).unwrap(),
            },
        };

        let q_start = words("q_start", starts.iter().copied().chain([total]).map(|start| start as u32).collect());
        let q_length = words("q_length", self.lengths.iter().map(|l| l.0 as u32).collect());
        let kv_length = words("kv_length", self.lengths.iter().map(|l| l.1 as u32).collect());
        let array = |buffer, count: usize| Some(TensorView::new(buffer, DType::U32, &[count as u64]).unwrap());
        let lengths = Lengths {
            q_start: if self.packed { array(&q_start, batch + 1) } else { None },
            kv_start: None,
            q_length: if self.packed { None } else { array(&q_length, batch) },
            kv_length: array(&kv_length, batch),
        };

        let capacity = max_kv.div_ceil(kernel.key_block() as usize);
        let lists = || inputs.lists.iter().flatten();
        let counts = words("counts", lists().map(|list| list.len() as u32).collect());
        let entries = lists().flat_map(|list| (0..capacity).map(|i| list.get(i).copied().unwrap_or(u32::MAX)));
        let entries = words("entries", entries.collect());
        let blocks = self.density.map(|_| HeadLists {
            counts: TensorView::new(&counts, DType::U32, &wide(&[batch, self.kv_heads])).unwrap(),
            entries: TensorView::new(&entries, DType::U32, &wide(&[batch, self.kv_heads, capacity])).unwrap(),
        });

        let memory = self.workspace(kernel, device, &stream);
        let workspace = Workspace::from(&memory);
        let args = DecodeArgs {
            q: view(&q, self.heads),
            k: kv(&k),
            v: kv(&v),
            out: view(&out, self.heads),
            lse: self.lse.then(|| TensorView::new(&lse, DType::F32, &wide(&lse_shape)).unwrap()),
            lengths,
            bounds,
            blocks,
            workspace,
        };
        kernel.run(&stream, &args).unwrap();

        let (out, lse) = (out.read::<u16>(&stream).unwrap(), lse.read::<u32>(&stream).unwrap());
        let (mut owned, mut lse_owned) = (vec![false; out.len()], vec![false; lse.len()]);
        let mut outcome = Outcome { out: Vec::new(), lse: Vec::new(), status: kernel.status(&stream).unwrap() };
        for (request, &(q_len, _)) in self.lengths.iter().enumerate() {
            let (mut rows, mut sums) = (Vec::new(), Vec::new());
            for head in 0..self.heads {
                let at = |row| (row_of(request, row) * self.heads + head) * d;
                let lse_at = |row| match self.packed {
                    true => head * total + starts[request] + row,
                    false => (request * self.heads + head) * max_q + row,
                };
                (0..q_len).for_each(|row| owned[at(row)..at(row) + d].fill(true));
                (0..q_len).for_each(|row| lse_owned[lse_at(row)] = true);
                rows.push((0..q_len).flat_map(|row| out[at(row)..at(row) + d].to_vec()).collect());
                sums.push(if self.lse { (0..q_len).map(|row| lse[lse_at(row)]).collect() } else { Vec::new() });
            }
            outcome.out.push(rows);
            outcome.lse.push(sums);
        }
        for (i, (&word, owned)) in out.iter().zip(owned).enumerate() {
            assert!(owned || word == POISON, "element {i} belongs to nobody and was written");
        }
        for (i, (&word, owned)) in lse.iter().zip(lse_owned).enumerate() {
            assert!(owned && self.lse || word == u32::MAX, "LSE {i} belongs to nobody and was written");
        }
        outcome
    }

    /// Exactly as much as is needed, full of NaN.
    fn workspace(&self, kernel: &DecodeAttention, device: &Device, stream: &Stream) -> Buffer {
        let memory = device.allocate(kernel.workspace_bytes(&self.bounds()).max(1) as usize).unwrap();
        memory.fill(stream, 0xFF).unwrap();
        memory
    }

    /// Calls `put` with each row of each request and head.
    fn each(&self, values: &[Vec<Vec<f32>>], mut put: impl FnMut(usize, usize, usize, &[f32])) {
        for (request, heads) in values.iter().enumerate() {
            for (head, rows) in heads.iter().enumerate() {
                rows.chunks(self.head_dim).enumerate().for_each(|(row, values)| put(request, head, row, values));
            }
        }
    }
}

fn wide(shape: &[usize]) -> Vec<u64> {
    shape.iter().map(|&size| size as u64).collect()
}

fn put(dtype: MmaType, tensor: &mut [u16], at: usize, values: &[f32]) {
    tensor[at..].iter_mut().zip(values).for_each(|(word, &value)| *word = bits(dtype, value));
}

fn bits(dtype: MmaType, value: f32) -> u16 {
    match dtype {
        MmaType::Bf16 => bf16::from_f32(value).to_bits(),
        MmaType::F16 => f16::from_f32(value).to_bits(),
    }
}

fn value(dtype: MmaType, word: u16) -> f64 {
    match dtype {
        MmaType::Bf16 => bf16::from_bits(word).to_f64(),
        MmaType::F16 => f16::from_bits(word).to_f64(),
    }
}

fn normal(rng: &mut StdRng) -> f32 {
    let (u, v): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}
