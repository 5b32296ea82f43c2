//! A parsed module: decoded kernels, ready to be launched any number of times from any thread.

use std::sync::Arc;

use crate::decode;
use crate::op::Instruction;
use crate::parse::{self, Parameter};
use crate::report::ParseError;

/// A PTX module, decoded. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Module {
    kernels: Arc<[Kernel]>,
}

/// What a slot holds when a warp starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Initial {
    /// Nothing that may be read.
    Unwritten,
    /// The same bits in every lane.
    Constant(u64),
    Special(Special),
}

/// A special register, constant for the life of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Special {
    Thread(u8),
    BlockSize(u8),
    Block(u8),
    GridSize(u8),
    Lane,
    Warp,
    Warps,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    DynamicShared,
    TotalShared,
    Zero,
}

/// The registers an instruction needs written before it runs.
#[derive(Debug, Default)]
pub(crate) struct Check {
    /// The guard, which every running lane reads.
    pub(crate) guard: Option<(u16, String)>,
    /// Sources that may not have been written on some path, with their names.
    pub(crate) reads: Vec<(u16, String)>,
    /// Tracked registers that it writes.
    pub(crate) writes: Vec<u16>,
    /// Registers of some `wgmma` that it, an ordinary instruction, reads or writes.
    pub(crate) touches: Vec<Touch>,
}

/// An ordinary access to a register of a `wgmma`.
#[derive(Debug)]
pub(crate) struct Touch {
    pub(crate) word: u16,
    pub(crate) name: String,
    pub(crate) writes: bool,
}

/// One decoded entry.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) code: Vec<Instruction>,
    /// Side table of [`Instruction::check`].
    pub(crate) checks: Vec<Check>,
    /// Number of registers that are tracked at run time.
    pub(crate) tracked: usize,
    pub(crate) predicates: Vec<Initial>,
    pub(crate) words: Vec<Initial>,
    pub(crate) longs: Vec<Initial>,
    pub(crate) parameters: Vec<Parameter>,
    /// Bytes of the packed parameter buffer.
    pub(crate) parameter_bytes: usize,
    /// Offset of the dynamic part within the block's shared memory.
    pub(crate) fixed_shared: u32,
    /// Smallest shared access in bytes, at most 16: how fine races are tracked.
    pub(crate) shared_granule: u32,
    pub(crate) required_block: Option<[u32; 3]>,
    pub(crate) max_threads: Option<u32>,
    pub(crate) max_registers: Option<u32>,
    pub(crate) min_blocks: Option<u32>,
    /// Whether it has a `wgmma`.
    pub(crate) multiplies: bool,
    /// The text of each line that has an instruction.
    pub(crate) lines: Vec<(u32, String)>,
}

/// Registers of a multiprocessor.
const REGISTERS: u32 = 65536;

impl Kernel {
    /// Registers of each thread of a block when it starts, as the assembler allots them: what `.maxnreg` says, or as many
    /// as let the least number of blocks reside together.
    pub(crate) fn registers_at_entry(&self, threads: u32) -> u32 {
        let most = REGISTERS / (threads.next_multiple_of(32) * self.min_blocks.unwrap_or(1).clamp(1, 32)) / 8 * 8;
        self.max_registers.unwrap_or(most).clamp(24, 256)
    }

    /// The text of `line`.
    pub(crate) fn text(&self, line: u32) -> String {
        self.lines.binary_search_by_key(&line, |(at, _)| *at).map_or(String::new(), |at| self.lines[at].1.clone())
    }
}

impl Module {
    /// Parses and decodes PTX text.
    ///
    /// # Errors
    ///
    /// [`ParseError`] with the line and its text if the text is not PTX, or uses what this crate does not support.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        let entries = parse::parse(text)?;
        let kernels = entries.iter().map(|entry| decode::kernel(text, entry)).collect::<Result<Vec<_>, _>>()?;
        Ok(Module { kernels: kernels.into() })
    }

    /// The names of the kernels.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|kernel| kernel.name.as_str())
    }

    pub(crate) fn kernel(&self, entry: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == entry)
    }
}
