//! Matrix products of few rows.

use super::{Agreement, GAP, Scene, UNWRITTEN, decode, equal, half_outputs, normals};
use crate::testing::launch::Launch;
use ptx::{Arch, isa::MmaType, kernels::model::LinearSpec};
use rand::{SeedableRng, rngs::StdRng};

const DTYPE: MmaType = MmaType::Bf16;

/// The product of 11 rows and a matrix of 200 outputs, gated or not: two tiles that three blocks share, so that each is cut.
pub fn linear(gated: bool, arch: Arch, seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let (rows, outputs) = (11usize, 200usize);
    // Two groups of warps with eight steps a tile, or one with six.
    let (tile, inputs) = if gated { (256, 328usize) } else { (128, 1000) };
    let spec = LinearSpec { rows: 16, tile, blocks: 3, gated, dtype: DTYPE, arch };
    let (x_row, out_row) = (inputs + GAP, outputs + GAP);
    let mut matrix = |rows: usize| {
        let mut values = normals(&mut random, DTYPE, rows * x_row);
        // What lies between the rows is no number.
        values.chunks_mut(x_row).for_each(|row| row[inputs..].fill(UNWRITTEN));
        values
    };
    let x = matrix(rows);
    let weights = matrix(if gated { 2 * outputs } else { outputs });
    let tickets = vec![0u32; spec.tickets(outputs as u32) as usize];
    let launch = Launch::new(&spec, spec.grid())
        .array("x", x.clone())
        .array("weights", weights.clone())
        .poisoned("out", 2 * (rows + 1) * out_row)
        .u64("x_row", 2 * x_row as u64)
        .u64("weights_row", 2 * x_row as u64)
        .u64("out_row", 2 * out_row as u64)
        .u32("rows", rows as u32)
        .u32("outputs", outputs as u32)
        .u32("inputs", inputs as u32)
        .poisoned("parts", spec.parts_bytes() as usize)
        .array("tickets", tickets.clone());
    Scene::new(launch, &[("out", Agreement::Half(DTYPE)), ("tickets", Agreement::Exact)], move |outcome| {
        let dot = |row: usize, output: usize| -> f64 {
            let (x, weights) = (&x[row * x_row..], &weights[output * x_row..]);
            (0..inputs).map(|i| decode(DTYPE, x[i]) * decode(DTYPE, weights[i])).sum()
        };
        let value = |row: usize, output: usize| {
            let product = dot(row, output);
            if gated { product / (1.0 + (-product).exp()) * dot(row, outputs + output) } else { product }
        };
        let expected: Vec<_> = (0..(rows + 1) * out_row)
            .map(|i| (i / out_row < rows && i % out_row < outputs).then(|| value(i / out_row, i % out_row)))
            .collect();
        let verdict = half_outputs("product", DTYPE, &outcome.read("out")?, &expected);
        let reset = equal("tickets", &outcome.read::<u32>("tickets")?, &tickets);
        Ok(verdict.and(reset))
    })
}
