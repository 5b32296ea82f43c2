//! What a launcher must know of a generated kernel.

use crate::isa::Arch;
use std::borrow::Cow;

/// A generated kernel: the text of a module with one entry, and its launch facts.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// PTX text.
    pub text: String,
    /// Launch facts.
    pub meta: KernelMeta,
}

/// Launch facts of a kernel. Borrowed where a macro embeds it, owned where it is generated at run time.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelMeta {
    /// Entry point.
    pub entry: Cow<'static, str>,
    /// Architecture of the text.
    pub arch: Arch,
    /// PTX ISA version of the text.
    pub isa: (u8, u8),
    /// Threads a block, along x.
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// Whether the kernel waits by itself for the launches in front of it, so that it may start before they have ended
    /// (programmatic dependent launch).
    ///
    /// Until it has waited, a thread of such a kernel reads nothing but parameters of [`ParameterKind::Constant`] and writes
    /// nothing; and every thread waits, on every path, before it ends. So a kernel that has ended has seen the end of all in
    /// front of it, and who waits for it waits for those too.
    ///
    /// The caller's part: when such a kernel is launched, no work under way on the stream writes what its constants point
    /// at. Weights are loaded, the stream is synchronized once, and they stay as they are.
    pub programmatic: bool,
    /// Parameters in order, packed, each at a multiple of its alignment.
    pub parameters: Cow<'static, [Parameter]>,
}

impl KernelMeta {
    /// Size of the packed parameter buffer in bytes.
    pub fn parameter_bytes(&self) -> u32 {
        self.parameters.last().map_or(0, |p| p.offset + p.kind.bytes())
    }
}

/// One kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name in the text.
    pub name: Cow<'static, str>,
    /// What it holds.
    pub kind: ParameterKind,
    /// Byte offset in the packed buffer.
    pub offset: u32,
}

/// What a kernel parameter holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// 32-bit integer.
    U32,
    /// 64-bit integer: a stride in bytes.
    U64,
    /// Single precision.
    F32,
    /// Device address.
    Pointer,
    /// Device address of what no work under way writes: a programmatic kernel reads it early ([`KernelMeta::programmatic`]).
    Constant,
    /// Device address of a side buffer of a `score` or `mask` expression, bound by name.
    Side(Element),
    /// How bulk copies find boxes of a tensor, encoded for the device.
    TensorMap(BoxShape),
}

/// What one bulk copy moves: rows of a head of a tensor of 16-bit elements, `[batch, rows, heads, head_dim]`.
///
/// The map's dimensions are head_dim, rows, heads and batch, innermost first; of a packed tensor the batch has one entry.
/// Where the rows of a box lie a stride of several apart, rows are two dimensions: first the row within a stride, of which a
/// box has one, then the stride. Rows behind the last whole stride are not in such a map.
///
/// Rows arrive swizzled over their own width: 128 bytes for 64 columns, 64 for 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BoxShape {
    /// Elements of a row: 64 or 32.
    pub columns: u32,
    /// Rows, at most 256.
    pub rows: u32,
    /// Rows of the tensor from one of the box to the next.
    pub stride: u32,
}

/// Element of a side buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    I32,
    /// Single precision.
    F32,
}

impl ParameterKind {
    /// Size in bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            ParameterKind::U32 | ParameterKind::F32 => 4,
            ParameterKind::U64 | ParameterKind::Pointer | ParameterKind::Constant | ParameterKind::Side(_) => 8,
            ParameterKind::TensorMap(_) => 128,
        }
    }

    /// Alignment in bytes.
    pub const fn alignment(self) -> u32 {
        match self {
            ParameterKind::TensorMap(_) => 64,
            _ => self.bytes(),
        }
    }

    /// Type in the parameter list.
    pub(crate) const fn declaration(self) -> &'static str {
        match self {
            ParameterKind::U32 => ".u32",
            ParameterKind::F32 => ".f32",
            ParameterKind::U64 | ParameterKind::Pointer | ParameterKind::Constant | ParameterKind::Side(_) => ".u64",
            ParameterKind::TensorMap(_) => ".align 64 .b8",
        }
    }

    /// What follows the name there.
    pub(crate) const fn extent(self) -> &'static str {
        match self {
            ParameterKind::TensorMap(_) => "[128]",
            _ => "",
        }
    }
}
