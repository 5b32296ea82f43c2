//! What becomes of the products of queries and keys before the softmax: soft-cap, expression, mask.

use super::{
    blocks::Windows,
    columns,
    evaluate::{self, Scope},
    expr::Expr,
    problem::Problem,
    spec::{AttentionSpec, Pattern},
    tiling::Tiling,
};
use crate::{
    isa::{Builder, Cache, R32, RF, RP},
    tile::{fragment::column, parked::Parked},
};
use std::f32::consts::LOG2_E;

/// The keys of scores, as one lane sees them.
#[derive(Clone, Copy)]
pub(super) enum Keys {
    /// The consecutive keys of a block of the index.
    Block {
        /// First key.
        start: R32,
        /// Key of this lane's first element.
        own: R32,
        /// Whether the mask expression applies: see [`super::blocks::Blocks::partial`].
        partial: Option<R32>,
    },
    /// The columns of a tile: its entries in shared memory, and those from this lane's first element on.
    Columns {
        entries: R32,
        own: R32,
        /// Whether some pair may not count; by default the last entry says.
        masked: Option<RP>,
    },
}

impl Keys {
    /// Consecutive keys from `start`. Lane t of a quad holds columns 2t and 2t + 1 of each eight.
    pub(super) fn block(k: &mut Builder, start: R32, quad_lane: R32, partial: Option<R32>) -> Keys {
        Keys::Block { start, own: k.mad(quad_lane, 2u32, start), partial }
    }

    /// The columns in a tile's entries.
    pub(super) fn columns(k: &mut Builder, entries: R32, quad_lane: R32, masked: Option<RP>) -> Keys {
        Keys::Columns { entries, own: k.mad(quad_lane, 8u32, entries), masked }
    }

    /// Keys of a lane's `count` elements of a row.
    fn positions(self, k: &mut Builder, count: usize) -> Vec<R32> {
        (0..count).step_by(2).flat_map(|i| self.pair(k, i)).collect()
    }

    /// Keys of elements `i`, which is even, and `i + 1`.
    fn pair(self, k: &mut Builder, i: usize) -> [R32; 2] {
        match self {
            Keys::Block { own, .. } => [i, i + 1].map(|i| k.add(own, column(i))),
            Keys::Columns { own, .. } => {
                let entries: [R32; 2] = k.load_vector(own, i64::from(4 * column(i)), Cache::Default);
                entries.map(|entry| columns::key(k, entry))
            }
        }
    }

    /// The last key; where columns are missing, a position after every query.
    fn last(self, k: &mut Builder, tiling: Tiling) -> R32 {
        match self {
            Keys::Block { start, .. } => k.add(start, tiling.keys - 1),
            Keys::Columns { entries, .. } => k.load(entries, i64::from(4 * (tiling.keys - 1))),
        }
    }
}

/// What is done to the scores of every tile of a block.
pub(super) struct Scores<'a> {
    spec: &'a AttentionSpec,
    problem: &'a Problem,
    /// The windows of the pattern; they wait in shared memory, since few tiles need them.
    windows: Option<Parked>,
    /// Absolute position of the warp's first row, signed.
    first: R32,
    /// The factor by which products become scores, where something must happen to scores before the softmax.
    before: Option<RF>,
    /// The factor of the exponent: log2 e times what is left of the scale.
    factor: RF,
}

impl<'a> Scores<'a> {
    /// For a warp whose rows begin at `first_row` of the tile.
    pub(super) fn new(
        k: &mut Builder,
        spec: &'a AttentionSpec,
        problem: &'a Problem,
        windows: Option<&'a Windows>,
        first_row: R32,
    ) -> Scores<'a> {
        let first = k.add(problem.first_position, first_row);
        let windows = windows.map(|windows| {
            // An A-shape has no dense rows.
            let dense_from = windows.dense_from.unwrap_or_else(|| k.mov(i32::MAX));
            let values = [windows.sink, windows.local, dense_from, windows.sink];
            if spec.takes_turns() {
                // Warps go on to other row blocks one by one.
                let region = k.shared(Parked::BYTES * k.threads() / 32, 16);
                return Parked::of_warp(k, region, values);
            }
            let region = k.shared(Parked::BYTES, 16);
            Parked::shared(k, region, values)
        });
        let before = match problem.softcap {
            Some(cap) => Some(k.div_f(problem.scale, cap)),
            None => spec.score.is_some().then_some(problem.scale),
        };
        let factor = match (&spec.score, problem.softcap) {
            (Some(_), _) => k.mov(LOG2_E),
            (None, Some(cap)) => k.mul_f(cap, LOG2_E),
            (None, None) => k.mul_f(problem.scale, LOG2_E),
        };
        Scores { spec, problem, windows, first, before, factor }
    }

    fn windows(&self, k: &mut Builder) -> Option<Windows> {
        let [sink, local, dense_from, _] = self.windows?.load(k);
        let dense_from = (self.spec.pattern == Pattern::TriShape).then_some(dense_from);
        Some(Windows { sink, local, dense_from })
    }

    /// Rows of a lane.
    pub(super) fn rows(&self) -> usize {
        self.problem.tiling.warp_rows() as usize / 8
    }

    /// Each row of scores with the row's position: rows lane / 4, lane / 4 + 8, … of the warp.
    fn by_row<'s>(&self, k: &mut Builder, scores: &'s [Vec<RF>]) -> Vec<(&'s [RF], R32)> {
        let lane = k.lane();
        let own = k.shr_u(lane, 2u32);
        let own = k.add(self.first, own);
        scores.iter().zip(0..).map(|(row, i)| (row.as_slice(), k.add(own, 8 * i))).collect()
    }

    /// What turns the finished scores into exponents of 2.
    pub(super) fn factor(&self) -> RF {
        self.factor
    }

    /// Turns products into scores, in place: −∞ where the pair does not count.
    pub(super) fn finish(&self, k: &mut Builder, scores: &[Vec<RF>], keys: Keys) {
        self.transform(k, scores, keys);
        let careful = self.needs_mask(k, keys);
        k.if_then(careful, |k| self.mask_structure(k, scores, keys));
        if let Some(mask) = &self.spec.mask {
            match keys {
                Keys::Block { partial: Some(partial), .. } => {
                    let applies = k.ne(partial, 0u32);
                    k.if_then(applies, |k| self.mask_expression(k, scores, keys, mask));
                }
                _ => self.mask_expression(k, scores, keys, mask),
            }
        }
    }

    /// Scale, soft-cap and score expression.
    fn transform(&self, k: &mut Builder, scores: &[Vec<RF>], keys: Keys) {
        let Some(before) = self.before else { return };
        for &score in scores.iter().flatten() {
            let mut scaled = k.mul_f(score, before);
            if let Some(cap) = self.problem.softcap {
                scaled = k.tanh_f(scaled);
                if self.spec.score.is_some() {
                    scaled = k.mul_f(scaled, cap);
                }
            }
            k.set(score, scaled);
        }
        if let Some(expr) = &self.spec.score {
            self.for_pairs(k, scores, keys, expr, |k, score, scope| {
                let replaced = evaluate::score(k, expr, scope);
                k.set(score, replaced);
            });
        }
    }

    fn mask_expression(&self, k: &mut Builder, scores: &[Vec<RF>], keys: Keys, mask: &Expr) {
        self.for_pairs(k, scores, keys, mask, |k, score, scope| {
            let keep = evaluate::keeps(k, mask, Scope { score: None, ..scope });
            k.unless(keep, |k| k.set(score, f32::NEG_INFINITY));
        });
    }

    /// Calls `each` with the score of every pair and what `expr` may read of it.
    ///
    /// An expression that indexes must not see positions outside the sequence, nor, in a causal kernel, a key after its
    /// query. Tiles that hold such pairs take a slower way: it skips what lies in the future, two keys at a time,
    /// and moves the rest into range.
    fn for_pairs(
        &self,
        k: &mut Builder,
        scores: &[Vec<RF>],
        keys: Keys,
        expr: &Expr,
        each: impl Fn(&mut Builder, RF, Scope<'_>),
    ) {
        let Problem { head, batch, ref side, kv_len, .. } = *self.problem;
        let scope = |score, query, key| Scope { score: Some(score), query, key, head, batch, side };
        let all = |k: &mut Builder| {
            let positions = keys.positions(k, scores[0].len());
            for (row, query) in self.by_row(k, scores) {
                let query = k.max_s(query, 0u32);
                for (&score, &key) in row.iter().zip(&positions) {
                    each(k, score, scope(score, query, key));
                }
            }
        };
        if !expr.any(&|e| matches!(e, Expr::Index(..))) {
            return all(k);
        }
        let outside = self.reaches_outside(k, keys);
        let clamped = |k: &mut Builder| {
            let last_key = k.sub(kv_len, 1u32);
            for (row, query) in self.by_row(k, scores) {
                let query = k.max_s(query, 0u32);
                let query = k.min_s(query, last_key);
                let bound = if self.spec.causal { query } else { last_key };
                for (i, pair) in row.chunks_exact(2).enumerate() {
                    let pair_keys = keys.pair(k, 2 * i);
                    let first = match keys {
                        Keys::Block { .. } => pair_keys[0],
                        // Of columns any may be missing.
                        Keys::Columns { .. } => k.min_s(pair_keys[0], pair_keys[1]),
                    };
                    let inside = k.le_s(first, bound);
                    k.if_then(inside, |k| {
                        for (&score, key) in pair.iter().zip(pair_keys) {
                            let key = k.min_s(key, bound);
                            let key = if self.begins_early(keys) { k.max_s(key, 0u32) } else { key };
                            each(k, score, scope(score, query, key));
                        }
                    });
                }
            }
        };
        k.if_else(outside, clamped, all);
    }

    /// Whether the warp's tile has a row or a key outside the sequence, or a key after a query that must not see it.
    fn reaches_outside(&self, k: &mut Builder, keys: Keys) -> RP {
        let last_key = keys.last(k, self.problem.tiling);
        let last_row = k.add(self.first, self.problem.tiling.warp_rows() - 1);
        let before = k.lt_s(self.first, 0u32);
        let after = k.ge_s(last_row, self.problem.kv_len);
        let rows = k.or_p(before, after);
        let past = if self.spec.causal { k.gt_s(last_key, self.first) } else { k.ge_s(last_key, self.problem.kv_len) };
        let past = self.or_missing(k, past, keys);
        k.or_p(rows, past)
    }

    /// Whether blocks may begin before the keys: they do at any offset.
    fn begins_early(&self, keys: Keys) -> bool {
        matches!(keys, Keys::Block { .. }) && self.spec.pattern == Pattern::VerticalSlash
    }

    /// `past`, whether some key lies after some query, or whether a key does not exist for another reason.
    fn or_missing(&self, k: &mut Builder, past: RP, keys: Keys) -> RP {
        match keys {
            Keys::Columns { masked: Some(masked), .. } => masked,
            Keys::Block { start, .. } if self.begins_early(keys) => {
                let early = k.lt_s(start, 0u32);
                k.or_p(past, early)
            }
            _ => past,
        }
    }

    /// Whether some pair of the warp's rows and these keys may fall to the mask's structure.
    fn needs_mask(&self, k: &mut Builder, keys: Keys) -> RP {
        let last_key = keys.last(k, self.problem.tiling);
        if !self.spec.causal {
            return k.ge_s(last_key, self.problem.kv_len);
        }
        let future = k.gt_s(last_key, self.first);
        let future = self.or_missing(k, future, keys);
        let (Some(windows), Keys::Block { start, .. }) = (self.windows(k), keys) else { return future };
        let last = k.add(self.first, self.problem.tiling.warp_rows() - 1);
        let distance = k.sub(last, start);
        let far = k.ge_s(distance, windows.local);
        let after_sink = k.ge_s(last_key, windows.sink);
        let mut left_out = k.and_p(far, after_sink);
        if let Some(dense_from) = windows.dense_from {
            let windowed = k.lt_s(self.first, dense_from);
            left_out = k.and_p(left_out, windowed);
        }
        k.or_p(future, left_out)
    }

    /// Bounds of the keys, causality and windows.
    fn mask_structure(&self, k: &mut Builder, scores: &[Vec<RF>], keys: Keys) {
        match keys {
            Keys::Block { own, .. } => {
                // Everything relative to this lane's first key, so that an element's column is an immediate.
                let last_key = k.sub(self.problem.kv_len, 1u32);
                let windows = self.windows(k);
                let sink = windows.as_ref().map(|windows| k.sub(windows.sink, own));
                let first_key = (self.spec.pattern == Pattern::VerticalSlash).then(|| {
                    let zero = k.mov(0u32);
                    k.sub(zero, own)
                });
                for (row, position) in self.by_row(k, scores) {
                    let last = if self.spec.causal { position } else { last_key };
                    let last = k.sub(last, own);
                    let before_window = windows.as_ref().map(|windows| {
                        let before = windows.before(k, position);
                        k.sub(before, own)
                    });
                    for (i, &score) in row.iter().enumerate() {
                        let mut keep = k.ge_s(last, column(i));
                        if let Some(first) = first_key {
                            let exists = k.le_s(first, column(i));
                            keep = k.and_p(keep, exists);
                        }
                        if let (Some(before), Some(sink)) = (before_window, sink) {
                            let near = k.lt_s(before, column(i));
                            let in_sink = k.gt_s(sink, column(i));
                            let seen = k.or_p(near, in_sink);
                            keep = k.and_p(keep, seen);
                        }
                        k.unless(keep, |k| k.set(score, f32::NEG_INFINITY));
                    }
                }
            }
            Keys::Columns { .. } => {
                let positions = keys.positions(k, scores[0].len());
                for (row, position) in self.by_row(k, scores) {
                    for (&score, &key) in row.iter().zip(&positions) {
                        let keep = k.ge_s(position, key);
                        k.unless(keep, |k| k.set(score, f32::NEG_INFINITY));
                    }
                }
            }
        }
    }
}
