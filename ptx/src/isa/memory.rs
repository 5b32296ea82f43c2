//! Loads, stores and atomics.

use super::{B16, B32, B64, Builder, Class, F32, Operand, R32, R64, Reg, Source};

/// An address space with the register class of its addresses.
pub trait Space: Class {
    /// Name in the opcode.
    const NAME: &'static str;
}
impl Space for B32 {
    const NAME: &'static str = "shared";
}
impl Space for B64 {
    const NAME: &'static str = "global";
}

/// What a memory instruction moves.
pub trait Word: Class {
    /// Size in bytes.
    const BYTES: u32;
}
impl Word for B16 {
    const BYTES: u32 = 2;
}
impl Word for B32 {
    const BYTES: u32 = 4;
}
impl Word for F32 {
    const BYTES: u32 = 4;
}
impl Word for B64 {
    const BYTES: u32 = 8;
}

/// How a global load goes through the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// As the hardware does by default.
    Default,
    /// The data does not change while the kernel runs: `ld.global.nc`, but behind [`Builder::wait_for_launches`].
    ReadOnly,
}

fn address<S: Space>(base: Reg<S>, offset: i64) -> Operand {
    Operand::Address(Box::new(base.into()), offset)
}

impl Builder {
    fn suffix<S: Space>(&self, cache: Cache) -> &'static str {
        if cache == Cache::ReadOnly && S::NAME == <B64 as Space>::NAME && !self.programmatic { ".nc" } else { "" }
    }

    /// Loads one word at `base + offset` bytes. The class of `base` says the space: 64 bits global, 32 bits shared.
    pub fn load<W: Word, S: Space>(&mut self, base: Reg<S>, offset: i64) -> Reg<W> {
        self.op(format!("ld.{}.{}", S::NAME, W::BITS), [address(base, offset)])
    }

    /// Loads one word of global memory that no one writes while the kernel runs.
    pub fn load_readonly<W: Word>(&mut self, base: R64, offset: i64) -> Reg<W> {
        let nc = self.suffix::<B64>(Cache::ReadOnly);
        self.op(format!("ld.global{nc}.{}", W::BITS), [address(base, offset)])
    }

    /// Loads `N` (2 or 4) consecutive words; the address is a multiple of their size.
    pub fn load_vector<W: Word, S: Space, const N: usize>(
        &mut self,
        base: Reg<S>,
        offset: i64,
        cache: Cache,
    ) -> [Reg<W>; N] {
        let targets = self.fresh_array::<W, N>();
        self.load_vector_into(targets, base, offset, cache);
        targets
    }

    /// Loads one word into a register that keeps its value under a guard that does not hold.
    ///
    /// A fresh register written under a guard would be one that lives on: in a loop, from one turn to the next.
    pub fn load_into<W: Word, S: Space>(&mut self, target: Reg<W>, base: Reg<S>, offset: i64, cache: Cache) {
        let nc = self.suffix::<S>(cache);
        self.emit(format!("ld.{}{nc}.{}", S::NAME, W::BITS), vec![target.into(), address(base, offset)]);
    }

    /// The same of `N` (2 or 4) consecutive words; the address is a multiple of their size.
    pub fn load_vector_into<W: Word, S: Space, const N: usize>(
        &mut self,
        targets: [Reg<W>; N],
        base: Reg<S>,
        offset: i64,
        cache: Cache,
    ) {
        let nc = self.suffix::<S>(cache);
        let vector = Operand::Vector(targets.map(Operand::from).to_vec());
        self.emit(format!("ld.{}{nc}.v{N}.{}", S::NAME, W::BITS), vec![vector, address(base, offset)]);
    }

    /// Stores one word at `base + offset` bytes.
    pub fn store<W: Word, S: Space>(&mut self, base: Reg<S>, offset: i64, value: impl Into<Source<W>>) {
        self.emit(format!("st.{}.{}", S::NAME, W::BITS), vec![address(base, offset), value.into().operand]);
    }

    /// Stores `N` (2 or 4) consecutive words; the address is a multiple of their size.
    pub fn store_vector<W: Word, S: Space, const N: usize>(&mut self, base: Reg<S>, offset: i64, values: [Reg<W>; N]) {
        let vector = Operand::Vector(values.map(Operand::from).to_vec());
        self.emit(format!("st.{}.v{N}.{}", S::NAME, W::BITS), vec![address(base, offset), vector]);
    }

    /// Adds atomically and returns the old value.
    pub fn atomic_add<S: Space>(&mut self, base: Reg<S>, offset: i64, value: impl Into<Source<B32>>) -> R32 {
        self.op(format!("atom.{}.add.u32", S::NAME), [address(base, offset), value.into().operand])
    }

    /// Adds 1 atomically, or puts 0 in place of what is `last` or more, and returns the old value.
    pub fn atomic_increment<S: Space>(&mut self, base: Reg<S>, offset: i64, last: impl Into<Source<B32>>) -> R32 {
        self.op(format!("atom.{}.inc.u32", S::NAME), [address(base, offset), last.into().operand])
    }

    /// Puts a value in place atomically and returns the old one.
    pub fn atomic_exchange<S: Space>(&mut self, base: Reg<S>, offset: i64, value: impl Into<Source<B32>>) -> R32 {
        self.op(format!("atom.{}.exch.b32", S::NAME), [address(base, offset), value.into().operand])
    }

    /// Adds atomically and returns the old number. What this thread has written, or seen written, is there for whoever sees the sum
    /// and has a fence of its own behind it.
    pub fn add_release(&mut self, base: R64, offset: i64, value: impl Into<Source<B32>>) -> R32 {
        self.op("atom.release.gpu.global.add.u32", [address(base, offset), value.into().operand])
    }

    /// Adds atomically in shared memory and returns the old number. Whoever sees the sum sees what this thread has written, or seen
    /// written, if it adds this way too.
    pub fn add_in_block(&mut self, base: R32, offset: i64, value: impl Into<Source<B32>>) -> R32 {
        self.op("atom.acq_rel.cta.shared.add.u32", [address(base, offset), value.into().operand])
    }

    /// Adds atomically.
    pub fn reduce_add<S: Space>(&mut self, base: Reg<S>, offset: i64, value: impl Into<Source<B32>>) {
        self.emit(format!("red.{}.add.u32", S::NAME), vec![address(base, offset), value.into().operand]);
    }

    /// Sets bits atomically.
    pub fn reduce_or<S: Space>(&mut self, base: Reg<S>, offset: i64, value: impl Into<Source<B32>>) {
        self.emit(format!("red.{}.or.b32", S::NAME), vec![address(base, offset), value.into().operand]);
    }
}
