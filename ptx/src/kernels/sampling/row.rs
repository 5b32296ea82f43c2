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
    offers::{self, Format},
    patches::Patches,
    segment::{NOTES_BYTES, Reference, SEGMENT_BYTES, Segment, Sums},
    spec::{Confidence, SamplerSpec, check},
    statistics,
};
use crate::{
    isa::{B32, Builder, Cache, Label, Launch, R32, R64, RF, RP, SharedRegion},
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
const WAVES: u32 = 2;
/// Segments of a row that a warp does one after another, at most, where there are many: who they belong to is read once, and the
/// warp counts itself once.
const RUN: u32 = 4;

impl SamplerSpec {
    /// The grid for rows of `vocab` tokens, of which at most `capacity` are listed: a few times as many blocks as run at once, so
    /// that a list far shorter than the capacity costs little.
    pub fn grid(&self, vocab: u32, capacity: u32) -> [u32; 3] {
        let segments = u64::from(self.segments(vocab)) * u64::from(capacity);
        let blocks = segments.div_ceil(WARPS.into()).clamp(1, (WAVES * WAVE).into());
        [blocks as u32, 1, 1]
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
    pub(super) biases: R64,
    pub(super) biases_length: R32,
    pub(super) credits: R64,
    pub(super) credit_window: R32,
    pub(super) credit_pass: R32,
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
            biases: k.parameter("biases", ParameterKind::Pointer),
            biases_length: k.parameter("biases_length", ParameterKind::U32),
            credits: k.parameter("credits", ParameterKind::Pointer),
            credit_window: k.parameter("credit_window", ParameterKind::U32),
            credit_pass: k.parameter("credit_pass", ParameterKind::U32),
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
    /// [`PARKED_BYTES`] a warp.
    parked: SharedRegion,
    /// Sums of the block.
    scratch: SharedRegion,
    /// A row that waits for the block.
    queue: SharedRegion,
}

const BUFFERS_BYTES: u32 = 2 * SEGMENT_BYTES;
/// Bytes of what [`aside`] keeps: words, and behind them a row.
const PARKED_BYTES: u32 = 80;
const ROW: i64 = 64;
const _: () = assert!(LIST_BYTES <= WARPS * BUFFERS_BYTES);

impl Shared {
    fn reserve(k: &mut Builder) -> Shared {
        Shared {
            buffers: k.shared(WARPS * BUFFERS_BYTES, 128),
            notes: k.shared(WARPS * NOTES_BYTES, 16),
            words: k.shared(WARPS * WORDS_BYTES, 16),
            parked: k.shared(WARPS * PARKED_BYTES, 16),
            scratch: k.shared(SCRATCH_BYTES, 16),
            queue: k.shared(4, 4),
        }
    }
}

/// How the segments of all rows are shared out, in runs of neighbouring ones. It changes no result.
struct Shares {
    /// Segments of a run, and runs of a row.
    run: R32,
    runs: R32,
    /// How far it is from a warp's run to its next one: all warps of the grid go on together.
    rows_on: R32,
    runs_on: R32,
}

/// A segment of a row, and where in the row its run begins and ends.
struct Place {
    row: R32,
    run: R32,
    segment: R32,
    end: R32,
}

impl Shares {
    /// With the first segment of this warp: neighbouring warps have neighbouring runs.
    fn of_warp(k: &mut Builder, arguments: &Arguments, listed: R32) -> (Shares, Place) {
        let segments = arguments.segments(k);
        let (thread, block, blocks) = (k.thread(), k.block_x(), k.grid_x());
        let warp = k.shr_u(thread, 5u32);
        let warp = k.mad(block, WARPS, warp);
        let warps = k.mul(blocks, WARPS);
        let all = k.mul(listed, segments);
        // Not so long that a warp would have one or none.
        let twice = k.add(warps, warps);
        let run = k.div_u(all, twice);
        let run = k.max_u(run, 1u32);
        let run = k.min_u(run, RUN);
        let padded = k.add(segments, run);
        let padded = k.sub(padded, 1u32);
        let runs = k.div_u(padded, run);
        let (row, rows_on) = (k.div_u(warp, runs), k.div_u(warps, runs));
        let (done, passed) = (k.mul(row, runs), k.mul(rows_on, runs));
        let (number, runs_on) = (k.sub(warp, done), k.sub(warps, passed));
        let shares = Shares { run, runs, rows_on, runs_on };
        let (segment, end) = shares.bounds(k, arguments, number);
        (shares, Place { row: k.mov(row), run: k.mov(number), segment: k.mov(segment), end: k.mov(end) })
    }

    fn bounds(&self, k: &mut Builder, arguments: &Arguments, run: R32) -> (R32, R32) {
        let segments = arguments.segments(k);
        let first = k.mul(run, self.run);
        let end = k.add(first, self.run);
        (first, k.min_u(end, segments))
    }
}

impl Place {
    fn copy(&self, k: &mut Builder) -> Place {
        let [row, run, segment, end] = [self.row, self.run, self.segment, self.end].map(|word| k.mov(word));
        Place { row, run, segment, end }
    }

    /// Whether it is the last segment of its run.
    fn ends(&self, k: &mut Builder) -> RP {
        let next = k.add(self.segment, 1u32);
        k.ge_u(next, self.end)
    }

    /// Goes on to the warp's next segment; runs `changed` where that is of another run.
    fn advance(&self, k: &mut Builder, arguments: &Arguments, shares: &Shares, changed: impl FnOnce(&mut Builder)) {
        let ends = self.ends(k);
        k.if_else(
            ends,
            |k| {
                let (row, run) = (k.add(self.row, shares.rows_on), k.add(self.run, shares.runs_on));
                let past = k.ge_u(run, shares.runs);
                let over = k.select::<B32>(past, 1u32, 0u32);
                let back = k.select(past, shares.runs, 0u32);
                let (row, run) = (k.add(row, over), k.sub(run, back));
                k.set(self.row, row);
                k.set(self.run, run);
                let (segment, end) = shares.bounds(k, arguments, run);
                k.set(self.segment, segment);
                k.set(self.end, end);
                changed(k);
            },
            |k| {
                let segment = k.add(self.segment, 1u32);
                k.set(self.segment, segment);
            },
        );
    }
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
    /// Some logits are changed.
    pub(super) const PATCHED: u32 = 32;
    /// The launch counts credits, and the request has none.
    pub(super) const PASSED_BY: u32 = 64;
}

impl Wish {
    fn empty(k: &mut Builder) -> Wish {
        let [limit, scale, uniform, bits] = [0u32; 4].map(|word| k.mov(word));
        Wish { limit, scale, uniform, bits }
    }

    fn load(&self, k: &mut Builder, arguments: &Arguments, index: R32) {
        let entry = Entry::load(k, arguments, index);
        let (_, outside) = entry.rows(k, arguments);
        let limit = entry.limit(k, arguments.vocab);
        let drawing = entry.drawing(k);
        let filters = Filters::load(k, &entry, drawing.flags, arguments.vocab);
        let tempers = k.ne_f(drawing.divisor, 1.0);
        let entropic = k.ge_u(drawing.confidence, Confidence::NegativeEntropy.code());
        let filtered = has(k, drawing.flags, sampling_flags::FILTERED_CONFIDENCE);
        let entropic = k.and_p(entropic, filtered);
        let unfiltered = k.not_p(filters.any);
        let draws = k.and_p(drawing.warm, unfiltered);
        let patched = Patches::some(k, &entry, arguments);
        let counts = k.ne(arguments.credit_pass, 0u32);
        let credited = entry.has_credits(k, arguments);
        let uncredited = k.not_p(credited);
        let passed_by = k.and_p(counts, uncredited);
        let mut bits = k.mov(0u32);
        for (condition, bit) in [
            (outside, wish::OUTSIDE),
            (tempers, wish::TEMPERS),
            (entropic, wish::ENTROPIC),
            (draws, wish::DRAWS),
            (filters.any, wish::FILTERS),
            (patched, wish::PATCHED),
            (passed_by, wish::PASSED_BY),
        ] {
            let bit = k.select(condition, bit, 0u32);
            bits = k.or(bits, bit);
        }
        k.set(self.bits, bits);
        k.set(self.limit, limit);
        let scale = k.bits(drawing.scale);
        k.set(self.scale, scale);
        k.if_then(draws, |k| {
            let [_, uniform] = entry.uniforms(k, arguments);
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
    fn notes(&self, k: &mut Builder) -> R32 {
        Team::Warp.address(k, self.shared.notes, NOTES_BYTES)
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
}

/// Registers of the loop that wait in shared memory while a row is finished, which needs as many; all lanes have them alike.
fn parked(listed: R32, shares: &Shares, at: &Place, warp: &Warp, wish: &Wish) -> Vec<R32> {
    let Place { row, run: number, segment, end } = *at;
    let Shares { run, runs, rows_on, runs_on } = *shares;
    let Wish { limit, scale, uniform, bits } = *wish;
    vec![
        row, number, segment, end, run, runs, rows_on, runs_on, limit, scale, uniform, bits, warp.place, warp.other,
        listed,
    ]
}

fn generate(k: &mut Builder, spec: &SamplerSpec) {
    let arguments = Arguments::declare(k, spec);
    let shared = Shared::reserve(k);
    let listed: R32 = k.load(arguments.totals, 0);
    let (shares, at) = Shares::of_warp(k, &arguments, listed);
    let place = Team::Warp.address(k, shared.buffers, BUFFERS_BYTES);
    let other = k.add(place, SEGMENT_BYTES);
    let warp = Warp { place: k.mov(place), other: k.mov(other), row: k.mov(arguments.logits), shared };
    let find = |k: &mut Builder, at: &Place| {
        let exists = k.lt_u(at.row, listed);
        k.if_then(exists, |k| {
            let found = Entry::stored_row(k, &arguments, at.row);
            k.set(warp.row, found);
        });
    };
    // Guided logits are combined on their way.
    let fetch = |k: &mut Builder, at: &Place, place: R32| {
        let exists = k.lt_u(at.row, listed);
        k.if_then(exists, |k| Segment::fetch(k, spec, warp.row, arguments.vocab, at.segment, place));
        k.commit_copies();
    };
    let wish = Wish::empty(k);
    let ask = |k: &mut Builder, at: &Place| {
        let exists = k.lt_u(at.row, listed);
        k.if_then(exists, |k| wish.load(k, &arguments, at.row));
    };
    if !spec.guided {
        find(k, &at);
        fetch(k, &at, warp.place);
    }
    ask(k, &at);
    let thread = k.thread();
    let first = k.eq(thread, 0u32);
    let queue = warp.queue(k);
    k.when(first, |k| k.store::<B32, B32>(queue, 0, NONE));
    k.barrier();

    k.while_loop(
        |k| k.lt_u(at.row, listed),
        |k| {
            let (done, ahead) = (k.label(), at.copy(k));
            ahead.advance(k, &arguments, &shares, |k| {
                if !spec.guided {
                    find(k, &ahead)
                }
            });
            if !spec.guided {
                fetch(k, &ahead, warp.other);
            }
            segment(k, spec, &arguments, (listed, &shares, &at), &warp, &wish, done);
            k.place(done);
            // Not kept, but found again: finishing a row needs the registers.
            at.advance(k, &arguments, &shares, |k| ask(k, &at));
            let place = k.mov(warp.place);
            k.set(warp.place, warp.other);
            k.set(warp.other, place);
            // What comes next is written where other lanes may still read.
            k.warp_barrier();
        },
    );

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
            desk.finish(k, spec, &arguments, index, next);
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
    (listed, shares, at): (R32, &Shares, &Place),
    warp: &Warp,
    wish: &Wish,
    done: Label,
) {
    let lane = k.lane();
    let leader = k.eq(lane, 0u32);
    let (index, number) = (at.row, at.segment);
    let outside = has(k, wish.bits, wish::OUTSIDE);
    k.if_then(outside, |k| {
        let first = k.eq(number, 0u32);
        let first = k.and_p(first, leader);
        let out = Entry::out(k, arguments, index);
        k.if_then(first, |k| statistics::write_flagged(k, row_flags::OUT_OF_RANGE, out));
        k.branch(done);
    });
    let passed_by = has(k, wish.bits, wish::PASSED_BY);
    k.branch_if(passed_by, done);
    k.comment("the segment and its best token");
    if spec.guided {
        let entry = Entry::load(k, arguments, index);
        let ((row, guide), _) = entry.rows(k, arguments);
        let guide = guide.expect("a guided kernel");
        Segment::guide(k, spec, (row, guide), arguments.vocab, number, warp.place);
    } else {
        k.wait_copies(1);
    }
    k.warp_barrier();
    let segment = Segment::at(k, spec, number, warp.place);
    segment.limit(k, wish.limit, arguments.vocab);
    let patched = has(k, wish.bits, wish::PATCHED);
    k.if_then(patched, |k| {
        let entry = Entry::load(k, arguments, index);
        let patches = Patches::load(k, &entry, arguments);
        patches.take_out(k, segment);
    });
    let own = segment.max(k);
    let max = max_of_warp(k, own);
    let reference = Reference::new(k, max);
    let raw_scale = k.mov(LOG2_E);
    let scale = k.from_bits(wish.scale);
    let least = k.min_f(scale, raw_scale);
    let nothing = reference.nothing(k, least);
    let best = segment.take_best(k, own, max, nothing);

    k.comment("weights");
    let [tempers, entropic, draws, filters] =
        [wish::TEMPERS, wish::ENTROPIC, wish::DRAWS, wish::FILTERS].map(|bit| has(k, wish.bits, bit));
    let plain = reference.exponents(k, raw_scale);
    let warm = reference.exponents(k, scale);
    let notes = warp.notes(k);
    let sums = segment.weigh(k, [plain, warm], (tempers, entropic), (draws, notes));

    let (token, logit) = (k.mov(0u32), k.mov(0.0f32));
    let (offered, floor) = (k.mov(0u32), k.mov(f32::NEG_INFINITY));
    // Written at once: what comes next needs the registers.
    let record = |k: &mut Builder| Records::of_entry(k, arguments, index).of(k, number);
    let argmax = segment.best_token(k, &best);
    let found = Found { max, argmax, second: best.second, sums };
    k.if_then(leader, |k| {
        let record = record(k);
        found.write(k, record);
    });
    k.if_then(draws, |k| {
        segment.put_back(k, &best, max, Some((warm, notes)));
        let (id, value) = segment.draw(k, warm, notes, wish.uniform);
        k.set(token, id);
        k.set(logit, value);
    });
    let state = parked(listed, shares, at, warp, wish);
    k.if_then(filters, |k| {
        k.comment("offers");
        segment.put_back(k, &best, max, None);
        let entry = Entry::load(k, arguments, index);
        let flags = entry.drawing(k).flags;
        let filters = Filters::load(k, &entry, flags, arguments.vocab);
        k.if_then(filters.by_count, |k| {
            let single = spec.guided || spec.dtype.packed().is_none();
            let unused = if single { 0 } else { spec.dtype.unused_bits() };
            let find = |k: &mut Builder| {
                let found = offers::floor(k, segment, filters.one_less, unused);
                k.set(floor, found);
            };
            if single {
                // Around the calls that `ptxas` 12.4 makes of sums over a warp it has too few registers.
                aside(k, warp, &state, find);
                // Kept again, when all have read it.
                k.warp_barrier();
            } else {
                find(k);
            }
        });
        let mass = Mass { max, scale };
        let bound = offers::bound(k, &filters, mass, sums.tempered, arguments.vocab, floor);
        let record = record(k);
        let count = offers::offer(k, segment, Format::of(spec), bound, record, notes);
        k.set(offered, count);
    });

    k.comment("the record, and who is last");
    k.if_then(leader, |k| {
        let record = record(k);
        let [logit, floor] = [logit, floor].map(|value| k.bits(value));
        k.store_vector(record, 32, [token, logit, offered, floor]);
    });
    let first = k.eq(number, 0u32);
    let patched = has(k, wish.bits, wish::PATCHED);
    let leaves = k.and_p(first, patched);
    k.if_then(leaves, |k| {
        aside(k, warp, &state, |k| leave_changed(k, spec, arguments, index, warp.place));
        // Kept again, when all have read it.
        k.warp_barrier();
    });
    let ends = at.ends(k);
    k.branch_unless(ends, done);
    // Offers are the lanes', the count of all is the first one's.
    k.warp_barrier();
    let count = k.mov(0u32);
    let last = k.sub(shares.runs, 1u32);
    k.if_then(leader, |k| {
        let of_row = k.mad_wide(index, 4u32, arguments.tickets);
        let ticket = k.count_release(of_row, 0, last);
        k.set(count, ticket);
    });
    let ticket = k.shuffle_from(count, 0u32);
    let early = k.ne(ticket, last);
    k.branch_if(early, done);
    // Only who comes last reads what the others have left.
    k.fence_device();
    let (words, queue) = (warp.words(k), warp.queue(k));
    let desk = Desk { team: Team::Warp, words, list: warp.place, scratch: None, queue };
    aside(k, warp, &state, |k| {
        let finished = k.label();
        desk.finish(k, spec, arguments, index, finished);
        k.place(finished);
    });
}

/// Runs `body` while registers of the loop wait in shared memory.
fn aside(k: &mut Builder, warp: &Warp, state: &[R32], body: impl FnOnce(&mut Builder)) {
    let leader = k.lane();
    let leader = k.eq(leader, 0u32);
    let place = warp.parked(k);
    k.when(leader, |k| {
        for (i, &word) in (0..).zip(state) {
            k.store(place, 4 * i, word);
        }
        k.store(place, ROW, warp.row);
    });
    body(k);
    k.warp_barrier();
    let place = warp.parked(k);
    for (i, &word) in (0..).zip(state) {
        k.load_into(word, place, 4 * i, Cache::Default);
    }
    k.load_into(warp.row, place, ROW, Cache::Default);
}

/// Leaves the record of a row's changed tokens, by way of the place of a segment.
fn leave_changed(k: &mut Builder, spec: &SamplerSpec, arguments: &Arguments, index: R32, place: R32) {
    let entry = Entry::load(k, arguments, index);
    let (rows, _) = entry.rows(k, arguments);
    let logits = entry.logits(k, spec.dtype, rows, arguments);
    let drawing = entry.drawing(k);
    let filters = Filters::load(k, &entry, drawing.flags, arguments.vocab);
    let [_, uniform] = entry.uniforms(k, arguments);
    let unfiltered = k.not_p(filters.any);
    let draws = k.and_p(drawing.warm, unfiltered);
    let records = Records::of_entry(k, arguments, index);
    let record = records.of(k, records.count);
    logits.patches.leave(k, &logits, (&drawing, &filters), (draws, uniform), (place, record), arguments.vocab);
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
