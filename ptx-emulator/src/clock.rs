//! Vector clocks: what each warp of a block knows of the others' time.
//!
//! Besides the warps there are parties with no program of their own. The tensor cores of a warpgroup have a clock that
//! counts its `wgmma`, so that whoever has waited for one knows that its reads are over. An mbarrier's clock counts its
//! phases: the writes of a bulk copy are known to who knows that the phase they were counted in has ended. A warp's
//! fences have the time up to which its writes are fenced for the asynchronous proxy.

/// Most warps a block can have.
pub(crate) const MAX_WARPS: usize = 32;
/// Most mbarriers that a block can have at one time here.
pub(crate) const MAX_MBARRIERS: usize = PARTIES - FIRST_MBARRIER as usize;

const PARTIES: usize = 128;
const FIRST_FENCES: u32 = MAX_WARPS as u32;
const FIRST_CORES: u32 = FIRST_FENCES + MAX_WARPS as u32;
const FIRST_MBARRIER: u32 = FIRST_CORES + MAX_WARPS as u32 / 4;

/// Somebody with a time of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Party(u32);

/// A party for what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Warp(u32),
    Fences(u32),
    TensorCores(u32),
    Mbarrier(u32),
}

impl Party {
    pub(crate) const fn warp(id: u32) -> Party {
        Party(id)
    }

    /// The proxy fences of a warp.
    pub(crate) const fn fences(warp: u32) -> Party {
        Party(FIRST_FENCES + warp)
    }

    /// The tensor cores of a warpgroup.
    pub(crate) const fn tensor_cores(group: u32) -> Party {
        Party(FIRST_CORES + group)
    }

    pub(crate) const fn mbarrier(index: u32) -> Party {
        Party(FIRST_MBARRIER + index)
    }

    pub(crate) fn role(self) -> Role {
        match self.0 {
            FIRST_MBARRIER.. => Role::Mbarrier(self.0 - FIRST_MBARRIER),
            FIRST_CORES.. => Role::TensorCores(self.0 - FIRST_CORES),
            FIRST_FENCES.. => Role::Fences(self.0 - FIRST_FENCES),
            _ => Role::Warp(self.0),
        }
    }
}

impl std::fmt::Display for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.role() {
            Role::Warp(id) => write!(f, "warp {id}"),
            Role::Fences(id) => write!(f, "the fences of warp {id}"),
            Role::TensorCores(group) => write!(f, "a `wgmma` of warpgroup {group}"),
            Role::Mbarrier(_) => write!(f, "a bulk copy"),
        }
    }
}

/// The time of every party, as one of them knows it.
#[derive(Clone, Copy)]
pub(crate) struct VectorClock([u32; PARTIES]);

impl VectorClock {
    pub(crate) const ZERO: VectorClock = VectorClock([0; PARTIES]);

    #[inline]
    pub(crate) fn of(&self, party: Party) -> u32 {
        self.0[party.0 as usize % PARTIES]
    }

    pub(crate) fn set(&mut self, party: Party, time: u32) {
        self.0[party.0 as usize % PARTIES] = time;
    }

    /// Learns what `other` knows.
    pub(crate) fn join(&mut self, other: &VectorClock) {
        self.0.iter_mut().zip(&other.0).for_each(|(own, &other)| *own = other.max(*own));
    }

    /// Keeps what `other` knows too.
    pub(crate) fn meet(&mut self, other: &VectorClock) {
        self.0.iter_mut().zip(&other.0).for_each(|(own, &other)| *own = other.min(*own));
    }
}

/// One moment of one party: strong bit, 7 bits of party, 24 bits of its clock. Zero is none, since clocks begin at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u32);

const STRONG: u32 = 1 << 31;
const TIME_BITS: u32 = 24;
/// Clocks stop here; a kernel with more barriers runs out of budget first.
pub(crate) const LAST_TIME: u32 = (1 << TIME_BITS) - 1;

impl Epoch {
    pub(crate) const NONE: Epoch = Epoch(0);

    #[inline]
    pub(crate) fn new(party: Party, time: u32, strong: bool) -> Epoch {
        Epoch(if strong { STRONG } else { 0 } | party.0 << TIME_BITS | time.min(LAST_TIME))
    }

    #[inline]
    pub(crate) fn party(self) -> Party {
        Party(self.0 >> TIME_BITS & 0x7f)
    }

    #[inline]
    pub(crate) fn time(self) -> u32 {
        self.0 & LAST_TIME
    }

    #[inline]
    pub(crate) fn is_strong(self) -> bool {
        self.0 & STRONG != 0
    }

    /// Whether the moment is the same, strong or not.
    #[inline]
    pub(crate) fn is_with(self, other: Epoch) -> bool {
        (self.0 ^ other.0) & !STRONG == 0
    }

    /// Whether it has happened before what `clock` knows.
    #[inline]
    pub(crate) fn is_known(self, clock: &VectorClock) -> bool {
        self.time() <= clock.of(self.party())
    }
}
