//! The blocks at any offset that hold all selected slashes, as the walk over the slashes meets them.
//!
//! In words: with D the last offset so far, a selected slash beyond D adds the offset max(D + N, slash). Slashes less than N + 1 apart
//! are an **island**, of which only the first and the last count: offsets follow N apart up to the one that reaches the last. An island
//! 2N or more behind the one before begins at its own first slash, whatever was before it: so lanes go through the islands of a
//! turn side by side, and only those nearer to each other wait for one another.

use crate::{
    isa::{B32, Builder, Cache, R32, R64, RP, SharedRegion},
    tile::{ballot::running_rank, radix::Visit, reduce::warp_inclusive_sum_32},
};

/// The list of offsets, as it grows. The first warp keeps it.
pub(super) struct Cover {
    block: u32,
    /// Slashes of a turn.
    slashes: u32,
    list: R64,
    capacity: R32,
    /// A bit for each slash of a turn, between zeros.
    bits: SharedRegion,
    /// First slashes of the turn's islands, and last ones.
    begins: SharedRegion,
    ends: SharedRegion,
    /// Offsets so far, and the last of them; −N before the first.
    count: R32,
    last: R32,
}

/// The islands of one turn whose begins, or ends, have been noted.
struct Noted {
    count: R32,
    places: R32,
}

impl Noted {
    fn none(k: &mut Builder, region: SharedRegion) -> Noted {
        Noted { count: k.mov(0u32), places: k.shared_address(region) }
    }

    /// Notes the slashes of the lanes for which `condition` holds.
    fn note(&self, k: &mut Builder, condition: RP, slash: R32) {
        let below = k.lanes_below();
        let rank = running_rank(k, condition, below, self.count);
        let at = k.mad(rank, 4u32, self.places);
        k.when(condition, |k| k.store(at, 0, slash));
    }
}

impl Cover {
    /// An empty list of blocks of `block` keys, for turns of `slashes` slashes. All threads of the block take part.
    pub(super) fn new(k: &mut Builder, block: u32, slashes: u32, list: R64, capacity: R32) -> Cover {
        let words = slashes / 32;
        let zeros = block / 32;
        let bits = k.shared(4 * (zeros + words + zeros), 16);
        let first = k.shared_address(bits);
        let thread = k.thread();
        let inside = k.lt_u(thread, zeros + words + zeros);
        let at = k.mad(thread, 4u32, first);
        k.when(inside, |k| k.store::<B32, _>(at, 0, 0u32));
        k.barrier();
        let [begins, ends] = [(); 2].map(|()| k.shared(4 * words, 16));
        Cover { block, slashes, list, capacity, bits, begins, ends, count: k.mov(0u32), last: k.mov(-(block as i32)) }
    }

    /// Adds what the selected slashes of one turn ask for, of which every thread has a few. All threads of the block take part.
    pub(super) fn add(&self, k: &mut Builder, visit: Visit) {
        let (thread, lane) = (k.thread(), k.lane());
        let width = visit.keys.len() as u32;
        let bits = k.shared_address(self.bits);
        let words = k.add(bits, self.block / 8);
        // The bits of some lanes make a word.
        let place = k.and(lane, 32 / width - 1);
        let place = k.mul(place, width);
        let mut bits = k.mov(0u32);
        for (i, &(selected, _)) in (0..).zip(&visit.keys) {
            let bit = k.select(selected, 1u32 << i, 0u32);
            bits = k.or(bits, bit);
        }
        bits = k.shl(bits, place);
        for mask in (0..(32 / width).ilog2()).map(|step| 1 << step) {
            let others = k.shuffle_xor(bits, mask);
            bits = k.or(bits, others);
        }
        let some = k.ne(visit.selected, 0u32);
        k.if_then(some, |k| {
            let word = k.shr_u(thread, (32 / width).ilog2());
            let at = k.mad(word, 4u32, words);
            let leads = k.eq(place, 0u32);
            k.when(leads, |k| k.store(at, 0, bits));
            k.barrier();
            let first_warp = k.lt_u(thread, 32u32);
            let own = k.mul(thread, width);
            let first = k.sub(visit.first, own);
            k.if_then(first_warp, |k| {
                let islands = self.note_islands(k, words, first);
                k.for_loop(0u32, islands, 32, |k, before| self.cover(k, before, islands));
            });
            k.barrier();
        });
    }

    /// Notes the islands of a turn, whose bits stand at `words`, from that of slash `first` on: how many they are. One that goes on in
    /// the next turn is two, which makes no difference.
    fn note_islands(&self, k: &mut Builder, words: R32, first: R32) -> R32 {
        let lane = k.lane();
        k.comment("islands");
        let (begins, ends) = (Noted::none(k, self.begins), Noted::none(k, self.ends));
        // The words whose bits are all less than N away, and the one of which some are.
        let far = i64::from(self.block / 32);
        for part in (0..self.slashes).step_by(1024) {
            let own = k.mad(lane, 32u32, part);
            let at = k.shr_u(own, 3u32);
            let at = k.add(words, at);
            let load = |k: &mut Builder, words: i64| -> R32 { k.load(at, 4 * words) };
            let near = |k: &mut Builder, sign: i64| (1..far).map(|words| load(k, sign * words)).collect::<Vec<_>>();
            let bits = load(k, 0);
            let slash = k.add(first, own);
            let some = k.ne(bits, 0u32);
            let empty = |k: &mut Builder, near: Vec<R32>, rest: R32| {
                let bits = near.into_iter().fold(rest, |bits, word| k.or(bits, word));
                let empty = k.eq(bits, 0u32);
                k.and_p(empty, some)
            };

            let reversed = k.brev(bits);
            let lowest = k.clz(reversed);
            let (before, rest) = (near(k, -1), load(k, -far));
            let rest = k.shr_u(rest, lowest);
            let begin = empty(k, before, rest);
            let slash_begin = k.add(slash, lowest);
            begins.note(k, begin, slash_begin);

            let above = k.clz(bits);
            let (behind, rest) = (near(k, 1), load(k, far));
            let rest = k.shl(rest, above);
            let end = empty(k, behind, rest);
            let slash_end = k.sub(slash, above);
            let slash_end = k.add(slash_end, 31u32);
            ends.note(k, end, slash_end);
        }
        k.warp_barrier();
        begins.count
    }

    /// Adds the offsets of up to 32 of the turn's `islands`, from the one after `before` on, one a lane.
    fn cover(&self, k: &mut Builder, before: R32, islands: R32) {
        k.comment("offsets");
        let lane = k.lane();
        let own = k.add(before, lane);
        let exists = k.lt_u(own, islands);
        let [begins, ends] = [self.begins, self.ends].map(|region| k.shared_address(region));
        let word = |k: &mut Builder, condition: RP, base: R32, back: i64| {
            let value = k.mov(0u32);
            let at = k.mad(own, 4u32, base);
            k.when(condition, |k| k.load_into(value, at, -4 * back, Cache::Default));
            value
        };
        let (begin, end) = (word(k, exists, begins, 0), word(k, exists, ends, 0));
        let leads = k.eq(lane, 0u32);
        let follows = k.not_p(leads);
        let follows = k.and_p(follows, exists);
        let end_before = word(k, follows, ends, 1);
        let gap = k.sub(begin, end_before);
        let near = k.lt_s(gap, 2 * self.block as i32);
        let waits = k.and_p(near, follows);

        // The last offset before each island, as far as it matters, once all lanes know it.
        let none = k.sub(begin, self.block + 1);
        let last = k.select(leads, self.last, none);
        let last = k.mov(last);
        let goes_on = k.mov(1u32);
        k.while_loop(
            |k| k.ne(goes_on, 0u32),
            |k| {
                let (_, _, reached) = self.reach(k, last, begin, end);
                let passed = k.shuffle_up(reached, 1);
                let known = k.select(waits, passed, last);
                let changed = k.ne(known, last);
                let lanes = k.ballot(changed);
                k.set(goes_on, lanes);
                k.set(last, known);
            },
        );

        let (offset, count, reached) = self.reach(k, last, begin, end);
        let here = k.ballot(exists);
        let here = k.popc(here);
        let final_lane = k.sub(here, 1u32);
        let reached = k.shuffle_from(reached, final_lane);
        k.set(self.last, reached);
        let count = k.select(exists, count, 0u32);
        let through = warp_inclusive_sum_32(k, count);
        let all = k.shuffle_from(through, 31u32);
        let before = k.sub(through, count);
        k.for_loop(0u32, all, 32, |k, first| {
            let entry = k.add(first, lane);
            // Of which island it is: behind all that end before it.
            let mut island = k.mov(0u32);
            for half in [16u32, 8, 4, 2, 1] {
                let other = k.add(island, half - 1);
                let ends = k.shuffle_from(through, other);
                let behind = k.le_u(ends, entry);
                let later = k.add(island, half);
                island = k.select(behind, later, island);
            }
            let (first, before) = (k.shuffle_from(offset, island), k.shuffle_from(before, island));
            let rank = k.sub(entry, before);
            let offset = k.mad(rank, self.block, first);
            let place = k.add(self.count, entry);
            let fits = k.lt_u(place, self.capacity);
            let exists = k.lt_u(entry, all);
            let writes = k.and_p(fits, exists);
            let at = k.mad_wide(place, 4u32, self.list);
            k.when(writes, |k| k.store(at, 0, offset));
        });
        let count = k.add(self.count, all);
        k.set(self.count, count);
    }

    /// What an island adds to a list that ends with offset `last`: its first offset, how many there are, N apart, and with which the list
    /// then ends.
    fn reach(&self, k: &mut Builder, last: R32, begin: R32, end: R32) -> (R32, R32, R32) {
        let apart = k.add(last, self.block);
        let uncovered = k.gt_s(begin, last);
        let opened = k.max_s(apart, begin);
        let from = k.select(uncovered, opened, last);
        let offset = k.select(uncovered, opened, apart);
        let rest = k.sub(end, from);
        let rest = k.max_s(rest, 0i32);
        let rest = k.add(rest, self.block - 1);
        let more = k.shr_u(rest, self.block.ilog2());
        let one = k.select(uncovered, 1u32, 0u32);
        (offset, k.add(more, one), k.mad(more, self.block, from))
    }

    /// The length of the list, in all threads.
    pub(super) fn count(&self, k: &mut Builder) -> R32 {
        let words = k.shared_address(self.begins);
        let thread = k.thread();
        let leads = k.eq(thread, 0u32);
        k.when(leads, |k| k.store(words, 0, self.count));
        k.barrier();
        k.load(words, 0)
    }
}
