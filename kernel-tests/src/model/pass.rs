//! A pass over the rows that a batch feeds: the part of a decoding step that is the model's. Launches only, so that steps
//! may be captured; where the requests stand is read on the device.

use super::{
    Batch, Error, Transformer,
    attention::decoding,
    batch::PAGE,
    layers::{Activations, Rows},
};
use kernel_core::{
    Arguments, Bounds, Buffer, DType, DecodeArgs, DecodeAttention, KvLayout, KvView, Lengths, Stream, TensorView,
    Workspace,
    sampling::{Decoder, Logits},
};
use ptx::kernels::feed::FeedParameters;

/// Memory and kernels of a pass over one batch.
pub struct Pass<'b> {
    batch: &'b Batch,
    /// Rows a sequence.
    rows: usize,
    /// Rows of logits.
    listed: usize,
    refresh: bool,
    memory: Activations,
    feeds: Buffer,
    positions: Buffer,
    slots: Buffer,
    q_start: Buffer,
    q_length: Buffer,
    kv_length: Buffer,
    chosen: Buffer,
    logits: Buffer,
    attention: DecodeAttention,
    bounds: Bounds,
    workspace: Buffer,
}

impl Transformer {
    /// A pass that feeds up to `rows` rows of each sequence as `feeds` says, or everything with `refresh`, and computes
    /// logits of up to `listed` positions in all.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device.
    pub fn pass<'b>(
        &self,
        stream: &Stream,
        batch: &'b Batch,
        feeds: &[FeedParameters],
        (rows, listed): (usize, usize),
        refresh: bool,
    ) -> Result<Pass<'b>, Error> {
        let (device, config, requests) = (stream.device(), &self.config, batch.sequences().len());
        let attention = decoding(stream, config, KvLayout::Paged { page: PAGE as u32 }, self.arch)?;
        let bounds = Bounds { batch: 2 * requests as u32, max_q: rows as u32, max_kv: batch.capacity() as u32 };
        let words = |count: usize| device.allocate(4 * count);
        let memory = Activations::new(stream, config, requests * rows)?;
        // Rows that are not fed go through the products too.
        memory.attended.fill(stream, 0)?;
        Ok(Pass {
            batch,
            rows,
            listed,
            refresh,
            memory,
            feeds: device.upload(stream, feeds)?,
            positions: words(requests * rows)?,
            slots: words(requests * rows)?,
            q_start: words(2 * requests + 1)?,
            q_length: words(2 * requests)?,
            kv_length: words(2 * requests)?,
            chosen: device.allocate(2 * listed * config.hidden)?,
            logits: device.allocate(2 * listed * config.vocabulary)?,
            workspace: device.allocate(attention.workspace_bytes(&bounds) as usize)?,
            attention,
            bounds,
        })
    }

    /// Runs the pass for the positions that `decoder` has listed.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device.
    pub fn run<'p>(&self, stream: &Stream, pass: &'p Pass<'_>, decoder: &Decoder) -> Result<Logits<'p>, Error> {
        let cache = &pass.batch.cache;
        let count = pass.batch.sequences().len() * pass.rows;
        self.embed(stream, pass, decoder)?;
        let (positions, slots) = (pass.positions.address(), pass.slots.address());
        let rows = Rows { count, positions, slots, first_slot: 0, cache };
        self.layers(stream, &pass.memory, &rows, |layer| self.attend_segments(stream, pass, layer))?;
        self.head_rows(stream, pass, decoder)?;
        self.linear.apply(stream, &pass.chosen, &self.head, &pass.logits, pass.listed)?;
        let shape = [pass.listed as u64, self.config.vocabulary as u64];
        Ok(Logits { values: TensorView::new(&pass.logits, DType::Bf16, &shape)?, gathered: true, guide_offset: 0 })
    }

    fn embed(&self, stream: &Stream, pass: &Pass<'_>, decoder: &Decoder) -> Result<(), Error> {
        let (spec, kernel) = &self.kernels.embed;
        let (batch, row) = (pass.batch, self.row_bytes());
        let pages = (batch.capacity() / PAGE) as u32;
        let arguments = Arguments::new(kernel.meta())
            .pointer("tokens", batch.tokens.address())
            .u32("tokens_length", batch.cache.rows as u32)
            .pointer("embedding", self.embedding.address())
            .u64("embedding_row", row)
            .u32("vocabulary", self.config.vocabulary as u32)
            .pointer("out", pass.memory.stream.address())
            .u64("out_row", row)
            .pointer("states", decoder.state_words()?.address())
            .pointer("feeds", pass.feeds.address())
            .u32("refresh", pass.refresh.into())
            .u32("rows", pass.rows as u32)
            .pointer("page_table", batch.table.address())
            .u32("table_width", pages)
            .u32("table_stride", 2 * pages)
            .u32("page_shift", PAGE.ilog2())
            .u32("cache_rows", batch.cache.rows as u32)
            .pointer("positions", pass.positions.address())
            .pointer("slots", pass.slots.address())
            .pointer("q_start", pass.q_start.address())
            .pointer("q_length", pass.q_length.address())
            .pointer("kv_length", pass.kv_length.address())
            .pointer("status", 0);
        let grid = spec.grid(batch.sequences().len() as u32, pass.rows as u32);
        Ok(kernel.launch(stream, grid, &arguments)?)
    }

    fn head_rows(&self, stream: &Stream, pass: &Pass<'_>, decoder: &Decoder) -> Result<(), Error> {
        let (spec, kernel) = &self.kernels.head_rows;
        let arguments = Arguments::new(kernel.meta())
            .pointer("x", pass.memory.normed.address())
            .pointer("out", pass.chosen.address())
            .u64("x_row", self.row_bytes())
            .u64("out_row", self.row_bytes())
            .pointer("list", decoder.rows()?.address())
            .pointer("totals", decoder.totals()?.address())
            .pointer("states", decoder.state_words()?.address())
            .pointer("feeds", pass.feeds.address())
            .u32("refresh", pass.refresh.into())
            .u32("rows", pass.rows as u32)
            .u32("requests", pass.batch.sequences().len() as u32)
            .pointer("status", 0);
        Ok(kernel.launch(stream, spec.grid(pass.listed as u32), &arguments)?)
    }

    /// Each segment of fed rows over the keys it sees.
    fn attend_segments(&self, stream: &Stream, pass: &Pass<'_>, layer: usize) -> Result<(), Error> {
        let (config, batch) = (&self.config, pass.batch);
        let [heads, kv_heads, head_dim] = [config.heads, config.kv_heads, config.head_dim].map(|size| size as u64);
        let segments = 2 * batch.sequences().len() as u64;
        let rows = segments / 2 * pass.rows as u64;
        let queries = |buffer, row_heads: u64| {
            let strides = [row_heads * head_dim, head_dim, 1];
            TensorView::strided(buffer, 0, DType::Bf16, &[rows, heads, head_dim], &strides)
        };
        let (pages, page) = ((batch.cache.rows / PAGE) as u64, PAGE as u64);
        let of_sequence = (batch.capacity() / PAGE) as u64;
        let table = TensorView::new(&batch.table, DType::U32, &[segments, of_sequence])?;
        let cached = |buffer| -> Result<KvView<'_>, Error> {
            Ok(KvView::Paged {
                pages: TensorView::new(buffer, DType::Bf16, &[pages, page, kv_heads, head_dim])?,
                table,
            })
        };
        let words = |buffer, count| Ok::<_, Error>(Some(TensorView::new(buffer, DType::U32, &[count])?));
        let lengths = Lengths {
            q_start: words(&pass.q_start, segments + 1)?,
            kv_start: None,
            q_length: words(&pass.q_length, segments)?,
            kv_length: words(&pass.kv_length, segments)?,
        };
        let args = DecodeArgs {
            q: queries(&pass.memory.qkv, heads + 2 * kv_heads)?,
            k: cached(&batch.cache.keys[layer])?,
            v: cached(&batch.cache.values[layer])?,
            out: queries(&pass.memory.attended, heads)?,
            lse: None,
            lengths,
            bounds: pass.bounds,
            blocks: None,
            workspace: Workspace::from(&pass.workspace),
        };
        Ok(pass.attention.run(stream, &args)?)
    }
}
