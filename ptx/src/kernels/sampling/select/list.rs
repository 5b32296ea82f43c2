//! The list of all requests' rows, and the totals.

use super::Batch;
use crate::{
    isa::{B32, B64, Builder, Cache, R32, R64},
    kernels::sampling::{
        layout::{RequestState, STAGING_BYTES, SelectParameters, request_flags},
        logits::has,
    },
    tile::reduce::block_exclusive_sum,
};
use std::mem::{offset_of, size_of};

const TICKET: i64 = 8;

/// Rows of a block and the requests of a batch in one word, as a sum over the threads.
const REQUEST: u32 = 1 << 21;

/// Requests of which a warp copies at once, so that their loads do not wait for each other.
const AT_ONCE: u32 = 4;

/// The staged positions of a request, and where they go.
struct Part {
    request: R32,
    /// Its first entry in the list.
    first: R32,
    count: R32,
    row_base: R32,
    staged: R64,
}

impl Part {
    /// Of request `base + i` of the `here` that have slots; nothing of request `base + present` if there is no such one.
    fn load(k: &mut Builder, batch: &Batch, (base, here): (R32, R32), present: R32, i: R32) -> Part {
        let exists = k.lt_u(i, here);
        let i = k.select(exists, i, present);
        let slot = k.mad(i, 8u32, batch.shared.ranking);
        let [first, count] = k.load_vector::<B32, B32, 2>(slot, 0, Cache::Default);
        let count = k.select(exists, count, 0u32);
        let request = k.add(base, i);
        let of_request = k.mad_wide(request, size_of::<SelectParameters>() as u32, batch.parameters);
        let row_base = k.load_readonly(of_request, offset_of!(SelectParameters, row_base) as i64);
        let staged = k.mad_wide(request, STAGING_BYTES as u32, batch.staging);
        Part { request, first, count, row_base, staged }
    }

    /// Its `i`-th position; 0 if there is none.
    fn position(&self, k: &mut Builder, i: R32) -> R32 {
        let position = k.mov::<B32>(0u32);
        let exists = k.lt_u(i, self.count);
        let at = k.mad_wide(i, 4u32, self.staged);
        k.when(exists, |k| {
            let staged: R32 = k.load(at, 0);
            k.set(position, staged);
        });
        position
    }

    /// Writes its `i`-th entry.
    fn store(&self, k: &mut Builder, batch: &Batch, i: R32, position: R32) {
        let entry = k.add(self.first, i);
        let at = k.mad_wide(entry, 8u32, batch.rows);
        k.store_vector::<B32, B64, 2>(at, 0, [self.request, position]);
        let source = k.add(self.row_base, position);
        let at = k.mad_wide(entry, 4u32, batch.sources);
        let given = k.ne(batch.sources, 0u64);
        k.when(given, |k| k.store(at, 0, source));
    }
}

/// In the last block to come here: makes the list.
pub(super) fn make_list(k: &mut Builder, batch: &Batch) {
    let &Batch { states, sources, capacity, totals, thread, .. } = batch;
    let (scratch, slots) = (batch.shared.scratch, batch.shared.ranking);
    k.comment("the last block makes the list");
    k.fence_device();
    k.barrier();
    let leader = k.eq(thread, 0u32);
    k.if_then(leader, |k| {
        let ticket = k.atomic_add(totals, TICKET, 1u32);
        k.store(scratch, 0, ticket);
    });
    k.barrier();
    let ticket: R32 = k.load(scratch, 0);
    let requests = k.grid_x();
    let last = k.sub(requests, 1u32);
    let early = k.ne(ticket, last);
    k.when(early, |k| k.ret());
    k.barrier();
    k.fence_device();

    let listing_sources = k.ne(sources, 0u64);
    let lane = k.lane();
    let warp = k.shr_u(thread, 5u32);
    let threads = k.threads();
    let [listed_before, unfinished, waiting] = [0u32; 3].map(|none| k.mov::<B32>(none));
    // A thread a request, as many at a time as there are threads.
    k.for_loop(0u32, requests, threads, |k, base| {
        let request = k.add(base, thread);
        let mine = k.lt_u(request, requests);
        let state = k.mad_wide(request, size_of::<RequestState>() as u32, states);
        let [listed, open, flags, waits] = [0u32; 4].map(|none| k.mov::<B32>(none));
        k.if_then(mine, |k| {
            let count: R32 = k.load(state, offset_of!(RequestState, rows) as i64);
            k.set(listed, count);
            let of_request: R32 = k.load(state, offset_of!(RequestState, flags) as i64);
            k.set(flags, of_request);
            let done = has(k, flags, request_flags::DONE);
            let value = k.select::<B32>(done, 0u32, REQUEST);
            k.set(open, value);
            let due = has(k, flags, request_flags::WAITING);
            let value = k.select::<B32>(due, 1u32, 0u32);
            k.set(waits, value);
        });
        let (_, here_waiting) = block_exclusive_sum(k, scratch, waits);
        let more = k.add(waiting, here_waiting);
        k.set(waiting, more);
        let both = k.add(listed, open);
        let (before, all) = block_exclusive_sum(k, scratch, both);
        let before = k.and(before, REQUEST - 1);
        let first = k.add(listed_before, before);
        let first = k.min_u(first, capacity);
        let room = k.sub(capacity, first);
        let fitting = k.min_u(listed, room);
        k.if_then(mine, |k| {
            k.store(state, offset_of!(RequestState, first_row) as i64, first);
            k.store(state, offset_of!(RequestState, rows) as i64, fitting);
            let short = k.lt_u(fitting, listed);
            let flagged = k.or(flags, request_flags::LIST_OVERFLOW);
            k.when(short, |k| k.store(state, offset_of!(RequestState, flags) as i64, flagged));
        });
        let slot = k.mad(thread, 8u32, slots);
        k.store_vector(slot, 0, [first, fitting]);
        k.barrier();
        let left = k.sub(requests, base);
        let here = k.min_u(left, threads);
        k.for_loop(warp, here, AT_ONCE * (threads / 32), |k, i| {
            let parts: [Part; AT_ONCE as usize] = std::array::from_fn(|n| {
                let other = k.add(i, n as u32 * (threads / 32));
                Part::load(k, batch, (base, here), i, other)
            });
            let positions = parts.each_ref().map(|part| part.position(k, lane));
            for (part, position) in parts.iter().zip(positions) {
                let own = k.lt_u(lane, part.count);
                k.if_then(own, |k| part.store(k, batch, lane, position));
                let further = k.add(lane, 32u32);
                k.for_loop(further, part.count, 32, |k, i| {
                    let position = part.position(k, i);
                    part.store(k, batch, i, position);
                });
            }
        });
        k.barrier();
        let listed = k.and(all, REQUEST - 1);
        let listed = k.add(listed_before, listed);
        k.set(listed_before, listed);
        let open = k.shr_u(all, REQUEST.trailing_zeros());
        let open = k.add(unfinished, open);
        k.set(unfinished, open);
    });
    let total = k.min_u(listed_before, capacity);
    k.if_then(listing_sources, |k| {
        let past = k.add(total, thread);
        k.for_loop(past, capacity, threads, |k, entry| {
            let at = k.mad_wide(entry, 4u32, sources);
            k.store::<B32, B64>(at, 0, 0u32);
        });
    });
    k.if_then(leader, |k| {
        k.store(totals, 0, total);
        k.store(totals, 4, unfinished);
        k.store(totals, 12, waiting);
        k.store::<B32, B64>(totals, TICKET, 0u32);
    });
}
