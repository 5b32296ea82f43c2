//! The second pass: the softmax again, summed over columns and slashes.

use super::{
    EstimatePass, merge, nothing,
    walk::Walk,
    window::{STEP, Window},
};
use crate::{
    isa::{Builder, Cache, F32, R32, R64, RF, RP, SharedRegion},
    kernels::{
        batch::address,
        index::workspace::WINDOW,
        meta::ParameterKind::{Pointer, U64},
    },
    tile::fragment::column,
};

/// Queries and keys that a lane has one of.
const EIGHT: u32 = 8;
/// Eights of d that one turn adds to.
const EIGHTS: u32 = (WINDOW + STEP) / EIGHT - 1;
/// Statistics loaded together, to wait for memory once.
const TOGETHER: u32 = 8;

/// Slashes that have begun. A lane has key g of every eight keys and queries 2t and 2t + 1 of every eight queries; what it
/// has of d is g + 2t (+ 1) and a multiple of 8, by which its elements are summed.
struct Slashes {
    /// By eights from the turn's first key on, and by query of the pair.
    begun: Vec<[RF; 2]>,
    /// The last eight that was finished, whose elements with g + 2t ≥ 8 belong to the next.
    before: [RF; 2],
    /// Whether the elements belong to their own eight.
    own: [RP; 2],
    /// The lane that has this lane's d.
    source: [R32; 2],
}

impl Slashes {
    fn new(k: &mut Builder, window: &Window) -> Slashes {
        let zeros = |k: &mut Builder| [(); 2].map(|()| k.mov::<F32>(0.0f32));
        let place = k.and(window.lane, 3u32);
        let group = k.shr_u(window.lane, 2u32);
        let queries: [R32; 2] = [0u32, 1].map(|i| k.mad(place, 2u32, i));
        Slashes {
            begun: (0..EIGHTS).map(|_| zeros(k)).collect(),
            before: zeros(k),
            own: queries.map(|query| {
                let d = k.add(group, query);
                k.lt_u(d, EIGHT)
            }),
            source: queries.map(|query| {
                let group = k.sub(group, query);
                let group = k.and(group, EIGHT - 1);
                k.mad(group, 4u32, place)
            }),
        }
    }

    /// Adds the weights of 16 keys, and gives this lane's of the 16 slashes that end here: d = g and d = 8 + g.
    fn add(&self, k: &mut Builder, weights: &[Weights; 2]) -> [RF; 2] {
        let now: Vec<[RF; 2]> = (0..EIGHTS as usize)
            .map(|eight| {
                [0, 1].map(|i| {
                    let of_row = |row: usize| eight.checked_sub(row).and_then(|query| weights[row].get(2 * query + i));
                    [0, 1]
                        .into_iter()
                        .filter_map(of_row)
                        .fold(self.begun[eight][i], |sum, &weight| k.add_f(sum, weight))
                })
            })
            .collect();
        let ended = [(now[0], self.before), (now[1], now[0])].map(|(eight, before)| {
            let [even, odd]: [RF; 2] = [0, 1].map(|i| {
                let part = k.select(self.own[i], eight[i], before[i]);
                k.shuffle_from(part, self.source[i])
            });
            let sum = k.add_f(even, odd);
            quad_sum(k, sum)
        });
        let set = |k: &mut Builder, target: [RF; 2], values: [RF; 2]| {
            target.into_iter().zip(values).for_each(|(target, value)| k.set(target, value));
        };
        set(k, self.before, now[1]);
        let zero = k.mov::<F32>(0.0f32);
        for (eight, &begun) in self.begun.iter().enumerate() {
            set(k, begun, now.get(eight + 2).copied().unwrap_or([zero; 2]));
        }
        ended
    }
}

/// The sum over the four lanes of a quad.
fn quad_sum(k: &mut Builder, value: RF) -> RF {
    [1, 2].into_iter().fold(value, |value, mask| {
        let other = k.shuffle_xor(value, mask);
        k.add_f(value, other)
    })
}

/// Where the sums go.
struct Sums {
    vertical: R64,
    slash: R64,
    /// Entries that are written.
    entries: R32,
}

/// Weights that this lane has of a key, by query.
type Weights = Vec<RF>;

pub(super) fn write(k: &mut Builder, window: &Window, keys: &impl Walk) {
    let [vertical, slash]: [R64; 2] = ["vertical_scores", "slash_scores"].map(|name| k.parameter(name, Pointer));
    let [scores_batch, scores_head]: [R64; 2] = ["scores_batch", "scores_head"].map(|name| k.parameter(name, U64));
    let region = k.shared(WINDOW * 4 * window.heads, 16);
    let own = subtracted(k, window, keys, region);
    let places = [(window.batch, scores_batch), (window.slot, scores_head)];
    let entries = k.add(window.kv_len, 3u32);
    let sums = Sums {
        vertical: address(k, vertical, places),
        slash: address(k, slash, places),
        entries: k.and(entries, !3u32),
    };
    let slashes = Slashes::new(k, window);

    keys.walk(k, EstimatePass::Scores.before(), |k, first, products| {
        let weights: [Weights; 2] = [0, 1].map(|row: usize| {
            let weigh = |(i, &product): (usize, &RF)| {
                let score = window.score(k, product, own[i]);
                let weight = k.exp2_f(score);
                k.mov(weight)
            };
            products[row].iter().enumerate().map(weigh).collect()
        });
        let all = window.all_visible(k, first);
        let some_hidden = k.not_p(all);
        k.if_then(some_hidden, |k| {
            for (row, weights) in weights.iter().enumerate() {
                for (i, &weight) in weights.iter().enumerate() {
                    let shown = window.if_visible(k, first, row, i, weight, 0.0);
                    k.set(weight, shown);
                }
            }
        });
        let columns = [0, 1].map(|row: usize| {
            let sum =
                weights[row].iter().copied().reduce(|sum, weight| k.add_f(sum, weight)).expect("there are queries");
            quad_sum(k, sum)
        });
        let ended = slashes.add(k, &weights);
        sums.write(k, window, first, columns, ended);
    });
}

impl Sums {
    /// Writes the columns of 16 keys from `first` on, and the slashes of as many d. Two lanes of a quad have one of each.
    fn write(&self, k: &mut Builder, window: &Window, first: R32, columns: [RF; 2], slashes: [RF; 2]) {
        let place = k.and(window.lane, 3u32);
        let group = k.shr_u(window.lane, 2u32);
        let second = k.eq(place, 1u32);
        let of_lane = |k: &mut Builder, values: [RF; 2]| k.select(second, values[1], values[0]);
        let (column, slash) = (of_lane(k, columns), of_lane(k, slashes));
        let within = k.mad(place, EIGHT, group);
        let key = k.add(first, within);
        let own = k.ge_s(first, window.first);
        let takes_part = k.lt_u(place, 2u32);
        let own = k.and_p(own, takes_part);
        let exists = k.lt_u(key, self.entries);
        let writes = k.and_p(own, exists);
        let at = k.mad_wide(key, 4u32, self.vertical);
        k.when(writes, |k| k.store(at, 0, column));
        // Slashes that end at a d below 0 have no pair: they fill up the last four entries with zeros.
        let last = k.sub(window.kv_len, 1u32);
        let offset = k.sub(last, key);
        let exists = k.lt_u(offset, self.entries);
        let before = k.lt_s(key, 0u32);
        let before = k.and_p(before, takes_part);
        let writes = k.or_p(own, before);
        let writes = k.and_p(writes, exists);
        let at = k.mad_wide(offset, 4u32, self.slash);
        k.when(writes, |k| k.store(at, 0, slash));
    }
}

/// What is subtracted from this lane's scores, for each of its queries: the maximum over all keys and the logarithm of the
/// denominator; +∞ for a query that does not exist.
fn subtracted(k: &mut Builder, window: &Window, keys: &impl Walk, region: SharedRegion) -> Vec<RF> {
    let base = k.shared_address(region);
    let base = k.mad(window.own_head, WINDOW * 4, base);
    let row = k.mad(window.own_part, 32u32, window.lane);
    let has_row = k.lt_u(row, WINDOW);
    k.if_then(has_row, |k| {
        let all = nothing(k);
        let of_row = k.mad_wide(row, 8u32, window.statistics);
        k.for_loop(0u32, window.blocks, TOGETHER, |k, first| {
            let parts: Vec<[RF; 2]> = (0..TOGETHER)
                .map(|i| {
                    let block = k.add(first, i);
                    let exists = k.lt_u(block, window.blocks);
                    let exists = k.and_p(exists, window.exists);
                    let block = k.select(exists, block, 0u32);
                    let at = k.mad_wide(block, WINDOW * 8, of_row);
                    let part = nothing(k);
                    k.if_then(exists, |k| {
                        let loaded: [RF; 2] = k.load_vector(at, 0, Cache::ReadOnly);
                        part.into_iter().zip(loaded).for_each(|(part, loaded)| k.set(part, loaded));
                    });
                    part
                })
                .collect();
            let merged = merge(k, all, &parts);
            all.into_iter().zip(merged).for_each(|(all, merged)| k.set(all, merged));
        });
        let [max, sum] = all;
        let max = super::finite_maximum(k, max);
        let logarithm = k.log2_f(sum);
        let subtracted = k.add_f(max, logarithm);
        let empty = k.eq_f(sum, 0.0f32);
        let subtracted = k.select(empty, f32::INFINITY, subtracted);
        let at = k.mad(row, 4u32, base);
        k.store(at, 0, subtracted);
    });
    keys.meet(k);
    let place = k.and(window.lane, 3u32);
    let at = k.mad(place, 8u32, base);
    let pairs = (0..WINDOW as usize / 4).step_by(2).flat_map(|i| {
        let pair: [RF; 2] = k.load_vector(at, 4 * i64::from(column(i)), Cache::Default);
        pair
    });
    pairs.collect()
}
