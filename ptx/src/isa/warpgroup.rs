//! Products of four warps together, and how many registers they have (sm_90a).
//!
//! A product runs on while its warps go on: see [`Builder::wait_products`].

use super::{Builder, MmaType, Operand, R32, R64, RF, RP};

/// The left factor of a warpgroup's product: 64 rows by 16 inner elements.
#[derive(Clone, Copy, Debug)]
pub enum WarpgroupLeft {
    /// In shared memory, inner elements contiguous.
    Shared(R64),
    /// In registers: each warp's 16 rows as `mma.m16n8k16` has them.
    Registers([R32; 4]),
}

/// The right factor of a warpgroup's product, in shared memory: its descriptor, and how it is stored.
#[derive(Clone, Copy, Debug)]
pub struct WarpgroupRight {
    /// The descriptor.
    pub descriptor: R64,
    /// Columns are contiguous, not inner elements.
    pub columns_contiguous: bool,
}

impl Builder {
    /// Registers written by ordinary instructions may be factors and accumulators of the products that follow.
    pub fn fence_products(&mut self) {
        self.emit("wgmma.fence.sync.aligned", vec![]);
    }

    /// Ends a group of products.
    pub fn commit_products(&mut self) {
        self.emit("wgmma.commit_group.sync.aligned", vec![]);
    }

    /// Waits until at most `pending` groups of products are under way. Only then may their accumulators be touched, left
    /// factors in registers be overwritten, and the shared memory they read.
    pub fn wait_products(&mut self, pending: u32) {
        self.emit("wgmma.wait_group.sync.aligned", vec![Operand::Text(pending.to_string())]);
    }

    /// Starts `accumulator = a · b`, or `accumulator += a · b` where `adds` holds, over 16 inner elements. The accumulator
    /// has 64 rows and 2 · `accumulator.len()` columns; element 4j + 2h + e of a lane is row `lane / 4 + 8h` of its warp's 16,
    /// column `8j + 2 · (lane % 4) + e`. Neither is read before the first product into it where `adds` is false.
    pub fn multiply(&mut self, kind: MmaType, accumulator: &[RF], a: WarpgroupLeft, b: WarpgroupRight, adds: RP) {
        let columns = 2 * accumulator.len();
        debug_assert!(columns.is_multiple_of(8) && columns <= 256);
        let t = kind.suffix();
        let flag = |flag: bool| Operand::Text(u32::from(flag).to_string());
        let target = Operand::Vector(accumulator.iter().map(|&register| register.into()).collect());
        let (a, a_in_shared) = match a {
            WarpgroupLeft::Shared(descriptor) => (descriptor.into(), true),
            WarpgroupLeft::Registers(registers) => (Operand::Vector(registers.map(Operand::from).to_vec()), false),
        };
        let mut operands = vec![target, a, b.descriptor.into(), adds.into(), flag(true), flag(true)];
        if a_in_shared {
            operands.push(flag(false));
        }
        operands.push(flag(b.columns_contiguous));
        self.emit(format!("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{t}.{t}"), operands);
    }

    /// Gives up all registers of a thread but `registers`, a multiple of 8. All warps of a warpgroup do it together.
    pub fn shrink_registers(&mut self, registers: u32) {
        self.emit("setmaxnreg.dec.sync.aligned.u32", vec![Operand::Text(registers.to_string())]);
    }

    /// Waits for `registers` registers a thread, a multiple of 8. All warps of a warpgroup do it together.
    pub fn grow_registers(&mut self, registers: u32) {
        self.emit("setmaxnreg.inc.sync.aligned.u32", vec![Operand::Text(registers.to_string())]);
    }
}
