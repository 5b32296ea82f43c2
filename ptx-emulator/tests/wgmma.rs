//! `wgmma` in shapes, formats and layouts, against a plain product in f64.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use ptx_emulator::{Machine, Module, Swizzle, TensorMap};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Rows of A.
const M: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Case {
    format: &'static str,
    n: usize,
    k: usize,
    swizzle: Swizzle,
    /// A in registers, else in shared memory.
    registers: bool,
    /// Factors stored with the depth outermost.
    transposed: [bool; 2],
    /// imm-scale of A and B.
    signs: [i32; 2],
}

impl Case {
    /// Rows and columns of a factor as it is stored.
    fn stored(&self, factor: usize) -> [usize; 2] {
        let rows = if factor == 0 { M } else { self.n };
        if self.transposed[factor] { [self.k, rows] } else { [rows, self.k] }
    }

    /// Columns of a slab: what one row of the swizzle holds.
    fn slab(&self) -> usize {
        self.swizzle.span() as usize / 2
    }

    fn map(&self, factor: usize, address: u64) -> TensorMap {
        let [rows, columns] = self.stored(factor);
        TensorMap {
            address,
            rank: 2,
            element_bytes: 2,
            dims: [columns as u64, rows as u64, 0, 0, 0],
            strides_bytes: [2 * columns as u64, 0, 0, 0],
            box_dims: [self.slab() as u32, rows as u32, 0, 0, 0],
            swizzle: self.swizzle,
        }
    }

    /// Bytes of a factor in shared memory.
    fn bytes(&self, factor: usize) -> usize {
        let [rows, columns] = self.stored(factor);
        rows * columns.div_ceil(self.slab()) * self.swizzle.span() as usize
    }

    /// The copies of a factor to `base`, slab after slab.
    fn copies(&self, factor: usize, base: usize) -> String {
        let [rows, columns] = self.stored(factor);
        let span = self.swizzle.span() as usize;
        (0..columns.div_ceil(self.slab()))
            .map(|slab| {
                format!(
                    "mov.u32 %r5, {}; cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
                     [pool+{}], [%rd{}, {{%r5, %r6}}], [%r1];\n",
                    slab * self.slab(),
                    base + slab * rows * span,
                    2 + factor
                )
            })
            .collect()
    }

    /// The descriptor of a factor at step `step` of the depth, without the address of the pool.
    fn descriptor(&self, factor: usize, base: usize, step: usize) -> u64 {
        let ([rows, _], span) = (self.stored(factor), self.swizzle.span() as usize);
        let mode = match self.swizzle {
            Swizzle::Bytes128 => 1u64,
            Swizzle::Bytes64 => 2,
            _ => 3,
        };
        let (start, leading) = if self.transposed[factor] {
            (16 * step * span, rows * span)
        } else {
            let steps = span / 32;
            (step / steps * rows * span + step % steps * 32, 16)
        };
        let [stride, leading, start] = [span / 2, leading / 16, (base + start) / 16].map(|units| units as u64);
        mode << 62 | stride << 32 | leading << 16 | start
    }

    fn module(&self) -> Module {
        let (a, b) = (1024, 1024 + self.bytes(0).next_multiple_of(1024));
        let accumulators: Vec<String> = (0..self.n / 2).map(|i| format!("%d{i}")).collect();
        let mut body = format!(
            ".reg .pred %p<4>; .reg .b32 %r<32>; .reg .f32 %d<{}>; .reg .b64 %rd<16>;
             mov.b64 %rd1, a_map; cvta.param.u64 %rd2, %rd1; mov.b64 %rd1, b_map; cvta.param.u64 %rd3, %rd1;
             mov.u32 %r1, pool; mov.u32 %r2, %tid.x; setp.eq.u32 %p1, %r2, 0; mov.u32 %r6, 0;
             @%p1 mbarrier.init.shared.b64 [%r1], 1;
             @%p1 fence.mbarrier_init.release.cluster;
             bar.sync 0;
             @!%p1 bra WAIT;
             mbarrier.arrive.expect_tx.shared.b64 _, [%r1], {};
             {}{}
             WAIT: mbarrier.try_wait.parity.shared.b64 %p2, [%r1], 0, 10000000;
             @%p2 bra DONE; bra WAIT;
             DONE:
             shr.u32 %r7, %r1, 4; cvt.u64.u32 %rd4, %r7;
             // row 16 (tid / 32) + lane / 4, column 2 (lane % 4)
             and.b32 %r8, %r2, 31; shr.u32 %r9, %r8, 2; and.b32 %r10, %r8, 3; shr.u32 %r11, %r2, 5;
             mad.lo.u32 %r9, %r11, 16, %r9; shl.b32 %r10, %r10, 1;
             ld.param.u64 %rd5, [a]; mad.lo.u32 %r12, %r9, {}, %r10; mad.wide.u32 %rd5, %r12, 2, %rd5;
             wgmma.fence.sync.aligned;\n",
            self.n / 2,
            self.bytes(0) + self.bytes(1),
            self.copies(0, a),
            self.copies(1, b),
            self.k
        );
        for step in 0..self.k / 16 {
            let first = |column: usize, row: usize| 2 * (16 * step + column + row * self.k);
            if self.registers {
                body += &format!(
                    "ld.global.b32 %r20, [%rd5+{}]; ld.global.b32 %r21, [%rd5+{}];
                     ld.global.b32 %r22, [%rd5+{}]; ld.global.b32 %r23, [%rd5+{}];
                     wgmma.fence.sync.aligned;\n",
                    first(0, 0),
                    first(0, 8),
                    first(8, 0),
                    first(8, 8)
                );
            }
            let bit = |factor: usize| u32::from(self.transposed[factor]);
            let (factor, bits) = match self.registers {
                true => ("{%r20, %r21, %r22, %r23}".to_string(), format!("{}", bit(1))),
                false => ("%rd6".to_string(), format!("{}, {}", bit(0), bit(1))),
            };
            body += &format!(
                "add.u64 %rd6, %rd4, {}; add.u64 %rd7, %rd4, {}; setp.ne.u32 %p3, {step}, 0;
                 wgmma.mma_async.sync.aligned.m64n{}k16.f32.{}.{} {{{}}}, {factor}, %rd7, %p3, {}, {}, {bits};
                 wgmma.commit_group.sync.aligned;\n",
                self.descriptor(0, a, step),
                self.descriptor(1, b, step),
                self.n,
                self.format,
                self.format,
                accumulators.join(", "),
                self.signs[0],
                self.signs[1]
            );
            if self.registers {
                body += "wgmma.wait_group.sync.aligned 0;\n";
            }
        }
        body += &format!(
            "wgmma.wait_group.sync.aligned 0;
             ld.param.u64 %rd8, [out]; mad.lo.u32 %r13, %r9, {}, %r10; mad.wide.u32 %rd8, %r13, 4, %rd8;\n",
            self.n
        );
        for i in 0..self.n / 4 {
            let at = 4 * (i / 2 * 8 + i % 2 * 8 * self.n);
            body += &format!("st.global.v2.f32 [%rd8+{at}], {{%d{}, %d{}}};\n", 2 * i, 2 * i + 1);
        }
        hopper(&["a_map", "b_map"], &["a", "out"], &format!("{body} ret;"))
    }

    fn check(&self, machine: &Machine, random: &mut StdRng) {
        let mut factor = |rows: usize| -> Vec<u16> {
            (0..rows * self.k).map(|_| narrow(self.format, random.random_range(-1.0..1.0))).collect()
        };
        let factors = [factor(M), factor(self.n)];
        // Element of row i, depth k.
        let at = |f: usize, i: usize, k: usize| {
            let [_, columns] = self.stored(f);
            f64::from(widen(
                self.format,
                factors[f][if self.transposed[f] { k * columns + i } else { i * columns + k }],
            ))
        };
        let [a, b] = [0, 1].map(|f| upload_u16(machine, &factors[f]));
        let out = machine.allocate(4 * M * self.n);
        let shared = 2048 + self.bytes(0).next_multiple_of(1024) + self.bytes(1);
        let maps = [self.map(0, a), self.map(1, b)];
        if let Err(error) = hopper_block(machine, &self.module(), 128, shared as u32, &maps, &[a, out]) {
            panic!("{self:?}\n{error}");
        }
        let result = download_u32(machine, out, M * self.n);
        let sign = f64::from(self.signs[0] * self.signs[1]);
        for i in 0..M {
            for j in 0..self.n {
                let exact: f64 = sign * (0..self.k).map(|k| at(0, i, k) * at(1, j, k)).sum::<f64>();
                let found = f64::from(f32::from_bits(result[i * self.n + j]));
                assert!((found - exact).abs() < 1e-4, "{self:?}: element {i}, {j} is {found}, not {exact}");
            }
        }
    }
}

fn check(n: usize, k: usize, swizzle: Swizzle, registers: bool, transposed: [bool; 2]) {
    let mut random = StdRng::seed_from_u64((n * k) as u64);
    for (seed, format) in ["bf16", "f16"].into_iter().enumerate() {
        let case = Case { format, n, k, swizzle, registers, transposed, signs: [1, 1] };
        case.check(&Machine::with_seed(seed as u64), &mut random);
        case.check(&Machine::with_seed(seed as u64).with_baseline_instructions(), &mut random);
    }
}

#[test]
fn both_factors_in_shared_memory() {
    // Scores of heads of 64, 96 and 128 by 64 to 176 keys.
    for (n, k, swizzle) in [
        (8, 16, Swizzle::Bytes32),
        (64, 64, Swizzle::Bytes128),
        (128, 128, Swizzle::Bytes128),
        (176, 128, Swizzle::Bytes128),
        (128, 96, Swizzle::Bytes64),
        (256, 32, Swizzle::Bytes64),
    ] {
        check(n, k, swizzle, false, [false, false]);
    }
}

#[test]
fn the_second_factor_transposed() {
    // Values of heads of 64, 96 and 128.
    for (n, k, swizzle) in [
        (64, 64, Swizzle::Bytes128),
        (128, 128, Swizzle::Bytes128),
        (128, 64, Swizzle::Bytes128),
        (96, 128, Swizzle::Bytes64),
        (16, 32, Swizzle::Bytes32),
    ] {
        check(n, k, swizzle, false, [false, true]);
        check(n, k, swizzle, true, [false, true]);
    }
}

#[test]
fn the_first_factor_transposed() {
    for swizzle in [Swizzle::Bytes128, Swizzle::Bytes64] {
        check(64, 64, swizzle, false, [true, false]);
        check(64, 128, swizzle, false, [true, true]);
    }
}

#[test]
fn the_first_factor_in_registers() {
    check(64, 64, Swizzle::Bytes128, true, [false, false]);
    check(96, 96, Swizzle::Bytes64, true, [false, false]);
}

#[test]
fn signs_of_the_factors() {
    let mut random = StdRng::seed_from_u64(3);
    for signs in [[-1, 1], [1, -1], [-1, -1]] {
        let case = Case {
            format: "bf16",
            n: 64,
            k: 64,
            swizzle: Swizzle::Bytes128,
            registers: false,
            transposed: [false, false],
            signs,
        };
        case.check(&Machine::new(), &mut random);
    }
}
