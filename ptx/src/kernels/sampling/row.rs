//! The row kernel: warps read the segments of rows, and the last one of a row says what it would decode to.
//!
//! A warp does one segment of one row after another, and needs no other for it: it finds the largest logit, then sums the others'
//! weights relative to it, draws or offers tokens, leaves a [`SegmentRecord`](super::layout::SegmentRecord) and counts itself.
//! No block barrier stands in its way; the block meets once, in the end, for rows whose filters are too much for one warp.

use super::{
    entry::Entry,
    filter::{Filters, SCRATCH_BYTES},
    finish::{self, Desk, LIST_BYTES, NONE, WORDS_BYTES},
    layout::{row_flags, sampling_flags},
    logits::{Mass, has},
    merge::Records,
    offers,
    segment::{Exponents, NOTES_BYTES, SEGMENT_BYTES, Segment, Sums},
    spec::{Confidence, SamplerSpec, check},
    statistics,
};
use crate::{
    isa::{B32, Builder, Label, Launch, R32, R64, RF, SharedRegion},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
    },
    tile::{
        order::{from_order_key, order_key},
        team::Team,
    },
};
use std::f32::consts::LOG2_E;

const WARPS: u32 = 8;
const THREADS: u32 = 32 * WARPS;
const BLOCKS_PER_MULTIPROCESSOR: u32 = 3;
/// Blocks that fill the largest GPUs there are.
const WAVE: u32 = 132 * BLOCKS_PER_MULTIPROCESSOR;
/// How often: blocks of which each does its part of everything would all wait for the slowest.
const WAVES: u32 = 4;

impl SamplerSpec {
    /// The grid for rows of `vocab` tokens, of which at most `capacity` are listed: a few times as many blocks as run at once, so
    /// that a list far shorter than the capacity costs little.
    pub fn grid(&self, vocab: u32, capacity: u32) -> [u32; 3] {
        let segments = u64::from(self.segments(vocab)) * u64::from(capacity);
        let blocks = segments.div_ceil(WARPS.into()).clamp(1, (WAVES * WAVE).into());
        [blocks as u32, 1, 1]
    }

    /// Segments of a row.
    pub const fn segments(&self, vocab: u32) -> u32 {
        if vocab == 0 { 1 } else { vocab.div_ceil(self.segment()) }
    }
}

impl KernelSpec for SamplerSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        check(self.arch)
    }

    fn build(&self) -> Kernel {
        let guided = if self.guided { "_guided" } else { "" };
        let entry = format!("sampler_{}{guided}_sm80", self.dtype.name());
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
    /// Tokens of a segment: 2 to this.
    segment_bits: u32,
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
            segment_bits: spec.segment().ilog2(),
        }
    }

    /// Segments of a row.
    pub(super) fn segments(&self, k: &mut Builder) -> R32 {
        let padded = k.add(self.vocab, (1u32 << self.segment_bits) - 1);
        k.shr_u(padded, self.segment_bits)
    }
}

/// Shared memory.
struct Shared {
    /// [`BUFFERS_BYTES`] a warp: the segment at hand, which makes room for what is offered for the row, and the next one on its
    /// way. In the end they are the block's, for its list.
    buffers: SharedRegion,
    /// [`NOTES_BYTES`] a warp.
    notes: SharedRegion,
    /// [`WORDS_BYTES`] a warp, and then the block's.
    words: SharedRegion,
    /// Sums of the block.
    scratch: SharedRegion,
    /// A row that waits for the block.
    queue: SharedRegion,
}

const BUFFERS_BYTES: u32 = 2 * SEGMENT_BYTES;
const _: () = assert!(LIST_BYTES <= WARPS * BUFFERS_BYTES);

impl Shared {
    fn reserve(k: &mut Builder) -> Shared {
        Shared {
            buffers: k.shared(WARPS * BUFFERS_BYTES, 128),
            notes: k.shared(WARPS * NOTES_BYTES, 16),
            words: k.shared(WARPS * WORDS_BYTES, 16),
            scratch: k.shared(SCRATCH_BYTES, 16),
            queue: k.shared(4, 4),
        }
    }
}

/// A segment of a row, and how far it is to the warp's next one.
struct Walk {
    row: R32,
    segment: R32,
    segments: R32,
    rows_on: R32,
    segments_on: R32,
}

impl Walk {
    /// Neighbouring warps have neighbouring segments, and all warps of the grid go on together.
    fn begin(k: &mut Builder, arguments: &Arguments) -> Walk {
        let segments = arguments.segments(k);
        let (thread, block, blocks) = (k.thread(), k.block_x(), k.grid_x());
        let warp = k.shr_u(thread, 5u32);
        let first = k.mad(block, WARPS, warp);
        let warps = k.mul(blocks, WARPS);
        let (row, rows_on) = (k.div_u(first, segments), k.div_u(warps, segments));
        let (done, passed) = (k.mul(row, segments), k.mul(rows_on, segments));
        let (segment, segments_on) = (k.sub(first, done), k.sub(warps, passed));
        Walk { row: k.mov(row), segment: k.mov(segment), segments, rows_on, segments_on }
    }

    fn next(&self, k: &mut Builder) -> (R32, R32) {
        let (row, segment) = (k.add(self.row, self.rows_on), k.add(self.segment, self.segments_on));
        let past = k.ge_u(segment, self.segments);
        let over = k.select::<B32>(past, 1u32, 0u32);
        let back = k.select(past, self.segments, 0u32);
        (k.add(row, over), k.sub(segment, back))
    }
}

/// What belongs to this warp.
struct Warp {
    /// Its segment, and the other place for one.
    place: R32,
    other: R32,
    notes: R32,
    words: R32,
    queue: R32,
}

fn generate(k: &mut Builder, spec: &SamplerSpec) {
    let arguments = Arguments::declare(k, spec);
    let shared = Shared::reserve(k);
    let listed: R32 = k.load(arguments.totals, 0);
    let walk = Walk::begin(k, &arguments);
    let place = Team::Warp.address(k, shared.buffers, BUFFERS_BYTES);
    let place = k.mov(place);
    let other = k.add(place, SEGMENT_BYTES);
    let other = k.mov(other);
    let warp = Warp {
        place,
        other,
        notes: Team::Warp.address(k, shared.notes, NOTES_BYTES),
        words: Team::Warp.address(k, shared.words, WORDS_BYTES),
        queue: k.shared_address(shared.queue),
    };
    // Guided logits are combined on their way.
    let fetch = |k: &mut Builder, row: R32, segment: R32, place: R32| {
        let exists = k.lt_u(row, listed);
        k.if_then(exists, |k| {
            let row = Entry::stored_row(k, &arguments, row);
            Segment::fetch(k, spec, row, arguments.vocab, segment, place);
        });
        k.commit_copies();
    };
    if !spec.guided {
        fetch(k, walk.row, walk.segment, place);
    }
    let thread = k.thread();
    let first = k.eq(thread, 0u32);
    k.when(first, |k| k.store::<B32, B32>(warp.queue, 0, NONE));
    k.barrier();

    k.while_loop(
        |k| k.lt_u(walk.row, listed),
        |k| {
            let next = k.label();
            if !spec.guided {
                let (row, segment) = walk.next(k);
                fetch(k, row, segment, warp.other);
            }
            segment(k, spec, &arguments, &warp, (walk.row, walk.segment), next);
            k.place(next);
            let (row, segment) = walk.next(k);
            k.set(walk.row, row);
            k.set(walk.segment, segment);
            let place = k.mov(warp.place);
            k.set(warp.place, warp.other);
            k.set(warp.other, place);
            // What comes next is written where other lanes may still read.
            k.warp_barrier();
        },
    );

    k.comment("rows for the whole block");
    k.barrier();
    let index: R32 = k.load(warp.queue, 0);
    let index = k.mov(index);
    let desk = Desk {
        team: Team::Block,
        words: k.shared_address(shared.words),
        list: k.shared_address(shared.buffers),
        scratch: Some(shared.scratch),
        queue: warp.queue,
    };
    k.while_loop(
        |k| k.ne(index, NONE),
        |k| {
            let next = k.label();
            desk.finish(k, spec, &arguments, index, next);
            k.place(next);
            let following = finish::following(k, &arguments, index);
            k.set(index, following);
            k.barrier();
        },
    );
    k.ret();
}

/// This warp's segment of one row; branches to `next` when it has no more to do.
fn segment(
    k: &mut Builder,
    spec: &SamplerSpec,
    arguments: &Arguments,
    warp: &Warp,
    (index, number): (R32, R32),
    next: Label,
) {
    let lane = k.lane();
    let leader = k.eq(lane, 0u32);
    let entry = Entry::load(k, arguments, index);
    let ((row, guide), outside) = entry.rows(k, arguments);
    k.if_then(outside, |k| {
        let first = k.eq(number, 0u32);
        let first = k.and_p(first, leader);
        let out = Entry::out(k, arguments, index);
        k.if_then(first, |k| statistics::write_flagged(k, row_flags::OUT_OF_RANGE, out));
        k.branch(next);
    });
    let logits = entry.logits(k, spec.dtype, (row, guide), arguments.vocab);
    let drawing = entry.drawing(k);
    let filters = Filters::load(k, &entry, drawing.flags, arguments.vocab);
    match guide {
        Some(guide) => Segment::guide(k, spec, (row, guide), arguments.vocab, number, warp.place),
        None => k.wait_copies(1),
    }
    k.warp_barrier();

    k.comment("the segment and its best token");
    let segment = Segment::at(k, spec, number, warp.place);
    segment.hide(k, &logits);
    let own = segment.max(k);
    let max = max_of_warp(k, own);
    let best = segment.take_best(k, own, max);
    let argmax = segment.best_token(k, &best);

    k.comment("weights");
    let tempers = k.ne_f(drawing.divisor, 1.0);
    let entropic = k.ge_u(drawing.confidence, Confidence::NegativeEntropy.code());
    let filtered = has(k, drawing.flags, sampling_flags::FILTERED_CONFIDENCE);
    let entropic = k.and_p(entropic, filtered);
    let unfiltered = k.not_p(filters.any);
    let draws = k.and_p(drawing.warm, unfiltered);
    let plain = Exponents::new(k, max, LOG2_E);
    let warm = Exponents::new(k, max, drawing.scale);
    let sums = segment.weigh(k, [plain, warm], (tempers, entropic), (draws, warp.notes));

    let found = Found { max, argmax, second: best.second, sums };
    let (token, logit) = (k.mov(0u32), k.mov(0.0f32));
    let (offered, floor) = (k.mov(0u32), k.mov(f32::NEG_INFINITY));
    let record = |k: &mut Builder| Records::of_entry(k, arguments, index).of(k, number);
    k.if_then(draws, |k| {
        segment.put_back(k, &best, max, Some((warm, warp.notes)));
        let [_, uniform] = entry.uniforms(k, arguments);
        let (id, value) = segment.draw(k, warm, warp.notes, uniform);
        k.set(token, id);
        k.set(logit, value);
    });
    k.if_then(filters.any, |k| {
        k.comment("offers");
        segment.put_back(k, &best, max, None);
        k.if_then(filters.by_count, |k| {
            let unused = if spec.guided { 0 } else { spec.dtype.unused_bits() };
            let found = offers::floor(k, segment, filters.one_less, unused);
            k.set(floor, found);
        });
        let mass = Mass { max, scale: drawing.scale };
        let bound = offers::bound(k, &filters, mass, sums.tempered, arguments.vocab, floor);
        let record = record(k);
        let count = offers::offer(k, segment, bound, record, warp.notes);
        k.set(offered, count);
    });

    k.comment("the record, and who is last");
    // Offers are the lanes', the count of them all is the first one's.
    k.warp_barrier();
    let count = k.mov(0u32);
    let segments = arguments.segments(k);
    let last = k.sub(segments, 1u32);
    k.if_then(leader, |k| {
        let record = record(k);
        found.write(k, record);
        let logit = k.bits(logit);
        let floor = k.bits(floor);
        k.store_vector(record, 32, [token, logit, offered, floor]);
        let of_row = k.mad_wide(index, 4u32, arguments.tickets);
        let ticket = k.count_release(of_row, 0, last);
        k.set(count, ticket);
    });
    let ticket = k.shuffle_from(count, 0u32);
    let early = k.ne(ticket, last);
    k.branch_if(early, next);
    // Only who comes last reads what the others have left.
    k.fence_device();
    let desk = Desk { team: Team::Warp, words: warp.words, list: warp.place, scratch: None, queue: warp.queue };
    desk.finish(k, spec, arguments, index, next);
}

/// The largest of all lanes' logits, in every lane.
fn max_of_warp(k: &mut Builder, own: RF) -> RF {
    let key = order_key(k, own);
    let key = k.warp_max_u(key);
    from_order_key(k, key)
}

/// What a warp found of its segment.
struct Found {
    max: RF,
    argmax: R32,
    second: RF,
    sums: Sums,
}

impl Found {
    /// Writes its part of the segment's record, from one lane.
    fn write(&self, k: &mut Builder, record: R64) {
        let [max, second, excess] = [self.max, self.second, self.sums.raw].map(|value| k.bits(value));
        k.store_vector(record, 0, [max, self.argmax, second, excess]);
        let Sums { tempered, surprise, tempered_surprise, .. } = self.sums;
        k.store_vector(record, 16, [tempered, surprise, tempered_surprise, tempered_surprise]);
    }
}
