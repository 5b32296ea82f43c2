//! A listed row: one thread each.

use super::{Batch, noise::gumbel, request::Request};
use crate::{
    isa::{B32, B64, Builder, Cache, F32, MmaType, R32, R64, RF, RP},
    kernels::sampling::{
        layout::{RowStatistics, SELECTION_WORD, score, select_flags},
        logits::has,
    },
    tile::{order::order_key, philox::philox},
};
use std::mem::{offset_of, size_of};

/// What a row is, in bits.
const MASKED: u32 = 1;
const DECODED: u32 = 2;
const SOUND: u32 = 4;
const BROKEN: u32 = 8;

/// One row of the request. Threads without one hold a row that is nothing.
pub(super) struct Row {
    /// Its [`RowStatistics`].
    pub(super) statistics: R64,
    pub(super) position: R32,
    /// The token it would take, and has now.
    pub(super) token: R32,
    pub(super) current: R32,
    pub(super) confidence: RF,
    /// What thresholds are compared with.
    pub(super) value: RF,
    pub(super) masked: RP,
    pub(super) decoded: RP,
    /// The row kernel found a token for it, and one that it may take.
    pub(super) open: RP,
    /// Flagged by the row kernel, or not of the block.
    pub(super) broken: RP,
}

impl Row {
    pub(super) fn load(k: &mut Builder, batch: &Batch, request: &Request) -> Row {
        let entry = k.add(request.first_row, batch.thread);
        let statistics = k.mad_wide(entry, size_of::<RowStatistics>() as u32, batch.statistics);
        let [position, token, current, what] = [0u32; 4].map(|none| k.mov::<B32>(none));
        let [confidence, value] = [f32::NEG_INFINITY; 2].map(|none| k.mov::<F32>(none));
        let own = k.lt_u(batch.thread, request.candidates);
        let by_entropy = k.eq(request.score, score::ENTROPY);
        k.if_then(own, |k| {
            let at = k.mad_wide(entry, 8u32, batch.rows);
            let listed: R32 = k.load(at, 4);
            k.set(position, listed);
            let [drawn, sure, _, row_flags] = k.load_vector::<B32, B64, 4>(statistics, 0, Cache::Default);
            k.set(token, drawn);
            let sure = k.from_bits(sure);
            k.set(confidence, sure);
            k.set(value, sure);
            k.when(by_entropy, |k| {
                let negative_entropy: RF = k.load(statistics, offset_of!(RowStatistics, negative_entropy) as i64);
                k.set(value, negative_entropy);
            });
            let from_start = k.sub(listed, request.block_start);
            let inside = k.lt_u(from_start, request.block_length);
            let fine = k.eq(row_flags, 0u32);
            let sound = k.and_p(fine, inside);
            let bits = k.select::<B32>(sound, SOUND, BROKEN);
            k.set(what, bits);
            k.if_then(inside, |k| {
                let offset = request.token_offset(k, listed);
                let at = k.add(batch.tokens, offset);
                let there: R32 = k.load(at, 0);
                k.set(current, there);
                let word = k.shr_u(from_start, 5u32);
                let at = k.mad_wide(word, 4u32, request.open);
                let opened: R32 = k.load(at, 0);
                let bit = k.and(from_start, 31u32);
                let opened = k.shr_u(opened, bit);
                let opened = k.and(opened, 1u32);
                let decoded = k.shl(opened, DECODED.trailing_zeros());
                let masked = k.eq(there, request.mask_token);
                let kind = k.select(masked, MASKED, decoded);
                let bits = k.or(what, kind);
                k.set(what, bits);
            });
        });
        // −0 equals +0.
        let value = k.add_f(value, 0.0);
        let rounds = request.wants(k, select_flags::ROUND_BF16);
        let half = k.half_from_float(MmaType::Bf16, value);
        let rounded = k.float_from_half(MmaType::Bf16, half);
        let value = k.select(rounds, rounded, value);
        let revises = request.wants(k, select_flags::EDIT | select_flags::REMASK);
        let excludes = request.wants(k, select_flags::EXCLUDE_MASK);
        let [masked, decoded, sound, broken] = [MASKED, DECODED, SOUND, BROKEN].map(|bit| has(k, what, bit));
        let decoded = k.and_p(decoded, revises);
        let nothing = k.eq(token, request.mask_token);
        let barred = k.and_p(nothing, excludes);
        let allowed = k.not_p(barred);
        let open = k.and_p(sound, allowed);
        Row { statistics, position, token, current, confidence, value, masked, decoded, open, broken }
    }

    /// Where the row stands by the request's score: higher is better, and not 0; and the uniform number in [0, 1), of 24
    /// bits, that decides whether it is taken by chance.
    pub(super) fn key(&self, k: &mut Builder, request: &Request) -> (R32, RF) {
        let key = k.mov(1u32);
        let uniform = k.mov(0.0f32);
        let is = |k: &mut Builder, score: u32| k.eq(request.score, score);
        let (by_confidence, by_entropy) = (is(k, score::CONFIDENCE), is(k, score::ENTROPY));
        let by_value = k.or_p(by_confidence, by_entropy);
        let of_value = order_key(k, self.value);
        k.when(by_value, |k| k.set(key, of_value));
        let (noisy, random) = (is(k, score::NOISY), is(k, score::RANDOM));
        let by_chance = request.wants(k, select_flags::BERNOULLI);
        let draws = k.or_p(noisy, random);
        let draws = k.or_p(draws, by_chance);
        k.if_then(draws, |k| {
            let last = k.mov(SELECTION_WORD);
            let [word, ..] = philox(k, [self.position, request.step, request.stream, last], request.seed);
            k.when(random, |k| k.set(key, word));
            let upper = k.shr_u(word, 8u32);
            let upper = k.float_from_u(upper);
            let number = k.mul_f(upper, 1.0 / 16_777_216.0);
            k.set(uniform, number);
            k.if_then(noisy, |k| {
                let noise = gumbel(k, word);
                let scaled = k.div_f(self.value, request.noise);
                let noised = k.add_f(scaled, noise);
                let noised = k.add_f(noised, 0.0);
                let of_noised = order_key(k, noised);
                k.set(key, of_noised);
            });
        });
        (k.max_u(key, 1u32), uniform)
    }
}
