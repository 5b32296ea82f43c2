//! A small set of cases in which every pair of options occurs.

use crate::{
    PATTERNS,
    case::{Case, Side},
    expressions, spec,
};
use ptx::{
    KernelSpec,
    isa::MmaType,
    kernels::attention::{AttentionSpec, KvLayout, Pattern},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::HashSet;

/// Lengths around every edge of a tile.
pub(crate) const LENGTHS: [usize; 17] = [1, 2, 29, 30, 31, 63, 64, 65, 99, 100, 101, 127, 128, 129, 255, 256, 257];

/// How many values each option has.
const OPTIONS: [usize; 15] = [
    5, // pattern
    6, // block
    3, // head_dim
    2, // dtype
    2, // causal
    3, // queries per key head
    3, // one length, lengths per row, packed
    3, // q_len = kv_len, fewer queries, more queries
    2, // LSE
    2, // soft-cap
    3, // score: none, slopes, table
    2, // mask
    3, // selection: empty, sparse, dense
    2, // head map
    4, // keys strided, or in pages of 16, 64 or 256
];

type Choice = [usize; OPTIONS.len()];

fn spec_of(choice: &Choice) -> AttentionSpec {
    let block = [(64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128)][choice[1]];
    let dtype = [MmaType::Bf16, MmaType::F16][choice[3]];
    let mut spec = spec(PATTERNS[choice[0]], block, [64, 96, 128][choice[2]], dtype);
    spec.causal = choice[4] == 1;
    spec.softcap = choice[9] == 1;
    spec.kv =
        [KvLayout::Strided, KvLayout::Paged { page: 16 }, KvLayout::Paged { page: 64 }, KvLayout::Paged { page: 256 }]
            [choice[14]];
    spec
}

/// Whether the choice is a spec at all, and its expressions are defined.
fn possible(choice: &Choice) -> bool {
    // The table is indexed by q − k, which only causal kernels promise not to be negative.
    let table_needs_causal = choice[10] != 2 || choice[4] == 1;
    table_needs_causal && spec_of(choice).validate().is_ok()
}

fn pairs(choice: &Choice) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let options = 0..OPTIONS.len();
    options
        .clone()
        .flat_map(move |i| (i + 1..OPTIONS.len()).map(move |j| (i, j)))
        .map(|(i, j)| (i, choice[i], j, choice[j]))
}

/// Choices, greedily, until a thousand further ones show no new pair.
pub(crate) fn choices(seed: u64) -> Vec<Choice> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut seen = HashSet::new();
    let mut chosen = Vec::new();
    loop {
        let candidates = (0..1000).map(|_| OPTIONS.map(|values| rng.random_range(0..values))).filter(possible);
        let new = |choice: &Choice| pairs(choice).filter(|pair| !seen.contains(pair)).count();
        let Some(best) = candidates.max_by_key(new).filter(|best| new(best) > 0) else { return chosen };
        seen.extend(pairs(&best));
        chosen.push(best);
    }
}

/// The case of a choice; `turn` picks the lengths, so that all of them occur.
pub(crate) fn case(choice: &Choice, turn: usize, seed: u64) -> Case {
    let length = |i: usize| LENGTHS[(3 * turn + i) % LENGTHS.len()];
    let sequence = |i: usize| {
        let (a, b) = (length(5 * i), length(5 * i + 8));
        match choice[7] {
            0 => (a, a),
            1 => (a.min(b), a.max(b)),
            _ => (a.max(b), a.min(b)),
        }
    };
    let lengths = match choice[6] {
        0 => vec![sequence(0); 1 + turn % 2],
        // Empty rows are legal: no queries, no keys.
        1 => vec![sequence(0), (0, 5), sequence(1)],
        _ => vec![sequence(0), (7, 0), sequence(1)],
    };
    let mut case = Case::new(spec_of(choice), lengths, seed);
    case.packed = choice[6] == 2;
    case.heads_per_kv = [1, 2, 4][choice[5]];
    case.heads = case.heads_per_kv * if case.heads_per_kv == 4 { 1 } else { 2 };
    case.lse = choice[8] == 1;
    case.density = [0.0, 0.2, 0.7][choice[12]];
    case.full_list = turn.is_multiple_of(2);
    case.spread = [1.0, 4.0][turn / 2 % 2];
    if choice[13] == 1 {
        // Some heads, in another order.
        case.head_map = Some((0..case.heads as u32).rev().step_by(2).collect());
    }
    match choice[10] {
        1 => expressions::slopes(&mut case),
        2 => expressions::table(&mut case),
        _ => {}
    }
    if choice[11] == 1 {
        expressions::documents(&mut case);
    }
    case
}

/// Words of side buffers, so that failures can be read.
pub(crate) fn describe(case: &Case) -> String {
    let side = case.side.iter().map(|side| match side {
        Side::Floats(values) => values.len(),
        Side::Words(values) => values.len(),
    });
    let Case { heads, heads_per_kv, packed, lse, density, full_list, ref head_map, .. } = *case;
    let pattern: Pattern = case.spec.pattern;
    format!(
        "{pattern:?} heads {heads}/{heads_per_kv} packed {packed} lse {lse} density {density} full list {full_list} \
         head map {head_map:?} side {:?}",
        side.collect::<Vec<_>>()
    )
}
