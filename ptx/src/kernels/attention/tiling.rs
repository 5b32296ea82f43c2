//! How a tile of scores is shared out, and what it takes.

use super::spec::{AttentionSpec, Pattern};
use crate::tile::{layout::TileLayout, parked::Parked};

/// Shapes that follow from a spec.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiling {
    /// Query rows and keys of a tile.
    pub(super) rows: u32,
    pub(super) keys: u32,
    pub(super) head_dim: u32,
    pub(super) warps: u32,
    /// Entries of a warp's ring of columns; none without columns.
    pub(super) ring: u32,
    /// Values of the block that wait in shared memory, in units of [`Parked::BYTES`]: the place, and windows if any.
    parked: u32,
}

impl Tiling {
    /// Shared memory that a block may have on sm_80.
    pub(super) const SHARED_LIMIT: u32 = 163 * 1024;

    /// Elements of scores and output that a lane can hold in registers beside everything else, and beside the parts of an
    /// expression or a soft-cap.
    const ACCUMULATORS: u32 = 192;
    const ACCUMULATORS_WITH_EXPRESSION: u32 = 128;

    pub(super) fn of(spec: &AttentionSpec) -> Tiling {
        let (rows, keys) = spec.block;
        let head_dim = spec.head_dim;
        // Four warps reuse a key fragment for two row tiles where 128 rows leave registers for it; else eight of 16 rows.
        let accumulators = rows / 4 * (keys + head_dim) / 32;
        let plain = spec.score.is_none() && spec.mask.is_none() && !spec.softcap;
        let limit = if plain { Tiling::ACCUMULATORS } else { Tiling::ACCUMULATORS_WITH_EXPRESSION };
        let warps = if accumulators <= limit { 4 } else { 8 };
        // A tile being read, one being gathered, and what the last 32 candidates leave over.
        let ring = if spec.pattern == Pattern::VerticalSlash { 4 * keys } else { 0 };
        let parked = if matches!(spec.pattern, Pattern::AShape | Pattern::TriShape) { 2 } else { 1 };
        Tiling { rows, keys, head_dim, warps, ring, parked }
    }

    pub(super) fn threads(self) -> u32 {
        32 * self.warps
    }

    pub(super) fn warp_rows(self) -> u32 {
        self.rows / self.warps
    }

    /// 16-row tiles of a warp.
    pub(super) fn row_tiles(self) -> u32 {
        self.warp_rows() / 16
    }

    pub(super) fn query_tile(self) -> TileLayout {
        TileLayout::new(self.rows, self.head_dim)
    }

    pub(super) fn key_tile(self) -> TileLayout {
        TileLayout::new(self.keys, self.head_dim)
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

    /// Queries, two buffers of keys and values, the rings, and what is parked.
    pub(super) fn shared_bytes(self) -> u32 {
        let addresses = if self.parks_addresses() { self.threads() } else { 0 };
        let parked = (self.parked + addresses) * Parked::BYTES;
        self.query_tile().bytes() + 4 * self.key_tile().bytes() + self.warps * self.ring * 4 + parked
    }
}
