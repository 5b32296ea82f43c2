//! The row kernel: one block reads one row of logits and says what it would decode to.
//!
//! Passes over the row: the two largest logits; the masses (raw and tempered) and the entropy sum; then, where the
//! request filters, the [`prefix`] descent of each filter; then, where it draws, the shrinking search of [`locate`].
//! All but the first sum integers, so a later kernel may spread a row over blocks without changing a bit.

use super::{
    functions::one_minus_exp,
    layout::{RequestState, RowParameters, RowStatistics, row_flags, sampling_flags},
    logits::{Logits, Mass, accumulate, count, float, has, logarithm},
    nucleus::{Cut, Weight, locate, prefix},
    spec::{Confidence, SamplerSpec, check},
};
use crate::{
    isa::{B32, B64, Builder, F32, Launch, R32, R64, RF, Rounding},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
    },
    tile::{
        order::{NEGATIVE_INFINITY, from_order_key, order_key},
        philox::philox,
        reduce::{block_sum, block_sum_bytes},
    },
};
use std::{
    f32::consts::LOG2_E,
    mem::{offset_of, size_of},
};

const THREADS: u32 = 512;

impl KernelSpec for SamplerSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        check(self.arch)
    }

    fn build(&self) -> Kernel {
        let entry = format!("sampler_{}_{}_{}", self.dtype.name(), self.confidence.name(), "sm80");
        let launch = Launch { threads: THREADS, blocks_per_multiprocessor: 2 };
        let mut k = Builder::new(self.arch, entry, launch);
        generate(&mut k, self);
        k.finish()
    }
}

fn generate(k: &mut Builder, spec: &SamplerSpec) {
    let logits_base: R64 = k.parameter("logits", ParameterKind::Pointer);
    let logits_stride: R64 = k.parameter("logits_stride", ParameterKind::U64);
    let logits_count: R32 = k.parameter("logits_count", ParameterKind::U32);
    let vocab: R32 = k.parameter("vocab", ParameterKind::U32);
    let logits_rows: R64 = k.parameter("logits_rows", ParameterKind::Pointer);
    let rows: R64 = k.parameter("rows", ParameterKind::Pointer);
    let totals: R64 = k.parameter("totals", ParameterKind::Pointer);
    let parameters: R64 = k.parameter("parameters", ParameterKind::Pointer);
    let states: R64 = k.parameter("states", ParameterKind::Pointer);
    let requests: R32 = k.parameter("requests", ParameterKind::U32);
    let statistics: R64 = k.parameter("statistics", ParameterKind::Pointer);
    let scratch = k.shared(block_sum_bytes(4), 16);
    let scratch = k.shared_address(scratch);

    let entry = k.block_x();
    let listed: R32 = k.load(totals, 0);
    let idle = k.ge_u(entry, listed);
    k.when(idle, |k| k.ret());
    let at = k.mad_wide(entry, 8u32, rows);
    let [request, position] = k.load_vector::<B32, B64, 2>(at, 0, crate::isa::Cache::Default);
    let out = k.mad_wide(entry, size_of::<RowStatistics>() as u32, statistics);

    let source = k.mov(entry);
    let mapped = k.ne(logits_rows, 0u64);
    k.if_then(mapped, |k| {
        let at = k.mad_wide(entry, 4u32, logits_rows);
        let row: R32 = k.load(at, 0);
        k.set(source, row);
    });
    let flags = k.mov::<B32>(row_flags::OUT_OF_RANGE);
    let (flagged, end) = (k.label(), k.label());
    let nowhere = k.ge_u(source, logits_count);
    let nobody = k.ge_u(request, requests);
    let outside = k.or_p(nowhere, nobody);
    k.branch_if(outside, flagged);
    let source = k.widen_u(source);
    let address = k.mad(source, logits_stride, logits_base);
    let logits = Logits { dtype: spec.dtype, address, vocab };

    k.comment("the two largest logits");
    let Top { max, second, argmax } = top(k, logits, scratch);
    k.set(flags, row_flags::NOT_FINITE);
    let empty = k.eq_f(max, f32::NEG_INFINITY);
    k.branch_if(empty, flagged);

    let of_request = k.mad_wide(request, size_of::<RowParameters>() as u32, parameters);
    let temperature: RF = k.load_readonly(of_request, offset_of!(RowParameters, temperature) as i64);
    let top_p: RF = k.load_readonly(of_request, offset_of!(RowParameters, top_p) as i64);
    let top_k: R32 = k.load_readonly(of_request, offset_of!(RowParameters, top_k) as i64);
    let request_flags: R32 = k.load_readonly(of_request, offset_of!(RowParameters, flags) as i64);
    let drawing = k.gt_f(temperature, 0.0);
    let divisor = k.select(drawing, temperature, 1.0f32);
    let raw = Mass { max, scale: k.mov(LOG2_E) };
    let tempered = Mass { max, scale: Mass::scale(k, divisor) };

    k.comment("masses and entropy");
    let [raw_sum, tempered_sum, surprise_sum] = [0u64; 3].map(|zero| k.mov(zero));
    logits.for_each(k, |k, _, logit| {
        let (mass, surprise) = raw.with_surprise(k, logit);
        let warm = tempered.of(k, logit);
        accumulate(k, raw_sum, mass);
        accumulate(k, tempered_sum, warm);
        accumulate(k, surprise_sum, surprise);
    });
    let [raw_sum, tempered_sum, surprise_sum] = block_sum(k, scratch, [raw_sum, tempered_sum, surprise_sum]);

    k.comment("filters");
    // Everything: the boundary lies at the last id of the lowest key.
    let cut = Cut { key: k.mov(0u32), id: k.mov(u32::MAX) };
    let equal = k.mov::<B32>(0u32);
    let equal_kept = k.mov::<B32>(u32::MAX);
    let kept_sum = k.mov(tempered_sum);
    let one_less = k.sub(top_k, 1u32);
    let vocab_less = k.sub(vocab, 1u32);
    // Wraps for top_k = 0, which keeps all.
    let by_count = k.lt_u(one_less, vocab_less);
    k.if_then(by_count, |k| {
        let limit = k.widen_u(one_less);
        let kept = prefix(k, logits, tempered, Weight::Count, limit, scratch);
        k.set(cut.key, kept.key);
        k.set(equal, kept.equal);
        k.set(equal_kept, kept.equal_kept);
        k.set(kept_sum, kept.mass);
    });
    let by_mass = k.lt_f(top_p, 1.0);
    k.if_then(by_mass, |k| {
        let within = has(k, request_flags, sampling_flags::TOP_K_FIRST);
        let total = k.select(within, kept_sum, tempered_sum);
        let portion = k.mul_f(top_p, (1u64 << 32) as f32);
        let portion = k.wide_from_float(portion, Rounding::Zero);
        let portion = k.shl(portion, 32u32);
        let limit = k.mul_high(total, portion);
        let kept = prefix(k, logits, tempered, Weight::Mass(tempered), limit, scratch);
        let (higher, same) = (k.gt_u(kept.key, cut.key), k.eq(kept.key, cut.key));
        let fewer = k.lt_u(kept.equal_kept, equal_kept);
        let shorter = k.and_p(same, fewer);
        let shorter = k.or_p(higher, shorter);
        k.when(shorter, |k| {
            k.set(cut.key, kept.key);
            k.set(equal, kept.equal);
            k.set(equal_kept, kept.equal_kept);
            k.set(kept_sum, kept.mass);
        });
    });
    let divided = k.lt_u(equal_kept, equal);
    k.if_then(divided, |k| {
        let last = k.sub(equal_kept, 1u32);
        let target = k.widen_u(last);
        let id = locate(k, logits, target, scratch, |k, _, logit| {
            let key = logits.key(k, logit);
            let boundary = k.eq(key, cut.key);
            count(k, boundary)
        });
        k.set(cut.id, id);
    });

    k.comment("token");
    let token = k.mov(argmax);
    k.if_then(drawing, |k| {
        let seed_low: R32 = k.load_readonly(of_request, offset_of!(RowParameters, seed_low) as i64);
        let seed_high: R32 = k.load_readonly(of_request, offset_of!(RowParameters, seed_high) as i64);
        let stream: R32 = k.load_readonly(of_request, offset_of!(RowParameters, stream) as i64);
        let state = k.mad_wide(request, size_of::<RequestState>() as u32, states);
        let step: R32 = k.load_readonly(state, offset_of!(RequestState, step) as i64);
        let zero = k.mov(0u32);
        let [uniform, ..] = philox(k, [position, step, stream, zero], [seed_low, seed_high]);
        let fraction = k.join_wide(zero, uniform);
        let target = k.mul_high(kept_sum, fraction);
        let id = locate(k, logits, target, scratch, |k, id, logit| {
            let key = logits.key(k, logit);
            let kept = cut.keeps(k, key, id);
            let mass = tempered.of(k, logit);
            k.select(kept, mass, 0u64)
        });
        k.set(token, id);
    });

    k.comment("statistics");
    let logit = logits.at(k, token);
    let raw_total = float(k, raw_sum);
    let kept_total = float(k, kept_sum);
    let weight = raw.weight(k, logit);
    let probability = k.div_f(weight, raw_total);
    let weight = tempered.weight(k, logit);
    let filtered_probability = k.div_f(weight, kept_total);
    let raw_log = logarithm(k, raw_sum);
    let lse = k.add_f(max, raw_log);
    let tempered_max = k.div_f(max, divisor);
    let tempered_log = logarithm(k, tempered_sum);
    let lse_tempered = k.add_f(tempered_max, tempered_log);
    let surprise = float(k, surprise_sum);
    let negative_entropy = negative_entropy_of(k, surprise, raw_total, raw_log);

    let filtered = has(k, request_flags, sampling_flags::FILTERED_CONFIDENCE);
    let confidence = match spec.confidence {
        Confidence::Probability => k.select(filtered, filtered_probability, probability),
        Confidence::Margin => {
            let gap = k.sub_f(max, second);
            let difference = one_minus_exp(k, gap);
            let margin = k.div_f(difference, raw_total);
            let colder = k.div_f(gap, divisor);
            let difference = one_minus_exp(k, colder);
            let alone = second_is_cut(k, logits, max, second, cut, equal_kept);
            let difference = k.select(alone, 1.0f32, difference);
            let filtered_margin = k.div_f(difference, kept_total);
            k.select(filtered, filtered_margin, margin)
        }
        Confidence::NegativeEntropy => {
            let confidence = k.mov(negative_entropy);
            k.if_then(filtered, |k| {
                let sum = k.mov(0u64);
                logits.for_each(k, |k, id, logit| {
                    let key = logits.key(k, logit);
                    let kept = cut.keeps(k, key, id);
                    let (_, surprise) = tempered.with_surprise(k, logit);
                    let share = k.select(kept, surprise, 0u64);
                    accumulate(k, sum, share);
                });
                let [sum] = block_sum(k, scratch, [sum]);
                let sum = float(k, sum);
                let log = logarithm(k, kept_sum);
                let own = negative_entropy_of(k, sum, kept_total, log);
                k.set(confidence, own);
            });
            confidence
        }
    };
    let none = k.mov::<B32>(0u32);
    let record = Record {
        token,
        confidence,
        argmax,
        flags: none,
        floats: [max, second, lse, lse_tempered, probability, filtered_probability, negative_entropy, logit],
    };
    record.store(k, out);
    k.branch(end);

    k.place(flagged);
    let confidence = k.mov::<F32>(f32::NEG_INFINITY);
    let none = k.mov::<B32>(0u32);
    let record = Record { token: none, confidence, argmax: none, flags, floats: [confidence; 8] };
    record.store(k, out);
    k.place(end);
    k.ret();
}

/// −(Σ −w ln w / Σ w) − ln Σ w, for weights w relative to the largest: no cancellation, both terms have one sign.
fn negative_entropy_of(k: &mut Builder, surprise: RF, total: RF, log: RF) -> RF {
    let mean = k.div_f(surprise, total);
    let entropy = k.add_f(mean, log);
    // 0 − H, so that a certain row gives +0.
    k.sub_f(0.0, entropy)
}

/// Whether the second rank is filtered out.
fn second_is_cut(k: &mut Builder, logits: Logits, max: RF, second: RF, cut: Cut, equal_kept: R32) -> crate::isa::RP {
    let (first_key, second_key) = (logits.key(k, max), logits.key(k, second));
    let below = k.lt_u(second_key, cut.key);
    let tied = k.eq(first_key, second_key);
    let at_boundary = k.eq(second_key, cut.key);
    let single = k.eq(equal_kept, 1u32);
    let first_alone = k.and_p(tied, single);
    let first_alone = k.and_p(first_alone, at_boundary);
    k.or_p(below, first_alone)
}

/// A [`RowStatistics`] in registers.
struct Record {
    token: R32,
    confidence: RF,
    argmax: R32,
    flags: R32,
    floats: [RF; 8],
}

impl Record {
    fn store(self, k: &mut Builder, out: R64) {
        let thread = k.thread();
        let first = k.eq(thread, 0u32);
        let confidence = k.bits(self.confidence);
        let [a, b, c, d, e, f, g, h] = self.floats;
        k.when(first, |k| {
            k.store_vector(out, 0, [self.token, confidence, self.argmax, self.flags]);
            k.store_vector(out, offset_of!(RowStatistics, max) as i64, [a, b, c, d]);
            k.store_vector(out, offset_of!(RowStatistics, probability) as i64, [e, f, g, h]);
        });
    }
}

/// The best token, and the two largest logits.
struct Top {
    max: RF,
    second: RF,
    argmax: R32,
}

/// Keys and id of the best token among some, and the key of the second best.
#[derive(Clone, Copy)]
struct Best {
    key: R32,
    id: R32,
    second: R32,
}

impl Best {
    /// The best over the warp.
    fn over_warp(self, k: &mut Builder) -> Best {
        let key = k.warp_max_u(self.key);
        let ahead = k.eq(self.key, key);
        let candidate = k.select(ahead, self.id, u32::MAX);
        let id = k.warp_min_u(candidate);
        // The winner's lane gives its second best, the others their best.
        let winner = k.eq(self.id, id);
        let winner = k.and_p(ahead, winner);
        let rest = k.select(winner, self.second, self.key);
        Best { key, id, second: k.warp_max_u(rest) }
    }
}

fn top(k: &mut Builder, logits: Logits, scratch: R32) -> Top {
    // No logit has key 0: that would be a NaN.
    let best = Best { key: k.mov(0u32), id: k.mov(u32::MAX), second: k.mov(0u32) };
    logits.for_each(k, |k, id, logit| {
        let key = order_key(k, logit);
        let ahead = k.gt_u(key, best.key);
        let loser = k.min_u(key, best.key);
        let second = k.max_u(best.second, loser);
        k.set(best.second, second);
        let greater = k.max_u(key, best.key);
        k.set(best.key, greater);
        let id = k.select(ahead, id, best.id);
        k.set(best.id, id);
    });
    let of_warp = best.over_warp(k);
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let leader = k.eq(lane, 0u32);
    let own = k.mad(warp, 16u32, scratch);
    k.when(leader, |k| k.store_vector(own, 0, [of_warp.key, of_warp.id, of_warp.second, of_warp.second]));
    k.barrier();
    let all = Best { key: k.mov(0u32), id: k.mov(u32::MAX), second: k.mov(0u32) };
    let inside = k.lt_u(lane, THREADS / 32);
    let at = k.mad(lane, 16u32, scratch);
    k.when(inside, |k| {
        let [key, id, second, _] = k.load_vector::<B32, B32, 4>(at, 0, crate::isa::Cache::Default);
        k.set(all.key, key);
        k.set(all.id, id);
        k.set(all.second, second);
    });
    k.barrier();
    let all = all.over_warp(k);
    let second = k.max_u(all.second, NEGATIVE_INFINITY);
    Top { max: from_order_key(k, all.key), second: from_order_key(k, second), argmax: all.id }
}
