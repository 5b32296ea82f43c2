//! Which registers may be read before they are written. Most are written on every path to their reads, which is known
//! from the text; only the others are tracked while the kernel runs.

use std::collections::{BTreeMap, HashMap};

use crate::module::{Check, Touch};
use crate::op::Register;

/// What each statement of a kernel reads, writes and jumps to.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    numbers: HashMap<Register, usize>,
    names: Vec<String>,
    statements: Vec<Node>,
    /// Word and number of each register of a `wgmma`.
    multiplied: BTreeMap<usize, u16>,
}

#[derive(Debug, Default)]
struct Node {
    reads: Vec<usize>,
    writes: Vec<usize>,
    /// Under a guard: the writes may not happen and the next statement may follow.
    guard: Option<usize>,
    jump: Option<usize>,
    /// A branch or an exit.
    leaves: bool,
    /// A `wgmma`, which may use its registers while others are in flight.
    multiplies: bool,
}

impl Flow {
    pub(crate) fn begin(&mut self) {
        self.statements.push(Node::default());
    }

    pub(crate) fn name(&mut self, register: Register, name: &str) {
        self.numbers.insert(register, self.names.len());
        self.names.push(name.to_string());
    }

    pub(crate) fn read(&mut self, register: Register) {
        if let (Some(&number), Some(node)) = (self.numbers.get(&register), self.statements.last_mut())
            && !node.reads.contains(&number)
        {
            node.reads.push(number);
        }
    }

    pub(crate) fn write(&mut self, register: Register) {
        if let (Some(&number), Some(node)) = (self.numbers.get(&register), self.statements.last_mut()) {
            node.writes.push(number);
        }
    }

    /// Puts the statement under a guard.
    pub(crate) fn guard(&mut self, register: Register) {
        if let (Some(&number), Some(node)) = (self.numbers.get(&register), self.statements.last_mut()) {
            node.guard = Some(number);
        }
    }

    /// The statement is a `wgmma` with these words.
    pub(crate) fn multiply(&mut self, words: impl Iterator<Item = u16>) {
        for word in words {
            if let Some(&number) = self.numbers.get(&Register::Word(word)) {
                self.multiplied.insert(number, word);
            }
        }
        if let Some(node) = self.statements.last_mut() {
            node.multiplies = true;
        }
    }

    /// Whether there is a `wgmma`.
    pub(crate) fn multiplies(&self) -> bool {
        self.statements.iter().any(|node| node.multiplies)
    }

    /// What a statement, if it is not a `wgmma`, does to the registers of one.
    fn touches(&self, node: &Node) -> Vec<Touch> {
        let touch = |writes: bool| {
            move |number: &usize| {
                let word = *self.multiplied.get(number)?;
                Some(Touch { word, name: self.names[*number].clone(), writes })
            }
        };
        if node.multiplies {
            return Vec::new();
        }
        node.reads.iter().filter_map(touch(false)).chain(node.writes.iter().filter_map(touch(true))).collect()
    }

    pub(crate) fn jump(&mut self, target: usize) {
        if let Some(node) = self.statements.last_mut() {
            node.jump = Some(target);
            node.leaves = true;
        }
    }

    pub(crate) fn leave(&mut self) {
        if let Some(node) = self.statements.last_mut() {
            node.leaves = true;
        }
    }
}

impl Node {
    fn falls_through(&self) -> bool {
        !self.leaves || self.guard.is_some()
    }
}

/// A set of register numbers.
#[derive(Clone, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn full(count: usize) -> Set {
        Set(vec![u64::MAX; count.div_ceil(64)])
    }

    fn empty(count: usize) -> Set {
        Set(vec![0; count.div_ceil(64)])
    }

    fn has(&self, number: usize) -> bool {
        self.0[number / 64] >> (number % 64) & 1 != 0
    }

    fn insert(&mut self, number: usize) {
        self.0[number / 64] |= 1 << (number % 64);
    }

    fn intersect(&mut self, other: &Set) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= b);
    }
}

/// The checks that are left for run time, by statement, and how many registers they track.
pub(crate) fn unwritten(flow: &Flow) -> (BTreeMap<usize, Check>, usize) {
    let (statements, registers) = (&flow.statements, flow.names.len());
    // Basic blocks: a statement leads one if it is a target or follows a jump or exit.
    let mut leads = vec![false; statements.len() + 1];
    leads[0] = true;
    for (at, node) in statements.iter().enumerate() {
        if node.leaves {
            leads[at + 1] = true;
        }
        if let Some(target) = node.jump {
            leads[target] = true;
        }
    }
    let starts: Vec<usize> = (0..statements.len()).filter(|&at| leads[at]).collect();
    let block_of: HashMap<usize, usize> = starts.iter().enumerate().map(|(block, &at)| (at, block)).collect();
    let ends = |block: usize| starts.get(block + 1).copied().unwrap_or(statements.len());
    let advance = |set: &mut Set, at: usize| {
        if statements[at].guard.is_none() {
            statements[at].writes.iter().for_each(|&number| set.insert(number));
        }
    };

    let mut entered: Vec<Set> = vec![Set::full(registers); starts.len()];
    entered[0] = Set::empty(registers);
    let mut work: Vec<usize> = vec![0];
    let mut seen = vec![false; starts.len()];
    while let Some(block) = work.pop() {
        seen[block] = true;
        let mut set = entered[block].clone();
        (starts[block]..ends(block)).for_each(|at| advance(&mut set, at));
        let last = &statements[ends(block) - 1];
        let next = if last.falls_through() { Some(ends(block)) } else { None };
        for successor in next.into_iter().chain(last.jump).filter_map(|at| block_of.get(&at).copied()) {
            let mut merged = entered[successor].clone();
            merged.intersect(&set);
            if merged != entered[successor] || !seen[successor] {
                entered[successor] = merged;
                seen[successor] = true;
                work.push(successor);
            }
        }
    }

    let mut tracked: HashMap<usize, u16> = HashMap::new();
    let mut checks: BTreeMap<usize, Check> = BTreeMap::new();
    for block in 0..starts.len() {
        let mut set = entered[block].clone();
        for (at, node) in statements.iter().enumerate().take(ends(block)).skip(starts[block]) {
            for &number in node.reads.iter().filter(|&&number| !set.has(number)) {
                let next = tracked.len().min(usize::from(u16::MAX)) as u16;
                let index = *tracked.entry(number).or_insert(next);
                let (check, read) = (checks.entry(at).or_default(), (index, flow.names[number].clone()));
                if node.guard == Some(number) {
                    check.guard = Some(read);
                } else {
                    check.reads.push(read);
                }
            }
            advance(&mut set, at);
        }
    }
    for (at, node) in statements.iter().enumerate() {
        let writes: Vec<u16> = node.writes.iter().filter_map(|number| tracked.get(number).copied()).collect();
        if !writes.is_empty() {
            checks.entry(at).or_default().writes = writes;
        }
        let touches = flow.touches(node);
        if !touches.is_empty() {
            checks.entry(at).or_default().touches = touches;
        }
    }
    (checks, tracked.len())
}

impl Check {
    /// The reads, before the first instruction of a statement, and the writes, after its last.
    pub(crate) fn split(self) -> (Check, Option<Check>) {
        let after = Check { writes: self.writes, ..Check::default() };
        (Check { writes: Vec::new(), ..self }, Some(after))
    }
}
