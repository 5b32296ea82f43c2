//! The kernels around attention against double precision.

// Clippy lets only the `#[test]` functions themselves unwrap.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use kernel_core::{Arguments, Buffer, Device, LoadedKernel, Stream};
use kernel_tests::testing;
use ptx::{
    Arch, KernelSpec, generate,
    isa::MmaType,
    kernels::model::{
        AddSpec, RmsNormSpec, RopeSpec, RowAccess, RowsSpec, STATUS_INDEX_OUT_OF_RANGE, SwigluSpec, frequencies,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const DTYPES: [MmaType; 2] = [MmaType::Bf16, MmaType::F16];
/// What outputs hold before a launch, and must still hold where nothing is to be written: a NaN in both types.
const POISON: u16 = 0xFFFF;

/// Rounds to the type, as bits.
fn encode(dtype: MmaType, value: f32) -> u16 {
    match dtype {
        MmaType::Bf16 => bf16::from_f32(value).to_bits(),
        MmaType::F16 => f16::from_f32(value).to_bits(),
    }
}

fn decode(dtype: MmaType, bits: u16) -> f64 {
    match dtype {
        MmaType::Bf16 => bf16::from_bits(bits).to_f64(),
        MmaType::F16 => f16::from_bits(bits).to_f64(),
    }
}

/// Half a unit in the last place, relative to the value, with a little room for the single-precision arithmetic.
fn rounding(dtype: MmaType) -> f64 {
    1.02 * match dtype {
        MmaType::Bf16 => 2f64.powi(-8),
        MmaType::F16 => 2f64.powi(-11),
    }
}

#[track_caller]
fn assert_rounded(what: &str, dtype: MmaType, found: u16, expected: f64, absolute: f64) {
    let value = decode(dtype, found);
    let allowed = rounding(dtype) * expected.abs() + absolute;
    assert!((value - expected).abs() <= allowed, "{what}: {value} is not {expected} ± {allowed:.1e}");
}

/// A device with an architecture whose text it runs, a stream and a source of inputs.
struct Bench {
    device: Device,
    arch: Arch,
    stream: Stream,
    random: StdRng,
}

impl Bench {
    fn all() -> impl Iterator<Item = Bench> {
        let seed = testing::seed(20_260);
        println!("seed {seed}");
        let with_arch = |device: Device| device.runs().iter().map(move |&arch| (device.clone(), arch));
        testing::devices().into_iter().flat_map(with_arch).map(move |(device, arch)| {
            let stream = Stream::new(&device).unwrap();
            Bench { device, arch, stream, random: StdRng::seed_from_u64(seed) }
        })
    }

    fn load<S: KernelSpec>(&self, spec: &S) -> LoadedKernel {
        self.device.load(&generate(spec).unwrap()).unwrap()
    }

    fn values(&mut self, dtype: MmaType, count: usize) -> Vec<u16> {
        (0..count).map(|_| encode(dtype, self.random.random_range(-3.0..3.0))).collect()
    }

    fn upload(&self, values: &[u16]) -> Buffer {
        self.device.upload(&self.stream, values).unwrap()
    }

    fn upload_u32(&self, values: &[u32]) -> Buffer {
        self.device.upload(&self.stream, values).unwrap()
    }

    fn poisoned(&self, elements: usize) -> Buffer {
        self.upload(&vec![POISON; elements])
    }

    fn read(&self, buffer: &Buffer) -> Vec<u16> {
        buffer.read(&self.stream).unwrap()
    }

    fn read_word(&self, buffer: &Buffer) -> u32 {
        buffer.read(&self.stream).unwrap()[0]
    }

    fn launch(&self, kernel: &LoadedKernel, grid: [u32; 3], arguments: Arguments<'_>) {
        kernel.launch(&self.stream, grid, &arguments).unwrap();
    }
}

/// Rows at a stride that leaves a gap behind each.
struct Rows {
    width: usize,
    stride: usize,
}

impl Rows {
    fn new(width: u32) -> Rows {
        Rows { width: width as usize, stride: width as usize + 8 }
    }

    fn bytes(&self) -> u64 {
        2 * self.stride as u64
    }

    fn at(&self, row: usize, column: usize) -> usize {
        row * self.stride + column
    }

    #[track_caller]
    fn assert_gaps(&self, values: &[u16]) {
        for row in values.chunks(self.stride) {
            assert!(row[self.width..].iter().all(|v| *v == POISON), "written behind the row");
        }
    }
}

#[test]
fn add_sums_rows_and_broadcasts_a_bias() {
    for mut bench in Bench::all() {
        for dtype in DTYPES {
            for (width, rows) in [(8, 1), (40, 3), (256, 2), (2056, 5)] {
                let spec = AddSpec { width, dtype, arch: bench.arch };
                let kernel = bench.load(&spec);
                let layout = Rows::new(width);
                let a = bench.values(dtype, rows * layout.stride);
                let b = bench.values(dtype, rows * layout.stride);
                let (device_a, device_b) = (bench.upload(&a), bench.upload(&b));
                for b_row in [layout.bytes(), 0] {
                    let out = bench.poisoned(rows * layout.stride);
                    let arguments = Arguments::new(kernel.meta())
                        .pointer("a", device_a.address())
                        .pointer("b", device_b.address())
                        .pointer("out", out.address())
                        .u64("a_row", layout.bytes())
                        .u64("b_row", b_row)
                        .u64("out_row", layout.bytes());
                    bench.launch(&kernel, spec.grid(rows as u32), arguments);
                    let out = bench.read(&out);
                    layout.assert_gaps(&out);
                    for row in 0..rows {
                        for column in 0..layout.width {
                            let i = layout.at(row, column);
                            let addend = b[if b_row == 0 { column } else { i }];
                            let sum = decode(dtype, a[i]) as f32 + decode(dtype, addend) as f32;
                            assert_eq!(out[i], encode(dtype, sum), "width {width}, row {row}, column {column}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn swiglu_gates_and_keeps_its_limits() {
    for mut bench in Bench::all() {
        for dtype in DTYPES {
            for (width, rows) in [(8, 2), (512, 3), (2312, 1)] {
                let spec = SwigluSpec { width, dtype, arch: bench.arch };
                let kernel = bench.load(&spec);
                let layout = Rows::new(width);
                let mut gate = bench.values(dtype, rows * layout.stride);
                let up = bench.values(dtype, rows * layout.stride);
                for (slot, extreme) in gate.iter_mut().zip([0.0, -200.0, 200.0, -20.0, 1e-3]) {
                    *slot = encode(dtype, extreme);
                }
                let (device_gate, device_up) = (bench.upload(&gate), bench.upload(&up));
                let out = bench.poisoned(rows * layout.stride);
                let arguments = Arguments::new(kernel.meta())
                    .pointer("gate", device_gate.address())
                    .pointer("up", device_up.address())
                    .pointer("out", out.address())
                    .u64("gate_row", layout.bytes())
                    .u64("up_row", layout.bytes())
                    .u64("out_row", layout.bytes());
                bench.launch(&kernel, spec.grid(rows as u32), arguments);
                let out = bench.read(&out);
                layout.assert_gaps(&out);
                for row in 0..rows {
                    for column in 0..layout.width {
                        let i = layout.at(row, column);
                        let (g, u) = (decode(dtype, gate[i]), decode(dtype, up[i]));
                        let what = format!("width {width}, row {row}, column {column}");
                        assert_rounded(&what, dtype, out[i], g / (1.0 + (-g).exp()) * u, 1e-7);
                    }
                }
            }
        }
    }
}

#[test]
fn rms_norm_scales_rows_and_keeps_the_residual_stream() {
    for mut bench in Bench::all() {
        for dtype in DTYPES {
            for (width, rows) in [(8, 3), (256, 2), (264, 2), (3584, 2), (8200, 1), (32768, 1)] {
                for residual in [false, true] {
                    let spec = RmsNormSpec { width, dtype, residual, arch: bench.arch };
                    check_norm(&mut bench, spec, rows);
                }
            }
        }
    }
}

fn check_norm(bench: &mut Bench, spec: RmsNormSpec, rows: usize) {
    let RmsNormSpec { width, dtype, residual, .. } = spec;
    let kernel = bench.load(&spec);
    let layout = Rows::new(width);
    let epsilon = 1e-2f32;
    let x = bench.values(dtype, rows * layout.stride);
    let stream = bench.values(dtype, rows * layout.stride);
    let weight = bench.values(dtype, layout.width);
    let (device_x, device_weight) = (bench.upload(&x), bench.upload(&weight));
    let (device_stream, out) = (bench.upload(&stream), bench.poisoned(rows * layout.stride));
    let mut arguments = Arguments::new(kernel.meta())
        .pointer("x", device_x.address())
        .pointer("weight", device_weight.address())
        .pointer("out", out.address())
        .u64("x_row", layout.bytes())
        .u64("out_row", layout.bytes());
    if residual {
        arguments = arguments.pointer("residual", device_stream.address()).u64("residual_row", layout.bytes());
    }
    bench.launch(&kernel, spec.grid(rows as u32), arguments.f32("epsilon", epsilon));
    let (out, stored) = (bench.read(&out), bench.read(&device_stream));
    layout.assert_gaps(&out);
    for row in 0..rows {
        let input: Vec<u16> = (0..layout.width)
            .map(|column| {
                let i = layout.at(row, column);
                if !residual {
                    return x[i];
                }
                let sum = encode(dtype, decode(dtype, stream[i]) as f32 + decode(dtype, x[i]) as f32);
                assert_eq!(stored[i], sum, "residual stream, row {row}, column {column}");
                sum
            })
            .collect();
        let squares: f64 = input.iter().map(|bits| decode(dtype, *bits).powi(2)).sum();
        let scale = 1.0 / (squares / f64::from(width) + f64::from(epsilon)).sqrt();
        for (column, bits) in input.iter().enumerate() {
            let expected = decode(dtype, *bits) * scale * decode(dtype, weight[column]);
            let what = format!("width {width}, row {row}, column {column}");
            assert_rounded(&what, dtype, out[layout.at(row, column)], expected, 1e-7);
        }
        // Behind the rows the stream stays as it was.
        let gap = layout.at(row, layout.width)..layout.at(row + 1, 0);
        assert_eq!(stored[gap.clone()], stream[gap]);
    }
}

#[test]
fn rows_are_gathered_and_scattered_by_index() {
    for mut bench in Bench::all() {
        for width in [8, 128, 2056] {
            let layout = Rows::new(width);
            let (table_rows, index) = (7, [6, 0, 3, 7, 5, u32::MAX]);
            let table = bench.values(MmaType::Bf16, table_rows * layout.stride);
            let device_table = bench.upload(&table);
            let device_index = bench.upload_u32(&index);
            for access in [RowAccess::Gather, RowAccess::Scatter] {
                let spec = RowsSpec { access, width, arch: bench.arch };
                let kernel = bench.load(&spec);
                let out_rows = if access == RowAccess::Gather { index.len() } else { table_rows };
                let out = bench.poisoned(out_rows * layout.stride);
                let status = bench.upload_u32(&[0]);
                let launch = |status: u64, indices: usize| {
                    let arguments = Arguments::new(kernel.meta())
                        .pointer("x", device_table.address())
                        .pointer("out", out.address())
                        .u64("x_row", layout.bytes())
                        .u64("out_row", layout.bytes())
                        .pointer("index", device_index.address())
                        .u32("bound", table_rows as u32)
                        .pointer("status", status);
                    bench.launch(&kernel, spec.grid(indices as u32), arguments);
                };
                launch(status.address(), 3);
                assert_eq!(bench.read_word(&status), 0, "all three are in range");
                launch(0, index.len());
                launch(status.address(), index.len());
                assert_eq!(bench.read_word(&status), STATUS_INDEX_OUT_OF_RANGE);
                let mut expected = vec![POISON; out_rows * layout.stride];
                for (i, &at) in index.iter().enumerate() {
                    let at = at as usize;
                    for column in 0..layout.width {
                        match access {
                            RowAccess::Gather if at < table_rows => {
                                expected[layout.at(i, column)] = table[layout.at(at, column)];
                            }
                            RowAccess::Gather => expected[layout.at(i, column)] = 0,
                            RowAccess::Scatter if at < table_rows => {
                                expected[layout.at(at, column)] = table[layout.at(i, column)];
                            }
                            RowAccess::Scatter => {}
                        }
                    }
                }
                assert_eq!(bench.read(&out), expected, "{access:?}, width {width}");
            }
        }
    }
}

#[test]
fn rope_rotates_and_fills_the_cache() {
    for mut bench in Bench::all() {
        for dtype in DTYPES {
            for (head_dim, heads, kv_heads) in [(64, 4, 2), (96, 3, 1), (128, 7, 1), (64, 2, 0)] {
                for bias in [false, true] {
                    let spec = RopeSpec { head_dim, dtype, bias, sections: None, arch: bench.arch };
                    check_rope(&mut bench, spec, heads, kv_heads);
                }
            }
        }
    }
}

/// Qwen2.5-VL's sections, and some that leave an axis out.
#[test]
fn rope_turns_each_section_by_its_axis() {
    for mut bench in Bench::all() {
        for (head_dim, sections) in [(128, [16, 24, 24]), (64, [8, 8, 16]), (64, [32, 0, 0]), (64, [0, 16, 16])] {
            let sections = Some(sections);
            let spec = RopeSpec { head_dim, dtype: MmaType::Bf16, bias: true, sections, arch: bench.arch };
            check_rope(&mut bench, spec, 2, 1);
        }
    }
}

fn check_rope(bench: &mut Bench, spec: RopeSpec, heads: usize, kv_heads: usize) {
    let RopeSpec { head_dim, dtype, bias, sections, .. } = spec;
    let (theta, dim) = (1e4, head_dim as usize);
    // By axis; the first is all there is without sections.
    let positions = [[0u32, 1, 63, 4095, 131_071, 1_000_003], [5, 0, 64, 17, 131_000, 9], [2, 3, 1, 4096, 0, 999_999]];
    let cache_rows = 9;
    // The third row has no slot: its keys and values are dropped, its query is not.
    let slots = [8u32, 0, 9, 3, 2, 5];
    let rows = positions[0].len();
    let kernel = bench.load(&spec);

    // A fused projection: query, key and value heads side by side in each row. The query is rotated in place.
    let row_heads = heads + 2 * kv_heads;
    let fused = Rows::new((row_heads * dim) as u32);
    let cache = Rows::new((kv_heads * dim).max(8) as u32);
    let qkv = bench.values(dtype, rows * fused.stride);
    let biases = bench.values(dtype, row_heads * dim);
    let device_qkv = bench.upload(&qkv);
    let device_biases = bench.upload(&biases);
    let [k_cache, v_cache] = [(); 2].map(|()| bench.poisoned(cache_rows * cache.stride));
    let table = bench.device.upload(&bench.stream, &frequencies(theta, head_dim)).unwrap();
    let device_positions = bench.upload_u32(&positions.concat());
    let (device_slots, status) = (bench.upload_u32(&slots), bench.upload_u32(&[0]));

    let part = |buffer: &Buffer, heads_before: usize| buffer.address() + (2 * heads_before * dim) as u64;
    let mut arguments = Arguments::new(kernel.meta())
        .pointer("q", part(&device_qkv, 0))
        .pointer("k", part(&device_qkv, heads))
        .pointer("v", part(&device_qkv, heads + kv_heads))
        .pointer("q_out", device_qkv.address())
        .pointer("k_cache", k_cache.address())
        .pointer("v_cache", v_cache.address())
        .u64("q_row", fused.bytes())
        .u64("k_row", fused.bytes())
        .u64("v_row", fused.bytes())
        .u64("q_out_row", fused.bytes())
        .u64("k_cache_row", cache.bytes())
        .u64("v_cache_row", cache.bytes())
        .u64("k_cache_head", 2 * dim as u64)
        .u64("v_cache_head", 2 * dim as u64);
    if bias {
        arguments = arguments
            .pointer("q_bias", part(&device_biases, 0))
            .pointer("k_bias", part(&device_biases, heads))
            .pointer("v_bias", part(&device_biases, heads + kv_heads));
    }
    if sections.is_some() {
        arguments = arguments.u64("position_axis", 4 * rows as u64);
    }
    let arguments = arguments
        .pointer("frequencies", table.address())
        .pointer("positions", device_positions.address())
        .pointer("slots", device_slots.address())
        .u32("heads", heads as u32)
        .u32("kv_heads", kv_heads as u32)
        .u32("cache_rows", cache_rows as u32)
        .pointer("status", status.address());
    bench.launch(&kernel, spec.grid(rows as u32, heads as u32, kv_heads as u32), arguments);

    let (out, keys, values) = (bench.read(&device_qkv), bench.read(&k_cache), bench.read(&v_cache));
    let reported = if kv_heads > 0 { STATUS_INDEX_OUT_OF_RANGE } else { 0 };
    assert_eq!(bench.read_word(&status), reported);
    let input = |row: usize, head: usize, i: usize| {
        let added = if bias { decode(dtype, biases[head * dim + i]) } else { 0.0 };
        decode(dtype, qkv[fused.at(row, head * dim + i)]) + added
    };
    let rotated = |row: usize, head: usize, i: usize| {
        let (pair, half) = (i % (dim / 2), dim / 2);
        let axis = sections.map_or(0, |[t, h, _]| [t, t + h].iter().filter(|end| pair >= **end as usize).count());
        let angle = f64::from(positions[axis][row]) * f64::powf(theta, -2.0 * pair as f64 / dim as f64);
        let (low, high) = (input(row, head, pair), input(row, head, pair + half));
        if i < half { low * angle.cos() - high * angle.sin() } else { high * angle.cos() + low * angle.sin() }
    };
    for row in 0..rows {
        for head in 0..heads {
            for i in 0..dim {
                let what = format!("{spec:?}: query row {row}, head {head}, element {i}");
                let found = out[fused.at(row, head * dim + i)];
                assert_rounded(&what, dtype, found, rotated(row, head, i), 2e-5);
            }
        }
    }
    let mut untouched = vec![true; keys.len()];
    for (row, &slot) in slots.iter().enumerate().filter(|(_, slot)| (**slot as usize) < cache_rows) {
        for head in 0..kv_heads {
            for i in 0..dim {
                let at = cache.at(slot as usize, head * dim + i);
                untouched[at] = false;
                let what = format!("{spec:?}: row {row}, head {head}, element {i}");
                let (key, value) = (rotated(row, heads + head, i), input(row, heads + kv_heads + head, i));
                assert_rounded(&format!("key of {what}"), dtype, keys[at], key, 2e-5);
                assert_rounded(&format!("value of {what}"), dtype, values[at], value, 1e-7);
            }
        }
    }
    for (at, _) in untouched.iter().enumerate().filter(|(_, untouched)| **untouched) {
        assert_eq!((keys[at], values[at]), (POISON, POISON), "{spec:?}: cache element {at} was written");
    }
}
