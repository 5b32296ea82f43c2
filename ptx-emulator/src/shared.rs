//! A block's shared memory with its shadows.
//!
//! Beside each byte stands its state: never written, written, or on its way by `cp.async`. Races are found by
//! happens-before: each warp has a vector clock, which barriers join; each granule of memory (1, 2 or 4 bytes, the
//! smallest access of the kernel) remembers its last write and, per warp, its last read. Two accesses of different
//! warps, one of them a write, must be ordered by the clocks. Atomics and other strong accesses do not race with each
//! other, but order nothing. Within a warp, a lane may read what another has written only after a barrier, of the block
//! or of the warp: both advance the warp's own clock.

use std::ops::Range;

use crate::decode::SHARED_BASE;
use crate::memory::aligned;
use crate::report::{Fault, Outcome, ReportKind};

/// Most warps a block can have.
pub(crate) const MAX_WARPS: usize = 32;

/// What each warp knows of every warp's time.
pub(crate) type VectorClock = [u32; MAX_WARPS];

const UNWRITTEN: u8 = 0;
const WRITTEN: u8 = 1;
const PENDING: u8 = 2;

/// A write: strong bit, 7 bits of warp, 24 bits of that warp's clock. Zero is none, since clocks begin at 1.
type Epoch = u32;
const STRONG: u32 = 1 << 31;
const CLOCK_BITS: u32 = 24;
/// Clocks stop here; a kernel with more barriers runs out of budget first.
pub(crate) const LAST_CLOCK: u32 = (1 << CLOCK_BITS) - 1;

/// Who accesses.
#[derive(Clone, Copy)]
pub(crate) struct Actor<'a> {
    pub(crate) warp: u32,
    pub(crate) clock: &'a VectorClock,
    pub(crate) strong: bool,
    /// Line of the instruction, remembered for the other side of a race.
    pub(crate) line: u32,
    /// Bytes of each lane where a range belongs to all lanes of the warp, one after the other; 0 where to one lane.
    pub(crate) each: u32,
}

impl Actor<'_> {
    fn epoch(&self) -> Epoch {
        let strong = if self.strong { STRONG } else { 0 };
        strong | self.warp << CLOCK_BITS | self.clock[self.warp as usize]
    }

    /// Whether a write has happened before now, or cannot race with this access.
    #[inline]
    fn after(&self, epoch: Epoch) -> bool {
        let warp = epoch >> CLOCK_BITS & 0x7f;
        warp == self.warp || epoch & LAST_CLOCK <= self.clock[warp as usize] || (self.strong && epoch & STRONG != 0)
    }
}

/// Shared memory of one block.
pub(crate) struct Shared {
    bytes: Vec<u8>,
    state: Vec<u8>,
    /// Log2 of the bytes of a granule.
    granule: u32,
    granules: usize,
    writes: Vec<Epoch>,
    write_lines: Vec<u32>,
    write_lanes: Vec<u8>,
    /// Clock of each warp's last read of each granule, warp after warp.
    reads: Vec<u32>,
    warps: usize,
}

impl Shared {
    pub(crate) fn new(bytes: u32, granule: u32, warps: usize) -> Shared {
        let granules = (bytes as usize).div_ceil(granule as usize);
        Shared {
            bytes: vec![0; bytes as usize],
            state: vec![UNWRITTEN; bytes as usize],
            granule: granule.trailing_zeros(),
            granules,
            writes: vec![0; granules],
            write_lines: vec![0; granules],
            write_lanes: vec![0; granules],
            reads: vec![0; granules * warps],
            warps,
        }
    }

    /// Checks bounds and alignment and gives the offset.
    #[inline]
    pub(crate) fn offset(&self, lane: u32, address: u64, bytes: u32, verb: &str) -> Outcome<usize> {
        aligned(lane, address, bytes)?;
        if let Some(offset) = self.range(address, bytes) {
            return Ok(offset);
        }
        let sentence = format!(
            "{verb} of {bytes} bytes at byte {} of shared memory; the block has {} bytes of it",
            address.wrapping_sub(u64::from(SHARED_BASE)) as i64,
            self.bytes.len()
        );
        Err(Fault::at(ReportKind::OutOfBounds, lane, address, sentence))
    }

    /// Offset of a range, if it is inside.
    #[inline]
    pub(crate) fn range(&self, address: u64, bytes: u32) -> Option<usize> {
        let offset = address.wrapping_sub(u64::from(SHARED_BASE));
        let inside = offset < self.bytes.len() as u64 && self.bytes.len() as u64 - offset >= u64::from(bytes);
        inside.then_some(offset as usize)
    }

    #[inline]
    fn all_written(&self, offset: usize, bytes: u32) -> bool {
        let state = &self.state[offset..offset + bytes as usize];
        match state.len() {
            16 => state.first_chunk::<16>() == Some(&[WRITTEN; 16]),
            4 => state.first_chunk::<4>() == Some(&[WRITTEN; 4]),
            _ => state == &[WRITTEN; 512][..state.len()],
        }
    }

    #[inline]
    fn granules_of(&self, offset: usize, bytes: u32) -> Range<usize> {
        offset >> self.granule..((offset + bytes as usize - 1) >> self.granule) + 1
    }

    /// Notes a read and checks that it may happen now.
    #[inline(always)]
    pub(crate) fn note_read(&mut self, actor: &Actor<'_>, lane: u32, offset: usize, bytes: u32) -> Outcome {
        if !self.all_written(offset, bytes) {
            return Err(self.unreadable(lane, offset, bytes));
        }
        let now = actor.clock[actor.warp as usize];
        let range = self.granules_of(offset, bytes);
        let row = actor.warp as usize * self.granules;
        self.check_writes(actor, lane, range.clone(), "read")?;
        self.check_lanes(actor, lane, range.clone())?;
        if !actor.strong {
            self.reads[row + range.start..row + range.end].fill(now);
        }
        Ok(())
    }

    /// Checks that the last writes have happened before.
    #[inline(always)]
    fn check_writes(&self, actor: &Actor<'_>, lane: u32, range: Range<usize>, verb: &str) -> Outcome {
        let mut known = 0;
        for (at, &epoch) in self.writes[range.clone()].iter().enumerate() {
            if epoch != known && epoch != 0 {
                if !actor.after(epoch) {
                    return Err(self.race(lane, range.start + at, verb));
                }
                known = epoch;
            }
        }
        Ok(())
    }

    /// Checks that no other lane of the warp has written since the last barrier.
    #[inline]
    fn check_lanes(&self, actor: &Actor<'_>, lane: u32, range: Range<usize>) -> Outcome {
        let own = actor.epoch();
        for (at, &epoch) in self.writes[range.clone()].iter().enumerate() {
            if (epoch ^ own) & !STRONG == 0 && epoch & own & STRONG == 0 {
                let (reader, writer) = (self.lane_of(actor, lane, at), self.write_lanes[range.start + at]);
                if reader != writer {
                    return Err(self.lane_race(reader.into(), range.start + at));
                }
            }
        }
        Ok(())
    }

    /// The lane to which granule `at` of an access belongs.
    #[inline]
    fn lane_of(&self, actor: &Actor<'_>, lane: u32, at: usize) -> u8 {
        let first = if actor.each == 0 { 0 } else { ((at << self.granule) / actor.each as usize) as u32 };
        (lane + first) as u8
    }

    /// Checks that a write may happen now.
    #[inline]
    pub(crate) fn check_write(&self, actor: &Actor<'_>, lane: u32, offset: usize, bytes: u32) -> Outcome {
        if self.state[offset..offset + bytes as usize].contains(&PENDING) {
            let sentence =
                "a write to bytes that a `cp.async` may still write; its thread must wait for the group first";
            return Err(Fault::at(ReportKind::AsyncOverwrite, lane, self.address(offset), sentence));
        }
        let range = self.granules_of(offset, bytes);
        self.check_writes(actor, lane, range.clone(), "write")?;
        for warp in (0..self.warps).filter(|&warp| warp != actor.warp as usize) {
            let row = warp * self.granules;
            let reads = &self.reads[row + range.start..row + range.end];
            if reads.iter().fold(0, |latest, &read| latest.max(read)) > actor.clock[warp] {
                let sentence = format!(
                    "a write races with a read of the same bytes by warp {warp}: no barrier stands between them"
                );
                return Err(Fault::at(ReportKind::SharedRace, lane, self.address(offset), sentence));
            }
        }
        Ok(())
    }

    /// Notes a write and checks that it may happen now.
    #[inline]
    pub(crate) fn note_write(&mut self, actor: &Actor<'_>, lane: u32, offset: usize, bytes: u32) -> Outcome {
        self.check_write(actor, lane, offset, bytes)?;
        self.mark_written(actor, lane, offset, bytes);
        Ok(())
    }

    fn mark_written(&mut self, actor: &Actor<'_>, lane: u32, offset: usize, bytes: u32) {
        self.state[offset..offset + bytes as usize].fill(WRITTEN);
        let range = self.granules_of(offset, bytes);
        self.writes[range.clone()].fill(actor.epoch());
        self.write_lines[range.clone()].fill(actor.line);
        if actor.each == 0 {
            self.write_lanes[range].fill(lane as u8);
        } else {
            for (at, granule) in range.enumerate() {
                self.write_lanes[granule] = self.lane_of(actor, lane, at);
            }
        }
    }

    /// Begins an asynchronous write: the bytes belong to nobody until it lands.
    pub(crate) fn begin_async(&mut self, actor: &Actor<'_>, lane: u32, offset: usize, bytes: u32) -> Outcome {
        self.check_write(actor, lane, offset, bytes)?;
        self.state[offset..offset + bytes as usize].fill(PENDING);
        Ok(())
    }

    /// Lands an asynchronous write.
    pub(crate) fn land_async(&mut self, actor: &Actor<'_>, lane: u32, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.mark_written(actor, lane, offset, data.len() as u32);
    }

    /// Reads up to 8 bytes, checked before.
    #[inline]
    pub(crate) fn load(&self, offset: usize, bytes: u32) -> u64 {
        match bytes {
            4 => self.bytes[offset..].first_chunk().map_or(0, |&chunk| u64::from(u32::from_le_bytes(chunk))),
            8 => self.bytes[offset..].first_chunk().map_or(0, |&chunk| u64::from_le_bytes(chunk)),
            _ => self.bytes[offset..offset + bytes as usize]
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte)),
        }
    }

    /// Writes up to 8 bytes, checked before.
    #[inline]
    pub(crate) fn store(&mut self, offset: usize, bytes: u32, value: u64) {
        self.bytes[offset..offset + bytes as usize].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
    }

    /// Sixteen bytes, checked before.
    #[inline]
    pub(crate) fn row(&self, offset: usize) -> [u8; 16] {
        self.bytes[offset..].first_chunk().copied().unwrap_or([0; 16])
    }

    fn address(&self, offset: usize) -> u64 {
        u64::from(SHARED_BASE) + offset as u64
    }

    #[cold]
    fn unreadable(&self, lane: u32, offset: usize, bytes: u32) -> Box<Fault> {
        let state = &self.state[offset..offset + bytes as usize];
        let first = state.iter().position(|&state| state != WRITTEN).unwrap_or(0);
        let address = self.address(offset + first);
        if state.contains(&PENDING) {
            let sentence = "a read of bytes that a `cp.async` is still writing: the thread that issued it must wait for \
                            its group (and a barrier must follow, if that is another thread)";
            return Fault::at(ReportKind::AsyncRead, lane, address, sentence);
        }
        let sentence = "a read of shared memory that no thread of the block has written";
        Fault::at(ReportKind::UninitialisedRead, lane, address, sentence)
    }

    #[cold]
    fn lane_race(&self, lane: u32, at: usize) -> Box<Fault> {
        let sentence = format!(
            "a read races with the write of the same bytes by lane {} of this warp at line {}: no barrier of the warp or \
             of the block stands between them",
            self.write_lanes[at], self.write_lines[at]
        );
        Fault::at(ReportKind::SharedRace, lane, self.address(at << self.granule), sentence)
    }

    #[cold]
    fn race(&self, lane: u32, at: usize, verb: &str) -> Box<Fault> {
        let sentence = format!(
            "a {verb} races with the write of the same bytes by warp {} at line {}: no barrier stands between them",
            self.writes[at] >> CLOCK_BITS & 0x7f,
            self.write_lines[at]
        );
        Fault::at(ReportKind::SharedRace, lane, self.address(at << self.granule), sentence)
    }
}
