//! The first pass: maximum and denominator of each query over a block's keys.

use super::{merge, nothing, window::Window};
use crate::{
    isa::{Builder, Cache, RF},
    kernels::index::workspace::WINDOW,
    tile::fragment::column,
};

/// Weights may reach 2^8 before a maximum is raised.
const SLACK: f32 = 8.0;

/// The softmax so far of this lane's keys, for each of its queries: what to subtract, −∞ before the first key, and the sum.
struct Running(Vec<[RF; 2]>);

pub(super) fn write(k: &mut Builder, window: &Window) {
    let running = Running((0..WINDOW / 4).map(|_| nothing(k)).collect());
    window.walk(k, 0, |k, first, matrices| {
        let products = window.products(k, matrices).rows;
        let all = window.all_visible(k, first);
        let hidden = |k: &mut Builder, row: usize, i: usize, score: RF| {
            window.if_visible(k, first, row, i, score, f32::NEG_INFINITY)
        };
        k.if_else(
            all,
            |k| running.add(k, window, &products, |_, _, _, score| score),
            |k| running.add(k, window, &products, hidden),
        );
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
    let base = window.stages;
    k.barrier();
    let own = k.mad(window.own_head, window.parts, window.own_part);
    let own = k.mad(own, WINDOW * 8, base);
    let writes = k.lt_u(window.lane, 4u32);
    k.if_then(writes, |k| {
        let at = k.mad(window.lane, 16u32, own);
        for (i, part) in parts.into_iter().enumerate() {
            k.store_vector(at, 8 * i64::from(column(i)), part);
        }
    });
    k.barrier();
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
    /// Adds the weights of 16 keys; `shown` hides scores that do not count.
    fn add(
        &self,
        k: &mut Builder,
        window: &Window,
        products: &[Vec<RF>],
        shown: impl Fn(&mut Builder, usize, usize, RF) -> RF,
    ) {
        let scores = |k: &mut Builder, i: usize, subtracted: RF| {
            [0, 1].map(|row: usize| {
                let score = window.score(k, products[row][i], subtracted);
                shown(k, row, i, score)
            })
        };
        let pairs: Vec<[RF; 2]> = (0..self.0.len()).map(|i| scores(k, i, self.0[i][0])).collect();
        let highest = pairs.iter().flatten().copied().reduce(|a, b| k.max_f(a, b)).expect("there are scores");
        let rises = k.gt_f(highest, SLACK);
        let rises = k.any(rises);
        let kept: Vec<[RF; 2]> = pairs.iter().map(|pair| pair.map(|score| k.mov(score))).collect();
        k.if_then(rises, |k| {
            for (i, (&[max, sum], kept)) in self.0.iter().zip(&kept).enumerate() {
                let zero = k.mov(0.0f32);
                let pair = scores(k, i, zero);
                let new = pair.into_iter().fold(max, |max, score| k.max_f(max, score));
                let [_, shrunk] = merge(k, [new, zero], &[[max, sum]]);
                k.set(max, new);
                k.set(sum, shrunk);
                let reference = super::finite_maximum(k, new);
                for (score, &kept) in pair.into_iter().zip(kept) {
                    let score = k.sub_f(score, reference);
                    k.set(kept, score);
                }
            }
        });
        for (&[_, sum], pair) in self.0.iter().zip(kept) {
            let total = pair.into_iter().fold(sum, |total, score| {
                let weight = k.exp2_f(score);
                k.add_f(total, weight)
            });
            k.set(sum, total);
        }
    }
}
