//! The end of a row: its statistics and its token, from the records of its segments.
//!
//! The warp that counts itself as the row's last does it alone, where a filter has few tokens to look at. Rows with more wait in
//! a queue of the block, and its warps do them together when none of them has a segment left.

use super::{
    credit::credit,
    cut::{CUT_BYTES, Cut},
    entry::{Asked, Drawing, Entry},
    filter::{self, Filters, Kept, LISTED_BYTES},
    layout::{RowParameters, SegmentRecord, row_flags},
    logits::{Mass, ONE, float, logarithm},
    merge::{Records, Row, Seen},
    nucleus,
    offers::{Bound, Collector, Format},
    patches::Patches,
    row::Arguments,
    segment::SEGMENT_BYTES,
    spec::{Confidence, SamplerSpec},
    statistics::{self, Drawn},
};
use crate::{
    isa::{B32, B64, Builder, Cache, Label, R32, R64, RF, RP, Rounding, SharedRegion},
    tile::{order::order_key, team::Team},
};
use std::{f32::consts::LN_2, mem::offset_of};

/// Tokens that a warp ranks, at most: as many as its list has room for where a segment was.
const FEW: u32 = SEGMENT_BYTES / LISTED_BYTES;
/// Tokens that a block ranks, at most.
pub(super) const MANY: u32 = 4 * FEW;

const LIST_BYTES: u32 = MANY * LISTED_BYTES;
/// Bytes of [`Desk::room`] of a block: its list, and what [`Cut`] needs.
pub(super) const ROOM_BYTES: u32 = LIST_BYTES + CUT_BYTES;

/// No row: what ends the queue.
pub(super) const NONE: u32 = u32::MAX;

/// Bytes of [`Desk::words`].
pub(super) const WORDS_BYTES: u32 = 32;
/// What [`statistics::write_row`] parks; then a token that was drawn and its key, and the counters of the list.
const PARKED: u32 = 0;
const SLOT: u32 = 16;
const COUNTERS: u32 = 24;

/// Who finishes a row, and the shared memory to do it with.
#[derive(Clone, Copy)]
pub(super) struct Desk {
    pub(super) team: Team,
    /// Words by themselves.
    pub(super) words: R32,
    /// Room for the list.
    pub(super) list: R32,
    /// Sums of a block.
    pub(super) scratch: Option<SharedRegion>,
    /// Where the block's queue begins.
    pub(super) queue: R32,
}

impl Desk {
    fn room(self) -> u32 {
        match self.team {
            Team::Warp => FEW,
            Team::Block => MANY,
        }
    }

    fn parked(self, k: &mut Builder) -> R32 {
        k.add(self.words, PARKED)
    }

    /// Finishes list entry `index`, whose records are complete and whose request asks for this; branches to `next`
    /// where there is no more to do.
    pub(super) fn finish(
        self,
        k: &mut Builder,
        spec: &SamplerSpec,
        arguments: &Arguments,
        (index, asked): (R32, Asked),
        next: Label,
    ) {
        let patched = Patches::some(k, asked, arguments);
        let segments = Records::of_entry(k, arguments, index);
        let records = segments.with_changed(k, patched);
        let out = Entry::out(k, arguments, index);
        let drawing = asked.drawing(k);
        let leader = self.team.thread(k);
        let leader = k.eq(leader, 0u32);
        let entropy = asked.wants_entropy(k, arguments);
        let by_entropy = k.ge_u(drawing.confidence, Confidence::NegativeEntropy.code());
        let surprised = k.or_p(entropy, by_entropy);
        let (row, seen) = records.merge(k, drawing.scale, surprised);
        let none = k.eq_f(row.max, f32::NEG_INFINITY);
        let flags = k.select::<B32>(none, row_flags::NOT_FINITE, 0u32);
        k.if_then(patched, |k| {
            let shards = segments.changed_count(k);
            k.for_loop(0u32, shards, 1, |k, shard| {
                let record = segments.changed(k, shard);
                let raised: R32 = k.load(record, offset_of!(SegmentRecord, next) as i64);
                let all = k.or(flags, raised);
                k.set(flags, all);
            });
        });
        let flagged = k.ne(flags, 0u32);
        k.if_then(flagged, |k| {
            k.if_then(leader, |k| statistics::write_flagged(k, flags, out));
            k.branch(next);
        });
        if self.team == Team::Warp || arguments.shards.is_some() {
            let counts = k.ne(arguments.credit_pass, 0u32);
            k.if_then(counts, |k| {
                let thread = self.team.thread(k);
                let first_warp = k.lt_u(thread, 32u32);
                k.if_then(first_warp, |k| credit(k, asked, arguments, &row));
                k.branch(next);
            });
        }
        let parked = self.parked(k);
        let logs = statistics::logarithms(k, &row);
        k.if_then(leader, |k| statistics::write_row(k, &row, logs, entropy, drawing.inverse, parked, out));
        let drawn = Drawn {
            token: k.mov(row.argmax),
            logit: k.mov(row.max),
            total: k.fresh(),
            log: k.fresh(),
            surprise: k.fresh(),
            count: k.fresh(),
        };
        let uniform = k.mov(0u32);
        k.if_then(drawing.warm, |k| {
            let [first, _] = asked.uniforms(k);
            k.set(uniform, first);
        });
        let draw = (drawing.warm, uniform);
        let flags = asked.word(k, offset_of!(RowParameters, flags));
        let filters = Filters::of(k, asked, flags, arguments.row_vocab);
        match self.team {
            Team::Block if arguments.shards.is_none() => {
                self.filter(k, spec, arguments, (index, asked, next), (segments, &seen, &row, &filters), draw, &drawn)
            }
            _ => k.if_else(
                filters.any,
                |k| {
                    self.filter(
                        k,
                        spec,
                        arguments,
                        (index, asked, next),
                        (segments, &seen, &row, &filters),
                        draw,
                        &drawn,
                    )
                },
                |k| plain(k, records, (&row, logs[1]), &drawing, uniform, &drawn),
            ),
        }
        let drawing = asked.drawing(k);
        k.branch_unless(leader, next);
        statistics::write_drawn(k, parked, &drawn, &drawing, out);
    }

    /// Filters a row, into `drawn`: by what its segments offer, or all over again if they have too much to offer.
    #[expect(clippy::too_many_arguments, reason = "what a finished row has at hand")]
    fn filter(
        self,
        k: &mut Builder,
        spec: &SamplerSpec,
        arguments: &Arguments,
        (index, asked, next): (R32, Asked, Label),
        (records, seen, row, filters): (Records, &Seen, &Row, &Filters),
        draw: (RP, R32),
        drawn: &Drawn,
    ) {
        k.comment("filters");
        let drawing = asked.drawing(k);
        let mass = Mass { max: row.max, scale: drawing.scale };
        let bound = Bound::of(k, filters, mass.scale, arguments.row_vocab);
        let floor = k.mov(row.floor);
        k.if_then(filters.by_count, |k| {
            let unused = if spec.guided { 0 } else { spec.dtype.unused_bits() };
            let of_row = records.floor(k, filters.one_less, unused);
            let higher = k.max_f(floor, of_row);
            k.set(floor, higher);
        });
        let bound = bound.logit(k, row.max, row.tempered_excess, floor);
        let collector = Collector {
            team: self.team,
            format: Format::of(spec),
            list: self.list,
            room: self.room(),
            counters: k.add(self.words, COUNTERS),
            least: order_key(k, bound),
            mass,
        };
        let total = k.add_f(row.tempered_excess, 1.0);
        let total = k.mul_f(total, ONE);
        let total = k.wide_from_float(total, Rounding::Nearest);
        let kept =
            Kept { mass: k.fresh(), count: drawn.count, surprise: k.fresh(), token: drawn.token, logit: drawn.logit };
        let slot = k.add(self.words, SLOT);
        let patched = Patches::some(k, asked, arguments);
        let keep = |k: &mut Builder, count: R32| {
            let list = collector.list(k, count);
            filter::keep(k, &list, mass, filters, total, draw, (self.scratch, slot), &kept);
        };
        match self.scratch {
            None => {
                let (count, long) = collector.gather(k, (records, seen), patched);
                k.if_then(long, |k| {
                    self.put_off(k, index, records);
                    k.branch(next);
                });
                let limit = filters.limit(k, total);
                // What top-k keeps is not known yet.
                let limit = k.select(filters.count_first, u64::MAX, limit);
                let count = collector.weigh(k, count, limit);
                keep(k, count);
            }
            Some(scratch) => {
                let (otherwise, done) = (k.label(), k.label());
                let special = k.or_p(patched, filters.count_first);
                k.branch_if(special, otherwise);
                let room = k.add(self.list, LIST_BYTES);
                let total_float = k.add_f(row.tempered_excess, 1.0);
                let cut = Cut { collector, records, room, scratch, slot, filters, total, total_float };
                cut.keep(k, draw, &kept, otherwise);
                k.branch(done);
                k.place(otherwise);
                let several = collector.collect(k, records, patched);
                if arguments.shards.is_some() {
                    // The logits are elsewhere.
                    let count = k.load(collector.counters, 0);
                    let long = k.gt_u(count, MANY);
                    let long = k.or_p(long, several);
                    k.if_then(long, |k| {
                        let leader = self.team.thread(k);
                        let leader = k.eq(leader, 0u32);
                        let out = Entry::out(k, arguments, index);
                        k.if_then(leader, |k| statistics::write_flagged(k, row_flags::CROWDED, out));
                        k.branch(next);
                    });
                    keep(k, count);
                } else {
                    let entry = Entry::load(k, arguments, index);
                    let (rows, _) = entry.rows(k, arguments);
                    let logits = entry.logits(k, spec.dtype, rows, asked, arguments);
                    k.if_then(several, |k| collector.read_again(k, records, &logits));
                    let count = k.load(collector.counters, 0);
                    let fits = k.le_u(count, MANY);
                    let scratch = k.shared_address(scratch);
                    k.if_else(
                        fits,
                        |k| keep(k, count),
                        |k| nucleus::keep(k, logits, mass, filters, total, draw, scratch, &kept),
                    );
                }
                k.place(done);
            }
        }
        let total = float(k, kept.mass);
        k.set(drawn.total, total);
        let log = logarithm(k, kept.mass);
        k.set(drawn.log, log);
        let surprise = float(k, kept.surprise);
        k.set(drawn.surprise, surprise);
    }

    /// Leaves a row to the block: its number at the head of the queue, the one that was there in its first record.
    fn put_off(self, k: &mut Builder, index: R32, records: Records) {
        let leader = self.team.thread(k);
        let leader = k.eq(leader, 0u32);
        k.if_then(leader, |k| {
            let before = k.atomic_exchange(self.queue, 0, index);
            k.store(records.address, offset_of!(SegmentRecord, next) as i64, before);
        });
    }
}

/// The row that the block finishes after `index`.
pub(super) fn following(k: &mut Builder, arguments: &Arguments, index: R32) -> R32 {
    let records = Records::of_entry(k, arguments, index);
    k.load(records.address, offset_of!(SegmentRecord, next) as i64)
}

/// The token of a row that nothing is filtered from, into `drawn`.
fn plain(k: &mut Builder, records: Records, (row, log): (&Row, RF), drawing: &Drawing, uniform: R32, drawn: &Drawn) {
    k.if_then(drawing.warm, |k| {
        let record: R64 = records.draw(k, Mass { max: row.max, scale: drawing.scale }, uniform);
        let place = offset_of!(SegmentRecord, logit) as i64;
        let [logit, token] = k.load_vector::<B32, B64, 2>(record, place, Cache::Default);
        k.set(drawn.token, token);
        let logit = k.from_bits(logit);
        k.set(drawn.logit, logit);
    });
    let total = k.add_f(row.tempered_excess, 1.0);
    k.set(drawn.total, total);
    k.set(drawn.log, log);
    let surprise = k.mul_f(row.tempered_surprise, -LN_2);
    k.set(drawn.surprise, surprise);
    k.set(drawn.count, u32::MAX);
}
