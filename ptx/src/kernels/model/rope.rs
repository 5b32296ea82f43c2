//! Rotary position embedding (Su et al., "RoFormer", 2021), in the layout that rotates the two halves of a head.
//!
//! Angles are exact at every position: a frequency is a fraction of a turn in 64-bit fixed point, so that the product
//! with the position wraps at full turns by itself, and only the remainder becomes a float.

use super::{chunk, rows};
use crate::{
    isa::{Arch, B32, B64, Builder, Cache, Launch, MmaType, R32, R64, RF},
    kernels::{
        KernelSpec,
        error::{SpecError, SpecErrors},
        meta::{Kernel, ParameterKind},
    },
    tile::overlap,
};

const THREADS: u32 = 128;

/// Bias, rotary embedding and cache write for the new rows of one attention layer.
///
/// Queries and keys are rotated: with `half = head_dim / 2` and angle `φ = position · frequency[i]`, elements `i` and
/// `i + half` of a head become `(a cos φ − b sin φ, b cos φ + a sin φ)`. Values only get their bias. Heads of a row lie
/// side by side in the inputs and in `q_out`. `kv_heads = 0` rotates one tensor and needs no caches.
///
/// | parameter | kind | meaning |
/// |---|---|---|
/// | `q` | pointer | `[rows, heads, head_dim]` |
/// | `k`, `v` | pointer | `[rows, kv_heads, head_dim]` |
/// | `q_out` | pointer | `[rows, heads, head_dim]`; may be `q` |
/// | `k_cache`, `v_cache` | pointer | `[cache_rows, kv_heads, head_dim]` by strides; rotated keys, and values |
/// | `q_row`, `k_row`, `v_row`, `q_out_row` | u64 | bytes from one row to the next |
/// | `k_cache_row`, `v_cache_row`, `k_cache_head`, `v_cache_head` | u64 | bytes from one row or head to the next |
/// | `q_bias`, `k_bias`, `v_bias` | constant | `heads · head_dim` or `kv_heads · head_dim` elements (with `bias` only) |
/// | `frequencies` | constant | u64, `head_dim / 2` of them: turns a position, times 2⁶⁴ ([`frequencies`]) |
/// | `positions` | pointer | u32, position of each row; with `sections` three of these, one after the other |
/// | `position_axis` | u64 | bytes from one axis to the next (with `sections` only) |
/// | `slots` | pointer | u32, cache row of each row; 0: the row's own number |
/// | `heads`, `kv_heads` | u32 | heads of `q`, and of `k` and `v` |
/// | `cache_rows` | u32 | slots are less than this; rows with another slot are not cached |
/// | `status` | pointer | u32 word, or 0 for none: bit 2 is set where a slot is out of range |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RopeSpec {
    /// Elements of a head: a multiple of 16, at most 256.
    pub head_dim: u32,
    /// Element type.
    pub dtype: MmaType,
    /// Adds biases first.
    pub bias: bool,
    /// Pairs of elements that turn by a row's time, height and width, in this order (M-RoPE: Wang et al., "Qwen2-VL",
    /// 2024, §2.1): multiples of 8, `head_dim / 2` in all. Without them a row has one position.
    pub sections: Option<[u32; 3]>,
    /// Architecture of the text.
    pub arch: Arch,
}

/// Rotation of each pair of elements a position, `theta^(−2i / head_dim)` radians, as turns times 2⁶⁴.
pub fn frequencies(theta: f64, head_dim: u32) -> Vec<u64> {
    let turn = 2f64.powi(64);
    (0..head_dim / 2)
        .map(|i| {
            let radians = theta.powf(-2.0 * f64::from(i) / f64::from(head_dim));
            (radians / std::f64::consts::TAU * turn) as u64
        })
        .collect()
}

impl RopeSpec {
    /// Blocks to launch for this many rows of `heads` query and `kv_heads` key and value heads.
    pub fn grid(&self, rows: u32, heads: u32, kv_heads: u32) -> [u32; 3] {
        [rows, ((heads + 2 * kv_heads) * self.parts()).div_ceil(THREADS), 1]
    }

    /// Threads a head: each takes a chunk of the first half and the same of the second.
    fn parts(&self) -> u32 {
        self.head_dim / (2 * chunk::ELEMENTS)
    }
}

impl KernelSpec for RopeSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        if self.head_dim == 0 || self.head_dim > 256 || !self.head_dim.is_multiple_of(16) {
            errors.push(SpecError::new(
                "head_dim",
                format!("{} elements a head: must be a multiple of 16 from 16 to 256", self.head_dim),
            ));
        }
        if let Some(sections) = self.sections {
            let pairs: u64 = sections.iter().map(|&pairs| u64::from(pairs)).sum();
            let whole = sections.iter().all(|pairs| pairs.is_multiple_of(chunk::ELEMENTS));
            if !whole || pairs != u64::from(self.head_dim / 2) {
                let half = self.head_dim / 2;
                let message = format!("{sections:?}: must be multiples of 8 that sum to head_dim / 2 = {half}");
                errors.push(SpecError::new("sections", message));
            }
        }
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let Self { head_dim, dtype, .. } = *self;
        let bias = if self.bias { "_bias" } else { "" };
        let sections = self.sections.map_or(String::new(), |[t, h, w]| format!("_sections{t}x{h}x{w}"));
        let entry = format!("rope{bias}{sections}_d{head_dim}_{}_{}", dtype.suffix(), self.arch.name());
        let launch = Launch { threads: THREADS, blocks_per_multiprocessor: 1 };
        let mut k = Builder::new(self.arch, entry, launch);
        let sources = ["q", "k", "v"].map(|name| k.parameter::<B64>(name, ParameterKind::Pointer));
        let targets = ["q_out", "k_cache", "v_cache"].map(|name| k.parameter::<B64>(name, ParameterKind::Pointer));
        let source_rows = ["q_row", "k_row", "v_row"].map(|name| k.parameter::<B64>(name, ParameterKind::U64));
        let target_rows =
            ["q_out_row", "k_cache_row", "v_cache_row"].map(|name| k.parameter::<B64>(name, ParameterKind::U64));
        let [k_head, v_head] =
            ["k_cache_head", "v_cache_head"].map(|name| k.parameter::<B64>(name, ParameterKind::U64));
        let biases = self
            .bias
            .then(|| ["q_bias", "k_bias", "v_bias"].map(|name| k.parameter::<B64>(name, ParameterKind::Constant)));
        let frequencies: R64 = k.parameter("frequencies", ParameterKind::Constant);
        let [positions, slots] = ["positions", "slots"].map(|name| k.parameter::<B64>(name, ParameterKind::Pointer));
        let position_axis: Option<R64> = self.sections.map(|_| k.parameter("position_axis", ParameterKind::U64));
        let [heads, kv_heads, cache_rows] =
            ["heads", "kv_heads", "cache_rows"].map(|name| k.parameter::<B32>(name, ParameterKind::U32));
        let status = k.parameter("status", ParameterKind::Pointer);
        overlap::start(&mut k);

        k.comment("this thread's tensor, head and part");
        let (thread, block) = (k.thread(), k.block_y());
        let item = k.mad(block, THREADS, thread);
        let head = k.div_u(item, self.parts());
        let part = k.rem_u(item, self.parts());
        let values_from = k.add(heads, kv_heads);
        let heads_end = k.add(values_from, kv_heads);
        let exists = k.lt_u(head, heads_end);
        let is_query = k.lt_u(head, heads);
        let is_rotated = k.lt_u(head, values_from);
        let pick = |k: &mut Builder, [q, key, value]: [R64; 3]| {
            let cached = k.select(is_rotated, key, value);
            k.select(is_query, q, cached)
        };
        let cached_before = k.select::<B32>(is_rotated, heads, values_from);
        let before = k.select::<B32>(is_query, 0u32, cached_before);
        let own_head = k.sub(head, before);
        let part_offset = k.mul_wide(part, chunk::BYTES);
        let in_row = k.mad_wide(own_head, head_dim * 2, part_offset);

        k.comment("bias and frequencies");
        let biases = biases.map(|biases| {
            let base = pick(&mut k, biases);
            let address = k.add(base, in_row);
            let halves = [0, i64::from(head_dim)];
            halves.map(|offset| {
                let words = k.fresh_array::<B32, 4>();
                k.when(exists, |k| k.load_vector_into(words, address, offset, overlap::early(k)));
                words
            })
        });
        let table = k.mad_wide(part, chunk::ELEMENTS * 8, frequencies);
        let turns = k.fresh_array::<B64, { chunk::ELEMENTS as usize }>();
        for (i, &turn) in turns.iter().enumerate() {
            k.when(is_rotated, |k| k.load_into(turn, table, 8 * i as i64, overlap::early(k)));
        }
        overlap::wait(&mut k);

        k.comment("this row's cache slot and position, and what is rotated: all under way together");
        let row = k.block_x();
        let slot = k.mov(row);
        let has_slots = k.ne(slots, 0u64);
        let slot_address = k.mad_wide(row, 4u32, slots);
        k.when(has_slots, |k| k.load_into(slot, slot_address, 0, Cache::ReadOnly));
        let mut position_address = k.mad_wide(row, 4u32, positions);
        if let (Some([time, height, _]), Some(stride)) = (self.sections, position_axis) {
            // A chunk of pairs lies in one section.
            for end in [time, time + height] {
                let behind = k.ge_u(part, end / chunk::ELEMENTS);
                let next = k.add(position_address, stride);
                position_address = k.select(behind, next, position_address);
            }
        }
        let position: R32 = k.fresh();
        k.when(is_rotated, |k| k.load_into(position, position_address, 0, Cache::ReadOnly));
        let (base, stride) = (pick(&mut k, sources), pick(&mut k, source_rows));
        let source = chunk::row_address(&mut k, base, row, stride, in_row);
        let halves = [0, i64::from(head_dim)].map(|offset| {
            let words = k.fresh_array::<B32, 4>();
            k.when(exists, |k| k.load_vector_into(words, source, offset, Cache::Default));
            words
        });

        k.comment("rotate");
        let in_cache = k.lt_u(slot, cache_rows);
        let caches_nothing = k.eq(kv_heads, 0u32);
        let slot_valid = k.or_p(in_cache, caches_nothing);
        rows::report_out_of_range(&mut k, slot_valid, status);

        let stored = k.or_p(is_query, in_cache);
        let active = k.and_p(exists, stored);
        k.if_then(active, |k| {
            let [mut low, mut high] = halves.map(|words| chunk::unpack(k, dtype, words));
            if let Some(biases) = biases {
                let [low_bias, high_bias] = biases.map(|words| chunk::unpack(k, dtype, words));
                low = std::array::from_fn(|i| k.add_f(low[i], low_bias[i]));
                high = std::array::from_fn(|i| k.add_f(high[i], high_bias[i]));
            }

            k.if_then(is_rotated, |k| {
                let position = k.widen_u(position);
                for (i, &frequency) in turns.iter().enumerate() {
                    let (sine, cosine) = sine_and_cosine(k, position, frequency);
                    let turned_low = rotated(k, (low[i], cosine), (high[i], sine), true);
                    let turned_high = rotated(k, (high[i], cosine), (low[i], sine), false);
                    k.set(low[i], turned_low);
                    k.set(high[i], turned_high);
                }
            });

            let query_head = k.mov(u64::from(head_dim * 2));
            let (base, stride) = (pick(k, targets), pick(k, target_rows));
            let head_stride = pick(k, [query_head, k_head, v_head]);
            let wide_head = k.widen_u(own_head);
            let in_row = k.mad(wide_head, head_stride, part_offset);
            let target_row = k.select::<B32>(is_query, row, slot);
            let target = chunk::row_address(k, base, target_row, stride, in_row);
            chunk::store(k, dtype, target, low);
            let upper = k.add(target, u64::from(head_dim));
            chunk::store(k, dtype, upper, high);
        });
        k.ret();
        k.finish()
    }
}

/// Sine and cosine of `position · frequency`, a product in turns that wraps at 2⁶⁴.
fn sine_and_cosine(k: &mut Builder, position: R64, frequency: R64) -> (RF, RF) {
    let turns = k.mul(position, frequency);
    let upper = k.shr_u(turns, 32u32);
    let signed = k.narrow(upper);
    let signed = k.float_from_s(signed);
    let radians = k.mul_f(signed, (std::f64::consts::TAU / 2f64.powi(32)) as f32);
    (k.sin_f(radians), k.cos_f(radians))
}

/// `a·x − b·y` or `a·x + b·y`.
fn rotated(k: &mut Builder, (a, x): (RF, RF), (b, y): (RF, RF), minus: bool) -> RF {
    let product = k.mul_f(b, y);
    let addend = if minus { k.neg_f(product) } else { product };
    k.fma(a, x, addend)
}
