//! Values that wait in shared memory while a loop needs the registers.

use crate::isa::{Builder, Cache, R32, R64, Reg, SharedRegion, Word};

/// Values of one class, written before a loop and read in or after it.
#[derive(Clone, Copy, Debug)]
pub struct Parked {
    region: SharedRegion,
    /// Bytes from the values of `1 << threads` threads to those of the next.
    stride: u32,
    threads: u32,
}

impl Parked {
    /// Bytes a thread (or, of shared values, a block) needs.
    pub const BYTES: u32 = 16;

    /// Parks four words that all threads of the block have alike. They are read after the next barrier.
    pub fn shared(k: &mut Builder, region: SharedRegion, values: [R32; 4]) -> Parked {
        let parked = Parked { region, stride: 0, threads: 0 };
        let address = parked.address(k);
        let thread = k.thread();
        let first = k.eq(thread, 0u32);
        k.when(first, |k| k.store_vector(address, 0, values));
        parked
    }

    /// Parks four words that all lanes of a warp have alike, for the warp.
    pub fn of_warp(k: &mut Builder, region: SharedRegion, values: [R32; 4]) -> Parked {
        let parked = Parked { region, stride: Parked::BYTES, threads: 5 };
        let address = parked.address(k);
        let lane = k.lane();
        let leads = k.eq(lane, 0u32);
        k.warp_barrier();
        k.when(leads, |k| k.store_vector(address, 0, values));
        k.warp_barrier();
        parked
    }

    /// Parks two addresses of each thread's own.
    pub fn own(k: &mut Builder, region: SharedRegion, values: [R64; 2]) -> Parked {
        let parked = Parked { region, stride: Parked::BYTES, threads: 0 };
        let address = parked.address(k);
        k.store_vector(address, 0, values);
        parked
    }

    /// Where this thread's values are: found again at every use, so that no register holds it.
    fn address(self, k: &mut Builder) -> R32 {
        let first = k.shared_address(self.region);
        let thread = k.thread();
        let own = if self.threads == 0 { thread } else { k.shr_u(thread, self.threads) };
        k.mad(own, self.stride, first)
    }

    /// The values again.
    pub fn load<W: Word, const N: usize>(self, k: &mut Builder) -> [Reg<W>; N] {
        debug_assert_eq!(W::BYTES * N as u32, Parked::BYTES);
        let address = self.address(k);
        k.load_vector(address, 0, Cache::Default)
    }
}
