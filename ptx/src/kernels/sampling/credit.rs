//! The credits of a position, after a step: what is left of them, and what the best token gets.
//!
//! The finisher of a row does this in a launch of its own, before the one that decides: credits go by the row without them, and
//! count at once. A lane has a credit.

use super::{
    entry::Asked,
    functions::ln_one_plus,
    layout::{MAX_CREDITS, RowParameters},
    merge::Row,
    patches::Patches,
    row::Arguments,
};
use crate::{
    isa::{B32, B64, Builder, F32, R32, RF},
    tile::order::order_key,
};
use std::{f32::consts::LOG2_E, mem::offset_of};

const _: () = assert!(MAX_CREDITS == 32);

/// Credits the best token of a row, in one warp.
pub(super) fn credit(k: &mut Builder, asked: Asked, arguments: &Arguments, row: &Row) {
    k.comment("credits");
    let lane = k.lane();
    let list = Patches::credits_of(k, asked, arguments);
    let step = asked.step(k);
    // A request that begins owes nothing to the one before it.
    let begins = k.eq(step, 0u32);
    let count = k.select(begins, 0u32, list.count);
    let decay = asked.float(k, offset_of!(RowParameters, credit_decay));
    let (id, number) = (k.mov(u32::MAX), k.mov::<F32>(0.0f32));
    let own = k.lt_u(lane, count);
    k.if_then(own, |k| {
        let (name, before) = list.entry(k, lane);
        let left = k.mul_f(before, decay);
        k.set(id, name);
        k.set(number, left);
    });

    // p of the best token is 1 / (1 + excess).
    let exponent = asked.float(k, offset_of!(RowParameters, credit_exponent));
    let log = ln_one_plus(k, row.excess);
    let log = k.mul_f(log, -LOG2_E);
    let power = k.mul_f(exponent, log);
    let boost = k.exp2_f(power);
    let same = k.eq(id, row.argmax);
    let known = k.ballot(same);
    let known = k.ne(known, 0u32);
    let place = place_of_new(k, count, id, number);
    let takes = k.eq(lane, place);
    let unknown = k.not_p(known);
    let takes = k.and_p(takes, unknown);
    k.when(takes, |k| {
        k.set(id, row.argmax);
        k.set(number, 0.0f32);
    });
    let gains = k.eq(id, row.argmax);
    let more = k.add_f(number, boost);
    k.when(gains, |k| k.set(number, more));

    let rank = k.mov(0u32);
    k.for_loop(0u32, 32u32, 1, |k, other| {
        let other = k.shuffle_from(id, other);
        let before = k.lt_u(other, id);
        let next = k.add(rank, 1u32);
        k.when(before, |k| k.set(rank, next));
    });
    let some = k.ne(id, u32::MAX);
    let at = k.mad_wide(rank, 8u32, list.address);
    let bits = k.bits(number);
    k.when(some, |k| k.store_vector::<B32, B64, 2>(at, 0, [id, bits]));
    let all = k.ballot(some);
    let all = k.popc(all);
    let position = asked.position(k);
    let owner = k.add(position, 1u32);
    let header = asked.credit_header(k, arguments);
    let leader = k.eq(lane, 0u32);
    k.when(leader, |k| k.store_vector::<B32, B64, 2>(header, 0, [owner, all]));
}

/// The lane for a new credit: the first free one, else the one of the least credit, of equal ones that of the highest id.
fn place_of_new(k: &mut Builder, count: R32, id: R32, number: RF) -> R32 {
    let lane = k.lane();
    let key = order_key(k, number);
    let least = k.warp_min_u(key);
    let least = k.eq(key, least);
    let name = k.select(least, id, 0u32);
    let highest = k.warp_max_u(name);
    let named = k.eq(id, highest);
    let loses = k.and_p(least, named);
    let loser = k.select(loses, lane, u32::MAX);
    let loser = k.warp_min_u(loser);
    let full = k.eq(count, MAX_CREDITS);
    k.select(full, loser, count)
}
