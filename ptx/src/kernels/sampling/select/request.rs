//! One request in registers: its parameters, and its state, which the phases bring up to date.

use super::Batch;
use crate::{
    isa::{B32, B64, Builder, Cache, R32, R64, RF, RP},
    kernels::sampling::{
        layout::{MAX_STEPS, OPEN_BYTES, RequestState, SelectParameters, request_flags},
        logits::has,
    },
};
use std::mem::{offset_of, size_of};

/// The request of this block. What its window and its block are has been checked.
pub(super) struct Request {
    pub(super) number: R32,
    pub(super) rule: R32,
    pub(super) score: R32,
    pub(super) schedule: R32,
    pub(super) options: R32,
    pub(super) steps: R32,
    pub(super) count: R32,
    pub(super) threshold: RF,
    pub(super) low: RF,
    pub(super) revision: RF,
    pub(super) epsilon: RF,
    pub(super) noise: RF,
    pub(super) post_limit: R32,
    pub(super) mask_token: R32,
    /// Element of `tokens` with response position 0.
    pub(super) first_token: R64,
    pub(super) window_end: R32,
    /// Positions of a block that is not cut short by the window's end.
    pub(super) block_size: R32,
    pub(super) seed: [R32; 2],
    pub(super) stream: R32,
    pub(super) fill_token: R32,
    pub(super) end_tokens: [R32; 2],
    pub(super) refresh_steps: R32,
    pub(super) refresh_every: R32,
    /// Address of the block's bits in `open`.
    pub(super) open: R64,

    pub(super) state: R64,
    pub(super) started: RP,
    pub(super) done: RP,
    /// Whether this launch takes a step of it.
    pub(super) running: RP,
    pub(super) first_row: R32,
    /// Listed rows.
    pub(super) candidates: R32,
    /// Masks when the block began.
    pub(super) initial: R32,

    // Written by the phases.
    pub(super) flags: R32,
    pub(super) step: R32,
    pub(super) masks: R32,
    pub(super) selected: R32,
    pub(super) block_start: R32,
    pub(super) block_length: R32,
    pub(super) previous_block_start: R32,
    pub(super) block_step: R32,
    pub(super) carry: R32,
    pub(super) post_steps: R32,
    /// Not 0 after a step that began without a mask and changed nothing.
    pub(super) idle: R32,
}

/// The words of a record, by the offset of a field.
struct Record(Vec<R32>);

impl Record {
    fn load(k: &mut Builder, at: R64, bytes: usize, cache: Cache) -> Record {
        let quads = (0..bytes as i64).step_by(16);
        Record(quads.flat_map(|offset| k.load_vector::<B32, B64, 4>(at, offset, cache)).collect())
    }

    fn word(&self, offset: usize) -> R32 {
        self.0[offset / 4]
    }

    fn float(&self, k: &mut Builder, offset: usize) -> RF {
        k.from_bits(self.word(offset))
    }
}

impl Request {
    pub(super) fn load(k: &mut Builder, batch: &Batch) -> Request {
        let number = k.block_x();
        let at = k.mad_wide(number, size_of::<SelectParameters>() as u32, batch.parameters);
        let given = Record::load(k, at, size_of::<SelectParameters>(), Cache::ReadOnly);
        let state = k.mad_wide(number, size_of::<RequestState>() as u32, batch.states);
        let left = Record::load(k, state, size_of::<RequestState>(), Cache::Default);
        let open = k.mad_wide(number, OPEN_BYTES as u32, batch.open);

        k.comment("a window that does not fit is empty");
        let first_token = k.widen_u(given.word(offset_of!(SelectParameters, first_token)));
        let window_start = given.word(offset_of!(SelectParameters, window_start));
        let window = given.word(offset_of!(SelectParameters, window_length));
        let start = k.widen_u(window_start);
        let start = k.add(first_token, start);
        let length = k.widen_u(window);
        let end = k.add(start, length);
        let available = k.widen_u(batch.tokens_length);
        let past = k.gt_u(end, available);
        let size = given.word(offset_of!(SelectParameters, block_length));
        let whole = k.eq(size, 0u32);
        let size = k.select(whole, window, size);
        let size = k.min_u(size, window);
        let long = k.gt_u(size, k.threads());
        let bad = k.or_p(past, long);
        let window = k.select(bad, 0u32, window);
        let block_size = k.select(bad, 0u32, size);
        let window_end = k.add(window_start, window);
        let flags = left.word(offset_of!(RequestState, flags));
        let bad_flag = k.select(bad, request_flags::BAD_WINDOW, 0u32);
        let flags = k.or(flags, bad_flag);

        // The state is what an earlier launch left, if nobody else wrote it.
        let started = has(k, flags, request_flags::STARTED);
        let done = has(k, flags, request_flags::DONE);
        let first_row = left.word(offset_of!(RequestState, first_row));
        let candidates = left.word(offset_of!(RequestState, rows));
        let room = k.sub(batch.capacity, first_row);
        let begins = k.le_u(first_row, batch.capacity);
        let ends = k.le_u(candidates, room);
        let few = k.le_u(candidates, k.threads());
        let sound = k.and_p(begins, ends);
        let sound = k.and_p(sound, few);
        let block_start = left.word(offset_of!(RequestState, block_start));
        let from_start = k.sub(block_start, window_start);
        let inside = k.lt_u(from_start, window);
        let open_ended = k.not_p(done);
        let under_way = k.and_p(started, open_ended);
        let idle = k.not_p(under_way);
        let inside = k.or_p(inside, idle);
        let sound = k.and_p(sound, inside);
        let bad_flag = k.select(sound, 0u32, request_flags::BAD_STATE);
        let flags = k.or(flags, bad_flag);
        let begun = k.and_p(started, inside);
        let block_start = k.select(begun, block_start, window_start);
        let left_over = k.sub(window_end, block_start);
        let block_length = k.min_u(block_size, left_over);

        let waiting = has(k, flags, request_flags::WAITING);
        let refreshing = k.ne(batch.refresh, 0u32);
        let held = k.xor_p(waiting, refreshing);
        let wanted = k.ne(batch.advance, 0u32);
        let turn = k.not_p(held);
        let wanted = k.and_p(wanted, turn);
        // Says something of the last step.
        let stale = k.select::<B32>(wanted, !request_flags::BLOCK_FINISHED, u32::MAX);
        let flags = k.and(flags, stale);
        let running = k.and_p(under_way, wanted);
        let running = k.and_p(running, sound);
        let fitting = k.not_p(bad);
        let running = k.and_p(running, fitting);
        Request {
            number,
            rule: given.word(offset_of!(SelectParameters, rule)),
            score: given.word(offset_of!(SelectParameters, score)),
            schedule: given.word(offset_of!(SelectParameters, schedule)),
            options: given.word(offset_of!(SelectParameters, flags)),
            steps: k.min_u(given.word(offset_of!(SelectParameters, steps)), MAX_STEPS),
            count: given.word(offset_of!(SelectParameters, count)),
            threshold: given.float(k, offset_of!(SelectParameters, threshold)),
            low: given.float(k, offset_of!(SelectParameters, low)),
            revision: given.float(k, offset_of!(SelectParameters, revision)),
            epsilon: given.float(k, offset_of!(SelectParameters, epsilon)),
            noise: given.float(k, offset_of!(SelectParameters, noise)),
            post_limit: given.word(offset_of!(SelectParameters, post_steps)),
            mask_token: given.word(offset_of!(SelectParameters, mask_token)),
            first_token,
            window_end,
            block_size,
            seed: [
                given.word(offset_of!(SelectParameters, seed_low)),
                given.word(offset_of!(SelectParameters, seed_high)),
            ],
            stream: given.word(offset_of!(SelectParameters, stream)),
            fill_token: given.word(offset_of!(SelectParameters, fill_token)),
            end_tokens: [0, 4].map(|second| given.word(offset_of!(SelectParameters, end_tokens) + second)),
            refresh_steps: given.word(offset_of!(SelectParameters, refresh_steps)),
            refresh_every: given.word(offset_of!(SelectParameters, refresh_every)),
            open,
            state,
            started,
            done,
            running,
            first_row,
            candidates,
            initial: k.mov(left.word(offset_of!(RequestState, initial_masks))),
            flags: k.mov(flags),
            step: k.mov(left.word(offset_of!(RequestState, step))),
            masks: k.mov(left.word(offset_of!(RequestState, masks))),
            selected: k.mov(0u32),
            block_start: k.mov(block_start),
            block_length: k.mov(block_length),
            previous_block_start: {
                let left = left.word(offset_of!(RequestState, previous_block_start));
                k.select(started, left, window_start)
            },
            block_step: k.mov(left.word(offset_of!(RequestState, block_step))),
            carry: k.mov(left.word(offset_of!(RequestState, carry))),
            post_steps: k.mov(left.word(offset_of!(RequestState, post_steps))),
            idle: k.mov(0u32),
        }
    }

    /// Whether any of these [`select_flags`](super::super::layout::select_flags) is set.
    pub(super) fn wants(&self, k: &mut Builder, options: u32) -> RP {
        has(k, self.options, options)
    }

    /// Sets some [`request_flags`] where `condition` holds.
    pub(super) fn flag(&self, k: &mut Builder, condition: RP, flags: u32) {
        let flagged = k.or(self.flags, flags);
        k.when(condition, |k| k.set(self.flags, flagged));
    }

    /// Whether the next step waits for a refresh.
    pub(super) fn refresh_due(&self, k: &mut Builder) -> RP {
        let early = k.lt_u(self.block_step, self.refresh_steps);
        let every = k.max_u(self.refresh_every, 1u32);
        let rest = k.rem_u(self.block_step, every);
        let in_turn = k.eq(rest, 0u32);
        let later = k.ne(self.block_step, 0u32);
        let asked = k.ne(self.refresh_every, 0u32);
        let in_turn = k.and_p(in_turn, later);
        let in_turn = k.and_p(in_turn, asked);
        k.or_p(early, in_turn)
    }

    /// Byte of `tokens` at which a response position lies.
    pub(super) fn token_offset(&self, k: &mut Builder, position: R32) -> R64 {
        let position = k.widen_u(position);
        let element = k.add(self.first_token, position);
        k.shl(element, 2u32)
    }

    /// The state, in memory; `rows` entries will be listed. One thread calls this.
    pub(super) fn store(&self, k: &mut Builder, rows: R32) {
        let words = [
            (offset_of!(RequestState, step), self.step),
            (offset_of!(RequestState, masks), self.masks),
            (offset_of!(RequestState, initial_masks), self.initial),
            (offset_of!(RequestState, flags), self.flags),
            (offset_of!(RequestState, rows), rows),
            (offset_of!(RequestState, selected), self.selected),
            (offset_of!(RequestState, block_start), self.block_start),
            (offset_of!(RequestState, block_length), self.block_length),
            (offset_of!(RequestState, previous_block_start), self.previous_block_start),
            (offset_of!(RequestState, block_step), self.block_step),
            (offset_of!(RequestState, carry), self.carry),
            (offset_of!(RequestState, post_steps), self.post_steps),
        ];
        for (offset, word) in words {
            k.store(self.state, offset as i64, word);
        }
    }
}
