//! Views of device memory: tensors, keys and values, lengths and their bounds.

use crate::{
    Buffer, Device, Error, Stream,
    device::{DevicePointer, Plain},
};
use ptx::{isa::MmaType, kernels::meta::Element};
use std::{borrow::Cow, marker::PhantomData};

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 64-bit integer.
    U64,
}

impl DType {
    /// Size of an element in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            DType::Bf16 | DType::F16 => 2,
            DType::F32 | DType::U32 | DType::I32 => 4,
            DType::U64 => 8,
        }
    }
}

impl From<MmaType> for DType {
    fn from(dtype: MmaType) -> DType {
        match dtype {
            MmaType::Bf16 => DType::Bf16,
            MmaType::F16 => DType::F16,
        }
    }
}

impl From<Element> for DType {
    fn from(element: Element) -> DType {
        match element {
            Element::U32 => DType::U32,
            Element::I32 => DType::I32,
            Element::F32 => DType::F32,
        }
    }
}

/// Most dimensions of a tensor.
const RANK: usize = 4;

/// A tensor in device memory: address, shape, strides and element type. The last dimension is contiguous.
///
/// A view borrows; kernels write through views of outputs all the same, as device memory has no host references.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    address: u64,
    dtype: DType,
    rank: usize,
    shape: [u64; RANK],
    /// In elements.
    strides: [u64; RANK],
    /// Known for views of a [`Buffer`].
    device: Option<&'a Device>,
    memory: PhantomData<&'a ()>,
}

impl<'a> TensorView<'a> {
    /// A contiguous tensor at the start of a buffer.
    pub fn new(buffer: &'a Buffer, dtype: DType, shape: &[u64]) -> Result<TensorView<'a>, Error> {
        TensorView::strided(buffer, 0, dtype, shape, &contiguous(shape)[..shape.len().min(RANK)])
    }

    /// A tensor inside a buffer: `offset` in bytes, strides in elements.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a shape or strides that are none, [`Error::OutOfBounds`] if it does not fit.
    pub fn strided(
        buffer: &'a Buffer,
        offset: u64,
        dtype: DType,
        shape: &[u64],
        strides: &[u64],
    ) -> Result<TensorView<'a>, Error> {
        let view = TensorView::describe(buffer.address() + offset, dtype, shape, strides)?;
        let needed = offset.saturating_add(view.extent()?);
        if needed > buffer.bytes() as u64 {
            let what = format!("a tensor of shape {shape:?}, strides {strides:?}, {offset} bytes in,");
            return Err(Error::OutOfBounds { what, needed: needed as usize, available: buffer.bytes() });
        }
        Ok(TensorView { device: Some(buffer.device()), ..view })
    }

    /// The caller's own memory. Strides are in elements.
    ///
    /// # Safety
    /// The memory that shape and strides reach is allocated on the device that the view is used with, and stays so for
    /// `'a` and until all work launched with the view is done.
    pub unsafe fn from_raw(
        pointer: impl Into<DevicePointer>,
        dtype: DType,
        shape: &[u64],
        strides: &[u64],
    ) -> Result<TensorView<'a>, Error> {
        let view = TensorView::describe(pointer.into().0, dtype, shape, strides)?;
        view.extent()?;
        Ok(view)
    }

    fn describe(address: u64, dtype: DType, shape: &[u64], strides: &[u64]) -> Result<TensorView<'a>, Error> {
        let wrong = |message: String| Err(tensor_error("tensor", message));
        let rank = shape.len();
        if rank == 0 || rank > RANK || strides.len() != rank {
            return wrong(format!(
                "shape {shape:?} with strides {strides:?}; give 1 to {RANK} of each, as many of both"
            ));
        }
        if shape[rank - 1] > 1 && strides[rank - 1] != 1 {
            return wrong(format!("strides {strides:?}; the last dimension must be contiguous (stride 1)"));
        }
        let mut view = TensorView {
            address,
            dtype,
            rank,
            shape: [1; RANK],
            strides: [0; RANK],
            device: None,
            memory: PhantomData,
        };
        view.shape[..rank].copy_from_slice(shape);
        view.strides[..rank].copy_from_slice(strides);
        Ok(view)
    }

    /// Bytes from the first to past the last element.
    fn extent(&self) -> Result<u64, Error> {
        if self.shape().contains(&0) {
            return Ok(0);
        }
        let last = (0..self.rank)
            .try_fold(0u64, |last, i| last.checked_add((self.shape[i] - 1).checked_mul(self.strides[i])?));
        let bytes = last.and_then(|last| last.checked_add(1)?.checked_mul(self.dtype.bytes()));
        bytes.filter(|bytes| self.address.checked_add(*bytes).is_some()).ok_or_else(|| {
            let message = format!(
                "shape {:?} with strides {:?} exceeds the address space",
                self.shape(),
                &self.strides[..self.rank]
            );
            tensor_error("tensor", message)
        })
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[u64] {
        &self.shape[..self.rank]
    }

    /// Distance in bytes between neighbours along `dimension`.
    pub fn byte_stride(&self, dimension: usize) -> u64 {
        self.strides[dimension] * self.dtype.bytes()
    }

    /// All elements in order, after the stream's earlier work. Waits; for tests and tools.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the tensor has gaps or `T` has another size than its elements.
    pub fn read<T: Plain>(&self, stream: &Stream) -> Result<Vec<T>, Error> {
        self.on(stream.device())?;
        self.expect_contiguous("to read")?;
        if size_of::<T>() as u64 != self.dtype.bytes() {
            let message = format!("has elements {:?}, read as values of {} bytes", self.dtype, size_of::<T>());
            return Err(tensor_error("to read", message));
        }
        stream.read(self.address, self.shape().iter().product::<u64>() as usize)
    }

    /// As [`Self::byte_stride`], 0 for a dimension of one element, which then serves every index.
    pub(crate) fn broadcast_stride(&self, dimension: usize) -> u64 {
        if self.shape[dimension] == 1 { 0 } else { self.byte_stride(dimension) }
    }

    /// Checks that the tensor may be used on `device`.
    pub(crate) fn on(&self, device: &Device) -> Result<(), Error> {
        match self.device {
            Some(own) if !own.same(device) => Err(Error::ForeignDevice { what: "tensor" }),
            _ => Ok(()),
        }
    }

    /// Checks element type and shape; `None` accepts any size. `wanted` names the dimensions.
    pub(crate) fn expect(
        &self,
        name: &'static str,
        dtypes: &[DType],
        wanted: &str,
        shape: &[Option<u64>],
    ) -> Result<(), Error> {
        if !dtypes.contains(&self.dtype) {
            return Err(tensor_error(name, format!("has elements {:?}, needs {:?}", self.dtype, dtypes[0])));
        }
        let fits = self.rank == shape.len() && self.shape().iter().zip(shape).all(|(a, b)| b.is_none_or(|b| *a == b));
        if !fits {
            let shape: Vec<String> =
                shape.iter().map(|size| size.map_or_else(|| "_".into(), |size| size.to_string())).collect();
            let message = format!("has shape {:?}, needs {wanted} = [{}]", self.shape(), shape.join(", "));
            return Err(tensor_error(name, message));
        }
        let alignment = self.dtype.bytes();
        if !self.address.is_multiple_of(alignment) {
            return Err(tensor_error(name, format!("address {:#x} is no multiple of {alignment}", self.address)));
        }
        Ok(())
    }

    /// Checks that elements follow each other without gaps.
    pub(crate) fn expect_contiguous(&self, name: &'static str) -> Result<(), Error> {
        let wanted = contiguous(self.shape());
        let fits = (0..self.rank).all(|i| self.shape[i] <= 1 || self.strides[i] == wanted[i]);
        if fits {
            return Ok(());
        }
        let (have, wanted) = (&self.strides[..self.rank], &wanted[..self.rank]);
        Err(tensor_error(name, format!("has strides {have:?}, needs {wanted:?} (contiguous)")))
    }
}

fn contiguous(shape: &[u64]) -> [u64; RANK] {
    let mut strides = [1u64; RANK];
    for i in (0..shape.len().min(RANK).saturating_sub(1)).rev() {
        strides[i] = strides[i + 1].saturating_mul(shape[i + 1]);
    }
    strides
}

pub(crate) fn tensor_error(tensor: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Error {
    Error::Tensor { tensor: tensor.into(), message: message.into() }
}

/// Keys or values, wherever they lie.
#[derive(Clone, Copy, Debug)]
pub enum KvView<'a> {
    /// `[batch, seq, kv_heads, head_dim]`.
    Strided(TensorView<'a>),
    /// `[total, kv_heads, head_dim]`: sequences one after the other, found through [`Lengths::kv_start`].
    Packed(TensorView<'a>),
    /// In pages, for kernels of [`KvLayout::Paged`](crate::KvLayout): key r of sequence b is row `r % page` of the page that
    /// `table[b][r / page]` names. Lengths come from [`Lengths::kv_length`], or are the bound; starting rows are an error.
    ///
    /// The device alone knows the table: keys of an entry that names no page count as zeros, and the status word says so.
    /// Entries behind a sequence's keys are not read.
    Paged {
        /// `[pages, page, kv_heads, head_dim]`: as many tokens a page as the kernel is for. Address and strides are multiples
        /// of 16 bytes, pages and rows less than 4 GiB apart. Keys and values have as many pages each, and may be parts of one cache.
        pages: TensorView<'a>,
        /// u32 or i32 `[batch, pages of a sequence]`: page numbers, as many as the bound needs; one table for keys and values.
        table: TensorView<'a>,
    },
}

impl<'a> From<TensorView<'a>> for KvView<'a> {
    /// Packed with three dimensions, strided otherwise.
    fn from(view: TensorView<'a>) -> KvView<'a> {
        if view.rank == 3 { KvView::Packed(view) } else { KvView::Strided(view) }
    }
}

impl<'a> KvView<'a> {
    /// The tensor of rows, or the pages.
    pub(crate) fn tensor(&self) -> TensorView<'a> {
        match *self {
            KvView::Strided(view) | KvView::Packed(view) | KvView::Paged { pages: view, .. } => view,
        }
    }

    /// Checks that all of it may be used on `device`.
    pub(crate) fn on(&self, device: &Device) -> Result<(), Error> {
        if let KvView::Paged { table, .. } = self {
            table.on(device)?;
        }
        self.tensor().on(device)
    }
}

/// Where the sequences of a batch begin and how long they are, in device memory. Without any of it every sequence is as
/// long as its bound. Elements are u32, or i32 that are not negative.
///
/// The device alone knows the values: lengths beyond their bounds are cut, starting rows that do not ascend inside the tensor
/// hold nothing, and the status word says so. Sequences must not share query rows.
///
/// Query row `i` of a sequence stands at position `kv_length − q_length + i`: queries end at the last key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths<'a> {
    /// `[batch + 1]`: first packed query row of each sequence, and the end of the last (`cu_seqlens`).
    pub q_start: Option<TensorView<'a>>,
    /// `[batch + 1]`: as `q_start`, for keys.
    pub kv_start: Option<TensorView<'a>>,
    /// `[batch]`: queries of each sequence; where packed, the first of its rows.
    pub q_length: Option<TensorView<'a>>,
    /// `[batch]`: keys of each sequence; where packed, the first of its rows.
    pub kv_length: Option<TensorView<'a>>,
}

/// What the host knows of a batch: upper bounds, which fix grids and workspace. Longer sequences are cut to them and
/// reported in the status word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Sequences.
    pub batch: u32,
    /// Most queries of a sequence.
    pub max_q: u32,
    /// Most keys of a sequence.
    pub max_kv: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(address: u64, shape: &[u64], strides: &[u64]) -> Result<TensorView<'static>, Error> {
        // SAFETY: never used on a device.
        unsafe { TensorView::from_raw(address, DType::Bf16, shape, strides) }
    }

    fn text<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn shapes_and_strides_must_agree() {
        assert!(text(raw(0, &[2, 3], &[3])).contains("as many of both"));
        assert!(text(raw(0, &[2, 3], &[6, 2])).contains("must be contiguous"));
        assert!(text(raw(0, &[], &[])).contains("give 1 to 4"));
        assert!(text(raw(0, &[1 << 40, 1 << 40, 1], &[1 << 40, 1, 1])).contains("exceeds the address space"));
        assert!(raw(0, &[2, 1], &[6, 9]).is_ok(), "the stride of a single element means nothing");
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn views_stay_inside_their_buffer() {
        let device = Device::emulator();
        let buffer = device.allocate(100).unwrap();
        assert!(TensorView::new(&buffer, DType::F32, &[5, 5]).is_ok());
        let error = text(TensorView::new(&buffer, DType::F32, &[5, 6]));
        assert_eq!(error, "a tensor of shape [5, 6], strides [6, 1], 0 bytes in, needs 120 bytes; the buffer has 100");
        assert!(TensorView::strided(&buffer, 80, DType::F32, &[5], &[1]).is_ok());
        assert!(TensorView::strided(&buffer, 84, DType::F32, &[5], &[1]).is_err());
        let view = TensorView::new(&buffer, DType::F32, &[5]).unwrap();
        assert!(matches!(view.on(&Device::emulator()), Err(Error::ForeignDevice { what: "tensor" })));
        assert!(view.on(&device).is_ok());
    }
}
