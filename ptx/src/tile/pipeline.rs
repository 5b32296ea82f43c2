//! Double buffering with `cp.async`.

use crate::isa::{B32, Builder, R32, SharedRegion, Source};

/// Two buffers that change places: while one is read, copies fill the other.
///
/// One barrier a turn is enough: it comes after the wait for the copies of this turn (so that everybody sees them) and
/// before the copies of the next (so that nobody still reads what they overwrite).
pub struct DoubleBuffer {
    bytes: u32,
    /// Offset of the buffer that is read.
    read: R32,
}

impl DoubleBuffer {
    /// Two buffers of `bytes`: the offset toggles between 0 and `bytes`.
    pub fn new(k: &mut Builder, bytes: u32) -> DoubleBuffer {
        DoubleBuffer { bytes, read: k.mov(0u32) }
    }

    /// Waits for the copies into the buffer that is read next, and for everyone to be done with the other.
    pub fn turn(&self, k: &mut Builder) {
        k.wait_copies(0);
        k.barrier();
    }

    /// Offset of the buffer that is read.
    pub fn read(&self) -> R32 {
        self.read
    }

    /// Offset of the buffer that is filled.
    pub fn write(&self, k: &mut Builder) -> R32 {
        k.xor(self.read, self.bytes)
    }

    /// The buffers change places.
    pub fn swap(&self, k: &mut Builder) {
        let other = self.write(k);
        k.set(self.read, other);
    }
}

/// Several buffers in a ring: while one is read, copies fill all others.
///
/// One barrier a turn is enough, for the reason that [`DoubleBuffer`] gives.
pub struct CopyRing {
    region: SharedRegion,
    stage: u32,
    stages: u32,
}

/// A ring with its first copies under way.
pub struct Filled {
    /// Offset of the stage that is filled next, and of the one that is read next.
    filled: R32,
    taken: R32,
    all: bool,
}

impl CopyRing {
    /// Reserves `stages` (2 or more) stages of `stage` bytes, a multiple of 1024.
    pub fn new(k: &mut Builder, stage: u32, stages: u32) -> CopyRing {
        debug_assert!(stages >= 2);
        CopyRing { region: k.shared(stage * stages, 1024), stage, stages }
    }

    /// Where the stages lie.
    pub fn region(&self) -> SharedRegion {
        self.region
    }

    /// How many there are.
    pub fn stages(&self) -> u32 {
        self.stages
    }

    /// Fills all stages but one, whether or not there are as many steps: `copy` starts the copies of a step into the stage at
    /// an offset.
    pub fn fill(&self, k: &mut Builder, copy: impl Fn(&mut Builder, R32, R32)) -> Filled {
        let (filled, taken) = (k.mov(0u32), k.mov(0u32));
        k.for_loop(0u32, self.stages - 1, 1, |k, step| {
            copy(k, step, filled);
            k.commit_copies();
            self.advance(k, filled);
        });
        Filled { filled, taken, all: false }
    }

    /// Fills all stages: for who has something to wait for before the first step. The last copies belong to the group that the
    /// first step ends.
    pub fn fill_all(&self, k: &mut Builder, copy: impl Fn(&mut Builder, R32, R32)) -> Filled {
        let filled = self.fill(k, &copy);
        let last = k.mov(self.stages - 1);
        copy(k, last, filled.filled);
        Filled { all: true, ..filled }
    }

    /// Fills the ring and takes `steps` steps from it.
    pub fn run(
        &self,
        k: &mut Builder,
        steps: impl Into<Source<B32>> + Copy,
        copy: impl Fn(&mut Builder, R32, R32),
        read: impl FnOnce(&mut Builder, R32, R32, &dyn Fn(&mut Builder)),
    ) {
        let filled = self.fill(k, &copy);
        self.take(k, filled, steps, copy, read);
    }

    /// Takes `steps` steps from a filled ring: `copy` is as above, `read` has the step and those of its copies before it. Where
    /// in `read` the copies of a later step start is for `read` to say: on every path once, and best behind its first products,
    /// which then cover the arithmetic of addresses.
    pub fn take(
        &self,
        k: &mut Builder,
        Filled { filled, taken, all }: Filled,
        steps: impl Into<Source<B32>> + Copy,
        copy: impl Fn(&mut Builder, R32, R32),
        read: impl FnOnce(&mut Builder, R32, R32, &dyn Fn(&mut Builder)),
    ) {
        let ahead = self.stages - 1;
        k.comment("steps");
        k.for_loop(0u32, steps, 1, |k, step| {
            k.wait_copies(ahead - 1);
            k.barrier();
            let later = k.add(step, ahead);
            let mut exists = k.lt_u(later, steps);
            if all {
                let missing = k.gt_u(step, 0u32);
                exists = k.and_p(exists, missing);
            }
            read(k, step, taken, &|k| k.if_then(exists, |k| copy(k, later, filled)));
            // Of nothing, at the end: so that as many groups as ever are younger than the one that is waited for.
            k.commit_copies();
            self.advance(k, filled);
            self.advance(k, taken);
        });
    }

    fn advance(&self, k: &mut Builder, offset: R32) {
        let next = k.add(offset, self.stage);
        let wraps = k.eq(next, self.stage * self.stages);
        let next = k.select(wraps, 0u32, next);
        k.set(offset, next);
    }
}
