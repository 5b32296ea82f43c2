//! A block's shared memory with its shadows.
//!
//! Beside each byte stands its state: never written, written, on its way by an asynchronous copy, or part of an
//! mbarrier. Races are found by happens-before: each warp has a vector clock, which barriers join; each granule of
//! memory (1 to 16 bytes, the smallest access of the kernel) remembers its last write and, per reader, its last read.
//! Two accesses of different parties, one of them a write, must be ordered by the clocks. Atomics and other strong
//! accesses do not race with each other, but order nothing. Within a warp, a lane may read what another has written only
//! after a barrier, of the block or of the warp: both advance the warp's own clock.

mod proxy;

use std::ops::Range;

use crate::clock::{Epoch, MAX_WARPS, Party, Role, VectorClock};
use crate::decode::SHARED_BASE;
use crate::memory::aligned;
use crate::report::{Fault, Outcome, ReportKind};

pub(crate) use proxy::TensorCores;

/// What a byte is.
const UNWRITTEN: u8 = 0;
const WRITTEN: u8 = 1;
/// On its way by `cp.async`.
const PENDING: u8 = 2;
/// On its way by a bulk copy.
const BULK: u8 = 3;
/// Of an mbarrier, which only its own instructions may access.
const MBARRIER: u8 = 4;

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
        let party = Party::warp(self.warp);
        Epoch::new(party, self.clock.of(party), self.strong)
    }

    /// Whether a write has happened before now, or cannot race with this access.
    #[inline]
    fn after(&self, epoch: Epoch) -> bool {
        epoch.party() == Party::warp(self.warp) || epoch.is_known(self.clock) || (self.strong && epoch.is_strong())
    }
}

/// Address of an offset.
pub(crate) fn address(offset: usize) -> u64 {
    u64::from(SHARED_BASE) + offset as u64
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
    /// Time of each reader's last read of each granule, reader after reader.
    reads: Vec<u32>,
    /// Time of each reader's last read of any.
    latest: Vec<u32>,
    /// The warps, then the tensor cores of their warpgroups.
    readers: Vec<Party>,
    warps: usize,
    /// Lanes of each warp that have written since their last proxy fence.
    unfenced: [u32; MAX_WARPS],
}

impl Shared {
    pub(crate) fn new(bytes: u32, granule: u32, warps: usize) -> Shared {
        let granules = (bytes as usize).div_ceil(granule as usize);
        let groups = (0..warps as u32 / 4).map(Party::tensor_cores);
        let readers: Vec<Party> = (0..warps as u32).map(Party::warp).chain(groups).collect();
        Shared {
            bytes: vec![0; bytes as usize],
            state: vec![UNWRITTEN; bytes as usize],
            granule: granule.trailing_zeros(),
            granules,
            writes: vec![Epoch::NONE; granules],
            write_lines: vec![0; granules],
            write_lanes: vec![0; granules],
            reads: vec![0; granules * readers.len()],
            latest: vec![0; readers.len()],
            readers,
            warps,
            unfenced: [0; MAX_WARPS],
        }
    }

    /// Checks bounds and alignment and gives the offset.
    #[inline]
    pub(crate) fn offset(&self, lane: u32, address: u64, bytes: u32, verb: &str) -> Outcome<usize> {
        aligned(lane, address, bytes)?;
        self.inside(lane, address, bytes, verb)
    }

    /// Checks bounds and gives the offset.
    #[inline]
    pub(crate) fn inside(&self, lane: u32, address: u64, bytes: u32, verb: &str) -> Outcome<usize> {
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
        let range = self.granules_of(offset, bytes);
        self.check_writes(actor, lane, range.clone(), "read")?;
        self.check_lanes(actor, lane, range.clone())?;
        if !actor.strong {
            self.mark_read(actor.warp as usize, actor.clock.of(Party::warp(actor.warp)), range);
        }
        Ok(())
    }

    #[inline]
    fn mark_read(&mut self, reader: usize, now: u32, range: Range<usize>) {
        let row = reader * self.granules;
        self.reads[row + range.start..row + range.end].fill(now);
        self.latest[reader] = now;
    }

    /// Checks that the last writes have happened before.
    #[inline(always)]
    fn check_writes(&self, actor: &Actor<'_>, lane: u32, range: Range<usize>, verb: &str) -> Outcome {
        let mut known = Epoch::NONE;
        for (at, &epoch) in self.writes[range.clone()].iter().enumerate() {
            if epoch != known && epoch != Epoch::NONE {
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
            if epoch.is_with(own) && !(epoch.is_strong() && own.is_strong()) {
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
        if self.state[offset..offset + bytes as usize].iter().fold(0, |most, &state| state.max(most)) > WRITTEN {
            return Err(self.unwritable(lane, offset, bytes));
        }
        let range = self.granules_of(offset, bytes);
        self.check_writes(actor, lane, range.clone(), "write")?;
        for (reader, &party) in self.readers.iter().enumerate().filter(|(reader, _)| *reader != actor.warp as usize) {
            let known = actor.clock.of(party);
            // Most readers are known to be through with everything.
            if self.latest[reader] <= known {
                continue;
            }
            let row = reader * self.granules;
            let reads = &self.reads[row + range.start..row + range.end];
            if reads.iter().fold(0, |latest, &read| latest.max(read)) > known {
                let sentence =
                    format!("a write races with a read of the same bytes by {party}: no barrier stands between them");
                return Err(Fault::at(ReportKind::SharedRace, lane, address(offset), sentence));
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
        self.unfenced[actor.warp as usize % MAX_WARPS] |= if actor.each == 0 { 1 << lane } else { u32::MAX };
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

    #[cold]
    fn unreadable(&self, lane: u32, offset: usize, bytes: u32) -> Box<Fault> {
        let state = &self.state[offset..offset + bytes as usize];
        let first = state.iter().position(|&state| state != WRITTEN).unwrap_or(0);
        let address = address(offset + first);
        let fault = |kind, sentence: String| Fault::at(kind, lane, address, sentence);
        match state[first] {
            PENDING => fault(
                ReportKind::AsyncRead,
                "a read of bytes that a `cp.async` is still writing: the thread that issued it must wait for its group \
                 (and a barrier must follow, if that is another thread)"
                    .to_string(),
            ),
            BULK => fault(
                ReportKind::AsyncRead,
                format!(
                    "a read of bytes that the bulk copy of line {} is still writing: wait for the phase of its mbarrier \
                     before you read, or if it is the next copy to this place, let it begin only after you have read",
                    self.line_at(offset + first)
                ),
            ),
            MBARRIER => fault(ReportKind::Mbarrier, "an mbarrier is read like data".to_string()),
            _ => fault(
                ReportKind::UninitialisedRead,
                "a read of shared memory that no thread of the block has written".to_string(),
            ),
        }
    }

    #[cold]
    fn unwritable(&self, lane: u32, offset: usize, bytes: u32) -> Box<Fault> {
        let state = &self.state[offset..offset + bytes as usize];
        let first = state.iter().position(|&state| state > WRITTEN).unwrap_or(0);
        let address = address(offset + first);
        let (kind, sentence) = match state[first] {
            PENDING => (
                ReportKind::AsyncOverwrite,
                "a write to bytes that a `cp.async` may still write; its thread must wait for the group first"
                    .to_string(),
            ),
            BULK => (
                ReportKind::AsyncOverwrite,
                format!(
                    "a write to bytes that the bulk copy of line {} may still write; wait for the phase of its mbarrier \
                     first",
                    self.line_at(offset + first)
                ),
            ),
            _ => (ReportKind::Mbarrier, "an mbarrier is overwritten like data; invalidate it first".to_string()),
        };
        Fault::at(kind, lane, address, sentence)
    }

    /// Line of the last write.
    fn line_at(&self, offset: usize) -> u32 {
        self.write_lines[offset >> self.granule]
    }

    #[cold]
    fn lane_race(&self, lane: u32, at: usize) -> Box<Fault> {
        let sentence = format!(
            "a read races with the write of the same bytes by lane {} of this warp at line {}: no barrier of the warp or \
             of the block stands between them",
            self.write_lanes[at], self.write_lines[at]
        );
        Fault::at(ReportKind::SharedRace, lane, address(at << self.granule), sentence)
    }

    #[cold]
    fn race(&self, lane: u32, at: usize, verb: &str) -> Box<Fault> {
        let (writer, line) = (self.writes[at].party(), self.write_lines[at]);
        let address = address(at << self.granule);
        if let Role::Mbarrier(_) = writer.role() {
            let kind = if verb == "write" { ReportKind::AsyncOverwrite } else { ReportKind::AsyncRead };
            let sentence = format!(
                "a {verb} of bytes that the bulk copy of line {line} has written, without a wait for the phase of its \
                 mbarrier in between (or it is the next copy to this place, and has begun too early)"
            );
            return Fault::at(kind, lane, address, sentence);
        }
        let sentence = format!(
            "a {verb} races with the write of the same bytes by {writer} at line {line}: no barrier stands between them"
        );
        Fault::at(ReportKind::SharedRace, lane, address, sentence)
    }
}
