//! A warp: its registers lane by lane, and which of its lanes are where.

use std::collections::VecDeque;

use crate::clock::{LAST_TIME, Party, VectorClock};
use crate::exec::async_copy::InFlight;
use crate::mbarrier::Phase;
use crate::module::{Initial, Kernel, Special};
use crate::op::{Register, Slot};
use crate::warpgroup::Multiplies;

/// Threads of a warp.
pub(crate) const LANES: usize = 32;

/// A 32-bit register of all lanes.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Words(pub(crate) [u32; LANES]);

/// A 64-bit register of all lanes.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Longs(pub(crate) [u64; LANES]);

/// The indices of the set bits.
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

/// The register files.
pub(crate) struct Registers {
    pub(crate) predicates: Vec<u32>,
    pub(crate) words: Vec<Words>,
    pub(crate) longs: Vec<Longs>,
    /// Lanes that have written each tracked register.
    pub(crate) written: Vec<u32>,
}

impl Registers {
    /// The value of a register in one lane, zero-extended.
    #[inline]
    pub(crate) fn get(&self, register: Register, lane: usize) -> u64 {
        match register {
            Register::Predicate(slot) => u64::from(self.predicates[slot as usize] >> lane & 1),
            Register::Word(slot) => u64::from(self.words[slot as usize].0[lane]),
            Register::Long(slot) => self.longs[slot as usize].0[lane],
        }
    }

    /// Sets a register in one lane, dropping the bits that it has no room for.
    #[inline]
    pub(crate) fn set(&mut self, register: Register, lane: usize, value: u64) {
        match register {
            Register::Predicate(slot) => {
                let bit = 1 << lane;
                let old = self.predicates[slot as usize] & !bit;
                self.predicates[slot as usize] = if value & 1 != 0 { old | bit } else { old };
            }
            Register::Word(slot) => self.words[slot as usize].0[lane] = value as u32,
            Register::Long(slot) => self.longs[slot as usize].0[lane] = value,
        }
    }

    /// Sets a predicate in the lanes of `mask`.
    pub(crate) fn set_predicate(&mut self, slot: Slot, mask: u32, bits: u32) {
        let old = &mut self.predicates[slot as usize];
        *old = *old & !mask | bits & mask;
    }
}

/// Why a group of lanes does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It could.
    Ready,
    /// For the other lanes of the warp to come to the same instruction.
    Convergence,
    /// At a barrier of the block.
    Barrier(u32),
    /// For a phase of the mbarrier at an offset, having asked for it in vain.
    Phase { mbarrier: u32, phase: Phase },
    /// For all warps of the warpgroup to issue an operation.
    Operation(u32),
    /// For free registers.
    Registers(u32),
}

/// Lanes that are at the same instruction but not running.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) wait: Wait,
}

/// One warp of a block.
pub(crate) struct Warp {
    pub(crate) id: u32,
    pub(crate) registers: Registers,
    /// Lanes that have a thread.
    pub(crate) exists: u32,
    pub(crate) exited: u32,
    /// Lanes that have yet to wait for the launches in front.
    pub(crate) early: u32,
    /// The lanes that run, and where.
    pub(crate) active: u32,
    pub(crate) pc: u32,
    pub(crate) parked: Vec<Group>,
    pub(crate) clock: VectorClock,
    /// `cp.async` that has not landed, oldest first.
    pub(crate) in_flight: VecDeque<InFlight>,
    /// `cp.async` instructions so far.
    pub(crate) flights: u64,
    /// Groups each lane has committed.
    pub(crate) committed: [u32; LANES],
    pub(crate) multiplies: Multiplies,
    /// Whether the instruction of a warpgroup at which the warp waits has been counted.
    pub(crate) came: bool,
    /// Registers of a thread.
    pub(crate) register_count: u32,
}

/// What a warp starts with.
pub(crate) struct Start {
    pub(crate) grid: [u32; 3],
    pub(crate) block_size: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: u32,
    pub(crate) total_shared: u32,
    /// Whether the launches in front may still be at work.
    pub(crate) early: bool,
}

impl Start {
    pub(crate) fn threads(&self) -> u32 {
        self.block_size.iter().product()
    }

    fn special(&self, special: Special, warp: u32, lane: u32) -> u64 {
        let thread = warp * 32 + lane;
        let [x, y, _] = self.block_size;
        u64::from(match special {
            Special::Thread(0) => thread % x,
            Special::Thread(1) => thread / x % y,
            Special::Thread(_) => thread / (x * y),
            Special::BlockSize(axis) => self.block_size[axis as usize],
            Special::Block(axis) => self.block[axis as usize],
            Special::GridSize(axis) => self.grid[axis as usize],
            Special::Lane => lane,
            Special::Warp => warp,
            Special::Warps => self.threads().div_ceil(32),
            Special::LaneMaskEq => 1 << lane,
            Special::LaneMaskLt => (1 << lane) - 1,
            Special::LaneMaskLe => u32::MAX >> (31 - lane),
            Special::LaneMaskGt => !(u32::MAX >> (31 - lane)),
            Special::LaneMaskGe => u32::MAX << lane,
            Special::DynamicShared => self.dynamic_shared,
            Special::TotalShared => self.total_shared,
            Special::Zero => 0,
        })
    }
}

impl Warp {
    /// What comes after a barrier of the warp or of the block is another time.
    pub(crate) fn tick(&mut self) {
        let own = Party::warp(self.id);
        self.clock.set(own, (self.clock.of(own) + 1).min(LAST_TIME));
    }

    pub(crate) fn new(kernel: &Kernel, id: u32, start: &Start) -> Warp {
        let value = |initial: Initial, lane: usize| match initial {
            Initial::Unwritten => 0,
            Initial::Constant(bits) => bits,
            Initial::Special(special) => start.special(special, id, lane as u32),
        };
        let predicates = kernel.predicates.iter().map(|&initial| value(initial, 0) as u32).collect();
        let mut words = vec![Words([0; LANES]); kernel.words.len()];
        for (word, &initial) in words.iter_mut().zip(&kernel.words).filter(|(_, i)| **i != Initial::Unwritten) {
            word.0 = std::array::from_fn(|lane| value(initial, lane) as u32);
        }
        let mut longs = vec![Longs([0; LANES]); kernel.longs.len()];
        for (long, &initial) in longs.iter_mut().zip(&kernel.longs).filter(|(_, i)| **i != Initial::Unwritten) {
            long.0 = std::array::from_fn(|lane| value(initial, lane));
        }
        let threads = (start.threads() - id * 32).min(32);
        let exists = u32::MAX >> (32 - threads);
        let mut clock = VectorClock::ZERO;
        clock.set(Party::warp(id), 1);
        Warp {
            id,
            registers: Registers { predicates, words, longs, written: vec![0; kernel.tracked] },
            exists,
            exited: 0,
            early: if start.early { exists } else { 0 },
            active: exists,
            pc: 0,
            parked: Vec::new(),
            clock,
            in_flight: VecDeque::new(),
            flights: 0,
            committed: [0; LANES],
            multiplies: Multiplies::new(if kernel.multiplies { kernel.words.len() } else { 0 }),
            came: false,
            register_count: kernel.registers_at_entry(start.threads()),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.exited == self.exists
    }

    /// Whether some lanes can go on.
    pub(crate) fn is_ready(&self) -> bool {
        self.active != 0 || self.parked.iter().any(|group| group.wait == Wait::Ready)
    }

    /// Puts the running lanes aside.
    pub(crate) fn park(&mut self, pc: u32, wait: Wait) {
        self.parked.push(Group { pc, mask: self.active, wait });
        self.active = 0;
    }

    /// After an instruction of a diverged warp: lanes at the same instruction run together again, and the lanes
    /// furthest behind run first. Returns whether any lanes run.
    pub(crate) fn regroup(&mut self) -> bool {
        let ready = self.parked.iter().filter(|group| group.wait == Wait::Ready);
        if let Some(behind) = ready.min_by_key(|group| group.pc).copied()
            && (self.active == 0 || behind.pc < self.pc)
        {
            if self.active != 0 {
                self.park(self.pc, Wait::Ready);
            }
            (self.pc, self.active) = (behind.pc, 0);
        } else if self.active == 0 {
            return false;
        }
        let (pc, mut active) = (self.pc, self.active);
        self.parked.retain(|group| {
            // Lanes that wait for convergence at this very instruction have just been joined.
            let joins = group.pc == pc && matches!(group.wait, Wait::Ready | Wait::Convergence);
            if joins {
                active |= group.mask;
            }
            !joins
        });
        self.active = active;
        true
    }

    /// Puts some of the running lanes aside.
    pub(crate) fn park_some(&mut self, mask: u32, pc: u32, wait: Wait) {
        self.parked.push(Group { pc, mask, wait });
        self.active &= !mask;
    }

    /// Wakes the lanes whose wait is over.
    pub(crate) fn wake(&mut self, mut is_over: impl FnMut(Wait) -> bool) {
        for group in &mut self.parked {
            if is_over(group.wait) {
                group.wait = Wait::Ready;
            }
        }
    }
}
