//! The tensors of an attention launch, checked together.

use crate::{
    Arguments, Bounds, DType, Device, Error, KvLayout, KvView, Lengths, LoadedKernel, TensorView,
    batch::{Batch, KvRows, Row, Rows, map_arguments},
    tensor::tensor_error,
};
use ptx::isa::MmaType;

/// What a caller gives.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) q: TensorView<'a>,
    pub(crate) k: KvView<'a>,
    pub(crate) v: KvView<'a>,
    pub(crate) out: TensorView<'a>,
    pub(crate) lse: Option<TensorView<'a>>,
    pub(crate) lengths: Lengths<'a>,
    pub(crate) bounds: Bounds,
}

/// The same, checked.
pub(crate) struct Operands {
    head_dim: u32,
    pub(crate) batch: Batch,
    pub(crate) q: Rows,
    out: Rows,
    k: KvRows,
    v: KvRows,
    /// Address and byte strides of LSE: of a sequence and of a head.
    lse: [u64; 3],
}

impl Operands {
    pub(crate) fn new(device: &Device, row: Row, layout: KvLayout, given: Given<'_>) -> Result<Operands, Error> {
        for view in [Some(given.q), Some(given.out), given.lse].iter().flatten() {
            view.on(device)?;
        }
        given.k.on(device)?;
        given.v.on(device)?;
        let (k_view, v_view) = (given.k.tensor(), given.v.tensor());
        let batch = Batch::new(&given.lengths, given.bounds, device)?;
        let q = batch.queries("q", &given.q, row)?;
        let out = batch.queries("out", &given.out, row)?;
        let (k, v) = (batch.keys("k", &given.k, row, layout)?, batch.keys("v", &given.v, row, layout)?);
        if out.heads != q.heads || given.out.shape() != given.q.shape() {
            let message = format!("has shape {:?}, needs that of q, {:?}", given.out.shape(), given.q.shape());
            return Err(tensor_error("out", message));
        }
        out.expect_distinct("out", given.bounds.batch, given.bounds.max_q)?;
        if v.rows.heads != k.rows.heads || v_view.shape().len() != k_view.shape().len() {
            let (given, needed) = (v_view.shape(), k_view.shape());
            return Err(tensor_error(
                "v",
                format!("has shape {given:?}, needs the heads and dimensions of k, {needed:?}"),
            ));
        }
        if v.table != k.table {
            return Err(tensor_error(
                "v",
                "has another page table than k, or another number of pages; one table serves both",
            ));
        }
        if k.rows.heads == 0 || q.heads % k.rows.heads != 0 {
            let message = format!("has {} heads, which must divide the {} heads of q", k.rows.heads, q.heads);
            return Err(tensor_error("k", message));
        }
        Ok(Operands { lse: lse(&given, q.heads)?, head_dim: row.head_dim, batch, q, out, k, v })
    }

    /// Heads of keys and values.
    pub(crate) fn kv_heads(&self) -> u32 {
        self.k.rows.heads
    }

    /// Query heads that share keys.
    pub(crate) fn heads_per_kv(&self) -> u32 {
        self.q.heads / self.k.rows.heads
    }

    /// The arguments of an attention kernel that say where tensors lie and how long sequences are.
    pub(crate) fn arguments<'m>(&self, kernel: &'m LoadedKernel, dtype: MmaType) -> Result<Arguments<'m>, Error> {
        let tensors = [("q", self.q), ("k", self.k.rows), ("v", self.v.rows)];
        let arguments = map_arguments(kernel, (self.head_dim, dtype), &tensors)?;
        let arguments = self.q.arguments(arguments, ["q", "q_batch", "q_row", "q_head"]);
        let arguments = self.v.arguments(self.k.arguments(arguments, "k"), "v");
        let arguments = self.output_arguments(self.k.table_arguments(arguments));
        let arguments = self.batch.query_arguments(arguments, self.q.rows);
        Ok(self.batch.key_arguments(arguments, self.k.rows.rows.min(self.v.rows.rows)))
    }

    /// Those of output and LSE.
    pub(crate) fn output_arguments<'m>(&self, arguments: Arguments<'m>) -> Arguments<'m> {
        let arguments = self.out.arguments(arguments, ["out", "out_batch", "out_row", "out_head"]);
        let [lse, batch, head] = self.lse;
        arguments.pointer("lse", lse).u64("lse_batch", batch).u64("lse_head", head)
    }
}

/// Address and strides of LSE; zeros without it.
fn lse(given: &Given<'_>, heads: u32) -> Result<[u64; 3], Error> {
    let Some(lse) = &given.lse else { return Ok([0; 3]) };
    let (heads, rows) = (Some(u64::from(heads)), given.q.shape()[given.q.shape().len() - 3]);
    let packed = given.q.shape().len() == 3;
    let (batch, head) = if packed {
        lse.expect("lse", &[DType::F32], "[heads, total]", &[heads, Some(rows)])?;
        (0, lse.byte_stride(0))
    } else {
        let wanted = [Some(u64::from(given.bounds.batch)), heads, Some(rows)];
        lse.expect("lse", &[DType::F32], "[batch, heads, seq]", &wanted)?;
        (lse.byte_stride(0), lse.byte_stride(1))
    };
    if head == 0 && heads > Some(1) {
        return Err(tensor_error("lse", "has a stride of 0 over heads; an output cannot be broadcast"));
    }
    Ok([lse.address(), batch, head])
}
