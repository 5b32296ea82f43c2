//! Decoded instructions: what the executor runs. Every operand is a slot of the warp's register file; immediates and
//! special registers are slots that are filled when the warp starts, so that lane loops have one form.
//!
//! Rare PTX instructions are decoded to several of these (16-bit integers, for example, to an extension, the 32-bit
//! operation and a truncation).

use crate::types::Type;

/// Index into the words, longs or predicates of a warp.
pub(crate) type Slot = u16;

/// One decoded instruction.
#[derive(Debug)]
pub(crate) struct Instruction {
    pub(crate) op: Op,
    /// Predicate slot that guards it.
    pub(crate) guard: Option<Slot>,
    pub(crate) negated: bool,
    /// Index into [`crate::module::Kernel::checks`] plus one, where registers may be read before they are written.
    pub(crate) check: u32,
    /// Line of the text.
    pub(crate) line: u32,
}

/// A 16-bit floating-point format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Half {
    F16,
    Bf16,
}

/// Word to word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unary32 {
    Copy,
    Neg,
    Abs,
    Not,
    Popc,
    Clz,
    Brev,
    /// Position of the highest set bit.
    BfindUnsigned,
    BfindSigned,
    ZeroExtend8,
    ZeroExtend16,
    SignExtend8,
    SignExtend16,
    NegF32 {
        ftz: bool,
    },
    AbsF32 {
        ftz: bool,
    },
    Rcp {
        ftz: bool,
    },
    Sqrt {
        ftz: bool,
    },
    Rsqrt {
        ftz: bool,
    },
    Ex2 {
        ftz: bool,
    },
    Lg2 {
        ftz: bool,
    },
    Sin {
        ftz: bool,
    },
    Cos {
        ftz: bool,
    },
    Tanh,
    /// On packed pairs.
    Ex2Half(Half),
    TanhHalf(Half),
    F32FromS32,
    F32FromU32,
    /// Toward zero, clamped.
    S32FromF32,
    U32FromF32,
    F32FromHalf(Half),
    /// To nearest even.
    HalfFromF32(Half),
}

/// Long to long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unary64 {
    Copy,
    Neg,
    Abs,
    Not,
    Brev,
    NegF64,
    AbsF64,
    Rcp,
    Sqrt,
    Rsqrt,
}

/// Long to word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Narrow {
    Low,
    High,
    Popc,
    Clz,
    BfindUnsigned,
    BfindSigned,
}

/// Word, word to word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Binary32 {
    Add,
    Sub,
    Mul,
    MulHighUnsigned,
    MulHighSigned,
    DivUnsigned,
    DivSigned,
    RemUnsigned,
    RemSigned,
    MinUnsigned,
    MinSigned,
    MaxUnsigned,
    MaxSigned,
    AddSaturate,
    SubSaturate,
    And,
    Or,
    Xor,
    Shl,
    ShrUnsigned,
    ShrSigned,
    /// Low half of the first source below, low half of the second above.
    Pack16,
    AddF32 {
        ftz: bool,
    },
    SubF32 {
        ftz: bool,
    },
    MulF32 {
        ftz: bool,
    },
    DivF32 {
        ftz: bool,
    },
    MinF32 {
        ftz: bool,
        nan: bool,
    },
    MaxF32 {
        ftz: bool,
        nan: bool,
    },
    CopysignF32,
    AddHalf(Half),
    SubHalf(Half),
    MulHalf(Half),
    MinHalf {
        format: Half,
        nan: bool,
    },
    MaxHalf {
        format: Half,
        nan: bool,
    },
    /// First source to the upper half.
    PackHalf {
        format: Half,
        relu: bool,
    },
}

/// Long, long to long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Binary64 {
    Add,
    Sub,
    Mul,
    MulHighUnsigned,
    MulHighSigned,
    DivUnsigned,
    DivSigned,
    RemUnsigned,
    RemSigned,
    MinUnsigned,
    MinSigned,
    MaxUnsigned,
    MaxSigned,
    And,
    Or,
    Xor,
    AddF64,
    SubF64,
    MulF64,
    DivF64,
    MinF64,
    MaxF64,
    CopysignF64,
}

/// Long shifted by a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shift64 {
    Left,
    RightUnsigned,
    RightSigned,
}

/// Word, word, word to word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ternary32 {
    /// Multiply and add, low half.
    Mad,
    Lop3(u8),
    Prmt(PermuteMode),
    BfeUnsigned,
    BfeSigned,
    ShiftLeft {
        wrap: bool,
    },
    ShiftRight {
        wrap: bool,
    },
    FmaF32 {
        ftz: bool,
        relu: bool,
    },
    FmaHalf {
        format: Half,
        relu: bool,
    },
    /// Dot product of four signed or unsigned bytes.
    Dp4a {
        signed: [bool; 2],
    },
}

/// How `prmt` reads its selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PermuteMode {
    Index,
    Forward4,
    Backward4,
    Replicate8,
    EdgeLeft,
    EdgeRight,
    Replicate16,
}

/// What two sources are compared as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CompareAs {
    U32,
    S32,
    F32 { ftz: bool },
    U64,
    S64,
    F64,
}

/// A comparison; the `…u` forms are true on NaN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// Boolean combination of predicates or warp votes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Boolean {
    And,
    Or,
    Xor,
}

/// Rounding of a conversion. The integer forms also name what they yield.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rounding {
    Nearest,
    NearestAway,
    Zero,
    Down,
    Up,
}

/// Any conversion that has no loop of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Conversion {
    pub(crate) from: Type,
    pub(crate) to: Type,
    pub(crate) rounding: Rounding,
    /// Float to float of the same type with rounding to an integer.
    pub(crate) integral: bool,
    pub(crate) saturate: bool,
    pub(crate) relu: bool,
    pub(crate) ftz: bool,
    /// Result keeps 10 mantissa bits.
    pub(crate) tf32: bool,
}

/// A register with its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub(crate) enum Register {
    Predicate(Slot),
    Word(Slot),
    Long(Slot),
}

/// Address space of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Space {
    Global,
    Shared,
    Generic,
}

/// `[base + offset]`, in either register width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) base: Register,
    pub(crate) offset: i64,
}

/// A load or store of one to four elements.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) space: Space,
    pub(crate) address: Address,
    /// Bytes of one element.
    pub(crate) bytes: u32,
    pub(crate) signed: bool,
    /// Relaxed, acquire, release or volatile: not a race with its like.
    pub(crate) strong: bool,
    /// Through the non-coherent cache.
    pub(crate) read_only: bool,
    /// Sources or destinations; `None` is the sink `_`.
    pub(crate) registers: Vec<Option<Register>>,
}

/// A read of the parameter buffer, the same for all lanes.
#[derive(Debug)]
pub(crate) struct ParameterLoad {
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
    pub(crate) signed: bool,
    pub(crate) registers: Vec<Option<Register>>,
}

/// What an atomic does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AtomicOp {
    Add,
    AddF32,
    AddF64,
    MinUnsigned,
    MinSigned,
    MaxUnsigned,
    MaxSigned,
    And,
    Or,
    Xor,
    Increment,
    Decrement,
    Exchange,
    CompareAndSwap,
}

/// `atom` and `red`.
#[derive(Debug)]
pub(crate) struct Atomic {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) op: AtomicOp,
    /// 4 or 8.
    pub(crate) bytes: u32,
    pub(crate) target: Option<Register>,
    pub(crate) source: Register,
    /// The new value of a compare and swap, whose `source` is the expected one.
    pub(crate) swap: Option<Register>,
}

/// `cp.async`.
#[derive(Debug)]
pub(crate) struct AsyncCopy {
    pub(crate) target: Address,
    pub(crate) source: Address,
    pub(crate) bytes: u32,
    /// How many of them are read; the rest are zeros.
    pub(crate) source_bytes: Option<Slot>,
}

/// What an instruction does to an mbarrier.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MbarrierAction {
    Initialise {
        count: Slot,
    },
    Invalidate,
    /// Announces bytes, if any, then arrives; yields the number of the phase.
    Arrive {
        count: Option<Slot>,
        bytes: Option<Slot>,
        state: Option<Slot>,
    },
    Expect {
        bytes: Slot,
    },
    /// `cp.async.mbarrier.arrive.noinc`: arrives when the thread's copies so far have landed.
    ArriveAfterCopies,
}

/// An instruction on an mbarrier that does not wait.
#[derive(Debug)]
pub(crate) struct Mbarrier {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) action: MbarrierAction,
}

/// `mbarrier.try_wait` and `test_wait`.
#[derive(Debug)]
pub(crate) struct PhaseWait {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) target: Slot,
    /// A word with a parity, or a long with what an arrival yielded.
    pub(crate) phase: Register,
}

/// `cp.async.bulk.tensor` from global to shared memory.
#[derive(Debug)]
pub(crate) struct BulkCopy {
    pub(crate) target: Address,
    pub(crate) map: Address,
    pub(crate) coordinates: Vec<Slot>,
    pub(crate) mbarrier: Address,
}

/// `cp.async.bulk.prefetch` to the L2 cache.
#[derive(Debug)]
pub(crate) struct BulkPrefetch {
    pub(crate) source: Address,
    pub(crate) bytes: Slot,
}

/// `stmatrix`.
#[derive(Debug)]
pub(crate) struct StoreMatrix {
    pub(crate) address: Address,
    pub(crate) transposed: bool,
    /// One register for each 8 × 8 matrix.
    pub(crate) sources: Vec<Slot>,
}

/// A factor of `wgmma`.
#[derive(Clone, Debug)]
pub(crate) enum Tile {
    /// A long with a matrix descriptor.
    Shared { descriptor: Slot, transposed: bool },
    /// The fragment of each warp.
    Registers([Slot; 4]),
}

/// `wgmma.mma_async.m64nNk16` with f32 accumulators.
#[derive(Debug)]
pub(crate) struct WarpgroupMultiply {
    pub(crate) format: Half,
    /// `N / 2` of them.
    pub(crate) d: Vec<Slot>,
    pub(crate) a: Tile,
    /// A descriptor.
    pub(crate) b: Slot,
    pub(crate) b_transposed: bool,
    /// Whether the product is added to what `d` holds.
    pub(crate) accumulate: Slot,
    pub(crate) negative: bool,
}

/// An instruction that the four warps of a warpgroup execute alike.
#[derive(Debug)]
pub(crate) enum Warpgroup {
    Fence,
    Multiply(WarpgroupMultiply),
    Commit,
    /// Groups that may stay in flight.
    Wait {
        groups: u32,
    },
    /// `setmaxnreg`: the new number of registers of each thread.
    Registers {
        count: u32,
        more: bool,
    },
}

/// `ldmatrix`.
#[derive(Debug)]
pub(crate) struct LoadMatrix {
    pub(crate) address: Address,
    pub(crate) transposed: bool,
    /// One register for each 8 × 8 matrix.
    pub(crate) targets: Vec<Slot>,
}

/// `mma.sync.m16n8k{8,16}` with f32 accumulators.
#[derive(Debug)]
pub(crate) struct MatrixMultiply {
    pub(crate) format: Half,
    pub(crate) d: [Slot; 4],
    pub(crate) a: [Slot; 4],
    pub(crate) b: [Slot; 2],
    pub(crate) c: [Slot; 4],
    /// 8 or 16; with 8 the second halves of `a` and `b` are not used.
    pub(crate) depth: u32,
}

/// Which lane a shuffle reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote yields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What a barrier does besides waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BarrierKind {
    Sync,
    /// Counts the warp and goes on.
    Arrive,
    /// Every thread gets the combination of all threads' predicates.
    Reduce {
        op: Boolean,
        target: Slot,
        source: Slot,
        negated: bool,
    },
    /// Every thread gets the number of true predicates.
    Count {
        target: Slot,
        source: Slot,
        negated: bool,
    },
}

/// `bar` and `barrier.cta`.
#[derive(Debug)]
pub(crate) struct Barrier {
    pub(crate) kind: BarrierKind,
    pub(crate) id: Slot,
    /// Threads that take part; all of the block without one.
    pub(crate) count: Option<Slot>,
    /// Whether all threads of a warp must execute it together.
    pub(crate) aligned: bool,
}

/// A warp-wide exchange.
#[derive(Debug)]
pub(crate) enum Collective {
    Shuffle {
        mode: Shuffle,
        target: Slot,
        valid: Option<Slot>,
        source: Slot,
        lane: Slot,
        clamp: Slot,
    },
    Vote {
        mode: Vote,
        target: Register,
        source: Slot,
        negated: bool,
    },
    MatchAny {
        target: Slot,
        source: Register,
    },
    MatchAll {
        target: Slot,
        all: Option<Slot>,
        source: Register,
    },
    Reduce {
        op: AtomicOp,
        target: Slot,
        source: Slot,
    },
    /// One lane of the members.
    Elect {
        lane: Option<Slot>,
        elected: Option<Slot>,
    },
    /// `bar.warp.sync`
    Sync,
}

/// What an instruction does.
#[derive(Debug)]
pub(crate) enum Op {
    Unary32 {
        f: Unary32,
        d: Slot,
        a: Slot,
    },
    Unary64 {
        f: Unary64,
        d: Slot,
        a: Slot,
    },
    Narrow {
        f: Narrow,
        d: Slot,
        a: Slot,
    },
    Widen {
        signed: bool,
        d: Slot,
        a: Slot,
    },
    Pack64 {
        d: Slot,
        low: Slot,
        high: Slot,
    },
    Binary32 {
        f: Binary32,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Binary64 {
        f: Binary64,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Shift64 {
        f: Shift64,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    MultiplyWide {
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    MadWide {
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Ternary32 {
        f: Ternary32,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Mad64 {
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    FmaF64 {
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Bfi32 {
        d: Slot,
        a: Slot,
        b: Slot,
        position: Slot,
        length: Slot,
    },
    Bfi64 {
        d: Slot,
        a: Slot,
        b: Slot,
        position: Slot,
        length: Slot,
    },
    Bfe64 {
        signed: bool,
        d: Slot,
        a: Slot,
        position: Slot,
        length: Slot,
    },
    Select32 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
    },
    Select64 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
    },
    Compare {
        like: CompareAs,
        comparison: Comparison,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Boolean {
        op: Boolean,
        d: Slot,
        a: Slot,
        b: Slot,
        negate_b: bool,
    },
    PredicateCopy {
        d: Slot,
        a: Slot,
        negated: bool,
    },
    Convert {
        conversion: Conversion,
        d: Register,
        a: Register,
    },
    /// The instructions this block has executed so far stand for a clock.
    Clock {
        d: Register,
    },
    ActiveMask {
        d: Slot,
    },
    LoadParameter(Box<ParameterLoad>),
    Load(Box<Access>),
    Store(Box<Access>),
    Atomic(Box<Atomic>),
    AsyncCopy(Box<AsyncCopy>),
    AsyncCommit,
    /// Groups that may stay in flight; `None` waits for everything, committed or not.
    AsyncWait {
        groups: Option<u32>,
    },
    Mbarrier(Box<Mbarrier>),
    PhaseWait(Box<PhaseWait>),
    /// `griddepcontrol.wait`
    LaunchWait,
    /// After the initialisation of mbarriers.
    MbarrierFence,
    /// `fence.proxy.async`: shared writes so far are for the asynchronous proxy to see.
    ProxyFence,
    BulkCopy(Box<BulkCopy>),
    BulkPrefetch(Box<BulkPrefetch>),
    /// `prefetch.tensormap`
    PrefetchTensorMap {
        map: Address,
    },
    Warpgroup(Box<Warpgroup>),
    LoadMatrix(Box<LoadMatrix>),
    StoreMatrix(Box<StoreMatrix>),
    MatrixMultiply(Box<MatrixMultiply>),
    /// The membership mask, and what the members do.
    Collective {
        mask: Slot,
        collective: Box<Collective>,
    },
    Barrier(Box<Barrier>),
    Branch {
        target: u32,
    },
    Exit,
    Trap,
    /// Fences and prefetches: every access is already in order.
    Nothing,
}
