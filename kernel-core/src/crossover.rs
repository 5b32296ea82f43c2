//! From how many keys on a sparse head is faster than a dense one.
//!
//! Only the host's bounds decide, so that a layer launches the same kernels whatever the device finds. Measured on an H200
//! (`docs/performance.md`): with clustered slashes for budgets, by what plans alone take for shares.

use crate::HeadPattern;

/// Below, the launches of a plan take longer than dense attention.
const LEAST: u32 = 3072;

/// A plan by shares takes an eighth of the time of dense attention there; what it selects, nobody knows before.
const SHARES: u32 = 8192;

impl HeadPattern {
    /// Keys from which on a head of this pattern is faster than a dense one, plan included; 0 where nothing is planned. `block`
    /// is the keys of an attention block. From half as much again as a budget on, a head whose selection lies close together
    /// pays; one whose slashes are scattered visits most blocks for longer. How much a share is depends on the prompt, and a
    /// head that needs nearly all keys to reach it never pays.
    pub fn crossover(self, block: u32) -> u32 {
        let of_budget = |keys: u32| keys.saturating_add(keys / 2).max(LEAST);
        let of_blocks = |blocks: u32| of_budget(blocks.saturating_mul(block));
        match self {
            HeadPattern::Dense | HeadPattern::AShape { .. } | HeadPattern::TriShape { .. } => 0,
            HeadPattern::VerticalSlash { columns, slashes } => of_budget(columns.saturating_add(slashes)),
            HeadPattern::FlexVerticalSlash { columns: (_, columns), slashes: (_, slashes) } => {
                of_budget(columns.saturating_add(slashes)).min(SHARES)
            }
            HeadPattern::BlockSparse { blocks } => of_blocks(blocks),
            HeadPattern::FlexBlockSparse { blocks: (_, blocks) } | HeadPattern::Antidiagonal { blocks, .. } => {
                of_blocks(blocks).min(SHARES)
            }
            HeadPattern::Flex { .. } => SHARES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_pay_beyond_themselves_and_shares_from_one_length_on() {
        assert_eq!(HeadPattern::Dense.crossover(64), 0);
        assert_eq!(HeadPattern::VerticalSlash { columns: 1000, slashes: 6096 }.crossover(64), 10_644);
        assert_eq!(HeadPattern::VerticalSlash { columns: 10, slashes: 10 }.crossover(64), LEAST);
        assert_eq!(HeadPattern::BlockSparse { blocks: 100 }.crossover(64), 9600);
        assert_eq!(HeadPattern::BlockSparse { blocks: u32::MAX }.crossover(128), u32::MAX);
        let all = (0.9, u32::MAX);
        assert_eq!(HeadPattern::FlexVerticalSlash { columns: all, slashes: all }.crossover(64), SHARES);
        assert_eq!(HeadPattern::FlexBlockSparse { blocks: (0.9, 30) }.crossover(64), LEAST);
    }
}
