//! What every kernel over a batch takes: sequences, and tensors of rows by heads.

use crate::{
    Arguments, Bounds, DType, Device, Error, KvLayout, KvView, Lengths, LoadedKernel, TensorView, device::TensorMap,
    tensor::tensor_error,
};
use ptx::{BoxShape, ParameterKind, isa::MmaType};

/// CUDA's limit of a grid's second and third dimension.
const MAX_GRID: u64 = 65535;

/// How kernels read a tensor: a vector load of this many bytes.
const ALIGNMENT: u64 = 16;

/// The sequences of a batch: checked lengths, as kernels take them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) bounds: Bounds,
    /// The device decides on lengths.
    pub(crate) varies: bool,
    q_start: u64,
    kv_start: u64,
    q_length: u64,
    kv_length: u64,
}

impl Batch {
    pub(crate) fn new(lengths: &Lengths<'_>, bounds: Bounds, device: &Device) -> Result<Batch, Error> {
        if u64::from(bounds.batch) > MAX_GRID {
            let message = format!("batch is {}; launch at most {MAX_GRID} sequences at once", bounds.batch);
            return Err(Error::Setting { setting: "bounds", message });
        }
        let array = |name, view: &Option<TensorView<'_>>, wanted, count: u32| {
            let Some(view) = view else { return Ok(0) };
            view.on(device)?;
            view.expect(name, &[DType::U32, DType::I32], wanted, &[Some(u64::from(count))])?;
            Ok::<_, Error>(view.address())
        };
        Ok(Batch {
            bounds,
            varies: lengths.q_start.is_some()
                || lengths.kv_start.is_some()
                || lengths.q_length.is_some()
                || lengths.kv_length.is_some(),
            q_start: array("q_start", &lengths.q_start, "[batch + 1]", bounds.batch + 1)?,
            kv_start: array("kv_start", &lengths.kv_start, "[batch + 1]", bounds.batch + 1)?,
            q_length: array("q_length", &lengths.q_length, "[batch]", bounds.batch)?,
            kv_length: array("kv_length", &lengths.kv_length, "[batch]", bounds.batch)?,
        })
    }

    /// A tensor with a row for every query.
    pub(crate) fn queries(&self, name: &'static str, view: &TensorView<'_>, row: Row) -> Result<Rows, Error> {
        Rows::new(name, view, row, self.bounds.batch, self.bounds.max_q, self.q_start != 0)
    }

    /// A row for every key, where a kernel of `layout` finds them.
    pub(crate) fn keys(
        &self,
        name: &'static str,
        view: &KvView<'_>,
        row: Row,
        layout: KvLayout,
    ) -> Result<KvRows, Error> {
        let Bounds { batch, max_kv, .. } = self.bounds;
        match (layout, view) {
            (KvLayout::Strided, KvView::Strided(view) | KvView::Packed(view)) => {
                let rows = Rows::new(name, view, row, batch, max_kv, self.kv_start != 0)?;
                Ok(KvRows { rows, table: None })
            }
            (KvLayout::Paged { page }, KvView::Paged { pages, table }) => {
                let rows = Rows::in_pages(name, pages, row, page)?;
                if self.kv_start != 0 {
                    let message = "lies in pages, which have no starting rows; drop kv_start and give kv_length";
                    return Err(tensor_error(name, message));
                }
                Ok(KvRows { rows, table: Some(PageTable::new(table, self.bounds, page, pages.shape()[0])?) })
            }
            (KvLayout::Strided, KvView::Paged { .. }) => {
                let message = "lies in pages, which this kernel does not read; use one with kv = paged(tokens a page)";
                Err(tensor_error(name, message))
            }
            (KvLayout::Paged { page }, _) => {
                let message = format!(
                    "has no pages; this kernel reads pages of {page} tokens: give KvView::Paged, or use one with kv = strided"
                );
                Err(tensor_error(name, message))
            }
        }
    }

    /// Sets `q_start q_length q_rows max_q`, where the packed tensors have `rows` rows at least.
    pub(crate) fn query_arguments<'m>(&self, arguments: Arguments<'m>, rows: u32) -> Arguments<'m> {
        arguments
            .pointer("q_start", self.q_start)
            .pointer("q_length", self.q_length)
            .u32("q_rows", rows)
            .u32("max_q", self.bounds.max_q)
    }

    /// Sets `kv_start kv_length kv_rows max_kv`, where the packed tensors have `rows` rows at least.
    pub(crate) fn key_arguments<'m>(&self, arguments: Arguments<'m>, rows: u32) -> Arguments<'m> {
        arguments
            .pointer("kv_start", self.kv_start)
            .pointer("kv_length", self.kv_length)
            .u32("kv_rows", rows)
            .u32("max_kv", self.bounds.max_kv)
    }
}

/// What a row of one head holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) dtype: DType,
    pub(crate) head_dim: u32,
}

/// Rows by heads of one tensor, as kernels take it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) address: u64,
    /// Byte strides; the batch's is 0 where packed.
    pub(crate) batch: u64,
    pub(crate) row: u64,
    pub(crate) head: u64,
    pub(crate) heads: u32,
    /// Rows in all where packed, else of a sequence.
    pub(crate) rows: u32,
    /// Sequences or pages; one where packed.
    entries: u64,
}

impl Rows {
    /// Checks a tensor of queries, keys, values or output against the batch. `start` says whether starting rows are given,
    /// `bound` is the most rows of a sequence.
    pub(crate) fn new(
        name: &'static str,
        view: &TensorView<'_>,
        row: Row,
        batch: u32,
        bound: u32,
        start: bool,
    ) -> Result<Rows, Error> {
        let wrong = |message: String| Err(tensor_error(name, message));
        let (packed, d) = (view.shape().len() == 3, Some(u64::from(row.head_dim)));
        if packed {
            view.expect(name, &[row.dtype], "[total, heads, head_dim]", &[None, None, d])?;
        } else {
            let shape = [Some(u64::from(batch)), None, None, d];
            view.expect(name, &[row.dtype], "[batch, seq, heads, head_dim]", &shape)?;
        }
        let first = view.shape().len() - 3;
        let (rows, heads) = (view.shape()[first], view.shape()[first + 1]);
        if packed && !start && batch != 1 {
            return wrong(format!(
                "is packed, and the batch has {batch} sequences: give their starting rows in the lengths"
            ));
        }
        if !packed && start {
            return wrong("has a batch dimension and starting rows; drop one of them".into());
        }
        if !start && u64::from(bound) > rows {
            return wrong(format!("has {rows} rows, fewer than the bound {bound}; lower the bound"));
        }
        if heads > MAX_GRID {
            return wrong(format!("has {heads} heads; launch at most {MAX_GRID} at once"));
        }
        // More rows than a starting row can name are of no use.
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        let (row, head) = (view.byte_stride(first), view.byte_stride(first + 1));
        let batch_stride = if packed { 0 } else { view.byte_stride(0) };
        let (address, heads, entries) = (view.address(), heads as u32, if packed { 1 } else { view.shape()[0] });
        let rows = Rows { address, batch: batch_stride, row, head, heads, rows, entries };
        rows.expect_aligned(name, "batch stride")?;
        Ok(rows)
    }

    /// Checks pages of `page` keys or values. Their stride is the batch's, their rows are those of a page.
    fn in_pages(name: &'static str, view: &TensorView<'_>, row: Row, page: u32) -> Result<Rows, Error> {
        let wanted = [None, Some(u64::from(page)), None, Some(u64::from(row.head_dim))];
        view.expect(name, &[row.dtype], "[pages, page, heads, head_dim]", &wanted)?;
        let shape = view.shape();
        let heads = shape[2];
        if heads > MAX_GRID {
            return Err(tensor_error(name, format!("has {heads} heads; launch at most {MAX_GRID} at once")));
        }
        let [batch, row, head] = [0, 1, 2].map(|dimension| view.byte_stride(dimension));
        let (address, heads, entries) = (view.address(), heads as u32, shape[0]);
        let rows = Rows { address, batch, row, head, heads, rows: page, entries };
        rows.expect_aligned(name, "page stride")?;
        // Kernels multiply in 32 bits.
        if let Some(stride) = [batch, row].into_iter().find(|stride| u32::try_from(*stride).is_err()) {
            let message = format!("has a stride of {stride} bytes between pages or rows; it must be below 2³²");
            return Err(tensor_error(name, message));
        }
        Ok(rows)
    }

    fn expect_aligned(&self, name: &'static str, batch: &str) -> Result<(), Error> {
        for (what, value) in
            [("address", self.address), ("row stride", self.row), ("head stride", self.head), (batch, self.batch)]
        {
            if !value.is_multiple_of(ALIGNMENT) {
                let message = format!("its {what} is {value} bytes, no multiple of {ALIGNMENT}; align or pad it");
                return Err(tensor_error(name, message));
            }
        }
        Ok(())
    }

    /// The tensor as bulk copies see it. A packed one has a single batch entry.
    fn tensor_map(&self, head_dim: u32, dtype: MmaType, box_shape: BoxShape) -> TensorMap {
        let shape = [u64::from(head_dim), u64::from(self.rows), u64::from(self.heads), self.entries];
        // The stride of a dimension of one entry is never used, and the driver refuses some.
        let stride = |entries: u64, stride: u64| if entries > 1 { stride } else { ALIGNMENT };
        let strides = [stride(shape[1], self.row), stride(shape[2], self.head), stride(shape[3], self.batch)];
        // An empty tensor has no boxes; its map is encoded all the same.
        let address = self.address.max(ALIGNMENT);
        TensorMap { address, dtype, shape: shape.map(|entries| entries.max(1)), strides, box_shape }
    }

    /// Sets the address and the strides, by the names given in that order: address, batch, row, head.
    pub(crate) fn arguments<'m>(&self, arguments: Arguments<'m>, names: [&str; 4]) -> Arguments<'m> {
        let [address, batch, row, head] = names;
        arguments.pointer(address, self.address).u64(batch, self.batch).u64(row, self.row).u64(head, self.head)
    }

    /// Checks that no two elements of an output share an address, where strides show it.
    pub(crate) fn expect_distinct(&self, name: &'static str, batch: u32, bound: u32) -> Result<(), Error> {
        let shared = (self.row == 0 && bound > 1) || (self.head == 0 && self.heads > 1);
        if shared {
            let message =
                format!("has a stride of 0 over {batch} sequences of {bound} rows; an output cannot be broadcast");
            return Err(tensor_error(name, message));
        }
        Ok(())
    }
}

/// Begins the arguments of a kernel with the tensor maps that it takes: `q_map` of the tensor `q`, and so on.
///
/// # Errors
/// [`Error::Tensor`] for a tensor that bulk copies cannot read.
pub(crate) fn map_arguments<'m>(
    kernel: &'m LoadedKernel,
    (head_dim, dtype): (u32, MmaType),
    tensors: &[(&'static str, Rows)],
) -> Result<Arguments<'m>, Error> {
    let mut arguments = Arguments::new(kernel.meta());
    for (name, rows) in tensors {
        let map = format!("{name}_map");
        let parameter = kernel.meta().parameters.iter().find(|p| p.name == map);
        let Some(ParameterKind::TensorMap(box_shape)) = parameter.map(|p| p.kind) else { continue };
        let described = rows.tensor_map(head_dim, dtype, box_shape);
        let encoded = kernel.device().encode_tensor_map(&described).map_err(|error| {
            let [_, rows, heads, entries] = described.shape;
            let strides = described.strides;
            let message = format!(
                "{entries} times {rows} rows of {heads} heads at byte strides of rows, heads and entries {strides:?} allow no \
                 bulk copies: {error}; lay it out otherwise, or use a kernel for sm_80"
            );
            tensor_error(*name, message)
        })?;
        arguments = arguments.tensor_map(&map, &encoded);
    }
    Ok(arguments)
}

/// Keys or values, as kernels take them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvRows {
    pub(crate) rows: Rows,
    /// Of pages.
    pub(crate) table: Option<PageTable>,
}

impl KvRows {
    /// Sets the address and the strides of `name`.
    pub(crate) fn arguments<'m>(&self, arguments: Arguments<'m>, name: &str) -> Arguments<'m> {
        let stride = |dimension: &str| format!("{name}_{dimension}");
        let Rows { address, batch, row, head, .. } = self.rows;
        let arguments = arguments.pointer(name, address).u64(&stride("head"), head);
        match self.table {
            None => arguments.u64(&stride("batch"), batch).u64(&stride("row"), row),
            // Checked to be below 2³².
            Some(_) => arguments.u32(&stride("page"), batch as u32).u32(&stride("row"), row as u32),
        }
    }

    /// Sets `page_table page_table_batch pages`, of pages.
    pub(crate) fn table_arguments<'m>(&self, arguments: Arguments<'m>) -> Arguments<'m> {
        let Some(PageTable { address, batch, pages, .. }) = self.table else { return arguments };
        arguments.pointer("page_table", address).u64("page_table_batch", batch).u32("pages", pages)
    }
}

/// A page table, as kernels take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageTable {
    address: u64,
    /// Bytes from a sequence's entries to the next one's.
    batch: u64,
    /// Pages that entries may name.
    pages: u32,
}

impl PageTable {
    fn new(view: &TensorView<'_>, bounds: Bounds, page: u32, pages: u64) -> Result<PageTable, Error> {
        let shape = [Some(u64::from(bounds.batch)), None];
        view.expect("page table", &[DType::U32, DType::I32], "[batch, pages of a sequence]", &shape)?;
        let entries = view.shape()[1];
        let room = entries.saturating_mul(u64::from(page));
        if room < u64::from(bounds.max_kv) {
            let message = format!(
                "has {entries} pages of {page} tokens for a sequence, room for {room}, fewer than the bound {}; widen it, \
                 or lower the bound",
                bounds.max_kv
            );
            return Err(tensor_error("page table", message));
        }
        // More pages than an entry can name are of no use.
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        Ok(PageTable { address: view.address(), batch: view.byte_stride(0), pages })
    }
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

    fn rows(view: &TensorView<'_>, batch: u32, bound: u32, start: bool) -> Result<Rows, Error> {
        Rows::new("q", view, Row { dtype: DType::Bf16, head_dim: 64 }, batch, bound, start)
    }

    #[test]
    fn rows_have_byte_strides() {
        let view = raw(256, &[2, 10, 4, 64], &[4096, 256, 64, 1]).unwrap();
        let rows = rows(&view, 2, 10, false).unwrap();
        assert_eq!((rows.address, rows.batch, rows.row, rows.head, rows.heads), (256, 8192, 512, 128, 4));
        let view = raw(256, &[20, 4, 64], &[256, 64, 1]).unwrap();
        let packed = super::tests::rows(&view, 3, 10, true).unwrap();
        assert_eq!((packed.batch, packed.row, packed.rows), (0, 512, 20));
    }

    #[test]
    fn rows_are_checked() {
        let view = raw(256, &[2, 10, 4, 64], &[4096, 256, 64, 1]).unwrap();
        assert!(text(rows(&view, 3, 10, false)).contains("needs [batch, seq, heads, head_dim] = [3, _, _, 64]"));
        assert!(text(rows(&view, 2, 11, false)).contains("has 10 rows, fewer than the bound 11"));
        assert!(text(rows(&view, 2, 10, true)).contains("drop one of them"));
        let view = raw(256, &[20, 4, 64], &[256, 64, 1]).unwrap();
        assert!(text(rows(&view, 2, 10, false)).contains("give their starting rows"));
        let view = raw(8, &[1, 10, 4, 64], &[4096, 256, 64, 1]).unwrap();
        assert!(text(rows(&view, 1, 10, false)).contains("its address is 8 bytes, no multiple of 16"));
        let view = raw(16, &[1, 10, 4, 64], &[4096, 260, 65, 1]).unwrap();
        assert!(text(rows(&view, 1, 10, false)).contains("its row stride is 520 bytes"));
        // SAFETY: never used on a device.
        let view = unsafe { TensorView::from_raw(16, DType::F16, &[1, 1, 1, 64], &[64, 64, 64, 1]) }.unwrap();
        assert_eq!(text(rows(&view, 1, 1, false)), "tensor q: has elements F16, needs Bf16");
    }

    #[test]
    fn outputs_are_not_broadcast() {
        let view = raw(256, &[1, 10, 4, 64], &[0, 64, 0, 1]).unwrap();
        let rows = rows(&view, 1, 10, false).unwrap();
        assert!(text(rows.expect_distinct("out", 1, 10)).contains("cannot be broadcast"));
    }
}
