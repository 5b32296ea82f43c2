//! How a tile of scores is shared out, and what it takes.

use super::{
    blocks::Cache,
    spec::{AttentionSpec, KvLayout, Partition, Pattern},
};
use crate::{
    isa::Arch,
    kernels::meta::BoxShape,
    tile::{layout::TileLayout, parked::Parked},
};

/// Shapes that follow from a spec.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiling {
    arch: Arch,
    /// Query rows of a tile.
    pub(super) rows: u32,
    /// Keys of a block of the index, and of a tile: one block, or on sm_90a perhaps two.
    pub(super) keys: u32,
    pub(super) tile_keys: u32,
    pub(super) head_dim: u32,
    /// Warps that compute.
    pub(super) warps: u32,
    /// Entries of a ring of columns; none without columns. On sm_80 each warp has one, on sm_90a the block.
    pub(super) ring: u32,
    /// Whether queries wait in shared memory for the first product: where rows of several heads take turns, consumers of sm_90a
    /// fetch their own.
    pub(super) stages_queries: bool,
    /// Values of the block that wait in shared memory, in units of [`Parked::BYTES`]: the place, and windows if any.
    parked: u32,
}

impl Tiling {
    /// Elements of scores and output that a lane can hold in registers beside everything else, and beside the parts of an
    /// expression, a soft-cap or a part of the keys.
    const ACCUMULATORS: u32 = 192;
    const ACCUMULATORS_WITH_EXPRESSION: u32 = 128;

    pub(super) fn of(spec: &AttentionSpec) -> Tiling {
        match spec.arch {
            Arch::Sm80 => Tiling::sm80(spec),
            Arch::Sm90a => Tiling::sm90(spec),
        }
    }

    fn sm80(spec: &AttentionSpec) -> Tiling {
        let (rows, keys) = spec.block;
        let head_dim = spec.head_dim;
        // Four warps reuse a key fragment for two row tiles where 128 rows leave registers for it; else eight of 16 rows.
        let accumulators = rows / 4 * (keys + head_dim) / 32;
        let plain = spec.score.is_none() && spec.mask.is_none() && !spec.softcap && spec.partition == Partition::Rows;
        let limit = if plain { Tiling::ACCUMULATORS } else { Tiling::ACCUMULATORS_WITH_EXPRESSION };
        let warps = if accumulators <= limit { 4 } else { 8 };
        Tiling { warps, ..Tiling::shared_between(spec, keys) }
    }

    fn sm90(spec: &AttentionSpec) -> Tiling {
        // Scores of 128 keys leave no registers for an output of 256 columns, nor, beside one of 128, for an expression in a
        // kernel that has columns to mask too.
        let expression = spec.score.is_some() || spec.mask.is_some();
        let short = expression && spec.head_dim == 128 && spec.pattern == Pattern::VerticalSlash;
        let tile_keys = if short || spec.head_dim > 128 { 64 } else { 128 };
        Tiling { warps: spec.block.0 / 16, ..Tiling::shared_between(spec, tile_keys) }
    }

    fn shared_between(spec: &AttentionSpec, tile_keys: u32) -> Tiling {
        let AttentionSpec { block: (rows, keys), head_dim, arch, .. } = *spec;
        // A tile being read on sm_80, one being gathered, and what the last candidates leave over.
        let ring = match (spec.pattern, arch) {
            (Pattern::VerticalSlash, Arch::Sm80) => 4 * keys,
            (Pattern::VerticalSlash, Arch::Sm90a) => 16 * keys,
            _ => 0,
        };
        let parked = if matches!(spec.pattern, Pattern::AShape | Pattern::TriShape) { 2 } else { 1 };
        let stages_queries = arch == Arch::Sm80 || spec.partition == Partition::Rows;
        Tiling { arch, rows, keys, tile_keys, head_dim, warps: 0, ring, stages_queries, parked }
    }

    /// Warps that fetch keys and values for the others.
    pub(super) fn producer_warps(self) -> u32 {
        match self.arch {
            Arch::Sm80 => 0,
            Arch::Sm90a => 4,
        }
    }

    pub(super) fn threads(self) -> u32 {
        32 * (self.producer_warps() + self.warps)
    }

    /// Blocks that share a multiprocessor's registers.
    pub(super) fn blocks_per_multiprocessor(self) -> u32 {
        if self.arch == Arch::Sm80 && self.warps == 4 { 2 } else { 1 }
    }

    pub(super) fn warp_rows(self) -> u32 {
        self.rows / self.warps
    }

    /// 16-row tiles of a warp.
    pub(super) fn row_tiles(self) -> u32 {
        self.warp_rows() / 16
    }

    fn layout(self, rows: u32) -> TileLayout {
        match self.arch {
            Arch::Sm80 => TileLayout::new(rows, self.head_dim),
            Arch::Sm90a => TileLayout::in_slabs(rows, self.head_dim),
        }
    }

    pub(super) fn query_tile(self) -> TileLayout {
        self.layout(self.rows)
    }

    /// Shared memory for queries.
    pub(super) fn query_bytes(self) -> u32 {
        if self.stages_queries { self.query_tile().bytes() } else { 0 }
    }

    /// One buffer of keys or values: a tile on sm_80, a block on sm_90a.
    pub(super) fn key_tile(self) -> TileLayout {
        self.layout(match self.arch {
            Arch::Sm80 => self.tile_keys,
            Arch::Sm90a => self.keys,
        })
    }

    /// Groups of rows that visit blocks of their own in a vertical-slash kernel: as many rows as a block has keys.
    pub(super) fn groups(self) -> u32 {
        self.rows / self.keys
    }

    /// Blocks of the index in a tile.
    pub(super) fn parts(self) -> u32 {
        self.tile_keys / self.keys
    }

    /// Stages of a ring of blocks on sm_90a: as many as there is room for, up to four tiles.
    pub(super) fn stages(self) -> u32 {
        let most = 4 * self.parts();
        let room = Arch::Sm90a.shared_limit() - self.query_bytes() - self.small_bytes(most);
        most.min(room / (2 * self.key_tile().bytes()))
    }

    /// Shared memory on sm_90a beside the tiles: barriers and notes are some hundred bytes; columns have a ring, and
    /// a list for each stage, for each group of rows; offsets have a copy.
    fn small_bytes(self, stages: u32) -> u32 {
        let entries = self.ring + stages * self.keys;
        1024 + if self.ring > 0 { Cache::BYTES + 4 * self.groups() * entries } else { 0 }
    }

    /// What one bulk copy moves of the queries, and of the keys or values of a block: all of it, or what of it is in a page.
    pub(super) fn boxes(self, kv: KvLayout) -> [BoxShape; 2] {
        let keys = match kv {
            KvLayout::Strided => self.keys,
            KvLayout::Paged { page } => self.keys.min(page),
        };
        [self.rows, keys].map(|rows| BoxShape { columns: self.key_tile().slab_columns(), rows, stride: 1 })
    }

    /// Whether a lane keeps its queries in registers from the first tile to the last.
    pub(super) fn queries_in_registers(self) -> bool {
        let accumulators = self.row_tiles() * (self.keys + self.head_dim) / 2;
        let queries = self.row_tiles() * self.head_dim / 4;
        accumulators + queries <= 160
    }

    /// Whether a lane's addresses of keys and values wait in shared memory during the products.
    pub(super) fn parks_addresses(self) -> bool {
        self.row_tiles() * (self.keys + self.head_dim) / 2 >= 160
    }

    /// Queries, the buffers of keys and values, the rings, and what is parked.
    pub(super) fn shared_bytes(self) -> u32 {
        match self.arch {
            Arch::Sm80 => {
                let addresses = if self.parks_addresses() { self.threads() } else { 0 };
                let parked = (self.parked + addresses) * Parked::BYTES;
                self.query_tile().bytes() + 4 * self.key_tile().bytes() + self.warps * self.ring * 4 + parked
            }
            Arch::Sm90a => {
                let tiles = self.query_bytes() + 2 * self.stages() * self.key_tile().bytes();
                tiles + self.small_bytes(self.stages())
            }
        }
    }
}
