//! The rules, one after another, over a sorted list.

use super::{noise, schedule::due};
use half::bf16;
use ptx::kernels::sampling::{RequestState, RowStatistics, SelectParameters, rule, score, select_flags};

/// A listed row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) position: u32,
    pub(super) statistics: RowStatistics,
    /// Its position is masked; else it was decoded.
    pub(super) masked: bool,
}

/// What a step does.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// Take their tokens.
    pub(super) chosen: Vec<Candidate>,
    /// Take another token.
    pub(super) edited: Vec<Candidate>,
    /// Are masked again.
    pub(super) remasked: Vec<Candidate>,
    /// What is left of a budget.
    pub(super) carry: u32,
}

/// What thresholds are compared with.
fn value(parameters: &SelectParameters, statistics: &RowStatistics) -> f32 {
    let by_entropy = parameters.score == score::ENTROPY;
    let value = if by_entropy { statistics.negative_entropy } else { statistics.confidence } + 0.0;
    if parameters.flags & select_flags::ROUND_BF16 != 0 { bf16::from_f32(value).to_f32() } else { value }
}

/// What one step decides of the listed rows of a request, of which `rows` are the masked and the decoded ones.
pub(super) fn decide(p: &SelectParameters, state: &RequestState, rows: &[Candidate]) -> Decision {
    let wants = |flag: u32| p.flags & flag != 0;
    let last = state.block_step + 1 >= p.steps;
    let value = |row: &Candidate| value(p, &row.statistics);
    let fine = |row: &Candidate| {
        row.statistics.flags == 0 && !(wants(select_flags::EXCLUDE_MASK) && row.statistics.token == p.mask_token)
    };
    let doubtful = |row: &Candidate| {
        let decoded = wants(select_flags::REMASK) && !row.masked && row.statistics.flags == 0;
        decoded && !last && value(row) < p.revision
    };
    let masks = rows.iter().filter(|row| row.masked).count();
    let doubts = rows.iter().filter(|row| doubtful(row)).count();
    let standing: Vec<Candidate> = rows.iter().copied().filter(|row| row.masked || doubtful(row)).collect();
    let usable: Vec<Candidate> = standing.iter().copied().filter(&fine).collect();

    let word = |row: &Candidate| noise::word(p, state, row.position);
    let mut best = usable.clone();
    best.sort_by(|a, b| {
        let by = |key: &dyn Fn(&Candidate) -> f32| key(b).total_cmp(&key(a));
        let order = match p.score {
            score::NOISY => by(&|row| value(row) / p.noise + noise::gumbel(word(row)) + 0.0),
            score::RANDOM => word(b).cmp(&word(a)),
            score::FIRST => std::cmp::Ordering::Equal,
            _ => by(&value),
        };
        order.then(a.position.cmp(&b.position))
    });
    let first = |count: usize| best[..count.min(best.len())].to_vec();
    let passes = |row: &&Candidate| {
        let value = value(row);
        value > p.threshold || wants(select_flags::INCLUSIVE) && value == p.threshold
    };
    let passing: Vec<Candidate> = usable.iter().filter(passes).copied().collect();
    let (count, share) = due(p, state, masks);
    let by_schedule = || {
        let lucky = |row: &&Candidate| noise::uniform(word(row)) < share;
        if wants(select_flags::BERNOULLI) { usable.iter().filter(lucky).copied().collect() } else { first(count) }
    };

    let mut carry = 0;
    let chosen = match p.rule {
        _ if last => usable.clone(),
        rule::TOP_K => by_schedule(),
        rule::THRESHOLD => {
            if passing.is_empty() {
                by_schedule()
            } else {
                passing
            }
        }
        rule::DYNAMIC => {
            if passing.len() >= count {
                passing
            } else {
                first(count)
            }
        }
        rule::BUDGET => {
            let within = first(count + state.carry as usize);
            let kept = within.iter().enumerate().filter(|(rank, row)| *rank == 0 || passes(row));
            kept.map(|(_, row)| *row).collect()
        }
        rule::NEAR_BEST => {
            let most = best.first().map_or(f32::NEG_INFINITY, value);
            let limit = (most - 1e-5).min(p.threshold);
            usable.iter().filter(|row| value(row) >= limit).copied().collect()
        }
        rule::FACTOR => {
            let n = best.len();
            let fails = |m: &usize| value(&best[m - 1]) < 1.0 - p.threshold / (m + 1) as f32;
            match (2..=n).find(fails) {
                Some(m) if m < n => first(m - 1),
                _ => best.clone(),
            }
        }
        rule::ENTROPY_BUDGET => {
            // In units of the budget's 2⁻²⁰.
            let units = |row: &Candidate| {
                let share = (-value(row)).max(0.0) / p.threshold;
                ((share * 1_048_576.0).round_ties_even() as u64).min(2_097_152)
            };
            let mut better = 0;
            let within = |row: &&Candidate| {
                let fits = better <= 1 << 20;
                better += units(row);
                fits
            };
            best.iter().take_while(within).copied().collect()
        }
        _ => hierarchy(p, &standing, &fine, &value, &passing, doubts),
    };
    if p.rule == rule::BUDGET {
        carry = (count as u32 + state.carry).saturating_sub(chosen.len() as u32);
    }
    let taken = |row: &Candidate| chosen.iter().any(|other| other.position == row.position);
    let remasked = rows.iter().filter(|row| doubtful(row) && !taken(row)).copied().collect();
    Decision { carry, remasked, edited: Vec::new(), chosen }
}

/// The best of each run of adjacent positions if above the lower threshold, all that pass, and then as many of the others
/// as bring it to one more than there are doubts.
fn hierarchy(
    p: &SelectParameters,
    standing: &[Candidate],
    fine: &dyn Fn(&Candidate) -> bool,
    value: &dyn Fn(&Candidate) -> f32,
    passing: &[Candidate],
    doubts: usize,
) -> Vec<Candidate> {
    let mut chosen = passing.to_vec();
    let has = |chosen: &[Candidate], row: &Candidate| chosen.iter().any(|other| other.position == row.position);
    for run in standing.chunk_by(|a, b| a.position + 1 == b.position) {
        let mut lead: Option<Candidate> = None;
        for row in run.iter().filter(|row| fine(row)) {
            if lead.is_none_or(|lead| value(row).total_cmp(&value(&lead)).is_gt()) {
                lead = Some(*row);
            }
        }
        if let Some(lead) = lead.filter(|lead| value(lead) > p.low && !has(&chosen, lead)) {
            chosen.push(lead);
        }
    }
    let mut rest: Vec<Candidate> = standing.iter().filter(|row| fine(row) && !has(&chosen, row)).copied().collect();
    rest.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.position.cmp(&b.position)));
    let missing = (doubts + 1).saturating_sub(chosen.len()).min(rest.len());
    chosen.extend(&rest[..missing]);
    chosen
}

/// The decoded rows that take another token.
pub(super) fn edits(p: &SelectParameters, rows: &[Candidate], current: impl Fn(u32) -> u32) -> Vec<Candidate> {
    let wants = |flag: u32| p.flags & flag != 0;
    let edited = |row: &&Candidate| {
        let mask = wants(select_flags::EXCLUDE_MASK) && row.statistics.token == p.mask_token;
        let sure = value(p, &row.statistics) > p.revision;
        !row.masked && row.statistics.flags == 0 && !mask && sure && row.statistics.token != current(row.position)
    };
    if wants(select_flags::EDIT) { rows.iter().filter(edited).copied().collect() } else { Vec::new() }
}
