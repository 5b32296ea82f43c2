//! What can go wrong: text that is not understood, host calls that do not fit, and the sanitizer's reports.

use thiserror::Error;

/// PTX text that this crate does not understand.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("PTX line {line}: {message}\n    {text}")]
pub struct ParseError {
    /// Line in the text, counted from 1.
    pub line: u32,
    /// That line, trimmed.
    pub text: String,
    /// What is wrong with it, or what is not supported.
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(source: &str, line: u32, message: impl Into<String>) -> ParseError {
        ParseError { line, text: source_line(source, line), message: message.into() }
    }
}

/// Line `line` of `source`, trimmed.
pub(crate) fn source_line(source: &str, line: u32) -> String {
    source.lines().nth((line as usize).saturating_sub(1)).unwrap_or("").trim().to_string()
}

/// A host call that names device memory wrongly.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AccessError {
    /// The range does not lie in one live allocation.
    #[error(
        "{bytes} bytes at {address:#x} do not lie in one allocation; {nearest}. Pass an address that `allocate` returned, \
         and no more bytes than it was asked for"
    )]
    OutOfBounds {
        /// First byte of the range.
        address: u64,
        /// Length of the range.
        bytes: usize,
        /// The closest allocation, in words.
        nearest: String,
    },
    /// The memory has been freed.
    #[error("{address:#x} lies in memory that was freed; keep the allocation until its last use")]
    Freed {
        /// The address.
        address: u64,
    },
    /// Bytes that nobody has written.
    #[error(
        "the byte at {address:#x} was never written, by the host or by a kernel; write it first, or call `read_unchecked`, \
         which gives zeros for such bytes"
    )]
    Uninitialised {
        /// The first such byte.
        address: u64,
    },
    /// `free` of something other than the start of an allocation.
    #[error("{address:#x} is not the start of a live allocation; free takes what `allocate` returned, once")]
    NotAllocated {
        /// The address.
        address: u64,
    },
}

/// Why a launch did not complete.
#[derive(Clone, Debug, Error)]
pub enum LaunchError {
    /// The module has no such entry.
    #[error("the module has no entry `{entry}`; it has: {known}")]
    UnknownEntry {
        /// The name that was asked for.
        entry: String,
        /// The names there are.
        known: String,
    },
    /// Grid or block dimensions that no device takes.
    #[error("`{entry}`: {message}")]
    Dimensions {
        /// The kernel.
        entry: String,
        /// What was given and what is allowed.
        message: String,
    },
    /// The parameter buffer has the wrong length.
    #[error("`{entry}` takes {needed} bytes of parameters ({layout}), {given} were given")]
    Parameters {
        /// The kernel.
        entry: String,
        /// Bytes given.
        given: usize,
        /// Bytes needed.
        needed: usize,
        /// Name, offset and size of each parameter.
        layout: String,
    },
    /// More shared memory than a block can have.
    #[error("`{entry}` asks for {requested} bytes of shared memory a block ({fixed} of them static); at most {limit}")]
    SharedMemory {
        /// The kernel.
        entry: String,
        /// Static plus dynamic bytes.
        requested: u64,
        /// The static part.
        fixed: u32,
        /// The limit.
        limit: u32,
    },
    /// The sanitizer stopped the kernel. Blocks before the reported one have completed; others may have run in part.
    #[error("{0}")]
    Report(Box<Report>),
}

impl LaunchError {
    /// The sanitizer's report, if that is what stopped the launch.
    pub fn report(&self) -> Option<&Report> {
        match self {
            LaunchError::Report(report) => Some(report),
            _ => None,
        }
    }
}

/// What the sanitizer found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReportKind {
    /// A global or shared access outside every allocation.
    OutOfBounds,
    /// A global access below 2³², or far from the device's address range: a null or host pointer.
    HostPointer,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// An access to freed memory.
    UseAfterFree,
    /// A read of memory that nobody wrote.
    UninitialisedRead,
    /// A read of a register that this thread never wrote.
    UninitialisedRegister,
    /// A read of the destination of an asynchronous copy before it was waited for.
    AsyncRead,
    /// A write to the destination of an asynchronous copy before it was waited for.
    AsyncOverwrite,
    /// Two warps, or their asynchronous work, access the same shared bytes, at least one writes, and no barrier orders
    /// them.
    SharedRace,
    /// A barrier executed by part of a warp.
    DivergentBarrier,
    /// Warps disagree about how many threads a barrier has.
    BarrierCount,
    /// No warp can go on.
    Deadlock,
    /// A warp-wide instruction whose members do not all arrive, or that reads from a lane that takes no part.
    DivergentCollective,
    /// An mbarrier that is not initialised, gets more than it expects, or is touched while in use.
    Mbarrier,
    /// A bulk copy by something that is no tensor map, or not one of its rank.
    TensorMap,
    /// Bytes that a warp has written reach the asynchronous proxy without a fence.
    ProxyFence,
    /// A `wgmma` whose registers were written since the last `wgmma.fence`.
    MatrixFence,
    /// A register of a `wgmma` in flight is accessed.
    MatrixRegister,
    /// A matrix descriptor that describes no tile.
    MatrixDescriptor,
    /// The warps of a warpgroup do not execute the same.
    DivergentWarpgroup,
    /// `setmaxnreg` to a number of registers that the warp may not ask for.
    RegisterCount,
    /// Asynchronous work that nobody has waited for when the block ends.
    AsyncUnwaited,
    /// A launch that may start early accesses what those in front of it may be at work on before it has waited, or reads it
    /// through the non-coherent cache.
    EarlyAccess,
    /// A thread of such a launch ends without having waited.
    EarlyExit,
    /// The block has executed more instructions than the budget allows.
    InstructionBudget,
    /// The kernel executed `trap`.
    Trap,
}

/// One finding of the sanitizer: what, where, and who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What was found.
    pub kind: ReportKind,
    /// The kernel.
    pub entry: String,
    /// Line of the PTX text, counted from 1.
    pub line: u32,
    /// That line.
    pub text: String,
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Index of the thread in the block.
    pub thread: [u32; 3],
    /// Index of the warp in the block.
    pub warp: u32,
    /// Index of the thread in the warp.
    pub lane: u32,
    /// The address concerned, if there is one.
    pub address: Option<u64>,
    /// What happened and what is needed instead.
    pub sentence: String,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:?}: {}", self.kind, self.sentence)?;
        writeln!(f, "    `{}` line {}: {}", self.entry, self.line, self.text)?;
        write!(f, "    block {:?}, thread {:?} (warp {}, lane {})", self.block, self.thread, self.warp, self.lane)?;
        match self.address {
            Some(address) => write!(f, ", address {address:#x}"),
            None => Ok(()),
        }
    }
}

/// A finding before it is known where: the executor adds instruction, block and warp.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: ReportKind,
    pub(crate) lane: u32,
    pub(crate) address: Option<u64>,
    pub(crate) sentence: String,
    /// Warp and instruction, if not the ones at hand.
    pub(crate) place: Option<(u32, u32)>,
}

impl Fault {
    /// Says which warp did it, and where.
    pub(crate) fn by(mut self: Box<Self>, warp: u32, pc: u32) -> Box<Fault> {
        self.place = Some((warp, pc));
        self
    }

    pub(crate) fn new(kind: ReportKind, lane: u32, sentence: impl Into<String>) -> Box<Fault> {
        Box::new(Fault { kind, lane, address: None, sentence: sentence.into(), place: None })
    }

    pub(crate) fn at(kind: ReportKind, lane: u32, address: u64, sentence: impl Into<String>) -> Box<Fault> {
        Box::new(Fault { kind, lane, address: Some(address), sentence: sentence.into(), place: None })
    }
}

/// What executing one instruction yields.
pub(crate) type Outcome<T = ()> = Result<T, Box<Fault>>;
