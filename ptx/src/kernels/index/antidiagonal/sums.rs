//! Products of cells, and their weights relative to the maximum of a chunk.
//!
//! The texts of both architectures differ in how products come about; what becomes of them (`weights`) they share.

mod sm80;
mod sm90;
mod weights;

use super::check_stride;
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, Builder, Launch, MmaType, R32, R64, RF, RP},
    kernels::{
        batch::{Bounds, Heads, Sequence, address},
        index::{
            ceil_shift, check_block, check_head_dim,
            workspace::{CELL_CHUNK, QUERY_CELLS},
        },
        kv::{KvLayout, KvTensor, PageTable},
        meta::ParameterKind::{self, Pointer, U32, U64},
    },
    tile::copy::RowView,
};
use weights::Output;

/// Sums of weights of every cell of queries of a slice: by chunk of 64 cells of keys, and by key block.
///
/// Grid of the `sm_80` text: [`antidiagonal_grid`](crate::kernels::index::workspace::antidiagonal_grid) of the slice, 256
/// threads. Of the `sm_90a` text: x = any number of blocks, best one a multiprocessor, which share out the tiles of a sequence,
/// z = batch; 384 threads.
///
/// Parameters: pointers `q k`; byte strides `q_batch q_row q_head k_batch k_row k_head`, and `q k` themselves, multiples
/// of 16; `q_start q_length q_rows max_q`, `kv_start kv_length kv_rows max_kv`, `heads heads_per_kv head_map`, `scale` and
/// `status`, all as in attention; `first_tile`: where the slice begins, in tiles of 128 cells of queries; pointer
/// `statistics`, `f32[batch][grid heads][128 · tiles of the slice][chunks][2]`: the maximum in base 2, −∞ where nothing is
/// visible, and the sum; pointer `block_sums`, `f32[batch][grid heads][128 · tiles of the slice][chunks · blocks of a
/// chunk]`, with as many chunks as [`antidiagonal_chunks`](crate::kernels::index::workspace::antidiagonal_chunks) of
/// `max_kv`. Keys in pages: the stride `k_page` stands for `k_batch`, and `page_table page_table_batch pages` follow, as in
/// attention. The `sm_90a` text has also tensor maps `q_map`, and `k_map` unless keys lie in pages, of boxes whose rows lie a
/// stride apart, and `slots` (grid heads) and `tiles` (of the slice, at most 32). Of 64 cells of queries, aligned to 64, what
/// some of them sees is written, by whole chunks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AntidiagonalSumsSpec {
    /// Rows of a cell: 8 or 16.
    pub stride: u32,
    /// Keys of an attention block: 32, 64 or 128.
    pub block: u32,
    /// Elements of a head: 64, 96 or 128.
    pub head_dim: u32,
    /// Type of queries and keys.
    pub dtype: MmaType,
    /// Where keys lie.
    pub kv: KvLayout,
    /// Architecture of the text.
    pub arch: Arch,
}

impl KernelSpec for AntidiagonalSumsSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_stride(&mut errors, self.stride);
        check_block(&mut errors, "block", "keys a block", self.block);
        check_head_dim(&mut errors, self.head_dim);
        self.kv.check(&mut errors);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!(
            "antidiagonal_sums_s{}n{}_d{}_{}{}_{}",
            self.stride,
            self.block,
            self.head_dim,
            self.dtype.suffix(),
            self.kv.suffix(),
            self.arch.name()
        );
        let threads = match self.arch {
            Arch::Sm80 => sm80::THREADS,
            Arch::Sm90a => sm90::THREADS,
        };
        let mut k = Builder::new(self.arch, entry, Launch { threads, blocks_per_multiprocessor: 1 });
        match self.arch {
            Arch::Sm80 => sm80::sum(&mut k, self),
            Arch::Sm90a => sm90::sum(&mut k, self),
        }
        k.ret();
        k.finish()
    }
}

/// The launch parameters of both texts.
struct Problem {
    q: R64,
    q_strides: [R64; 3],
    keys: KvTensor,
    query_bounds: Bounds,
    key_bounds: Bounds,
    heads: Heads,
    scale: RF,
    status: R64,
    first_tile: R32,
    statistics: R64,
    block_sums: R64,
    table: Option<PageTable>,
}

impl Problem {
    fn declare(k: &mut Builder, spec: &AntidiagonalSumsSpec) -> Problem {
        let [q, keys]: [R64; 2] = ["q", "k"].map(|name| k.parameter(name, Pointer));
        let q_strides = ["q_batch", "q_row", "q_head"].map(|name| k.parameter(name, U64));
        let keys = KvTensor::at(k, spec.kv, "k", keys);
        let (query_bounds, key_bounds) = (Bounds::queries(k), Bounds::keys(k));
        let heads = Heads::declare(k);
        let scale = k.parameter("scale", ParameterKind::F32);
        let status = k.parameter("status", Pointer);
        let first_tile = k.parameter("first_tile", U32);
        let [statistics, block_sums] = ["statistics", "block_sums"].map(|name| k.parameter(name, Pointer));
        let table = PageTable::declare(k, spec.kv, status);
        Problem {
            q,
            q_strides,
            keys,
            query_bounds,
            key_bounds,
            heads,
            scale,
            status,
            first_tile,
            statistics,
            block_sums,
            table,
        }
    }

    /// The queries of one head of a sequence.
    fn queries(&self, k: &mut Builder, batch: R32, head: R32, query: &Sequence) -> RowView {
        let [of_batch, of_row, of_head] = self.q_strides;
        let base = address(k, self.q, [(batch, of_batch), (query.first, of_row), (head, of_head)]);
        RowView { base, stride: of_row }
    }

    /// What makes a product of cells a score in base 2.
    fn factor(&self, k: &mut Builder, stride: u32) -> RF {
        k.mul_f(self.scale, std::f32::consts::LOG2_E / stride as f32)
    }

    /// Where the sums of pair `pair` of a sequence and a grid head go, in a slice of `tiles` tiles.
    fn output(&self, k: &mut Builder, stride: u32, pair: R32, tiles: R32) -> Output {
        let cells = k.shl(tiles, QUERY_CELLS.ilog2());
        Output {
            statistics: self.statistics,
            block_sums: self.block_sums,
            before: k.mul_wide(pair, cells),
            first: k.shl(self.first_tile, QUERY_CELLS.ilog2()),
            chunks: ceil_shift(k, self.key_bounds.max, CELL_CHUNK * stride),
        }
    }
}

/// The cells of a sequence, and which of the keys each of the queries sees.
struct Cells {
    /// Cells of queries that exist.
    queries: R32,
    /// What cell i of queries sees last is cell `i + ahead` of keys, but no further than `last_key`.
    ahead: R32,
    last_key: R32,
}

impl Cells {
    fn new(k: &mut Builder, stride: u32, query: &Sequence, key: &Sequence) -> Cells {
        let offset = k.sub(key.length, query.length);
        let ahead = k.add(offset, stride - 1);
        let last_key = k.sub(key.length, 1u32);
        Cells {
            queries: ceil_shift(k, query.length, stride),
            ahead: k.shr_s(ahead, stride.ilog2()),
            last_key: k.shr_s(last_key, stride.ilog2()),
        }
    }

    fn last_visible(&self, k: &mut Builder, query: R32) -> R32 {
        let last = k.add(query, self.ahead);
        k.min_s(last, self.last_key)
    }

    /// Whether one of `rows` cells of queries from `query` on exists, and the last cell of keys that they see.
    fn seen_by(&self, k: &mut Builder, query: R32, rows: u32) -> (RP, R32) {
        let exists = k.lt_u(query, self.queries);
        let last = k.add(query, rows);
        let last = k.min_u(last, self.queries);
        let last = k.sub(last, 1u32);
        (exists, self.last_visible(k, last))
    }

    /// Whether one of `rows` cells of queries from `query` on sees cell `key`.
    fn some_visible(&self, k: &mut Builder, query: R32, rows: u32, key: R32) -> RP {
        let (exists, last) = self.seen_by(k, query, rows);
        let sees = k.ge_s(last, key);
        k.and_p(exists, sees)
    }
}
