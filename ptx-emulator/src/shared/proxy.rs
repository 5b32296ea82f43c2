//! What the asynchronous proxy does to shared memory: bulk copies write it, tensor cores read it. What a warp has
//! written is theirs to see only after a proxy fence by the lanes that wrote, which must have happened before too.

use super::{Actor, BULK, MBARRIER, Shared, UNWRITTEN, WRITTEN, address};
use crate::clock::{Epoch, MAX_WARPS, Party, Role, VectorClock};
use crate::report::{Fault, Outcome, ReportKind};

/// Who reads a tile: the tensor cores of a warpgroup.
pub(crate) struct TensorCores<'a> {
    pub(crate) group: u32,
    /// What was known when the instruction was issued.
    pub(crate) clock: &'a VectorClock,
    /// Number of the instruction, the time of these reads.
    pub(crate) number: u32,
}

impl Shared {
    /// A proxy fence by lanes of a warp; true if all its writes are fenced now.
    pub(crate) fn fence(&mut self, warp: u32, mask: u32) -> bool {
        let unfenced = &mut self.unfenced[warp as usize % MAX_WARPS];
        *unfenced &= !mask;
        *unfenced == 0
    }

    /// Begins a bulk copy: the bytes belong to nobody until it lands.
    pub(crate) fn begin_bulk(&mut self, actor: &Actor<'_>, lane: u32, offset: usize, bytes: u32) -> Outcome {
        self.check_write(actor, lane, offset, bytes)?;
        let range = self.granules_of(offset, bytes);
        let mut known = Epoch::NONE;
        for (at, &epoch) in self.writes[range.clone()].iter().enumerate().filter(|(_, epoch)| **epoch != Epoch::NONE) {
            if epoch != known {
                self.check_fenced(actor.clock, epoch, lane, range.start + at, "overwritten by a bulk copy")?;
                known = epoch;
            }
        }
        self.state[offset..offset + bytes as usize].fill(BULK);
        self.write_lines[range].fill(actor.line);
        Ok(())
    }

    /// Places sixteen bytes of a bulk copy.
    #[inline]
    pub(crate) fn put_row(&mut self, offset: usize, row: [u8; 16]) {
        self.bytes[offset..offset + 16].copy_from_slice(&row);
    }

    /// Ends a bulk copy, whose bytes are known to who knows `epoch`.
    pub(crate) fn end_bulk(&mut self, epoch: Epoch, offset: usize, bytes: u32) {
        self.state[offset..offset + bytes as usize].fill(WRITTEN);
        let range = self.granules_of(offset, bytes);
        self.writes[range].fill(epoch);
    }

    /// Turns 8 bytes into an mbarrier; false if there is one or a copy is under way.
    pub(crate) fn claim(&mut self, offset: usize) -> bool {
        let state = &mut self.state[offset..offset + 8];
        let free = state.iter().all(|&state| state <= WRITTEN);
        if free {
            state.fill(MBARRIER);
        }
        free
    }

    /// Turns an mbarrier into unwritten bytes.
    pub(crate) fn unclaim(&mut self, offset: usize) {
        self.state[offset..offset + 8].fill(UNWRITTEN);
    }

    /// Notes a read by tensor cores and checks that it may happen.
    #[inline]
    pub(crate) fn note_tile_read(&mut self, cores: &TensorCores<'_>, offset: usize, bytes: u32) -> Outcome {
        if !self.all_written(offset, bytes) {
            return Err(self.unreadable(0, offset, bytes));
        }
        let range = self.granules_of(offset, bytes);
        let mut known = Epoch::NONE;
        for (at, &epoch) in self.writes[range.clone()].iter().enumerate() {
            if epoch != known {
                self.check_tile_write(cores.clock, epoch, range.start + at)?;
                known = epoch;
            }
        }
        let reader = self.warps + cores.group as usize;
        self.mark_read(reader, cores.number, range);
        Ok(())
    }

    fn check_tile_write(&self, clock: &VectorClock, epoch: Epoch, at: usize) -> Outcome {
        if !epoch.is_known(clock) {
            return Err(self.race(0, at, "read"));
        }
        self.check_fenced(clock, epoch, 0, at, "read by a `wgmma`")
    }

    /// Checks that the write of a warp is fenced for the asynchronous proxy.
    fn check_fenced(&self, clock: &VectorClock, epoch: Epoch, lane: u32, at: usize, what: &str) -> Outcome {
        let Role::Warp(warp) = epoch.party().role() else { return Ok(()) };
        if epoch.time() <= clock.of(Party::fences(warp)) {
            return Ok(());
        }
        let sentence = format!(
            "bytes that warp {warp} has written at line {} are {what} without a `fence.proxy.async` by the lanes that \
             wrote them, before the barrier that orders the two",
            self.write_lines[at]
        );
        Err(Fault::at(ReportKind::ProxyFence, lane, address(at << self.granule), sentence))
    }
}
