//! Matrix products of few rows against double precision, and the bits that they promise.

// Clippy lets only the `#[test]` functions themselves unwrap.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use kernel_core::{Arguments, Buffer, Device, LoadedKernel, Stream};
use kernel_tests::testing;
use ptx::{
    Arch, generate,
    isa::MmaType::{self, Bf16, F16},
    kernels::model::LinearSpec,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// What outputs hold before a launch, and must still hold where nothing is to be written: a NaN in both types.
const POISON: u16 = 0xFFFF;
/// Elements behind each row that belong to nobody.
const GAP: usize = 8;

fn encode(dtype: MmaType, value: f64) -> u16 {
    match dtype {
        Bf16 => bf16::from_f64(value).to_bits(),
        F16 => f16::from_f64(value).to_bits(),
    }
}

fn decode(dtype: MmaType, bits: u16) -> f64 {
    match dtype {
        Bf16 => bf16::from_bits(bits).to_f64(),
        F16 => f16::from_bits(bits).to_f64(),
    }
}

fn spec(arch: Arch, rows: u32, tile: u32, blocks: u32) -> LinearSpec {
    LinearSpec { rows, tile, blocks, gated: false, dtype: Bf16, arch }
}

/// The least bound for this many rows.
fn bound(rows: usize) -> u32 {
    rows.next_multiple_of(8) as u32
}

/// A kernel on a device with a matrix, and what its launches share.
struct Product {
    stream: Stream,
    spec: LinearSpec,
    kernel: LoadedKernel,
    outputs: usize,
    inputs: usize,
    weights: Vec<u16>,
    device_weights: Buffer,
    parts: Buffer,
    tickets: Buffer,
}

impl Product {
    fn new(device: &Device, random: &mut StdRng, spec: LinearSpec, (outputs, inputs): (usize, usize)) -> Product {
        let rows = if spec.gated { 2 * outputs } else { outputs };
        let weights = values(random, spec.dtype, rows, inputs);
        Product::of(device, spec, (outputs, inputs), weights)
    }

    fn of(device: &Device, spec: LinearSpec, (outputs, inputs): (usize, usize), weights: Vec<u16>) -> Product {
        let stream = Stream::new(device).unwrap();
        let tickets = vec![0u32; spec.tickets(outputs as u32) as usize];
        Product {
            kernel: device.load(&generate(&spec).unwrap()).unwrap(),
            device_weights: device.upload(&stream, &weights).unwrap(),
            parts: device.allocate(spec.parts_bytes() as usize).unwrap(),
            tickets: device.upload(&stream, &tickets).unwrap(),
            stream,
            spec,
            outputs,
            inputs,
            weights,
        }
    }

    /// The same matrix for another kernel.
    fn with(&self, spec: LinearSpec) -> Product {
        Product::of(self.stream.device(), spec, (self.outputs, self.inputs), self.weights.clone())
    }

    /// `[rows, outputs]` of `x`, `[rows, inputs + GAP]`, of which the device has no more. Nothing else is written, and the
    /// tickets are as they were.
    fn multiply(&self, x: &[u16]) -> Vec<u16> {
        let (x_row, out_row) = (self.inputs + GAP, self.outputs + GAP);
        let rows = x.len() / x_row;
        let device_x = self.stream.device().upload(&self.stream, x).unwrap();
        let out = self.stream.device().upload(&self.stream, &vec![POISON; (rows + 1) * out_row]).unwrap();
        let arguments = Arguments::new(self.kernel.meta())
            .pointer("x", device_x.address())
            .pointer("weights", self.device_weights.address())
            .pointer("out", out.address())
            .u64("x_row", 2 * x_row as u64)
            .u64("weights_row", 2 * (self.inputs + GAP) as u64)
            .u64("out_row", 2 * out_row as u64)
            .u32("rows", rows as u32)
            .u32("outputs", self.outputs as u32)
            .u32("inputs", self.inputs as u32)
            .pointer("parts", self.parts.address())
            .pointer("tickets", self.tickets.address());
        self.kernel.launch(&self.stream, self.spec.grid(), &arguments).unwrap();
        let out: Vec<u16> = out.read(&self.stream).unwrap();
        let tickets: Vec<u32> = self.tickets.read(&self.stream).unwrap();
        assert!(tickets.iter().all(|ticket| *ticket == 0), "tickets are reset: {tickets:?}");
        let what = format!("{:?}, {rows} rows", self.spec);
        assert!(out[rows * out_row..].iter().all(|bits| *bits == POISON), "{what}: written behind the last row");
        for row in out.chunks(out_row) {
            assert!(row[self.outputs..].iter().all(|bits| *bits == POISON), "{what}: written behind a row");
        }
        out[..rows * out_row].chunks(out_row).flat_map(|row| row[..self.outputs].to_vec()).collect()
    }

    /// The products of a row with rows `first`, `first + 1`, … of the weights, and what single precision may miss of each.
    fn exact(&self, x: &[u16], first: usize) -> Vec<(f64, f64)> {
        let dtype = self.spec.dtype;
        let rows = self.weights.chunks(self.inputs + GAP).skip(first).take(self.outputs);
        let product = |row: &[u16]| {
            let terms = (0..self.inputs).map(|i| decode(dtype, x[i]) * decode(dtype, row[i]));
            terms.fold((0.0, 1e-7), |(sum, error), term| (sum + term, error + 2e-7 * term.abs()))
        };
        rows.map(product).collect()
    }

    fn check(&self, x: &[u16], found: &[u16]) {
        let dtype = self.spec.dtype;
        for (row, (x, found)) in x.chunks(self.inputs + GAP).zip(found.chunks(self.outputs)).enumerate() {
            let mut expected = self.exact(x, 0);
            if self.spec.gated {
                for ((gate, error), (up, up_error)) in expected.iter_mut().zip(self.exact(x, self.outputs)) {
                    let silu = *gate / (1.0 + (-*gate).exp());
                    (*gate, *error) = (silu * up, 1.2 * *error * up.abs() + up_error * silu.abs() + 1e-6);
                }
            }
            let rounding = 1.02 * if dtype == Bf16 { 2f64.powi(-8) } else { 2f64.powi(-11) };
            for (output, (&bits, (expected, error))) in found.iter().zip(expected).enumerate() {
                let (value, allowed) = (decode(dtype, bits), rounding * expected.abs() + error);
                let what = format!("{:?}, {} × {}: row {row}, output {output}", self.spec, self.outputs, self.inputs);
                assert!((value - expected).abs() <= allowed, "{what}: {value} is not {expected} ± {allowed:.1e}");
            }
        }
    }
}

/// Rows with a gap of NaNs behind each.
fn values(random: &mut StdRng, dtype: MmaType, rows: usize, width: usize) -> Vec<u16> {
    let mut value = |column: usize| {
        if column < width { encode(dtype, random.random_range(-1.0..1.0)) } else { POISON }
    };
    (0..rows * (width + GAP)).map(|i| value(i % (width + GAP))).collect()
}

/// Every device, with each architecture whose text it runs.
fn each_device(seed: u64, test: impl Fn(&Device, Arch, &mut StdRng)) {
    let seed = testing::seed(seed);
    println!("seed {seed}");
    for device in testing::devices() {
        device.runs().iter().for_each(|&arch| test(&device, arch, &mut StdRng::seed_from_u64(seed)));
    }
}

#[test]
fn products_are_exact_to_rounding() {
    each_device(1, |device, arch, random| {
        let shapes = [(8, 8), (16, 32), (72, 64), (128, 1000), (264, 96), (600, 200), (256, 64)];
        for (i, shape) in shapes.into_iter().enumerate() {
            for (j, rows) in [1, 7, 8, 9, 33, 64].into_iter().enumerate() {
                // Every combination of a tile with a number of blocks comes up, without trying all for each shape.
                let (tile, blocks) = ([64, 128, 256][(i + j) % 3], [1, 2, 3, 7, 16][(i + 2 * j) % 5]);
                let (gated, dtype) = ((i + j / 2) % 2 == 1, if (i + j) % 4 == 3 { F16 } else { Bf16 });
                let spec = LinearSpec { gated, dtype, ..spec(arch, bound(rows), tile, blocks) };
                let product = Product::new(device, random, spec, shape);
                let x = values(random, dtype, rows, shape.1);
                product.check(&x, &product.multiply(&x));
            }
        }
    });
}

#[test]
fn a_tile_may_be_cut_anywhere() {
    each_device(2, |device, arch, random| {
        // Three tiles of five steps: pieces that end at tiles, inside them, that hold several, or nothing at all.
        for (tile, depth) in [(64, 256), (128, 128), (256, 64)] {
            let (outputs, inputs) = (2 * tile + 8, 5 * depth - 8);
            let product = Product::new(device, random, spec(arch, 8, tile as u32, 1), (outputs, inputs));
            let x = values(random, Bf16, 3, inputs);
            for blocks in [1, 2, 3, 4, 5, 6, 8, 14, 15, 17] {
                let product = product.with(spec(arch, 8, tile as u32, blocks));
                product.check(&x, &product.multiply(&x));
            }
        }
    });
}

#[test]
fn bits_depend_on_the_row_alone() {
    each_device(3, |device, arch, random| {
        for (tile, blocks, gated) in [(128, 5, false), (256, 7, true), (64, 11, false)] {
            let spec = LinearSpec { gated, ..spec(arch, 64, tile, blocks) };
            let product = Product::new(device, random, spec, (328, 520));
            let x = values(random, Bf16, 64, 520);
            let together = product.multiply(&x);
            for _ in 0..3 {
                assert_eq!(product.multiply(&x), together, "a second launch");
            }
            for &arch in device.runs() {
                assert_eq!(product.with(LinearSpec { arch, ..spec }).multiply(&x), together, "text for {arch:?}");
            }
            for rows in [8, 16, 24, 32, 40, 48, 56] {
                let product = product.with(LinearSpec { rows, ..spec });
                let rows = rows as usize;
                assert_eq!(product.multiply(&x[..rows * (520 + GAP)]), together[..rows * 328], "{rows} rows");
                let alone = rows - 3;
                let found = product.multiply(&x[alone * (520 + GAP)..][..520 + GAP]);
                assert_eq!(found, together[alone * 328..][..328], "row {alone} alone");
            }
        }
    });
}

#[test]
fn wild_numbers_stay_in_their_row_and_output() {
    each_device(4, |device, arch, random| {
        for gated in [false, true] {
            let (outputs, inputs, nan) = (200, 328, encode(Bf16, f64::NAN));
            let spec = LinearSpec { gated, ..spec(arch, 16, 128, 3) };
            let mut product = Product::new(device, random, spec, (outputs, inputs));
            let mut x = values(random, Bf16, 11, inputs);
            let clean = product.multiply(&x);
            x[3 * (inputs + GAP) + 327] = nan;
            x[9 * (inputs + GAP)] = encode(Bf16, f64::INFINITY);
            let found = product.multiply(&x);
            for (row, (found, clean)) in found.chunks(outputs).zip(clean.chunks(outputs)).enumerate() {
                match row {
                    3 => assert!(found.iter().all(|bits| decode(Bf16, *bits).is_nan())),
                    9 => assert!(found.iter().all(|bits| !decode(Bf16, *bits).is_finite())),
                    _ => assert_eq!(found, clean, "row {row}"),
                }
            }
            // The last weight of the last row.
            let last = product.weights.len() - GAP - 1;
            product.weights[last] = nan;
            let product = product.with(spec);
            for (row, (found, before)) in product.multiply(&x).chunks(outputs).zip(found.chunks(outputs)).enumerate() {
                assert!(decode(Bf16, found[outputs - 1]).is_nan(), "row {row}");
                assert_eq!(found[..outputs - 1], before[..outputs - 1], "row {row}");
            }
        }
    });
}

#[test]
fn no_rows_write_nothing() {
    each_device(5, |device, arch, random| {
        let product = Product::new(device, random, spec(arch, 8, 128, 2), (128, 128));
        assert!(product.multiply(&[]).is_empty());
    });
}
