//! The first pass: maximum and denominator of each query over a block's keys.

use super::{EstimatePass, merge, nothing, walk::Walk, window::Window};
use crate::{
    isa::{Builder, Cache, R32, RF, RP},
    kernels::index::workspace::WINDOW,
    tile::fragment::column,
};
use std::ops::Range;

/// Weights may reach 2^8 before a maximum is raised.
const SLACK: f32 = 8.0;

/// Queries that are looked at together: the exponents of all would take registers that there are not.
const TOGETHER: usize = 8;

/// The softmax so far of this lane's keys, for each of its queries: what to subtract, −∞ before the first key, and the sum.
struct Running(Vec<[RF; 2]>);

pub(super) fn write(k: &mut Builder, window: &Window, keys: &impl Walk) {
    let running = Running((0..WINDOW / 4).map(|_| nothing(k)).collect());
    keys.walk(k, EstimatePass::Statistics.before(), |k, first, products| {
        let all = window.all_visible(k, first);
        for queries in (0..running.0.len()).step_by(TOGETHER) {
            running.add(k, window, (first, all), products, queries..queries + TOGETHER);
        }
    });

    k.comment("all lanes, then all parts");
    let parts = running.0.into_iter().map(|part| {
        [4, 8, 16].into_iter().fold(part, |part, mask| {
            let other = part.map(|value| k.shuffle_xor(value, mask));
            // The lower lane first in both, so that they agree.
            let bit = k.and(window.lane, mask);
            let lower = k.eq(bit, 0u32);
            let [first, second]: [[RF; 2]; 2] = [0, 1].map(|place| {
                let (own, its) = if place == 0 { (part, other) } else { (other, part) };
                [0, 1].map(|i| k.select(lower, own[i], its[i]))
            });
            merge(k, first, &[second])
        })
    });
    let parts: Vec<[RF; 2]> = parts.collect();
    // Where the keys were.
    let base = keys.scratch();
    keys.meet(k);
    let own = k.mad(window.own_head, window.parts, window.own_part);
    let own = k.mad(own, WINDOW * 8, base);
    let writes = k.lt_u(window.lane, 4u32);
    k.if_then(writes, |k| {
        let at = k.mad(window.lane, 16u32, own);
        for (i, part) in parts.into_iter().enumerate() {
            k.store_vector(at, 8 * i64::from(column(i)), part);
        }
    });
    keys.meet(k);
    let row = k.mad(window.own_part, 32u32, window.lane);
    let has_row = k.lt_u(row, WINDOW);
    let has_row = k.and_p(has_row, window.exists);
    k.if_then(has_row, |k| {
        let at = k.mul(window.own_head, WINDOW * 8 * window.parts);
        let at = k.add(at, base);
        let at = k.mad(row, 8u32, at);
        let load = |k: &mut Builder, part: u32| k.load_vector(at, i64::from(part * WINDOW * 8), Cache::Default);
        let first = load(k, 0);
        let others: Vec<[RF; 2]> = (1..window.parts).map(|part| load(k, part)).collect();
        let all = merge(k, first, &others);
        let block = k.block_x();
        let at = k.mad_wide(block, WINDOW * 8, window.statistics);
        let at = k.mad_wide(row, 8u32, at);
        k.store_vector(at, 0, all);
    });
}

impl Running {
    /// Adds the weights of 16 keys, all of which some queries see if `all` holds.
    fn add(
        &self,
        k: &mut Builder,
        window: &Window,
        (first, all): (R32, RP),
        products: &[Vec<RF>],
        queries: Range<usize>,
    ) {
        let scores = |k: &mut Builder, i: usize, subtracted: RF| {
            [0, 1].map(|row: usize| window.score(k, products[row][i], subtracted))
        };
        let hide = |k: &mut Builder, i: usize, pair: [RF; 2]| {
            [0, 1].map(|row: usize| window.if_visible(k, first, row, i, pair[row], f32::NEG_INFINITY))
        };
        let set = |k: &mut Builder, target: [RF; 2], values: [RF; 2]| {
            target.into_iter().zip(values).for_each(|(target, value)| k.set(target, value));
        };
        let own = queries.map(|i| (i, self.0[i]));
        let exponents: Vec<[RF; 2]> = own
            .clone()
            .map(|(i, [max, _])| {
                let pair = scores(k, i, max);
                pair.map(|score| k.mov(score))
            })
            .collect();
        let some_hidden = k.not_p(all);
        k.if_then(some_hidden, |k| {
            for ((i, _), &pair) in own.clone().zip(&exponents) {
                let shown = hide(k, i, pair);
                set(k, pair, shown);
            }
        });
        let highest = exponents.iter().flatten().copied().reduce(|a, b| k.max_f(a, b)).expect("there are scores");
        let rises = k.gt_f(highest, SLACK);
        let rises = k.any(rises);
        k.if_then(rises, |k| {
            for ((i, [max, sum]), &exponents) in own.clone().zip(&exponents) {
                let zero = k.mov(0.0f32);
                let pair = scores(k, i, zero);
                let pair = hide(k, i, pair);
                let new = pair.into_iter().fold(max, |max, score| k.max_f(max, score));
                let [_, shrunk] = merge(k, [new, zero], &[[max, sum]]);
                set(k, [max, sum], [new, shrunk]);
                let reference = super::finite_maximum(k, new);
                let pair = pair.map(|score| k.sub_f(score, reference));
                set(k, exponents, pair);
            }
        });
        for ((_, [_, sum]), pair) in own.zip(exponents) {
            let total = pair.into_iter().fold(sum, |total, exponent| {
                let weight = k.exp2_f(exponent);
                k.add_f(total, weight)
            });
            k.set(sum, total);
        }
    }
}
