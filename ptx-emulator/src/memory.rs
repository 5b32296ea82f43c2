//! Global memory: allocations with their own addresses, shared by all blocks.
//!
//! Memory is made of 64-bit atomic words, so that kernels that race on it are defined behaviour here: narrower stores
//! replace a part of a word. Beside each word a byte says which of its bytes were ever written. Addresses are never
//! given twice, so that a freed one is known for what it is. Every allocation is followed by a red zone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::report::{AccessError, Fault, Outcome, ReportKind};

/// Where the first allocation begins: above 2³², and nowhere near the host's heap or stack.
const FIRST_ADDRESS: u64 = 0x10_0000_0000;
/// Above every address that `allocate` can reach.
const LAST_ADDRESS: u64 = 0x4000_0000_0000;
const ALIGNMENT: u64 = 256;
const RED_ZONE: u64 = 256;

/// One allocation.
#[derive(Debug)]
pub(crate) struct Allocation {
    base: u64,
    bytes: u64,
    words: Box<[AtomicU64]>,
    /// A bit for each byte of the word.
    written: Box<[AtomicU8]>,
}

fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
    let words: Box<[u64]> = vec![0; count].into_boxed_slice();
    // SAFETY: `AtomicU64` has the size, alignment and bit validity of `u64`; the box is the only owner of the slice.
    unsafe { Box::from_raw(Box::into_raw(words) as *mut [AtomicU64]) }
}

fn zeroed_bytes(count: usize) -> Box<[AtomicU8]> {
    let bytes: Box<[u8]> = vec![0; count].into_boxed_slice();
    // SAFETY: `AtomicU8` has the size, alignment and bit validity of `u8`; the box is the only owner of the slice.
    unsafe { Box::from_raw(Box::into_raw(bytes) as *mut [AtomicU8]) }
}

/// The low `bytes` bytes of a word.
pub(crate) fn low_bytes(bytes: u32) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 }
}

impl Allocation {
    fn new(base: u64, bytes: usize) -> Allocation {
        let words = bytes.div_ceil(8);
        Allocation { base, bytes: bytes as u64, words: zeroed_words(words), written: zeroed_bytes(words) }
    }

    /// Offset of `address` if `bytes` bytes from there are inside.
    #[inline]
    pub(crate) fn offset(&self, address: u64, bytes: u32) -> Option<usize> {
        let offset = address.wrapping_sub(self.base);
        if offset < self.bytes && self.bytes - offset >= u64::from(bytes) { Some(offset as usize) } else { None }
    }

    /// Reads 1, 2, 4 or 8 bytes at an offset that is a multiple of them.
    #[inline]
    pub(crate) fn load(&self, offset: usize, bytes: u32) -> u64 {
        self.words[offset / 8].load(Relaxed) >> (8 * (offset % 8)) & low_bytes(bytes)
    }

    /// Writes 1, 2, 4 or 8 bytes at an offset that is a multiple of them.
    #[inline]
    pub(crate) fn store(&self, offset: usize, bytes: u32, value: u64) {
        let word = &self.words[offset / 8];
        if bytes == 8 {
            word.store(value, Relaxed);
        } else {
            self.update(offset, bytes, |_| Some(value));
        }
        let mask = (((1u32 << bytes) - 1) << (offset % 8)) as u8;
        let written = &self.written[offset / 8];
        if written.load(Relaxed) & mask != mask {
            written.fetch_or(mask, Relaxed);
        }
    }

    /// Replaces 1, 2, 4 or 8 bytes in one step by what `new` makes of them, and gives what they were.
    #[inline]
    pub(crate) fn update(&self, offset: usize, bytes: u32, new: impl Fn(u64) -> Option<u64>) -> u64 {
        let (word, shift, mask) = (&self.words[offset / 8], 8 * (offset % 8) as u32, low_bytes(bytes));
        let part = |whole: u64| whole >> shift & mask;
        let replaced = word.fetch_update(Relaxed, Relaxed, |whole| {
            new(part(whole)).map(|value| whole & !(mask << shift) | (value & mask) << shift)
        });
        match replaced {
            Ok(whole) | Err(whole) => part(whole),
        }
    }

    /// Whether all bytes of a range were written.
    #[inline]
    pub(crate) fn is_written(&self, offset: usize, bytes: u32) -> bool {
        let head = 8 - (offset % 8) as u32;
        if bytes > head {
            let (start, end) = (offset + head as usize, offset + bytes as usize);
            let whole = &self.written[start / 8..end / 8];
            return self.is_written(offset, head)
                && whole.iter().all(|word| word.load(Relaxed) == 0xff)
                && (end % 8 == 0 || self.is_written(end / 8 * 8, (end % 8) as u32));
        }
        let mask = (((1u32 << bytes) - 1) << (offset % 8)) as u8;
        self.written[offset / 8].load(Relaxed) & mask == mask
    }

    /// Reads any bytes.
    pub(crate) fn copy(&self, start: usize, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let offset = start + at;
            if offset.is_multiple_of(8) && bytes.len() - at >= 8 {
                bytes[at..at + 8].copy_from_slice(&self.words[offset / 8].load(Relaxed).to_le_bytes());
                at += 8;
            } else {
                bytes[at] = self.load(offset, 1) as u8;
                at += 1;
            }
        }
    }

    /// Address of the first byte.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }
}

/// All allocations, at one moment. A launch works on the ones there were when it began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    live: BTreeMap<u64, Arc<Allocation>>,
    /// Base and size of what was freed.
    freed: BTreeMap<u64, u64>,
    used: u64,
}

impl Memory {
    pub(crate) fn allocate(&mut self, bytes: usize) -> u64 {
        let base = FIRST_ADDRESS + self.used;
        self.used += (bytes as u64).next_multiple_of(ALIGNMENT) + RED_ZONE;
        self.live.insert(base, Arc::new(Allocation::new(base, bytes)));
        base
    }

    pub(crate) fn free(&mut self, address: u64) -> Result<(), AccessError> {
        match self.live.remove(&address) {
            Some(allocation) => {
                self.freed.insert(address, allocation.bytes);
                Ok(())
            }
            None if self.freed.contains_key(&address) => Err(AccessError::Freed { address }),
            None => Err(AccessError::NotAllocated { address }),
        }
    }

    /// The allocation at or before `address`.
    fn below(&self, address: u64) -> Option<&Arc<Allocation>> {
        self.live.range(..=address).next_back().map(|(_, allocation)| allocation)
    }

    fn is_freed(&self, address: u64) -> bool {
        self.freed.range(..=address).next_back().is_some_and(|(base, bytes)| address - base < *bytes)
    }

    /// The allocation that holds `bytes` bytes at `address`.
    pub(crate) fn find(&self, address: u64, bytes: u32) -> Option<&Allocation> {
        self.below(address).map(|allocation| &**allocation).filter(|found| found.offset(address, bytes).is_some())
    }

    fn nearest(&self, address: u64) -> String {
        match self.below(address) {
            Some(found) => {
                format!(
                    "the nearest allocation below is {} bytes at {:#x}, which end {} bytes before",
                    found.bytes,
                    found.base,
                    address.saturating_sub(found.base + found.bytes)
                )
            }
            None => "there is no allocation below it".to_string(),
        }
    }

    /// Why a kernel may not access `bytes` bytes at `address`.
    pub(crate) fn fault(&self, lane: u32, address: u64, bytes: u32, verb: &str) -> Box<Fault> {
        if self.is_freed(address) {
            let sentence = format!("{verb} of {bytes} bytes in memory that was freed");
            return Fault::at(ReportKind::UseAfterFree, lane, address, sentence);
        }
        if !(1 << 32..LAST_ADDRESS).contains(&address) {
            let what =
                if address < 4096 { "a null pointer" } else { "not a device address; host memory is out of reach" };
            return Fault::at(ReportKind::HostPointer, lane, address, format!("{verb} of {bytes} bytes at {what}"));
        }
        let near = match self.below(address) {
            Some(found) if found.offset(address, 1).is_some() => {
                let room = found.bytes - (address - found.base);
                format!("only {room} bytes are left in the allocation of {} bytes at {:#x}", found.bytes, found.base)
            }
            _ => self.nearest(address),
        };
        Fault::at(ReportKind::OutOfBounds, lane, address, format!("{verb} of {bytes} bytes out of bounds: {near}"))
    }

    fn host_range(&self, address: u64, bytes: usize) -> Result<(&Allocation, usize), AccessError> {
        if self.is_freed(address) {
            return Err(AccessError::Freed { address });
        }
        if let Some(found) = self.below(address) {
            let offset = address - found.base;
            if offset <= found.bytes && bytes as u64 <= found.bytes - offset {
                return Ok((found, offset as usize));
            }
        }
        Err(AccessError::OutOfBounds { address, bytes, nearest: self.nearest(address) })
    }

    /// Writes what `byte` gives for each index.
    pub(crate) fn write(&self, address: u64, bytes: usize, byte: impl Fn(usize) -> u8) -> Result<(), AccessError> {
        let (allocation, start) = self.host_range(address, bytes)?;
        let mut at = 0;
        while at < bytes {
            let offset = start + at;
            if offset % 8 == 0 && bytes - at >= 8 {
                let word = u64::from_le_bytes(std::array::from_fn(|i| byte(at + i)));
                allocation.words[offset / 8].store(word, Relaxed);
                allocation.written[offset / 8].store(0xff, Relaxed);
                at += 8;
            } else {
                allocation.store(offset, 1, u64::from(byte(at)));
                at += 1;
            }
        }
        Ok(())
    }

    pub(crate) fn read(&self, address: u64, bytes: &mut [u8], checked: bool) -> Result<(), AccessError> {
        let (allocation, start) = self.host_range(address, bytes.len())?;
        if checked && let Some(at) = (start..start + bytes.len()).find(|&at| !allocation.is_written(at, 1)) {
            return Err(AccessError::Uninitialised { address: address + (at - start) as u64 });
        }
        allocation.copy(start, bytes);
        Ok(())
    }
}

/// Checks that an address is a multiple of the access size.
#[inline]
pub(crate) fn aligned(lane: u32, address: u64, bytes: u32) -> Outcome {
    if address & u64::from(bytes - 1) == 0 {
        return Ok(());
    }
    let sentence = format!("an access of {bytes} bytes needs an address that is a multiple of {bytes}");
    Err(Fault::at(ReportKind::Misaligned, lane, address, sentence))
}
