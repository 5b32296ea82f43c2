//! Index kernels against the plain reference: scores to tolerance, everything that is selected from them bit for bit.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod choice;
mod estimate;
#[path = "antidiagonal.rs"]
mod gpu_antidiagonal;
mod pooled;
mod selection;

use half::{bf16, f16};
use kernel_core::{Arguments, Buffer, Device, LoadedKernel, Stream, device::TensorMap};
use kernel_tests::{
    oracle::{
        Mask,
        error::round,
        index::{self, Budget, Pooled},
    },
    testing,
};
use ptx::{
    Arch, ParameterKind,
    isa::MmaType,
    kernels::{
        attention::KvLayout,
        index::{
            BlockSparseSelectSpec, EstimatePass, EstimateSpec, FORCE_DIAGONAL, FORCE_SINK, KeyMeansSpec,
            PatternChoiceSpec, VerticalSlashSelectSpec, share, workspace,
        },
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

const POISON: u8 = 0xFF;

/// A device with a stream and what is asked of it most.
struct Bench {
    device: Device,
    stream: Stream,
    /// Architecture of the texts that differ.
    arch: Arch,
}

impl Bench {
    fn all() -> impl Iterator<Item = Bench> {
        testing::devices().into_iter().map(|device| Bench::of(device, Arch::Sm80))
    }

    /// Every device with every architecture whose text it runs.
    fn targets() -> impl Iterator<Item = Bench> {
        testing::targets().into_iter().map(|(device, arch)| Bench::of(device, arch))
    }

    fn of(device: Device, arch: Arch) -> Bench {
        let stream = Stream::new(&device).unwrap();
        Bench { device, stream, arch }
    }

    fn load(&self, spec: &impl ptx::KernelSpec) -> LoadedKernel {
        self.device.load(&ptx::generate(spec).unwrap()).unwrap()
    }

    fn upload<T: kernel_core::device::Plain>(&self, values: &[T]) -> Buffer {
        self.device.upload(&self.stream, values).unwrap()
    }

    /// A buffer that nobody has written yet: what a kernel fails to write shows.
    fn poisoned(&self, bytes: u64) -> Buffer {
        let buffer = self.device.allocate(bytes as usize).unwrap();
        buffer.fill(&self.stream, POISON).unwrap();
        buffer
    }

    fn read<T: kernel_core::device::Plain>(&self, buffer: &Buffer) -> Vec<T> {
        buffer.read(&self.stream).unwrap()
    }

    fn status(&self) -> Buffer {
        self.upload(&[0u32])
    }
}

fn normal(rng: &mut StdRng) -> f32 {
    let (u, v): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

fn halves(dtype: MmaType, values: &[f32]) -> Vec<u16> {
    let bits = |&value: &f32| match dtype {
        MmaType::Bf16 => bf16::from_f32(value).to_bits(),
        MmaType::F16 => f16::from_f32(value).to_bits(),
    };
    values.iter().map(bits).collect()
}

/// How the sequences of a batch lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// `[batch, max, heads, head_dim]`, with lengths in device memory; rows past them are NaN.
    Padded,
    /// `[total, heads, head_dim]` with starting rows.
    Packed,
    /// Keys in pages of this many tokens, in no order, and padded queries.
    Paged(u32),
}

impl Layout {
    fn of_queries(self) -> Layout {
        if self == Layout::Packed { self } else { Layout::Padded }
    }

    fn kv(self) -> KvLayout {
        match self {
            Layout::Paged(page) => KvLayout::Paged { page },
            _ => KvLayout::Strided,
        }
    }
}

/// Queries or keys of a batch.
struct Side {
    lengths: Vec<u32>,
    heads: u32,
    head_dim: u32,
    /// Of each sequence, `[length, heads, head_dim]`, as rounded.
    values: Vec<Vec<f32>>,
}

impl Side {
    fn random(rng: &mut StdRng, dtype: MmaType, lengths: &[u32], heads: u32, head_dim: u32) -> Side {
        let sequence = |&length: &u32| {
            (0..length * heads * head_dim).map(|_| round(dtype, f64::from(normal(rng))) as f32).collect()
        };
        Side { lengths: lengths.to_vec(), heads, head_dim, values: lengths.iter().map(sequence).collect() }
    }

    /// One sequence of it.
    fn only(&self, sequence: usize) -> Side {
        Side {
            lengths: vec![self.lengths[sequence]],
            values: vec![self.values[sequence].clone()],
            heads: self.heads,
            head_dim: self.head_dim,
        }
    }

    fn longest(&self) -> u32 {
        self.lengths.iter().copied().max().unwrap()
    }

    /// Rows of one head of one sequence.
    fn rows(&self, sequence: usize, head: u32) -> Vec<f32> {
        let d = self.head_dim as usize;
        let rows = self.values[sequence].chunks(self.heads as usize * d);
        rows.flat_map(|row| row[head as usize * d..][..d].to_vec()).collect()
    }

    fn place(&self, bench: &Bench, dtype: MmaType, layout: Layout, max: u32) -> Placed {
        if let Layout::Paged(page) = layout {
            return self.place_in_pages(bench, dtype, page, max);
        }
        let row = self.heads * self.head_dim;
        let mut all = Vec::new();
        let mut starts = vec![0];
        for values in &self.values {
            all.extend_from_slice(values);
            if layout == Layout::Padded {
                all.resize(starts.len() * (max * row) as usize, f32::NAN);
            }
            starts.push(all.len() as u32 / row);
        }
        let lengths = bench.upload(&self.lengths);
        let starts = bench.upload(&starts);
        let batch = if layout == Layout::Padded { u64::from(max * row) * 2 } else { 0 };
        let packed = layout == Layout::Packed;
        Placed {
            start: if packed { starts.address() } else { 0 },
            length: if packed { 0 } else { lengths.address() },
            strides: [batch, u64::from(row) * 2, u64::from(self.head_dim) * 2],
            data: bench.upload(&halves(dtype, &all)),
            rows: all.len() as u32 / row,
            max,
            shape: match layout {
                Layout::Packed => [self.head_dim, all.len() as u32 / row, self.heads, 1],
                _ => [self.head_dim, max, self.heads, self.lengths.len() as u32],
            },
            table: None,
            _keep: [lengths, starts],
        }
    }

    /// Every fourth page belongs to nobody. What belongs to nobody is NaN, and an entry without keys names no page.
    fn place_in_pages(&self, bench: &Bench, dtype: MmaType, page: u32, max: u32) -> Placed {
        let row = (self.heads * self.head_dim) as usize;
        let width = max.div_ceil(page);
        let mut free: Vec<u32> = (0..width * self.lengths.len() as u32 * 4 / 3 + 1).collect();
        let pages = free.len();
        free.shuffle(&mut StdRng::seed_from_u64(u64::from(page)));
        let page_elements = page as usize * row;
        let mut pool = vec![f32::NAN; pages * page_elements];
        let mut table = Vec::new();
        for values in &self.values {
            let mut entries = vec![u32::MAX; width as usize];
            for (rows, entry) in values.chunks(page_elements).zip(&mut entries) {
                *entry = free.pop().unwrap();
                pool[*entry as usize * page_elements..][..rows.len()].copy_from_slice(rows);
            }
            table.extend(entries);
        }
        let lengths = bench.upload(&self.lengths);
        Placed {
            start: 0,
            length: lengths.address(),
            strides: [2 * page_elements as u64, 2 * row as u64, u64::from(self.head_dim) * 2],
            data: bench.upload(&halves(dtype, &pool)),
            rows: 0,
            max,
            shape: [self.head_dim, page, self.heads, pages as u32],
            table: Some((bench.upload(&table), pages as u32)),
            _keep: [lengths, bench.upload(&[0u32])],
        }
    }
}

/// A side in device memory.
struct Placed {
    data: Buffer,
    strides: [u64; 3],
    start: u64,
    length: u64,
    /// Rows of the tensor.
    rows: u32,
    max: u32,
    /// Elements of a head, rows, heads, and sequences or pages.
    shape: [u32; 4],
    /// The table of pages, and how many there are.
    table: Option<(Buffer, u32)>,
    _keep: [Buffer; 2],
}

/// Begins the arguments of a kernel with the tensor maps that it takes.
fn maps<'m>(
    bench: &Bench,
    kernel: &'m LoadedKernel,
    dtype: MmaType,
    [(q, queries), (k, keys)]: [(&str, &Placed); 2],
) -> Arguments<'m> {
    let mut arguments = Arguments::new(kernel.meta());
    for parameter in kernel.meta().parameters.iter() {
        let ParameterKind::TensorMap(box_shape) = parameter.kind else { continue };
        let side = if parameter.name == format!("{q}_map") { queries } else { keys };
        assert!(parameter.name == format!("{q}_map") || parameter.name == format!("{k}_map"));
        let [batch, row, head] = side.strides;
        let map = TensorMap {
            address: side.data.address(),
            dtype,
            shape: side.shape.map(|entries| u64::from(entries.max(1))),
            strides: [row, head, batch.max(16)],
            box_shape,
        };
        arguments = arguments.tensor_map(&parameter.name, &bench.device.encode_tensor_map(&map).unwrap());
    }
    arguments
}

fn tensor<'m>(arguments: Arguments<'m>, name: &str, side: &Placed) -> Arguments<'m> {
    let [batch, row, head] = side.strides;
    if let Some((table, pages)) = &side.table {
        let sequences = side._keep[0].bytes() as u64 / 4;
        return arguments
            .pointer(name, side.data.address())
            .u32(&format!("{name}_page"), batch as u32)
            .u32(&format!("{name}_row"), row as u32)
            .u64(&format!("{name}_head"), head)
            .pointer("page_table", table.address())
            .u64("page_table_batch", table.bytes() as u64 / sequences)
            .u32("pages", *pages);
    }
    arguments
        .pointer(name, side.data.address())
        .u64(&format!("{name}_batch"), batch)
        .u64(&format!("{name}_row"), row)
        .u64(&format!("{name}_head"), head)
}

fn bounds<'m>(arguments: Arguments<'m>, name: &str, side: &Placed) -> Arguments<'m> {
    arguments
        .pointer(&format!("{name}_start"), side.start)
        .pointer(&format!("{name}_length"), side.length)
        .u32(&format!("{name}_rows"), side.rows)
        .u32(&format!("max_{name}"), side.max)
}

const SCALE: f32 = 0.15;

/// Pooled selection by budgets alone, with all that may be forced.
const BY_BUDGET: Pooled =
    Pooled { block: (64, 64), causal: true, scale: SCALE, budget: 0, share: None, diagonal: true, sink: true };

/// (queries, keys) of the sequences of the mixed batches.
const MIXED: [(u32, u32); 7] = [(1, 1), (65, 65), (0, 40), (40, 0), (30, 257), (300, 127), (128, 600)];

fn mixed() -> (Vec<u32>, Vec<u32>) {
    MIXED.into_iter().unzip()
}

/// FlexAttention's partial tensors, not written yet: `[batch][heads][rows]` lists with room for `capacity` blocks.
struct Lists {
    counts: Buffer,
    indices: Buffer,
    heads: u32,
    rows: u32,
    capacity: u32,
}

impl Lists {
    fn new(bench: &Bench, [batch, heads, rows, capacity]: [u32; 4]) -> Lists {
        let lists = u64::from(batch * heads * rows);
        let counts = bench.poisoned(lists * 4);
        Lists { counts, indices: bench.poisoned(lists * u64::from(capacity) * 4), heads, rows, capacity }
    }

    fn arguments<'m>(&self, arguments: Arguments<'m>) -> Arguments<'m> {
        let Lists { heads, rows, capacity, .. } = *self;
        arguments
            .pointer("partial_counts", self.counts.address())
            .u64("counts_batch", u64::from(heads * rows) * 4)
            .u64("counts_head", u64::from(rows) * 4)
            .pointer("partial_indices", self.indices.address())
            .u64("indices_batch", u64::from(heads * rows * capacity) * 4)
            .u64("indices_head", u64::from(rows * capacity) * 4)
            .u64("indices_row", u64::from(capacity) * 4)
            .u32("capacity", capacity)
    }
}
