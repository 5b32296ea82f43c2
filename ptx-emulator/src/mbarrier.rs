//! The mbarriers of a block: arrivals and bytes of bulk copies that are awaited, phase after phase.

use crate::clock::{Epoch, MAX_MBARRIERS, Party, VectorClock};

/// The most arrivals, and bytes in either direction, that an mbarrier counts.
const MOST: i64 = (1 << 20) - 1;

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The end of the phase of this parity.
    Parity(u32),
    /// The end of the phase of this number.
    Number(u64),
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Phase::Parity(parity) => write!(f, "the phase of parity {}", parity & 1),
            Phase::Number(number) => write!(f, "phase {number}"),
        }
    }
}

/// One mbarrier.
pub(crate) struct Mbarrier {
    /// Offset in shared memory.
    offset: u32,
    /// Which party it is.
    index: usize,
    /// The moment of its initialisation.
    born: Epoch,
    /// Whether a bulk copy may use it: a fence has followed its initialisation.
    pub(crate) fenced: bool,
    expected: u32,
    pending: u32,
    /// Bytes that are announced and have not come; less than zero if they come first.
    bytes: i64,
    /// Phases that have ended.
    phase: u32,
    /// What those know who have arrived.
    arriving: VectorClock,
    /// What is known to who has waited for the last phase that has ended.
    released: VectorClock,
    /// Bulk copies in flight that will be counted here.
    pub(crate) copies: u32,
}

impl Mbarrier {
    fn party(&self) -> Party {
        Party::mbarrier(self.index as u32)
    }

    /// The time of writes that are counted in the current phase.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch::new(self.party(), self.phase + 1, false)
    }

    /// Whether the phase that somebody waits for has ended.
    pub(crate) fn is_over(&self, phase: Phase) -> bool {
        match phase {
            Phase::Parity(parity) => self.phase & 1 != parity & 1,
            Phase::Number(number) => u64::from(self.phase) > number,
        }
    }

    /// Whether its initialisation has happened before what a warp knows.
    pub(crate) fn is_known(&self, warp: u32, clock: &VectorClock) -> bool {
        self.born.party() == Party::warp(warp) || self.born.is_known(clock)
    }

    /// What is known to who has waited.
    pub(crate) fn released(&self) -> &VectorClock {
        &self.released
    }

    /// Number of the current phase.
    pub(crate) fn phase(&self) -> u32 {
        self.phase
    }

    /// Announces `bytes` bytes of bulk copies in the current phase.
    pub(crate) fn expect(&mut self, bytes: u32) -> Result<(), String> {
        self.bytes += i64::from(bytes);
        if self.bytes > MOST {
            return Err(format!("{} bytes are announced in one phase of an mbarrier; it counts to {MOST}", self.bytes));
        }
        Ok(())
    }

    /// Takes `count` arrivals by somebody who knows `clock`.
    pub(crate) fn arrive(&mut self, clock: &VectorClock, count: u32) -> Result<(), String> {
        if count == 0 || count > self.pending {
            return Err(format!(
                "{count} arrivals at an mbarrier whose phase {} awaits {} more of {}",
                self.phase, self.pending, self.expected
            ));
        }
        self.pending -= count;
        self.arriving.join(clock);
        self.settle();
        Ok(())
    }

    /// Counts the bytes of a bulk copy that has landed.
    pub(crate) fn complete(&mut self, bytes: u64) {
        self.copies = self.copies.saturating_sub(1);
        self.bytes -= bytes as i64;
        self.settle();
    }

    /// Ends the phase if nothing is awaited any more.
    fn settle(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.arriving.set(self.party(), self.phase);
            self.released = self.arriving;
        }
    }

    /// Whether nobody has arrived in the current phase and no copy is under way.
    fn is_idle(&self) -> bool {
        self.pending == self.expected && self.bytes == 0 && self.copies == 0
    }

    /// What the current phase lacks.
    pub(crate) fn lack(&self) -> String {
        let mut lack = format!("phase {} lacks {} of {} arrivals", self.phase, self.pending, self.expected);
        match self.bytes {
            0 => {}
            1.. => lack += &format!(" and {} bytes of bulk copies", self.bytes),
            _ => lack += &format!(" and has got {} bytes that nobody announced", -self.bytes),
        }
        lack
    }
}

/// All mbarriers of a block. There are few, so that looking is fast enough.
pub(crate) struct Mbarriers {
    all: Vec<Mbarrier>,
    /// Phases of the last mbarrier of each party: the next one goes on from its time.
    ended: [u32; MAX_MBARRIERS],
}

impl Mbarriers {
    pub(crate) fn new() -> Mbarriers {
        Mbarriers { all: Vec::new(), ended: [0; MAX_MBARRIERS] }
    }

    pub(crate) fn at(&mut self, offset: u32) -> Option<&mut Mbarrier> {
        self.all.iter_mut().find(|mbarrier| mbarrier.offset == offset)
    }

    pub(crate) fn get(&self, offset: u32) -> Option<&Mbarrier> {
        self.all.iter().find(|mbarrier| mbarrier.offset == offset)
    }

    /// A new mbarrier.
    pub(crate) fn initialise(&mut self, offset: u32, born: Epoch, count: u32) -> Result<(), String> {
        if count == 0 || i64::from(count) > MOST {
            return Err(format!("an mbarrier for {count} arrivals; it counts 1 to {MOST}"));
        }
        let taken = |index: usize| self.all.iter().any(|mbarrier| mbarrier.index == index);
        let Some(index) = (0..MAX_MBARRIERS).find(|&index| !taken(index)) else {
            return Err(format!("a block can have {MAX_MBARRIERS} mbarriers here, no more"));
        };
        let (party, phase) = (Party::mbarrier(index as u32), self.ended[index].next_multiple_of(2));
        let mut arriving = VectorClock::ZERO;
        arriving.set(party, phase);
        self.all.push(Mbarrier {
            offset,
            index,
            born,
            fenced: false,
            expected: count,
            pending: count,
            bytes: 0,
            phase,
            arriving,
            released: arriving,
            copies: 0,
        });
        Ok(())
    }

    /// Ends an mbarrier; false if it is in use.
    pub(crate) fn invalidate(&mut self, offset: u32) -> bool {
        let Some(at) = self.all.iter().position(|mbarrier| mbarrier.offset == offset && mbarrier.is_idle()) else {
            return false;
        };
        let gone = self.all.swap_remove(at);
        self.ended[gone.index] = gone.phase;
        true
    }

    /// A fence after initialisation by `warp`.
    pub(crate) fn fence(&mut self, warp: u32) {
        let own = self.all.iter_mut().filter(|mbarrier| mbarrier.born.party() == Party::warp(warp));
        own.for_each(|mbarrier| mbarrier.fenced = true);
    }
}
