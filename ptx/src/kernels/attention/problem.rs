//! Parameters of the launch, and the part of the problem that one block has.

use super::{
    blocks,
    expr::SideBuffer,
    spec::{AttentionSpec, KvLayout, Partition, Pattern},
    split::{PartTarget, Split, SplitParameters},
    tiling::Tiling,
};
use crate::{
    isa::{Arch, Builder, Label, R32, R64, RF, RP},
    kernels::{
        batch::{Bounds, Heads, Sequence, address, list_length, report},
        kv::{KvTensor, PageTable},
        meta::ParameterKind::{F32, Pointer, Side, U32, U64},
    },
    tile::{
        copy::{InterleavedView, RowSource, RowView},
        overlap,
    },
};

/// Names that the text already uses, whatever the pattern.
const RESERVED: &[&str] = &[
    "q",
    "q_batch",
    "q_row",
    "q_head",
    "k",
    "k_batch",
    "k_row",
    "k_head",
    "v",
    "v_batch",
    "v_row",
    "v_head",
    "out",
    "out_batch",
    "out_row",
    "out_head",
    "lse",
    "lse_batch",
    "lse_head",
    "q_start",
    "kv_start",
    "q_length",
    "kv_length",
    "q_rows",
    "kv_rows",
    "max_q",
    "max_kv",
    "slots",
    "slot_shift",
    "turns",
    "places",
    "sections",
    "sequences",
    "heads",
    "heads_per_kv",
    "head_map",
    "head_map_batch",
    "scale",
    "softcap",
    "status",
    "windows",
    "offsets",
    "offsets_batch",
    "offsets_head",
    "offset_capacity",
    "offset_counts",
    "columns",
    "columns_batch",
    "columns_head",
    "column_capacity",
    "column_counts",
    "partial_counts",
    "partial_indices",
    "partial_capacity",
    "full_counts",
    "full_indices",
    "full_capacity",
    "counts_batch",
    "counts_head",
    "indices_batch",
    "indices_head",
    "indices_row",
    "k_page",
    "v_page",
    "page_table",
    "page_table_batch",
    "pages",
    "q_map",
    "k_map",
    "v_map",
    "least_blocks",
    "most_places",
    "notes",
    "part_out",
    "part_lse",
    "shared",
];

/// Whether a side buffer cannot have this name.
pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// A tensor of rows by heads: address and byte strides.
#[derive(Clone, Copy)]
pub(super) struct Tensor {
    base: R64,
    batch: R64,
    row: R64,
    head: R64,
}

impl Tensor {
    pub(super) fn declare(k: &mut Builder, [base, batch, row, head]: [&'static str; 4]) -> Tensor {
        Tensor {
            base: k.parameter(base, Pointer),
            batch: k.parameter(batch, U64),
            row: k.parameter(row, U64),
            head: k.parameter(head, U64),
        }
    }

    /// The rows of one sequence and head.
    pub(super) fn rows(self, k: &mut Builder, batch: R32, head: R32, first: R32) -> RowView {
        let base = address(k, self.base, [(batch, self.batch), (head, self.head), (first, self.row)]);
        RowView { base, stride: self.row }
    }

    /// The rows of one sequence and of `heads` heads, in turn.
    fn interleaved(self, k: &mut Builder, batch: R32, (head, heads): (R32, R32), first: R32) -> RowSource {
        let base = self.rows(k, batch, head, first).base;
        RowSource::Interleaved(InterleavedView { base, heads, row_stride: self.row, head_stride: self.head })
    }
}

/// What the pattern reads.
#[derive(Clone, Copy)]
pub(super) enum PatternParameters {
    None,
    Windows(R64),
    Columns {
        offsets: R64,
        offsets_batch: R64,
        offsets_head: R64,
        offset_capacity: R32,
        offset_counts: R64,
        columns: R64,
        columns_batch: R64,
        columns_head: R64,
        capacity: R32,
        counts: R64,
    },
    Blocks {
        partial_counts: R64,
        partial_indices: R64,
        partial_capacity: R32,
        full_counts: R64,
        full_indices: R64,
        full_capacity: R32,
        counts_batch: R64,
        counts_head: R64,
        indices_batch: R64,
        indices_head: R64,
        indices_row: R64,
    },
}

impl PatternParameters {
    fn declare(k: &mut Builder, pattern: Pattern) -> PatternParameters {
        match pattern {
            Pattern::Dense => PatternParameters::None,
            Pattern::AShape | Pattern::TriShape => PatternParameters::Windows(k.parameter("windows", Pointer)),
            Pattern::VerticalSlash => PatternParameters::Columns {
                offsets: k.parameter("offsets", Pointer),
                offsets_batch: k.parameter("offsets_batch", U64),
                offsets_head: k.parameter("offsets_head", U64),
                offset_capacity: k.parameter("offset_capacity", U32),
                offset_counts: k.parameter("offset_counts", Pointer),
                columns: k.parameter("columns", Pointer),
                columns_batch: k.parameter("columns_batch", U64),
                columns_head: k.parameter("columns_head", U64),
                capacity: k.parameter("column_capacity", U32),
                counts: k.parameter("column_counts", Pointer),
            },
            Pattern::BlockSparse => PatternParameters::Blocks {
                partial_counts: k.parameter("partial_counts", Pointer),
                partial_indices: k.parameter("partial_indices", Pointer),
                partial_capacity: k.parameter("partial_capacity", U32),
                full_counts: k.parameter("full_counts", Pointer),
                full_indices: k.parameter("full_indices", Pointer),
                full_capacity: k.parameter("full_capacity", U32),
                counts_batch: k.parameter("counts_batch", U64),
                counts_head: k.parameter("counts_head", U64),
                indices_batch: k.parameter("indices_batch", U64),
                indices_head: k.parameter("indices_head", U64),
                indices_row: k.parameter("indices_row", U64),
            },
        }
    }
}

/// Tensor maps: of the queries, where rows are those of one head, and of keys and values, where blocks come in bulk.
#[derive(Clone, Copy)]
pub(super) struct Maps {
    pub(super) q: Option<R64>,
    pub(super) kv: Option<[R64; 2]>,
}

impl Maps {
    fn declare(k: &mut Builder, spec: &AttentionSpec, tiling: Tiling) -> Maps {
        let [queries, keys] = tiling.boxes(spec.kv);
        // Blocks that begin at any key cross the ends of pages anywhere, and boxes have one size.
        let bulk = spec.kv == KvLayout::Strided || spec.pattern != Pattern::VerticalSlash;
        let q = (spec.partition == Partition::Rows).then(|| k.tensor_map("q_map", queries));
        Maps { q, kv: bulk.then(|| ["k_map", "v_map"].map(|name| k.tensor_map(name, keys))) }
    }
}

/// Head and batch entry of a sequence in a tensor map, and its first row there.
#[derive(Clone, Copy)]
pub(super) struct MapPlace {
    pub(super) first: R32,
    pub(super) head: R32,
    pub(super) batch: R32,
}

impl MapPlace {
    /// Packed sequences lie behind one another in a single batch entry.
    fn new(k: &mut Builder, start: R64, first: R32, head: R32, batch: R32) -> MapPlace {
        let packed = k.ne(start, 0u64);
        MapPlace { first, head, batch: k.select(packed, 0u32, batch) }
    }

    /// The box of the rows from `row` of the sequence on, from element `column` of the head.
    pub(super) fn at(self, k: &mut Builder, column: u32, row: R32) -> [R32; 4] {
        [k.mov(column), k.add(self.first, row), self.head, self.batch]
    }
}

/// The launch parameters that say which work a block's place in the grid stands for.
enum Grid {
    /// Row blocks along x, where 2^`slot_shift` heads take turns; heads along y.
    Rows { slots: R32, slot_shift: R32, heads: Heads },
    /// Row blocks and parts of the keys along x, KV heads along y.
    Keys { heads_per_kv: R32, parameters: SplitParameters },
}

impl Grid {
    fn declare(k: &mut Builder, partition: Partition) -> Grid {
        match partition {
            Partition::Rows => Grid::Rows {
                slots: k.parameter("slots", U32),
                slot_shift: k.parameter("slot_shift", U32),
                heads: Heads::of_sequences(k),
            },
            Partition::Keys => {
                Grid::Keys { heads_per_kv: k.parameter("heads_per_kv", U32), parameters: SplitParameters::declare(k) }
            }
        }
    }

    /// Head among those of the launch, and how many they are; of what lies at `place` along x and `section` along y.
    fn slot(&self, k: &mut Builder, (place, section): (R32, R32), none: Otherwise) -> (R32, R32) {
        let Grid::Rows { slots, slot_shift, .. } = *self else { return (section, k.grid_y()) };
        let one = k.mov(1u32);
        let side_by_side = k.shl(one, slot_shift);
        let others = k.sub(side_by_side, 1u32);
        let aside = k.and(place, others);
        let section = k.shl(section, slot_shift);
        let slot = k.add(section, aside);
        let beyond = k.ge_u(slot, slots);
        none.leave_if(k, beyond);
        (slot, slots)
    }
}

/// What becomes of a place that has no rows.
#[derive(Clone, Copy)]
pub(super) enum Otherwise {
    /// The block ends.
    End,
    /// All its threads go on there.
    GoOn(Label),
}

impl Otherwise {
    fn leave_if(self, k: &mut Builder, condition: RP) {
        match self {
            Otherwise::End => k.if_then(condition, |k| k.ret()),
            Otherwise::GoOn(label) => {
                // The same in all lanes, and the vote lets `ptxas` know.
                let condition = k.any(condition);
                k.branch_if(condition, label);
            }
        }
    }
}

/// Whose rows a block has.
enum Group {
    /// One query head's.
    Head(R32),
    /// Those of all heads that share keys, so many, over a part of the keys.
    Heads(R32, Split),
}

/// Whose rows a block has, and which.
struct Rows {
    head: R32,
    kv_head: R32,
    group: Group,
    /// How many rows there are.
    count: R32,
    row_block: R32,
    first: R32,
    first_position: R32,
    last_position: R32,
}

impl Rows {
    /// A row block of one head, at `place` of `places` along x.
    fn of_head(
        k: &mut Builder,
        spec: &AttentionSpec,
        (place, places, slot_shift): (R32, R32, R32),
        (head, kv_head): (R32, R32),
        (q_len, kv_len): (R32, R32),
        otherwise: Otherwise,
    ) -> Rows {
        let tiling = Tiling::of(spec);
        k.comment("which rows of it: the longest first");
        let ahead = k.sub(kv_len, q_len);
        let mut row_block = k.shr_u(place, slot_shift);
        if spec.causal {
            let blocks = k.shr_u(places, slot_shift);
            let last = k.sub(blocks, 1u32);
            row_block = k.sub(last, row_block);
        }
        let (first, first_position);
        let shift = tiling.rows.ilog2();
        if spec.pattern == Pattern::VerticalSlash {
            let skipped = k.shr_s(ahead, shift);
            row_block = k.add(row_block, skipped);
            first_position = k.shl(row_block, shift);
            first = k.sub(first_position, ahead);
        } else {
            first = if tiling.rows.is_power_of_two() { k.shl(row_block, shift) } else { k.mul(row_block, tiling.rows) };
            first_position = k.add(first, ahead);
        }
        let beyond = k.ge_s(first, q_len);
        let empty = k.eq(q_len, 0u32);
        let none = k.or_p(beyond, empty);
        otherwise.leave_if(k, none);
        let end = k.add(first_position, tiling.rows);
        let end = k.min_s(end, kv_len);
        let last_position = k.sub(end, 1u32);
        Rows { head, kv_head, group: Group::Head(head), count: q_len, row_block, first, first_position, last_position }
    }

    /// A row block of the heads of a group, which share KV head `kv_head`, and a part of the `blocks` key blocks that they
    /// visit. Ends the block if there is none.
    fn of_group(
        k: &mut Builder,
        spec: &AttentionSpec,
        (heads, parameters): (R32, &SplitParameters),
        (batch, kv_head): (R32, R32),
        (query, kv_len): (&Sequence, R32),
        blocks: R32,
    ) -> Rows {
        let tiling = Tiling::of(spec);
        let count = k.mul(query.length, heads);
        let split = parameters.split(k, tiling, (batch, kv_head), (count, query.first), blocks);
        let (row_block, head) = (split.row_block, k.mul(kv_head, heads));
        let first = k.shl(row_block, tiling.rows.ilog2());
        let last_position = k.sub(kv_len, 1u32);
        let group = Group::Heads(heads, split);
        Rows { head, kv_head, group, count, row_block, first, first_position: first, last_position }
    }
}

/// The part of the problem that one block has: a row block of one head of one sequence, or of the heads that share keys.
pub(super) struct Problem {
    pub(super) tiling: Tiling,
    pub(super) batch: R32,
    /// Head among those of this launch, and how many they are: per-head arrays of the index are counted by it. KV heads, where
    /// a block has the rows of all that share keys.
    pub(super) slot: R32,
    pub(super) slots: R32,
    /// Query head: the first of several.
    pub(super) head: R32,
    group: Group,
    pub(super) maps: Option<Maps>,
    pub(super) query_place: MapPlace,
    pub(super) key_place: MapPlace,
    q: Tensor,
    k: KvTensor,
    v: KvTensor,
    pub(super) table: Option<PageTable>,
    out: Tensor,
    lse: R64,
    lse_batch: R64,
    lse_head: R64,
    /// First packed row of the queries and of the keys, and the keys' head.
    first_q: R32,
    first_kv: R32,
    kv_head: R32,
    /// Query rows, of all heads that the block has.
    pub(super) q_len: R32,
    pub(super) kv_len: R32,
    pub(super) max_kv: R32,
    /// Row block; of a vertical-slash kernel counted on absolute positions.
    pub(super) row_block: R32,
    /// Query row of the tile's first row: negative where the tile begins before the queries.
    pub(super) first_row: R32,
    /// Absolute position of the tile's first row, signed. Rows of several heads have none that counts.
    pub(super) first_position: R32,
    /// Absolute position of the tile's last row that exists.
    pub(super) last_position: R32,
    pub(super) scale: RF,
    pub(super) softcap: Option<RF>,
    pub(super) side: Vec<(SideBuffer, R64)>,
    pub(super) pattern: PatternParameters,
    pub(super) thread: R32,
    status: R64,
}

/// Where a block's output goes.
pub(super) struct Target {
    pub(super) out: RowSource,
    /// Whether LSE is asked for, and where row 0's goes.
    pub(super) wants_lse: RP,
    lse: R64,
    /// Bytes from a head's LSE to the next's.
    lse_head: R64,
    /// Query row of the tile's first row, and how many there are.
    pub(super) first_row: R32,
    pub(super) q_len: R32,
    /// Where the rows go if they are a part.
    pub(super) part: Option<PartTarget>,
}

impl Target {
    /// Where a row's LSE goes.
    pub(super) fn lse(&self, k: &mut Builder, row: R32) -> R64 {
        let RowSource::Interleaved(rows) = self.out else { return k.mad_wide(row, 4u32, self.lse) };
        let (row, head) = rows.find(k, row);
        let own = address(k, self.lse, [(head, self.lse_head)]);
        k.mad_wide(row, 4u32, own)
    }
}

/// Where blocks take several row blocks in turn.
#[derive(Clone, Copy)]
pub(super) struct Turns {
    /// How many of all places have been given away beyond every block's first: a word that goes back to 0 with the last one. 0 where
    /// each block has its first only.
    pub(super) given: R64,
    /// Places along x, y and z.
    pub(super) extents: [R32; 3],
}

impl Turns {
    fn declare(k: &mut Builder) -> Turns {
        let given = k.parameter("turns", Pointer);
        Turns { given, extents: ["places", "sections", "sequences"].map(|name| k.parameter(name, U32)) }
    }

    /// All places.
    pub(super) fn all(self, k: &mut Builder) -> R32 {
        let [places, sections, sequences] = self.extents;
        let all = k.mul(places, sections);
        k.mul(all, sequences)
    }

    /// Where place `at` of all is along x, y and z.
    pub(super) fn place(self, k: &mut Builder, at: R32) -> [R32; 3] {
        let [places, sections, _] = self.extents;
        let line = k.div_u(at, places);
        let before = k.mul(line, places);
        let place = k.sub(at, before);
        let batch = k.div_u(line, sections);
        let before = k.mul(batch, sections);
        [place, k.sub(line, before), batch]
    }
}

/// The parameters of a launch.
pub(super) struct Parameters {
    tiling: Tiling,
    maps: Option<Maps>,
    q: Tensor,
    keys: KvTensor,
    values: KvTensor,
    out: Tensor,
    lse: R64,
    lse_batch: R64,
    lse_head: R64,
    query_bounds: Bounds,
    key_bounds: Bounds,
    grid: Grid,
    scale: RF,
    softcap: Option<RF>,
    status: R64,
    table: Option<PageTable>,
    pattern: PatternParameters,
    side: Vec<(SideBuffer, R64)>,
    pub(super) turns: Option<Turns>,
}

impl Parameters {
    /// Declares them.
    pub(super) fn declare(k: &mut Builder, spec: &AttentionSpec) -> Parameters {
        let tiling = Tiling::of(spec);
        let maps = (spec.arch == Arch::Sm90a).then(|| Maps::declare(k, spec, tiling));
        let q = Tensor::declare(k, ["q", "q_batch", "q_row", "q_head"]);
        let [keys, values] = ["k", "v"].map(|name| KvTensor::declare(k, spec.kv, name));
        let out = Tensor::declare(k, ["out", "out_batch", "out_row", "out_head"]);
        let lse: R64 = k.parameter("lse", Pointer);
        let lse_batch: R64 = k.parameter("lse_batch", U64);
        let lse_head: R64 = k.parameter("lse_head", U64);
        let (query_bounds, key_bounds) = (Bounds::queries(k), Bounds::keys(k));
        let grid = Grid::declare(k, spec.partition);
        let scale: RF = k.parameter("scale", F32);
        let softcap = spec.softcap.then(|| k.parameter("softcap", F32));
        let status: R64 = k.parameter("status", Pointer);
        let table = PageTable::declare(k, spec.kv, status);
        let pattern = PatternParameters::declare(k, spec.pattern);
        let declare_side =
            |buffer: &SideBuffer| (buffer.clone(), k.named_parameter(buffer.name.clone(), Side(buffer.element)));
        let side = spec.side.iter().map(declare_side).collect();
        let turns = spec.takes_turns().then(|| Turns::declare(k));
        if spec.partition == Partition::Keys {
            overlap::follow(k);
        }
        Parameters {
            tiling,
            maps,
            q,
            keys,
            values,
            out,
            lse,
            lse_batch,
            lse_head,
            query_bounds,
            key_bounds,
            grid,
            scale,
            softcap,
            status,
            table,
            pattern,
            side,
            turns,
        }
    }

    /// What the block has at its place in the grid; ends it if that is nothing.
    pub(super) fn of_block(&self, k: &mut Builder, spec: &AttentionSpec) -> Problem {
        let place = [k.block_x(), k.block_y(), k.block_z()];
        let places = k.grid_x();
        self.find(k, spec, place, places, Otherwise::End)
    }

    /// What lies at a place of the grid, which has `places` along x.
    pub(super) fn find(
        &self,
        k: &mut Builder,
        spec: &AttentionSpec,
        [place, section, batch]: [R32; 3],
        places: R32,
        otherwise: Otherwise,
    ) -> Problem {
        let Parameters {
            tiling, q, keys, values, out, lse, lse_batch, lse_head, scale, softcap, status, table, ..
        } = *self;
        let Parameters { maps, pattern, query_bounds, key_bounds, grid, side, .. } = self;
        k.comment("which head of which sequence: along x some heads take turns");
        let thread = k.thread();
        let (slot, slots) = grid.slot(k, (place, section), otherwise);
        let query = query_bounds.sequence(k, batch, status);
        let key = key_bounds.sequence(k, batch, status);
        let (first_q, first_kv, kv_len) = (query.first, key.first, key.length);
        let rows = match grid {
            Grid::Rows { slot_shift, heads, .. } => {
                let pair = heads.of(k, batch).pair(k, slot, &query, status);
                Rows::of_head(k, spec, (place, places, *slot_shift), pair, (query.length, kv_len), otherwise)
            }
            Grid::Keys { heads_per_kv, parameters } => {
                let shift = tiling.keys.ilog2();
                let lengths = (kv_len, key_bounds.max);
                let blocks = blocks::count(k, pattern, (batch, slot), lengths, shift, status);
                Rows::of_group(k, spec, (*heads_per_kv, parameters), (batch, slot), (&query, kv_len), blocks)
            }
        };

        Problem {
            tiling,
            batch,
            slot,
            slots,
            head: rows.head,
            group: rows.group,
            maps: *maps,
            query_place: MapPlace::new(k, query_bounds.start, first_q, rows.head, batch),
            key_place: MapPlace::new(k, key_bounds.start, first_kv, rows.kv_head, batch),
            q,
            k: keys,
            v: values,
            table,
            out,
            lse,
            lse_batch,
            lse_head,
            first_q,
            first_kv,
            kv_head: rows.kv_head,
            q_len: rows.count,
            kv_len,
            max_kv: key_bounds.max,
            row_block: rows.row_block,
            first_row: rows.first,
            first_position: rows.first_position,
            last_position: rows.last_position,
            scale,
            softcap,
            side: side.clone(),
            pattern: *pattern,
            thread,
            status,
        }
    }
}

impl Problem {
    /// The queries.
    pub(super) fn queries(&self, k: &mut Builder) -> RowSource {
        self.rows_of_group(k, self.q, self.head, self.first_q)
    }

    /// Rows of queries or output: of the head, or of all that share keys.
    fn rows_of_group(&self, k: &mut Builder, tensor: Tensor, head: R32, first: R32) -> RowSource {
        match self.group {
            Group::Head(_) => tensor.rows(k, self.batch, head, first).into(),
            Group::Heads(heads, _) => tensor.interleaved(k, self.batch, (head, heads), first),
        }
    }

    /// The part of the keys that the block has, if not all.
    pub(super) fn split(&self) -> Option<&Split> {
        match &self.group {
            Group::Head(_) => None,
            Group::Heads(_, split) => Some(split),
        }
    }

    /// The keys.
    pub(super) fn keys(&self, k: &mut Builder) -> RowSource {
        self.k.rows(k, self.table, self.batch, self.kv_head, self.first_kv)
    }

    /// The values.
    pub(super) fn values(&self, k: &mut Builder) -> RowSource {
        self.v.rows(k, self.table, self.batch, self.kv_head, self.first_kv)
    }

    /// Where the box of the keys and values from `row` of the sequence on is in their maps: its place and its row there.
    pub(super) fn key_box(&self, k: &mut Builder, row: R32) -> (MapPlace, R32) {
        if self.table.is_none() {
            return (self.key_place, row);
        }
        let RowSource::Paged(keys) = self.keys(k) else { unreachable!("keys with a table lie in pages") };
        // A page that does not exist lies outside the map, and a box there is zeros.
        let (page, exists, place) = keys.find(k, row);
        keys.report_unless(k, exists);
        (MapPlace { first: k.mov(0u32), head: self.kv_head, batch: page }, place)
    }

    /// What the output needs to know of the place, to be kept over the loop.
    pub(super) fn place(&self) -> [R32; 4] {
        let head_or_parts = match &self.group {
            Group::Head(head) => *head,
            Group::Heads(_, split) => split.parts,
        };
        [head_or_parts, self.first_q, self.first_row, self.q_len]
    }

    /// Where the output goes, from [`Problem::place`].
    pub(super) fn target(&self, k: &mut Builder, [head_or_parts, first_q, first_row, q_len]: [R32; 4]) -> Target {
        let (head, part) = match &self.group {
            Group::Head(_) => (head_or_parts, None),
            Group::Heads(heads, split) => {
                let kv_head = k.block_y();
                let head = k.mul(kv_head, *heads);
                (head, Some(split.target(k, self.tiling, (self.batch, kv_head), head_or_parts)))
            }
        };
        let lse = k.mad_wide(first_q, 4u32, self.lse);
        Target {
            out: self.rows_of_group(k, self.out, head, first_q),
            wants_lse: k.ne(self.lse, 0u64),
            lse: address(k, lse, [(self.batch, self.lse_batch), (head, self.lse_head)]),
            lse_head: self.lse_head,
            first_row,
            q_len,
            part,
        }
    }

    /// `groups`, bits of groups of rows, and a bit for each group that ends before key `key`.
    pub(super) fn groups_before(&self, k: &mut Builder, key: R32, groups: R32) -> R32 {
        let past = k.sub(key, self.first_position);
        let mut all = groups;
        // The last group that has any row may see what the row block sees.
        for group in 0..self.tiling.groups() - 1 {
            let after = k.ge_s(past, (group + 1) * self.tiling.keys);
            let bit = k.select(after, 1u32 << group, 0u32);
            all = k.or(all, bit);
        }
        all
    }

    /// Entries of a list of the index that is said to have `count` and has room for `most`.
    pub(super) fn list_length(&self, k: &mut Builder, count: R32, most: R32) -> R32 {
        list_length(k, count, most, self.status)
    }

    /// The status word, or 0.
    pub(super) fn status(&self) -> R64 {
        self.status
    }

    /// Sets a bit of the status word.
    pub(super) fn report(&self, k: &mut Builder, bit: u32) {
        report(k, self.status, bit);
    }
}
