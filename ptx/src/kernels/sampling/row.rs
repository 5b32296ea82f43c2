//! The row kernel: warps read the segments of rows, and the last one of a row says what it would decode to.
//!
//! A warp does one segment of one row after another, and needs no other for it: it finds the largest logit, then sums the others'
//! weights relative to it, draws or offers tokens, and leaves a [`SegmentRecord`](super::layout::SegmentRecord). When it comes to
//! another row it counts what it has done of the one before: so it is known who did the last segment of a row. No block barrier
//! stands in its way; the block meets once, in the end, for rows whose filters are too much for one warp.

use super::{
    entry::{Asked, Entry},
    filter::{Filters, SCRATCH_BYTES},
    finish::{self, Desk, NONE, ROOM_BYTES, WORDS_BYTES},
    layout::{RowParameters, SegmentRecord, row_flags, sampling_flags},
    logits::has,
    merge::Records,
    offers::{self, Bound, Format},
    patches::Patches,
    segment::{NOTES_BYTES, Noted, Reference, SEGMENT_BYTES, Segment},
    shards::Shards,
    spec::{Confidence, SamplerSpec},
    statistics,
};
use crate::{
    isa::{B32, B64, Builder, Cache, Label, Launch, R32, R64, RF, SharedRegion},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
    },
    tile::{
        order::{from_order_key, order_key},
        overlap,
        team::Team,
    },
};
use std::{f32::consts::LOG2_E, mem::offset_of};

pub(super) const WARPS: u32 = 8;
pub(super) const THREADS: u32 = 32 * WARPS;
const BLOCKS_PER_MULTIPROCESSOR: u32 = 3;
/// As many as the largest GPUs have at once: each block does an equal part of everything.
const BLOCKS: u32 = 132 * BLOCKS_PER_MULTIPROCESSOR;

impl SamplerSpec {
    /// The grid for rows of `vocab` tokens, of which at most `capacity` are listed.
    pub fn grid(&self, vocab: u32, capacity: u32) -> [u32; 3] {
        let segments = u64::from(self.segments(vocab)) * u64::from(capacity);
        [segments.clamp(1, BLOCKS.into()) as u32, 1, 1]
    }

    /// Records of a row: its segments', and one of the tokens whose logits the request changes.
    pub const fn records(&self, vocab: u32) -> u32 {
        self.segments(vocab) + 1
    }

    /// Segments of a row.
    pub const fn segments(&self, vocab: u32) -> u32 {
        if vocab == 0 { 1 } else { vocab.div_ceil(self.segment()) }
    }
}

impl KernelSpec for SamplerSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        Ok(())
    }

    fn build(&self) -> Kernel {
        let guided = if self.guided { "_guided" } else { "" };
        let entry = format!("sampler_{}{guided}_{}", self.dtype.name(), self.arch.name());
        let launch = Launch { threads: THREADS, blocks_per_multiprocessor: BLOCKS_PER_MULTIPROCESSOR };
        let mut k = Builder::new(self.arch, entry, launch);
        generate(&mut k, self);
        k.finish()
    }
}

/// Kernel parameters.
pub(super) struct Arguments {
    pub(super) logits: R64,
    pub(super) logits_stride: R64,
    pub(super) logits_count: R32,
    pub(super) vocab: R32,
    pub(super) logits_rows: R64,
    pub(super) guide_offset: Option<R32>,
    pub(super) rows: R64,
    pub(super) totals: R64,
    pub(super) parameters: R64,
    pub(super) states: R64,
    pub(super) requests: R32,
    pub(super) statistics: R64,
    pub(super) partials: R64,
    pub(super) tickets: R64,
    pub(super) biases: R64,
    pub(super) biases_length: R32,
    pub(super) credits: R64,
    pub(super) credit_window: R32,
    pub(super) credit_pass: R32,
    pub(super) entropies: R32,
    /// Id of the first token of these logits, and how many tokens the whole row has.
    pub(super) first_token: R32,
    pub(super) row_vocab: R32,
    /// Records that a row has room for.
    pub(super) records: R32,
    /// How the vocabulary is shared out, where records of all parts are merged.
    pub(super) shards: Option<Shards>,
    /// Tokens of a segment: 2 to this.
    pub(super) segment_bits: u32,
}

impl Arguments {
    fn declare(k: &mut Builder, spec: &SamplerSpec) -> Arguments {
        Arguments {
            logits: k.parameter("logits", ParameterKind::Pointer),
            logits_stride: k.parameter("logits_stride", ParameterKind::U64),
            logits_count: k.parameter("logits_count", ParameterKind::U32),
            vocab: k.parameter("vocab", ParameterKind::U32),
            logits_rows: k.parameter("logits_rows", ParameterKind::Pointer),
            guide_offset: spec.guided.then(|| k.parameter("guide_offset", ParameterKind::U32)),
            rows: k.parameter("rows", ParameterKind::Pointer),
            totals: k.parameter("totals", ParameterKind::Pointer),
            parameters: k.parameter("parameters", ParameterKind::Pointer),
            states: k.parameter("states", ParameterKind::Pointer),
            requests: k.parameter("requests", ParameterKind::U32),
            statistics: k.parameter("statistics", ParameterKind::Pointer),
            partials: k.parameter("partials", ParameterKind::Pointer),
            tickets: k.parameter("tickets", ParameterKind::Pointer),
            biases: k.parameter("biases", ParameterKind::Pointer),
            biases_length: k.parameter("biases_length", ParameterKind::U32),
            credits: k.parameter("credits", ParameterKind::Pointer),
            credit_window: k.parameter("credit_window", ParameterKind::U32),
            credit_pass: k.parameter("credit_pass", ParameterKind::U32),
            entropies: k.parameter("entropies", ParameterKind::U32),
            first_token: k.parameter("first_token", ParameterKind::U32),
            row_vocab: k.parameter("row_vocab", ParameterKind::U32),
            records: k.parameter("records", ParameterKind::U32),
            shards: None,
            segment_bits: spec.segment().ilog2(),
        }
    }

    /// Segments of a row.
    pub(super) fn segments(&self, k: &mut Builder) -> R32 {
        match self.shards {
            None => self.segments_of(k, self.vocab),
            Some(shards) => shards.segments(k, self),
        }
    }

    /// Segments of so many tokens.
    pub(super) fn segments_of(&self, k: &mut Builder, tokens: R32) -> R32 {
        let padded = k.add(tokens, (1u32 << self.segment_bits) - 1);
        k.shr_u(padded, self.segment_bits)
    }
}

/// Shared memory.
struct Shared {
    /// [`BUFFERS_BYTES`] a warp: the segment at hand, which makes room for what is offered for the row, the next one on its way, and
    /// notes. In the end they are the block's, for its list.
    buffers: SharedRegion,
    /// [`WORDS_BYTES`] a warp, and then the block's.
    words: SharedRegion,
    /// [`PARKED_BYTES`] a warp.
    parked: SharedRegion,
    /// Sums of the block.
    scratch: SharedRegion,
    /// A row that waits for the block.
    queue: SharedRegion,
    /// The first segment of the block that no warp has taken, and its first row.
    untaken: SharedRegion,
    /// [`RUN_BYTES`] each of [`RUNS`].
    runs: SharedRegion,
}

const BUFFERS_BYTES: u32 = 2 * SEGMENT_BYTES + NOTES_BYTES;
/// Bytes of what [`aside`] keeps: words, and behind them a row.
const PARKED_BYTES: u32 = 64;
const ROW: i64 = 48;
const _: () = assert!(ROOM_BYTES <= WARPS * BUFFERS_BYTES);

impl Shared {
    fn reserve(k: &mut Builder) -> Shared {
        Shared {
            buffers: k.shared(WARPS * BUFFERS_BYTES, 128),
            words: k.shared(WARPS * WORDS_BYTES, 16),
            parked: k.shared(WARPS * PARKED_BYTES, 16),
            scratch: k.shared(SCRATCH_BYTES, 16),
            queue: k.shared(4, 4),
            untaken: k.shared(8, 8),
            runs: k.shared(RUNS * RUN_BYTES, 8),
        }
    }
}

/// A segment: its number among those of all rows, its row, and its number there.
struct Place {
    index: R32,
    /// Counted in the order in which rows are read.
    row: R32,
    segment: R32,
}

/// A block's part of all segments.
struct Part {
    start: Place,
    end: R32,
}

/// Rows of a block that it counts for itself; its further ones, if there are any, are counted by its warps.
const RUNS: u32 = 64;
/// Bytes of a run: segments that nobody has done yet, and all of them.
const RUN_BYTES: u32 = 8;

impl Part {
    /// An equal part for each block.
    fn of_block(k: &mut Builder, arguments: &Arguments, listed: R32) -> Part {
        let segments = arguments.segments(k);
        let (block, blocks) = (k.block_x(), k.grid_x());
        let all = k.mul(listed, segments);
        let each = k.div_u(all, blocks);
        let shared_out = k.mul(each, blocks);
        let rest = k.sub(all, shared_out);
        let before = k.min_u(block, rest);
        let start = k.mad(block, each, before);
        let longer = k.lt_u(block, rest);
        let one = k.select::<B32>(longer, 1u32, 0u32);
        let end = k.add(start, each);
        let end = k.add(end, one);
        let row = k.div_u(start, segments);
        let before = k.mul(row, segments);
        let segment = k.sub(start, before);
        Part { start: Place { index: start, row, segment }, end }
    }

    /// Writes down how many segments the part has of each of its rows, [`RUN_BYTES`] a row; a thread a row.
    fn count_runs(&self, k: &mut Builder, arguments: &Arguments, runs: R32) {
        let segments = arguments.segments(k);
        let thread = k.thread();
        let row = k.add(self.start.row, thread);
        let first = k.mul(row, segments);
        let last = k.add(first, segments);
        let (first, last) = (k.max_u(first, self.start.index), k.min_u(last, self.end));
        let length = k.sub(last, first);
        let at = k.mad(thread, RUN_BYTES, runs);
        let has = k.lt_u(first, last);
        let counted = k.lt_u(thread, RUNS);
        let has = k.and_p(has, counted);
        k.when(has, |k| k.store_vector(at, 0, [length, length]));
    }
}

/// The list entry that is read as row number `row`: rows of one request are mostly neighbours and cost alike, so that each block
/// takes some from all over the list. `eighth` of the rows, rounded down, lie between one and the next.
fn entry_of(k: &mut Builder, row: R32, eighth: R32) -> R32 {
    let whole = k.shl(eighth, 3u32);
    let spread = k.lt_u(row, whole);
    let column = k.and(row, 7u32);
    let line = k.shr_u(row, 3u32);
    let index = k.mad(column, eighth, line);
    k.select(spread, index, row)
}

impl Place {
    /// That of a number further on.
    fn further(&self, k: &mut Builder, arguments: &Arguments, index: R32) -> Place {
        let segments = arguments.segments(k);
        let steps = k.sub(index, self.index);
        let segment = k.add(self.segment, steps);
        let (row, segment) = (k.mov(self.row), k.mov(segment));
        k.while_loop(
            |k| k.ge_u(segment, segments),
            |k| {
                let (next, rest) = (k.add(row, 1u32), k.sub(segment, segments));
                k.set(row, next);
                k.set(segment, rest);
            },
        );
        Place { index, row, segment }
    }

    fn set(&self, k: &mut Builder, other: &Place) {
        k.set(self.index, other.index);
        k.set(self.row, other.row);
        k.set(self.segment, other.segment);
    }
}

/// Segments of a row that a warp has done and not yet counted.
struct Owed {
    /// As [`Place::row`].
    row: R32,
    asked: Asked,
    segments: R32,
}

/// What a warp keeps in registers of the request that its run belongs to: what every segment asks for.
struct Wish {
    limit: R32,
    /// log2(e) / T, as bits.
    scale: R32,
    /// Of a draw from a segment.
    uniform: R32,
    /// Bits of [`wish`].
    bits: R32,
    /// All that the request asks for.
    asked: Asked,
}

mod wish {
    /// The row or the request does not exist.
    pub(super) const OUTSIDE: u32 = 1;
    /// There is a temperature besides 1.
    pub(super) const TEMPERS: u32 = 2;
    /// The tempered surprise is asked for.
    pub(super) const ENTROPIC: u32 = 4;
    /// A token is drawn from the segment alone.
    pub(super) const DRAWS: u32 = 8;
    pub(super) const FILTERS: u32 = 16;
    pub(super) const COUNTS: u32 = 32;
    /// Some logits are changed.
    pub(super) const PATCHED: u32 = 64;
    /// The launch counts credits, and the request has none.
    pub(super) const PASSED_BY: u32 = 128;
    /// The surprise of the raw weights is asked for.
    pub(super) const SURPRISED: u32 = 256;
    /// The last tokens have no probability.
    pub(super) const LIMITED: u32 = 512;
}

impl Wish {
    fn empty(k: &mut Builder) -> Wish {
        let [limit, scale, uniform, bits, asked] = [0u32; 5].map(|word| k.mov(word));
        Wish { limit, scale, uniform, bits, asked: Asked(asked) }
    }

    /// What list entry `index` asks for.
    fn set(&self, k: &mut Builder, arguments: &Arguments, index: R32, asked: Asked) {
        k.set(self.asked.0, asked.0);
        let mut outside = asked.is_lost(k, arguments);
        if arguments.guide_offset.is_some() {
            let entry = Entry::load(k, arguments, index);
            let (_, nowhere) = entry.rows(k, arguments);
            outside = k.or_p(outside, nowhere);
        }
        let drawing = asked.drawing(k);
        let filters = Filters::of(k, asked, drawing.flags, arguments.row_vocab);
        let tempers = k.ne_f(drawing.divisor, 1.0);
        let entropic = k.ge_u(drawing.confidence, Confidence::NegativeEntropy.code());
        let filtered = has(k, drawing.flags, sampling_flags::FILTERED_CONFIDENCE);
        let entropic = k.and_p(entropic, filtered);
        let unfiltered = k.not_p(filters.any);
        let entropic = k.and_p(entropic, unfiltered);
        let draws = k.and_p(drawing.warm, unfiltered);
        let patched = Patches::some(k, asked, arguments);
        let surprised = asked.wants_entropy(k, arguments);
        let counts = k.ne(arguments.credit_pass, 0u32);
        let credited = asked.has_credits(k, arguments);
        let uncredited = k.not_p(credited);
        let passed_by = k.and_p(counts, uncredited);
        let limit = asked.limit(k, arguments.row_vocab);
        let limited = k.lt_u(limit, arguments.row_vocab);
        let mut bits = k.mov(0u32);
        for (condition, bit) in [
            (outside, wish::OUTSIDE),
            (tempers, wish::TEMPERS),
            (entropic, wish::ENTROPIC),
            (draws, wish::DRAWS),
            (filters.any, wish::FILTERS),
            (filters.by_count, wish::COUNTS),
            (patched, wish::PATCHED),
            (passed_by, wish::PASSED_BY),
            (surprised, wish::SURPRISED),
            (limited, wish::LIMITED),
        ] {
            let bit = k.select(condition, bit, 0u32);
            bits = k.or(bits, bit);
        }
        k.set(self.bits, bits);
        k.set(self.limit, limit);
        let scale = k.bits(drawing.scale);
        k.set(self.scale, scale);
        k.if_then(filters.any, |k| {
            let bound = Bound::of(k, &filters, drawing.scale, arguments.row_vocab);
            let words = bound.words(k);
            self.asked.note(k, words);
        });
        k.if_then(draws, |k| {
            let [_, uniform] = asked.uniforms(k);
            k.set(self.uniform, uniform);
        });
    }
}

/// What belongs to this warp.
struct Warp {
    /// Where its segment lies, and the other place for one.
    place: R32,
    other: R32,
    /// The row whose segment is fetched next.
    row: R64,
    shared: Shared,
}

impl Warp {
    /// [`NOTES_BYTES`] behind both segments.
    fn notes(&self, k: &mut Builder) -> R32 {
        let first = k.min_u(self.place, self.other);
        k.add(first, 2 * SEGMENT_BYTES)
    }

    fn words(&self, k: &mut Builder) -> R32 {
        Team::Warp.address(k, self.shared.words, WORDS_BYTES)
    }

    fn parked(&self, k: &mut Builder) -> R32 {
        Team::Warp.address(k, self.shared.parked, PARKED_BYTES)
    }

    fn queue(&self, k: &mut Builder) -> R32 {
        k.shared_address(self.shared.queue)
    }

    /// Takes a segment of the block's: its number.
    fn take(&self, k: &mut Builder) -> R32 {
        let lane = k.lane();
        let leader = k.eq(lane, 0u32);
        let untaken = k.shared_address(self.shared.untaken);
        let index = k.mov(0u32);
        k.when(leader, |k| {
            let taken = k.atomic_add(untaken, 0, 1u32);
            k.set(index, taken);
        });
        k.shuffle_from(index, 0u32)
    }
}

/// Registers of the loop that wait in shared memory while a row is finished, which needs as many; all lanes have them alike.
fn parked((at, end, eighth): (&Place, R32, R32), warp: &Warp, wish: &Wish) -> [R32; 11] {
    let place = [at.index, at.row, at.segment, end, eighth];
    let request = [wish.limit, wish.scale, wish.uniform, wish.bits];
    std::array::from_fn(|i| match i {
        0..5 => place[i],
        5..9 => request[i - 5],
        9 => warp.place,
        _ => warp.other,
    })
}

fn generate(k: &mut Builder, spec: &SamplerSpec) {
    let arguments = Arguments::declare(k, spec);
    let shared = Shared::reserve(k);
    overlap::start(k);
    let listed: R32 = k.load(arguments.totals, 0);
    let eighth = k.shr_u(listed, 3u32);
    let eighth = k.mov(eighth);
    let part = Part::of_block(k, &arguments, listed);
    let thread = k.thread();
    let number = k.shr_u(thread, 5u32);
    let own = k.add(part.start.index, number);
    let at = part.start.further(k, &arguments, own);
    let at = Place { index: k.mov(at.index), ..at };
    let end = k.mov(part.end);
    let place = Team::Warp.address(k, shared.buffers, BUFFERS_BYTES);
    let other = k.add(place, SEGMENT_BYTES);
    let warp = Warp { place: k.mov(place), other: k.mov(other), row: k.mov(arguments.logits), shared };
    // What is asked for where the next segment is fetched.
    let coming = Asked(k.mov(0u32));
    let find = |k: &mut Builder, at: &Place| {
        let index = entry_of(k, at.row, eighth);
        let entry = Entry::load(k, &arguments, index);
        let found = entry.stored_row(k, &arguments);
        k.set(warp.row, found);
        let asked = entry.asked(k, &arguments);
        k.set(coming.0, asked.0);
    };
    let exists = |k: &mut Builder, at: &Place| k.lt_u(at.index, end);
    // Guided logits are combined on their way.
    let fetch = |k: &mut Builder, at: &Place, place: R32| {
        if !spec.guided {
            Segment::fetch(k, spec, warp.row, arguments.vocab, at.segment, place);
        }
    };
    let some = exists(k, &at);
    k.if_then(some, |k| {
        find(k, &at);
        fetch(k, &at, warp.place);
    });
    let wish = Wish::empty(k);
    let owed = Owed { row: k.mov(NONE), asked: Asked(k.mov(0u32)), segments: k.mov(0u32) };
    let first = k.eq(thread, 0u32);
    let (queue, untaken) = (warp.queue(k), k.shared_address(warp.shared.untaken));
    let behind = k.add(at.index, WARPS);
    k.when(first, |k| {
        k.store::<B32, B32>(queue, 0, NONE);
        k.store_vector(untaken, 0, [behind, at.row]);
    });
    let runs = k.shared_address(warp.shared.runs);
    part.count_runs(k, &arguments, runs);
    k.barrier();

    let (again, over) = (k.label(), k.label());
    k.place(again);
    let some = exists(k, &at);
    let of = k.select(some, at.row, NONE);
    let changes = k.ne(of, owed.row);
    let asks = k.and_p(changes, some);
    k.if_then(asks, |k| {
        let index = entry_of(k, at.row, eighth);
        wish.set(k, &arguments, index, coming);
    });
    if !spec.guided {
        k.commit_copies();
        k.wait_copies(0);
    }
    k.if_then(changes, |k| {
        // Nothing is on its way, so that neither the fence nor the ticket waits for copies.
        let counted = k.label();
        let nothing = k.eq(owed.segments, 0u32);
        k.branch_if(nothing, counted);
        count(k, spec, &arguments, (&at, end, eighth), &owed, &warp, &wish, counted);
        k.place(counted);
        // The same; so it need not wait in a register while a row is finished.
        k.set(coming.0, wish.asked.0);
        let some = exists(k, &at);
        let of = k.select(some, at.row, NONE);
        k.set(owed.row, of);
        k.set(owed.asked.0, wish.asked.0);
        k.set(owed.segments, 0u32);
    });
    let some = exists(k, &at);
    k.branch_unless(some, over);
    let index = warp.take(k);
    let ahead = at.further(k, &arguments, index);
    let some = exists(k, &ahead);
    k.if_then(some, |k| {
        let changes = k.ne(ahead.row, at.row);
        k.if_then(changes, |k| find(k, &ahead));
        fetch(k, &ahead, warp.other);
    });
    let done = k.label();
    segment(k, spec, &arguments, (&at, end, eighth), &warp, &wish, done);
    let more = k.add(owed.segments, 1u32);
    k.set(owed.segments, more);
    k.place(done);
    at.set(k, &ahead);
    let place = k.mov(warp.place);
    k.set(warp.place, warp.other);
    k.set(warp.other, place);
    // What comes next is written where other lanes may still read, and the first lane counts what all have left.
    k.warp_barrier();
    k.branch(again);
    k.place(over);

    k.comment("rows for the whole block");
    k.barrier();
    let queue = warp.queue(k);
    let index: R32 = k.load(queue, 0);
    let index = k.mov(index);
    let desk = Desk {
        team: Team::Block,
        words: k.shared_address(warp.shared.words),
        list: k.shared_address(warp.shared.buffers),
        scratch: Some(warp.shared.scratch),
        queue,
    };
    k.while_loop(
        |k| k.ne(index, NONE),
        |k| {
            let next = k.label();
            let asked = Entry::load(k, &arguments, index).asked(k, &arguments);
            desk.finish(k, spec, &arguments, (index, asked), next);
            k.place(next);
            let following = finish::following(k, &arguments, index);
            k.set(index, following);
            k.barrier();
        },
    );
    k.ret();
}

/// This warp's segment of one row; branches to `done` when it has no more to do.
fn segment(
    k: &mut Builder,
    spec: &SamplerSpec,
    arguments: &Arguments,
    (at, end, eighth): (&Place, R32, R32),
    warp: &Warp,
    wish: &Wish,
    done: Label,
) {
    let lane = k.lane();
    let leader = k.eq(lane, 0u32);
    let (index, number) = (entry_of(k, at.row, eighth), at.segment);
    let nothing_to_do = has(k, wish.bits, wish::OUTSIDE | wish::PASSED_BY);
    k.if_then(nothing_to_do, |k| {
        let outside = has(k, wish.bits, wish::OUTSIDE);
        let first = k.eq(number, 0u32);
        let first = k.and_p(first, leader);
        let first = k.and_p(first, outside);
        // Whoever merges finds out by itself.
        let finishes = k.ne(arguments.tickets, 0u64);
        let first = k.and_p(first, finishes);
        let out = Entry::out(k, arguments, index);
        k.if_then(first, |k| statistics::write_flagged(k, row_flags::OUT_OF_RANGE, out));
        k.branch(done);
    });
    k.comment("the segment and its largest logit");
    if spec.guided {
        let entry = Entry::load(k, arguments, index);
        let ((row, guide), _) = entry.rows(k, arguments);
        let guide = guide.expect("a guided kernel");
        Segment::guide(k, spec, (row, guide), arguments.vocab, number, warp.place);
    }
    k.warp_barrier();
    let segment = Segment::at(k, spec, number, arguments.first_token, warp.place);
    let fewer = has(k, wish.bits, wish::LIMITED | wish::PATCHED);
    k.if_then(fewer, |k| {
        segment.limit(k, wish.limit);
        let patched = has(k, wish.bits, wish::PATCHED);
        k.if_then(patched, |k| {
            let patches = Patches::load(k, wish.asked, arguments);
            patches.take_out(k, segment);
        });
    });
    let own = segment.max(k);
    let max = max_of_warp(k, own);
    let reference = Reference::new(k, max);
    let raw_scale = k.mov(LOG2_E);
    let scale = k.from_bits(wish.scale);
    let warm = reference.exponents(k, scale);
    let [surprised, tempers, entropic, draws, filters] =
        [wish::SURPRISED, wish::TEMPERS, wish::ENTROPIC, wish::DRAWS, wish::FILTERS].map(|bit| has(k, wish.bits, bit));
    let (notes, near) = (warp.notes(k), Noted::none(k));
    let sparse = k.and_p(tempers, filters);
    k.if_then(sparse, |k| segment.note_near(k, warm, max, notes, &near));
    let least = k.min_f(scale, raw_scale);
    let nothing = reference.nothing(k, least);
    let best = segment.take_best(k, own, max, nothing);

    k.comment("weights");
    let plain = reference.exponents(k, raw_scale);
    let sums = segment.weigh(k, [plain, warm], (surprised, tempers, entropic), (draws, notes), &near);

    let (token, logit, floor) = (k.mov(0u32), k.mov(0.0f32), k.mov(f32::NEG_INFINITY));
    let record = Records::of_entry(k, arguments, index).of(k, number);
    k.if_then(draws, |k| {
        segment.put_back(k, &best, max, Some((warm, notes)));
        let (id, value) = segment.draw(k, warm, notes, wish.uniform);
        k.set(token, id);
        k.set(logit, value);
    });
    k.if_then(filters, |k| {
        k.comment("offers");
        segment.put_back(k, &best, max, None);
        let counts = has(k, wish.bits, wish::COUNTS);
        let unused = if spec.guided { 0 } else { spec.dtype.unused_bits() };
        k.if_then(counts, |k| {
            let top_k = wish.asked.word(k, offset_of!(RowParameters, top_k));
            let one_less = k.sub(top_k, 1u32);
            let found = offers::floor(k, segment, one_less, unused);
            k.set(floor, found);
        });
        let bound = wish.asked.noted(k);
        let tempered = sums.tempered(k);
        let bound = Bound::from_words(k, bound).logit(k, max, tempered, floor);
        let (count, raised) = offers::offer(k, segment, Format::of(spec), (bound, unused), record, (notes, &near));
        k.set(logit, raised);
        k.set(token, count);
    });

    k.comment("the record");
    let argmax = segment.best_token(k, &best);
    sums.write(k, record);
    let [max, second, floor, logit] = [max, best.second, floor, logit].map(|value| k.bits(value));
    k.when(leader, |k| {
        k.store_vector(record, 0, [max, argmax, second, floor]);
        k.store_vector(record, offset_of!(SegmentRecord, logit) as i64, [logit, token]);
    });
    let first = k.eq(number, 0u32);
    let patched = has(k, wish.bits, wish::PATCHED);
    let leaves = k.and_p(first, patched);
    k.if_then(leaves, |k| {
        let state = parked((at, end, eighth), warp, wish);
        aside(k, warp, state, |k| leave_changed(k, spec, arguments, (index, wish.asked), warp.place));
    });
}

/// Counts the segments that are owed, and finishes their row where they are the last; branches to `counted` when they are not.
#[expect(clippy::too_many_arguments, reason = "what the loop holds waits meanwhile")]
fn count(
    k: &mut Builder,
    spec: &SamplerSpec,
    arguments: &Arguments,
    (at, end, eighth): (&Place, R32, R32),
    owed: &Owed,
    warp: &Warp,
    wish: &Wish,
    counted: Label,
) {
    k.comment("who is last");
    // Rows of a part of the vocabulary are merged elsewhere.
    let merged = k.eq(arguments.tickets, 0u64);
    k.branch_if(merged, counted);
    let lane = k.lane();
    let leader = k.eq(lane, 0u32);
    let (untaken, runs) = (k.shared_address(warp.shared.untaken), k.shared_address(warp.shared.runs));
    let first: R32 = k.load(untaken, 4);
    let run = k.sub(owed.row, first);
    let at_run = k.mad(run, RUN_BYTES, runs);
    let done = k.mov(owed.segments);
    let of_block = k.lt_u(run, RUNS);
    k.if_then(of_block, |k| {
        let left = k.mov(0u32);
        k.if_then(leader, |k| {
            let opposite = k.mov(0u32);
            let opposite = k.sub(opposite, done);
            let before = k.add_in_block(at_run, 0, opposite);
            k.set(left, before);
        });
        let left = k.shuffle_from(left, 0u32);
        let others = k.ne(left, done);
        k.branch_if(others, counted);
        let all = k.load(at_run, 4);
        k.set(done, all);
    });
    let index = entry_of(k, owed.row, eighth);
    let ticket = k.mad_wide(index, 4u32, arguments.tickets);
    let before = k.mov(0u32);
    k.if_then(leader, |k| {
        let count = k.add_release(ticket, 0, done);
        k.set(before, count);
    });
    let before = k.shuffle_from(before, 0u32);
    let through = k.add(before, done);
    let segments = arguments.segments(k);
    let early = k.ne(through, segments);
    k.branch_if(early, counted);
    // Only who comes last reads what the others have left.
    k.fence_device();
    k.when(leader, |k| k.store::<B32, B64>(ticket, 0, 0u32));
    let (words, queue) = (warp.words(k), warp.queue(k));
    let desk = Desk { team: Team::Warp, words, list: warp.other, scratch: None, queue };
    let state = parked((at, end, eighth), warp, wish);
    aside(k, warp, state, |k| {
        let finished = k.label();
        desk.finish(k, spec, arguments, (index, owed.asked), finished);
        k.place(finished);
    });
}

/// Runs `body` while registers of the loop wait in shared memory.
fn aside(k: &mut Builder, warp: &Warp, state: [R32; 11], body: impl FnOnce(&mut Builder)) {
    let leader = k.lane();
    let leader = k.eq(leader, 0u32);
    let place = warp.parked(k);
    k.when(leader, |k| {
        for (i, word) in (0..).zip(state) {
            k.store(place, 4 * i, word);
        }
        k.store(place, ROW, warp.row);
    });
    body(k);
    k.warp_barrier();
    let place = warp.parked(k);
    for (i, word) in (0..).zip(state) {
        k.load_into(word, place, 4 * i, Cache::Default);
    }
    k.load_into(warp.row, place, ROW, Cache::Default);
}

/// Leaves the record of a row's changed tokens, by way of the place of a segment.
fn leave_changed(k: &mut Builder, spec: &SamplerSpec, arguments: &Arguments, (index, asked): (R32, Asked), place: R32) {
    let entry = Entry::load(k, arguments, index);
    let (rows, _) = entry.rows(k, arguments);
    let logits = entry.logits(k, spec.dtype, rows, asked, arguments);
    let records = Records::of_entry(k, arguments, index);
    let record = records.changed(k, 0u32);
    logits.patches.leave(k, &logits, asked, (place, record), arguments.row_vocab);
}

/// The largest of all lanes' logits, in every lane.
fn max_of_warp(k: &mut Builder, own: RF) -> RF {
    let key = order_key(k, own);
    let key = k.warp_max_u(key);
    from_order_key(k, key)
}
