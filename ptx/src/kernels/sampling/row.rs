//! The row kernel: blocks read the chunks of a row, and the last of them says what it would decode to.
//!
//! A block does one chunk of one row after another. For each it finds the largest logit, then sums the others' weights
//! relative to it, and leaves a [`ChunkRecord`]. Two barriers a chunk; with a filter two more, around the tokens that it
//! offers. Without a filter one warp writes the record and, if it drew the row's last ticket, finishes the row: the others are
//! with the next chunk by then.

use super::{
    chunk::{Best, Chunk, PARKED_BYTES, Sums, THREADS, WARPS},
    entry::Entry,
    filter::{self, Filters, Kept, LIST_BYTES, LISTED, SCRATCH_BYTES},
    functions::ln_one_plus,
    layout::{ChunkRecord, row_flags, sampling_flags},
    logits::{Logits, Mass, ONE, float, has, logarithm},
    merge::{Records, Row, crossing, target},
    nucleus, offers,
    spec::{Confidence, SamplerSpec, check},
    statistics::{self, Drawn},
};
use crate::{
    isa::{B32, B64, Builder, Cache, F32, Label, Launch, R32, R64, RF, RP, Rounding},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
    },
    tile::{
        order::{from_order_key, order_key},
        reduce::{group_sum_f, warp_inclusive_sum_f},
    },
};
use std::mem::offset_of;

const BLOCKS_PER_MULTIPROCESSOR: u32 = 4;
/// Blocks that fill the largest GPUs there are.
const WAVE: u32 = 132 * BLOCKS_PER_MULTIPROCESSOR;
/// How often: of blocks that do many rows, the slowest would finish every one of them, and become slower still.
const WAVES: u32 = 16;

impl SamplerSpec {
    /// The grid for rows of `vocab` tokens, of which at most `capacity` are listed: a few times as many blocks as run at once, so
    /// that a list far shorter than the capacity costs little.
    pub fn grid(&self, vocab: u32, capacity: u32) -> [u32; 3] {
        let chunks = self.chunks(vocab);
        [chunks, (WAVES * WAVE / chunks).clamp(1, capacity.max(1)), 1]
    }

    /// Chunks of a row.
    pub fn chunks(&self, vocab: u32) -> u32 {
        vocab.div_ceil(self.chunk()).max(1)
    }
}

impl KernelSpec for SamplerSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        check(self.arch)
    }

    fn build(&self) -> Kernel {
        let guided = if self.guided { "_guided" } else { "" };
        let entry = format!("sampler_{}{guided}_sm80", self.dtype.name());
        // A second row of logits takes registers.
        let blocks_per_multiprocessor = if self.guided { 3 } else { BLOCKS_PER_MULTIPROCESSOR };
        let launch = Launch { threads: THREADS, blocks_per_multiprocessor };
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
}

/// Shared memory, by address.
struct Shared {
    /// Largest key of each warp.
    maxima: R32,
    /// [`WARP_BYTES`] a warp: what it found beyond.
    sums: R32,
    /// Weights of each run of each warp, for a draw.
    runs: R32,
    /// Largest key of each thread, for top-k.
    keys: R32,
    /// Sums of the filters.
    scratch: R32,
    /// Statistics of a row while it is filtered.
    parked: R32,
    /// Words by themselves: see below.
    words: R32,
    /// Two chunks: one at hand, which waits here for a draw or for its offers, and makes room for what is offered for the row; and
    /// the next row's on its way.
    chunks: R32,
}

const WARP_BYTES: u32 = 32;

const _: () = assert!(LIST_BYTES <= PARKED_BYTES);

/// Words of [`Shared::words`].
const TICKET: i64 = 0;
const FLOOR: i64 = 4;
/// Token and logit that are drawn.
const DRAWN: i64 = 8;
/// Tokens offered by the chunk; tokens listed for the row, and chunks that have more.
const OFFERS: u32 = 16;
const COUNT: u32 = 20;
const CROWDED: u32 = 24;
const WORDS_BYTES: u32 = 32;

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
        }
    }
}

impl Shared {
    fn reserve(k: &mut Builder) -> Shared {
        let mut region = |bytes| {
            let region = k.shared(bytes, 16);
            k.shared_address(region)
        };
        Shared {
            maxima: region(4 * WARPS),
            sums: region(WARP_BYTES * WARPS),
            runs: region(4 * 32),
            keys: region(4 * THREADS),
            scratch: region(SCRATCH_BYTES),
            parked: region(16),
            words: region(WORDS_BYTES),
            chunks: region(2 * PARKED_BYTES),
        }
    }
}

fn generate(k: &mut Builder, spec: &SamplerSpec) {
    let arguments = Arguments::declare(k, spec);
    let shared = Shared::reserve(k);
    let entry = k.block_y();
    let entry = k.mov(entry);
    let listed: R32 = k.load(arguments.totals, 0);
    let chunk_index = k.block_x();
    let place = k.mov(shared.chunks);
    // Guided logits are combined on their way to the registers.
    let fetch = |k: &mut Builder, entry: R32, place: R32| {
        let exists = k.lt_u(entry, listed);
        k.if_then(exists, |k| {
            let row = Entry::stored_row(k, &arguments, entry);
            Chunk::fetch(k, spec, row, arguments.vocab, chunk_index, place);
        });
    };
    if !spec.guided {
        fetch(k, entry, place);
    }
    k.while_loop(
        |k| k.lt_u(entry, listed),
        |k| {
            let next = k.label();
            let rows = k.grid_y();
            let following = k.add(entry, rows);
            let both = k.add(shared.chunks, shared.chunks);
            let both = k.add(both, PARKED_BYTES);
            let other = k.sub(both, place);
            let chunk = (!spec.guided).then(|| {
                k.wait_copies(0);
                let chunk = Chunk::fetched(k, spec, chunk_index, place);
                fetch(k, following, other);
                chunk
            });
            row(k, spec, &arguments, &shared, entry, (chunk, place), next);
            k.place(next);
            let rows = k.grid_y();
            let following = k.add(entry, rows);
            k.set(entry, following);
            let both = k.add(shared.chunks, shared.chunks);
            let both = k.add(both, PARKED_BYTES);
            let other = k.sub(both, place);
            k.set(place, other);
        },
    );
    k.ret();
}

/// This block's chunk of one row, which waits at `place` when it has to; branches to `next` when it has no more to do.
fn row(
    k: &mut Builder,
    spec: &SamplerSpec,
    arguments: &Arguments,
    shared: &Shared,
    index: R32,
    (chunk, place): (Option<Chunk>, R32),
    next: Label,
) {
    let (thread, chunk_index, chunks) = (k.thread(), k.block_x(), k.grid_x());
    let leader = k.eq(thread, 0u32);
    let entry = Entry::load(k, arguments, index);
    let (rows, outside) = entry.rows(k, arguments);
    k.if_then(outside, |k| {
        let first = k.eq(chunk_index, 0u32);
        let first = k.and_p(first, leader);
        let out = Entry::out(k, arguments, index);
        k.if_then(first, |k| statistics::write_flagged(k, row_flags::OUT_OF_RANGE, out));
        k.branch(next);
    });

    k.comment("the chunk and its best token");
    let chunk = chunk.unwrap_or_else(|| Chunk::load(k, spec, rows, arguments.vocab, chunk_index));
    let logits = entry.logits(k, spec.dtype, rows, arguments.vocab);
    let drawing = entry.drawing(k);
    chunk.hide(k, &logits, chunk_index);
    let own = chunk.max(k);
    let max = max_of_block(k, shared, own);
    let best = chunk.take_best(k, own, max);

    k.comment("weights");
    let tempers = k.ne_f(drawing.divisor, 1.0);
    let entropic = k.ge_u(drawing.confidence, Confidence::NegativeEntropy.code());
    let filtered = has(k, drawing.flags, sampling_flags::FILTERED_CONFIDENCE);
    let entropic = k.and_p(entropic, filtered);
    let sums = chunk.weigh(k, max, drawing.scale, tempers, entropic);
    leave(k, shared, &best, sums);
    k.when(leader, |k| k.store::<B32, B32>(shared.words, i64::from(OFFERS), 0u32));
    let filters = Filters::load(k, &entry, drawing.flags, arguments.vocab);
    let unfiltered = k.not_p(filters.any);
    let draws = k.and_p(drawing.warm, unfiltered);
    let together = k.or_p(draws, filters.any);
    k.if_then(together, |k| {
        chunk.put_back(k, &best, max);
        chunk.park(k, place);
    });
    k.barrier();

    // Without a filter or a draw of its own, the rest is for the first warp.
    // Said so that `ptxas` sees that a warp does not part here, and keeps what a block has alike in uniform registers.
    let warp = k.shr_u(thread, 5u32);
    let first_warp = k.eq(warp, 0u32);
    let stays = k.or_p(first_warp, together);
    k.branch_unless(stays, next);
    let found = gather(k, shared, max);
    let record = |k: &mut Builder| Records::of_entry(k, arguments, index).of(k, chunk_index);
    k.if_then(leader, |k| {
        let record = record(k);
        found.write(k, record);
        k.store_vector(shared.words, DRAWN, [found.argmax, found.max_bits]);
        k.store(shared.words, FLOOR, f32::NEG_INFINITY);
    });
    k.if_then(draws, |k| {
        let entry = Entry::load(k, arguments, index);
        let [_, uniform] = entry.uniforms(k, arguments);
        let chunk = chunk.unpark(k, place);
        draw_of_chunk(k, &chunk, shared, [max, drawing.scale], uniform);
    });
    k.if_then(filters.any, |k| {
        k.comment("offers");
        k.if_then(filters.by_count, |k| {
            k.if_then(first_warp, |k| {
                let unused = if spec.guided { 0 } else { spec.dtype.unused_bits() };
                let floor = offers::floor(k, shared.keys, filters.one_less, unused);
                k.when(leader, |k| k.store(shared.words, FLOOR, floor));
            });
        });
        k.barrier();
        let floor: RF = k.load(shared.words, FLOOR);
        let mass = Mass { max, scale: drawing.scale };
        let bound = offers::bound(k, &filters, mass, found.tempered_excess, arguments.vocab, floor);
        let counter = k.add(shared.words, OFFERS);
        let chunk = chunk.unpark(k, place);
        let record = record(k);
        offers::offer(k, &chunk, bound, record, counter);
        k.barrier();
    });
    k.if_then(leader, |k| {
        k.comment("the record, and who is last");
        let record = record(k);
        write_choices(k, shared, record);
        k.fence_device();
        let of_row = k.mad_wide(index, 4u32, arguments.tickets);
        let ticket = k.atomic_add(of_row, 0, 1u32);
        k.store(shared.words, TICKET, ticket);
        k.store::<B32, B32>(shared.words, i64::from(COUNT), 0u32);
        k.store::<B32, B32>(shared.words, i64::from(CROWDED), 0u32);
    });
    k.if_else(together, |k| k.barrier(), |k| k.warp_barrier());
    let ticket: R32 = k.load(shared.words, TICKET);
    let last = k.sub(chunks, 1u32);
    let early = k.ne(ticket, last);
    k.branch_if(early, next);
    // Only who comes last reads what the others have left.
    k.fence_device();
    let of_row = k.mad_wide(index, 4u32, arguments.tickets);
    k.when(leader, |k| k.store::<B32, B64>(of_row, 0, 0u32));
    finish(k, spec, arguments, shared, (index, place), next);
}

/// In the last block of a row, or in its first warp if nothing is filtered.
fn finish(
    k: &mut Builder,
    spec: &SamplerSpec,
    arguments: &Arguments,
    shared: &Shared,
    (index, place): (R32, R32),
    next: Label,
) {
    let records = Records::of_entry(k, arguments, index);
    let entry = Entry::load(k, arguments, index);
    let out = Entry::out(k, arguments, index);
    let drawing = entry.drawing(k);
    let filters = Filters::load(k, &entry, drawing.flags, arguments.vocab);
    let leader = k.thread();
    let leader = k.eq(leader, 0u32);
    let row = records.merge(k, drawing.scale);
    let none = k.eq_f(row.max, f32::NEG_INFINITY);
    k.if_then(none, |k| {
        k.if_then(leader, |k| statistics::write_flagged(k, row_flags::NOT_FINITE, out));
        k.branch(next);
    });
    k.if_then(leader, |k| statistics::write_row(k, &row, drawing.divisor, shared.parked, out));
    let tempered = Mass { max: row.max, scale: drawing.scale };
    let drawn = Drawn {
        token: k.mov(row.argmax),
        logit: k.mov(row.max),
        total: k.fresh(),
        log: k.fresh(),
        surprise: k.fresh(),
        count: k.fresh(),
    };
    k.if_else(
        filters.any,
        |k| {
            let (rows, _) = entry.rows(k, arguments);
            let logits = entry.logits(k, spec.dtype, rows, arguments.vocab);
            let [uniform, _] = entry.uniforms(k, arguments);
            let draw = (drawing.warm, uniform);
            let tokens = spec.chunk();
            let of_row = (records, place, &row);
            filter_row(k, shared, of_row, (&logits, tokens), (tempered, &filters), draw, &drawn);
            // Another row's chunk comes where the list was.
            k.barrier();
        },
        |k| {
            k.if_then(drawing.warm, |k| {
                let [uniform, _] = entry.uniforms(k, arguments);
                let record = records.draw(k, tempered, uniform);
                let place = offset_of!(ChunkRecord, token) as i64;
                let [token, logit] = k.load_vector::<B32, B64, 2>(record, place, Cache::Default);
                k.set(drawn.token, token);
                let logit = k.from_bits(logit);
                k.set(drawn.logit, logit);
            });
            let total = k.add_f(row.tempered_excess, 1.0);
            k.set(drawn.total, total);
            let log = ln_one_plus(k, row.tempered_excess);
            k.set(drawn.log, log);
            let surprise = k.mul_f(row.tempered_surprise, -std::f32::consts::LN_2);
            k.set(drawn.surprise, surprise);
            k.set(drawn.count, u32::MAX);
        },
    );
    k.branch_unless(leader, next);
    let drawing = entry.drawing(k);
    statistics::write_drawn(k, shared.parked, &drawn, &drawing, out);
}

/// Filters a row, into `drawn`: by what its chunks offer, or all over again if they have too much to offer.
fn filter_row(
    k: &mut Builder,
    shared: &Shared,
    (records, list, row): (Records, R32, &Row),
    (logits, tokens): (&Logits, u32),
    (mass, filters): (Mass, &Filters),
    draw: (RP, R32),
    drawn: &Drawn,
) {
    k.comment("filters");
    let bound = offers::bound(k, filters, mass, row.tempered_excess, logits.vocab, row.floor);
    let [counter, crowded] = [COUNT, CROWDED].map(|word| k.add(shared.words, word));
    let list = offers::collect(k, records, (logits, tokens), bound, mass, (list, counter, crowded));
    let total = k.add_f(row.tempered_excess, 1.0);
    let total = k.mul_f(total, ONE);
    let total = k.wide_from_float(total, Rounding::Nearest);
    let kept =
        Kept { mass: k.fresh(), count: drawn.count, surprise: k.fresh(), token: drawn.token, logit: drawn.logit };
    let fits = k.le_u(list.count, LISTED);
    let slot = k.add(shared.words, DRAWN as u32);
    k.if_else(
        fits,
        |k| filter::keep(k, &list, mass, filters, total, draw, (shared.scratch, slot), &kept),
        |k| nucleus::keep(k, *logits, mass, filters, total, draw, shared.scratch, &kept),
    );
    let total = float(k, kept.mass);
    k.set(drawn.total, total);
    let log = logarithm(k, kept.mass);
    k.set(drawn.log, log);
    let surprise = float(k, kept.surprise);
    k.set(drawn.surprise, surprise);
}

/// The largest of all threads' logits, in every thread; on the way the key of each goes to [`Shared::keys`].
fn max_of_block(k: &mut Builder, shared: &Shared, own: RF) -> RF {
    let (thread, lane) = (k.thread(), k.lane());
    let key = order_key(k, own);
    let at = k.mad(thread, 4u32, shared.keys);
    k.store(at, 0, key);
    let of_warp = k.warp_max_u(key);
    let warp = k.shr_u(thread, 5u32);
    let first_lane = k.eq(lane, 0u32);
    let at = k.mad(warp, 4u32, shared.maxima);
    k.when(first_lane, |k| k.store(at, 0, of_warp));
    k.barrier();
    let in_group = k.and(lane, WARPS - 1);
    let at = k.mad(in_group, 4u32, shared.maxima);
    let of_warp: R32 = k.load(at, 0);
    let key = k.warp_max_u(of_warp);
    from_order_key(k, key)
}

/// What the warps found, put together.
struct Found {
    max_bits: R32,
    argmax: R32,
    second: RF,
    /// Sums but for the best token's, which has weight 1.
    excess: RF,
    tempered_excess: RF,
    surprise: RF,
    tempered_surprise: RF,
}

impl Found {
    /// Writes its part of the chunk's record, from one thread.
    fn write(&self, k: &mut Builder, record: R64) {
        let [second, excess] = [self.second, self.excess].map(|value| k.bits(value));
        k.store_vector(record, 0, [self.max_bits, self.argmax, second, excess]);
        let sums = [self.tempered_excess, self.surprise, self.tempered_surprise, self.tempered_surprise];
        k.store_vector(record, 16, sums);
    }
}

/// Writes the rest of the record, which stands in shared memory: what was drawn, offered and found of top-k.
fn write_choices(k: &mut Builder, shared: &Shared, record: R64) {
    let [token, logit] = k.load_vector::<B32, B32, 2>(shared.words, DRAWN, Cache::Default);
    let offers: R32 = k.load(shared.words, i64::from(OFFERS));
    let floor: R32 = k.load(shared.words, FLOOR);
    k.store_vector(record, 32, [token, logit, offers, floor]);
}

/// Writes what this thread's warp found, for [`gather`] after a barrier.
fn leave(k: &mut Builder, shared: &Shared, best: &Best, sums: Sums) {
    let sums = [sums.raw, sums.tempered, sums.surprise, sums.tempered_surprise].map(|sum| group_sum_f(k, sum, 32));
    let rest = order_key(k, best.rest);
    let rest = k.warp_max_u(rest);
    let id = k.warp_min_u(best.id);
    let here = k.ballot(best.here);
    let number = k.popc(here);
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let first_lane = k.eq(lane, 0u32);
    let at = k.mad(warp, WARP_BYTES, shared.sums);
    k.when(first_lane, |k| {
        k.store_vector(at, 0, sums);
        k.store_vector(at, 16, [rest, id, number, number]);
    });
}

/// In every lane of a warp; `max` is the chunk's largest logit.
fn gather(k: &mut Builder, shared: &Shared, max: RF) -> Found {
    let lane = k.lane();
    let of_warp = k.and(lane, WARPS - 1);
    let at = k.mad(of_warp, WARP_BYTES, shared.sums);
    let floats = k.load_vector::<F32, B32, 4>(at, 0, Cache::Default);
    let [rest, id, number, _] = k.load_vector::<B32, B32, 4>(at, 16, Cache::Default);
    let [raw, tempered, surprise, tempered_surprise] = floats.map(|sum| group_sum_f(k, sum, WARPS));
    let once = k.lt_u(lane, WARPS);
    let number = k.select(once, number, 0u32);
    let number = k.warp_sum(number);
    let rest = k.warp_max_u(rest);
    let rest = from_order_key(k, rest);
    let several = k.gt_u(number, 1u32);
    let second = k.select(several, max, rest);
    // All that were taken as the best but one have their weight of 1 in the excess.
    let others = k.sub(number, 1u32);
    let others = k.float_from_s(others);
    Found {
        max_bits: k.bits(max),
        argmax: k.warp_min_u(id),
        second,
        excess: k.add_f(raw, others),
        tempered_excess: k.add_f(tempered, others),
        surprise,
        tempered_surprise,
    }
}

/// Draws a token of the chunk: puts its id and its logit in [`DRAWN`], if any has weight.
fn draw_of_chunk(k: &mut Builder, chunk: &Chunk, shared: &Shared, [max, scale]: [RF; 2], uniform: R32) {
    k.comment("a draw from the chunk");
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let weights = chunk.run_weights(k, max, scale);
    let through: Vec<RF> = weights.iter().map(|&weight| warp_inclusive_sum_f(k, weight)).collect();
    let last_lane = k.eq(lane, 31u32);
    let at = k.mad(warp, 4u32, shared.runs);
    k.when(last_lane, |k| {
        for (j, &sum) in (0..).zip(&through) {
            k.store(at, j * 4 * i64::from(WARPS), sum);
        }
    });
    k.barrier();
    let runs = weights.len() as u32 * WARPS;
    let inside = k.lt_u(lane, runs);
    let at = k.mad(lane, 4u32, shared.runs);
    let weight = k.mov::<F32>(0.0f32);
    k.when(inside, |k| k.load_into(weight, at, 0, Cache::Default));
    let sums = warp_inclusive_sum_f(k, weight);
    let total = k.shuffle_from(sums, 31u32);
    let point = target(k, total, uniform);
    let (hit, some) = crossing(k, sums, weight, point);
    let before = k.sub_f(sums, weight);
    let before = k.shuffle_from(before, hit);
    let point = k.sub_f(point, before);
    let run = k.shr_u(hit, WARPS.ilog2());
    let of_warp = k.and(hit, WARPS - 1);
    let mine = k.eq(of_warp, warp);
    let mine = k.and_p(mine, some);
    k.if_then(mine, |k| {
        let (weight, sums) = (k.mov(weights[0]), k.mov(through[0]));
        for j in 1..weights.len() {
            let chosen = k.eq(run, j as u32);
            k.when(chosen, |k| {
                k.set(weight, weights[j]);
                k.set(sums, through[j]);
            });
        }
        let (hit, _) = crossing(k, sums, weight, point);
        let before = k.sub_f(sums, weight);
        let point = k.sub_f(point, before);
        let point = k.max_f(point, 0.0f32);
        let (id, logit) = chunk.locate(k, run, point, max, scale);
        let logit = k.bits(logit);
        let drawn = k.eq(lane, hit);
        k.when(drawn, |k| k.store_vector(shared.words, DRAWN, [id, logit]));
    });
    k.barrier();
}
