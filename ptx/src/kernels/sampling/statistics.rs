//! What a finished row says: probabilities, entropies, confidence.

use super::{
    entry::Drawing,
    functions::{ln_one_plus, one_minus_exp, quotient},
    layout::{RowStatistics, sampling_flags},
    logits::{Mass, has},
    merge::Row,
    spec::Confidence,
};
use crate::isa::{B32, B64, Builder, Cache, F32, R32, R64, RF, RP, Source};
use std::{
    f32::consts::{LN_2, LOG2_E},
    mem::offset_of,
};

/// The distribution that is drawn from.
pub(super) struct Drawn {
    pub(super) token: R32,
    pub(super) logit: RF,
    /// Its mass, in units of the best token's, and the logarithm of that.
    pub(super) total: RF,
    pub(super) log: RF,
    /// Σ −w ln w over it.
    pub(super) surprise: RF,
    /// Its tokens, or anything above 1.
    pub(super) count: R32,
}

/// Logarithms of a row's sums of weights, raw and tempered: side by side, in two lanes.
pub(super) fn logarithms(k: &mut Builder, row: &Row) -> [RF; 2] {
    k.comment("statistics of the row");
    let lane = k.lane();
    let tempered = k.eq(lane, 1u32);
    let excess = k.select(tempered, row.tempered_excess, row.excess);
    let own = ln_one_plus(k, excess);
    [0u32, 1].map(|lane| k.shuffle_from(own, lane))
}

/// Writes what a row is, whatever is drawn from it; from one thread. [`write_drawn`] finds some of it at `parked`, 16 bytes of
/// shared memory: the filters in between need the registers. The entropy is left out unless it is wanted. Logarithms are those of
/// [`logarithms`], `inverse` that of the temperature.
pub(super) fn write_row(
    k: &mut Builder,
    row: &Row,
    [log, tempered_log]: [RF; 2],
    wants_entropy: RP,
    inverse: RF,
    parked: R32,
    out: R64,
) {
    let total = k.add_f(row.excess, 1.0);
    let lse = k.add_f(row.max, log);
    let tempered_max = k.mul_f(row.max, inverse);
    let lse_tempered = k.add_f(tempered_max, tempered_log);
    let surprise = k.mul_f(row.surprise, -LN_2);
    let negative_entropy = negative_entropy_of(k, surprise, total, log);
    let negative_entropy = k.select(wants_entropy, negative_entropy, f32::NEG_INFINITY);
    k.store(out, offset_of!(RowStatistics, argmax) as i64, row.argmax);
    k.store_vector(out, offset_of!(RowStatistics, max) as i64, [row.max, row.second, lse, lse_tempered]);
    k.store(out, offset_of!(RowStatistics, negative_entropy) as i64, negative_entropy);
    k.store_vector(parked, 0, [row.max, row.second, total, negative_entropy]);
}

/// Writes what is drawn and how sure the row is of it; from the thread that wrote the row.
pub(super) fn write_drawn(k: &mut Builder, parked: R32, drawn: &Drawn, wish: &Drawing, out: R64) {
    k.comment("statistics of the token");
    let [max, second, raw_total, negative_entropy] = k.load_vector::<F32, B32, 4>(parked, 0, Cache::Default);
    let weigh = |k: &mut Builder, scale: RF| Mass { max, scale }.weight(k, drawn.logit);
    let raw_scale = k.mov(LOG2_E);
    let weight = weigh(k, raw_scale);
    let probability = quotient(k, weight, raw_total);
    let weight = weigh(k, wish.scale);
    let filtered_probability = quotient(k, weight, drawn.total);

    let filtered = has(k, wish.flags, sampling_flags::FILTERED_CONFIDENCE);
    let by_probability = k.select(filtered, filtered_probability, probability);
    let gap = k.sub_f(max, second);
    let difference = one_minus_exp(k, gap);
    let margin = quotient(k, difference, raw_total);
    let colder = k.mul_f(gap, wish.inverse);
    let difference = one_minus_exp(k, colder);
    let single = k.eq(drawn.count, 1u32);
    let difference = k.select(single, 1.0f32, difference);
    let filtered_margin = quotient(k, difference, drawn.total);
    let by_margin = k.select(filtered, filtered_margin, margin);
    let own = negative_entropy_of(k, drawn.surprise, drawn.total, drawn.log);
    let by_entropy = k.select(filtered, own, negative_entropy);
    let is_margin = k.eq(wish.confidence, Confidence::Margin.code());
    let confidence = k.select(is_margin, by_margin, by_entropy);
    let is_probability = k.eq(wish.confidence, Confidence::Probability.code());
    let confidence = k.select(is_probability, by_probability, confidence);
    let confidence = k.bits(confidence);
    k.store_vector(out, 0, [drawn.token, confidence]);
    k.store::<B32, B64>(out, offset_of!(RowStatistics, flags) as i64, 0u32);
    k.store_vector(out, offset_of!(RowStatistics, probability) as i64, [probability, filtered_probability]);
    k.store(out, offset_of!(RowStatistics, logit) as i64, drawn.logit);
}

/// Writes a row that has no token.
pub(super) fn write_flagged(k: &mut Builder, flags: impl Into<Source<B32>>, out: R64) {
    let nothing = k.mov::<F32>(f32::NEG_INFINITY);
    let (none, flags) = (k.mov(0u32), k.mov::<B32>(flags));
    let confidence = k.bits(nothing);
    k.store_vector(out, 0, [none, confidence, none, flags]);
    for half in [offset_of!(RowStatistics, max), offset_of!(RowStatistics, probability)] {
        k.store_vector(out, half as i64, [nothing; 4]);
    }
}

/// −(Σ −w ln w / Σ w) − ln Σ w, for weights w relative to the largest: no cancellation, both terms have one sign.
fn negative_entropy_of(k: &mut Builder, surprise: RF, total: RF, log: RF) -> RF {
    let mean = quotient(k, surprise, total);
    let entropy = k.add_f(mean, log);
    // 0 − H, so that a certain row gives +0.
    k.sub_f(0.0, entropy)
}
