//! The kernels around attention.

use super::{Agreement, GAP, Scene, UNWRITTEN, decode, equal, half_outputs, normals};
use crate::testing::launch::Launch;
use ptx::{
    Arch,
    isa::MmaType,
    kernels::model::{RmsNormSpec, RopeSpec, RowAccess, RowsSpec, STATUS_INDEX_OUT_OF_RANGE, SwigluSpec, frequencies},
};
use rand::{SeedableRng, rngs::StdRng};

const DTYPE: MmaType = MmaType::Bf16;

fn random(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

fn values(bits: &[u16]) -> Vec<f64> {
    bits.iter().map(|&bits| decode(DTYPE, bits)).collect()
}

/// RMSNorm of `x` plus the residual stream.
pub fn rms_norm(arch: Arch, seed: u64) -> Scene {
    let mut random = random(seed);
    let (rows, width, epsilon) = (3usize, 264usize, 0.5f32);
    let stride = width + GAP;
    let spec = RmsNormSpec { width: width as u32, dtype: DTYPE, residual: true, arch };
    let [x, residual] = [(); 2].map(|()| normals(&mut random, DTYPE, rows * stride));
    let weight = normals(&mut random, DTYPE, width);
    let launch = Launch::new(&spec, spec.grid(rows as u32))
        .array("x", x.clone())
        .array("weight", weight.clone())
        .poisoned("out", 2 * rows * stride)
        .u64("x_row", 2 * stride as u64)
        .u64("out_row", 2 * stride as u64)
        .array("residual", residual.clone())
        .u64("residual_row", 2 * stride as u64)
        .f32("epsilon", epsilon);
    let outputs = [("out", Agreement::Half(DTYPE)), ("residual", Agreement::Exact)];
    Scene::new(launch, &outputs, move |outcome| {
        let (mut out, mut stream) = (vec![None; rows * stride], residual.clone());
        for row in 0..rows {
            let at = row * stride..row * stride + width;
            for i in at.clone() {
                stream[i] = super::encode(DTYPE, decode(DTYPE, x[i]) + decode(DTYPE, residual[i]));
            }
            let sums = values(&stream[at.clone()]);
            let mean = sums.iter().map(|s| s * s).sum::<f64>() / width as f64;
            for (i, sum) in at.zip(&sums) {
                out[i] = Some(sum / (mean + f64::from(epsilon)).sqrt() * decode(DTYPE, weight[i - row * stride]));
            }
        }
        let found = outcome.read("residual")?;
        let verdict = equal("residual stream", &found, &stream);
        let found = outcome.read("out")?;
        Ok(verdict.and_then(|()| half_outputs("norm", DTYPE, &found, &out)))
    })
}

/// `silu(gate) · up`.
pub fn swiglu(arch: Arch, seed: u64) -> Scene {
    let mut random = random(seed);
    let (rows, width) = (3usize, 264usize);
    let stride = width + GAP;
    let spec = SwigluSpec { width: width as u32, dtype: DTYPE, arch };
    let [gate, up] = [(); 2].map(|()| normals(&mut random, DTYPE, rows * stride));
    let launch = Launch::new(&spec, spec.grid(rows as u32))
        .array("gate", gate.clone())
        .array("up", up.clone())
        .poisoned("out", 2 * rows * stride)
        .u64("gate_row", 2 * stride as u64)
        .u64("up_row", 2 * stride as u64)
        .u64("out_row", 2 * stride as u64);
    Scene::new(launch, &[("out", Agreement::Half(DTYPE))], move |outcome| {
        let (gate, up) = (values(&gate), values(&up));
        let value = |i: usize| (i % stride < width).then(|| gate[i] / (1.0 + (-gate[i]).exp()) * up[i]);
        let expected: Vec<_> = (0..rows * stride).map(value).collect();
        Ok(half_outputs("gated", DTYPE, &outcome.read("out")?, &expected))
    })
}

/// Rotary embedding of queries and keys, and the cache write; one row has no slot.
pub fn rope(arch: Arch, seed: u64) -> Scene {
    let mut random = random(seed);
    let (dim, heads, kv_heads, cache_rows, theta) = (64usize, 4usize, 2usize, 9usize, 1e4);
    let spec = RopeSpec { head_dim: dim as u32, dtype: DTYPE, bias: false, sections: None, arch };
    let positions = [0u32, 1, 63, 4095, 131_071];
    let slots = [8u32, 0, 9, 3, 2];
    let rows = positions.len();
    let q = normals(&mut random, DTYPE, rows * heads * dim);
    let [k, v] = [(); 2].map(|()| normals(&mut random, DTYPE, rows * kv_heads * dim));
    let bytes = |heads: usize| 2 * (heads * dim) as u64;
    let launch = Launch::new(&spec, spec.grid(rows as u32, heads as u32, kv_heads as u32))
        .array("q", q.clone())
        .array("k", k.clone())
        .array("v", v.clone())
        .poisoned("q_out", 2 * q.len())
        .poisoned("k_cache", cache_rows * bytes(kv_heads) as usize)
        .poisoned("v_cache", cache_rows * bytes(kv_heads) as usize)
        .u64("q_row", bytes(heads))
        .u64("k_row", bytes(kv_heads))
        .u64("v_row", bytes(kv_heads))
        .u64("q_out_row", bytes(heads))
        .u64("k_cache_row", bytes(kv_heads))
        .u64("v_cache_row", bytes(kv_heads))
        .u64("k_cache_head", bytes(1))
        .u64("v_cache_head", bytes(1))
        .array("frequencies", frequencies(theta, dim as u32))
        .array("positions", positions.to_vec())
        .array("slots", slots.to_vec())
        .u32("heads", heads as u32)
        .u32("kv_heads", kv_heads as u32)
        .u32("cache_rows", cache_rows as u32)
        .array("status", vec![0u32]);
    let close = Agreement::Half(DTYPE);
    let outputs = [("q_out", close), ("k_cache", close), ("v_cache", Agreement::Exact), ("status", Agreement::Exact)];
    Scene::new(launch, &outputs, move |outcome| {
        let rotated = |from: &[u16], heads: usize, row: usize, head: usize, i: usize| {
            let (pair, half) = (i % (dim / 2), dim / 2);
            let angle = f64::from(positions[row]) * f64::powf(theta, -2.0 * pair as f64 / dim as f64);
            let at = |i: usize| decode(DTYPE, from[(row * heads + head) * dim + i]);
            let (low, high) = (at(pair), at(pair + half));
            if i < half { low * angle.cos() - high * angle.sin() } else { high * angle.cos() + low * angle.sin() }
        };
        let place = |i: usize, heads: usize| (i / (heads * dim), i / dim % heads, i % dim);
        let queries: Vec<_> = (0..q.len())
            .map(|i| {
                let (row, head, element) = place(i, heads);
                Some(rotated(&q, heads, row, head, element))
            })
            .collect();
        let mut keys = vec![None; cache_rows * kv_heads * dim];
        let mut cached = vec![UNWRITTEN; keys.len()];
        for (i, &value) in v.iter().enumerate() {
            let (row, head, element) = place(i, kv_heads);
            if (slots[row] as usize) < cache_rows {
                let to = (slots[row] as usize * kv_heads + head) * dim + element;
                keys[to] = Some(rotated(&k, kv_heads, row, head, element));
                cached[to] = value;
            }
        }
        let (found_q, found_k) = (outcome.read("q_out")?, outcome.read("k_cache")?);
        let (found_v, status) = (outcome.read("v_cache")?, outcome.read::<u32>("status")?);
        Ok(half_outputs("queries", DTYPE, &found_q, &queries)
            .and_then(|()| half_outputs("keys", DTYPE, &found_k, &keys))
            .and_then(|()| equal("values", &found_v, &cached))
            .and_then(|()| equal("status", &status, &[STATUS_INDEX_OUT_OF_RANGE])))
    })
}

/// Rows of a table by index; one index is out of range.
pub fn gather(arch: Arch, seed: u64) -> Scene {
    moved(RowAccess::Gather, arch, seed)
}

/// Rows into a table by index; one index is out of range.
pub fn scatter(arch: Arch, seed: u64) -> Scene {
    moved(RowAccess::Scatter, arch, seed)
}

fn moved(access: RowAccess, arch: Arch, seed: u64) -> Scene {
    let width = 128usize;
    let (bound, index) = (7usize, [6u32, 0, 3, 7, 5]);
    let spec = RowsSpec { access, width: width as u32, arch };
    let (from_rows, to_rows) = if access == RowAccess::Gather { (bound, index.len()) } else { (index.len(), bound) };
    let x = normals(&mut random(seed), DTYPE, from_rows * width);
    let launch = Launch::new(&spec, spec.grid(index.len() as u32))
        .array("x", x.clone())
        .poisoned("out", 2 * to_rows * width)
        .u64("x_row", 2 * width as u64)
        .u64("out_row", 2 * width as u64)
        .array("index", index.to_vec())
        .u32("bound", bound as u32)
        .array("status", vec![0u32]);
    Scene::new(launch, &[("out", Agreement::Exact), ("status", Agreement::Exact)], move |outcome| {
        let mut expected = vec![UNWRITTEN; to_rows * width];
        for (i, &at) in index.iter().enumerate() {
            let inside = (at as usize) < bound;
            let (from, to) = if access == RowAccess::Gather { (at as usize, i) } else { (i, at as usize) };
            match access {
                RowAccess::Gather if !inside => expected[to * width..][..width].fill(0),
                RowAccess::Scatter if !inside => {}
                _ => expected[to * width..][..width].copy_from_slice(&x[from * width..][..width]),
            }
        }
        let status = outcome.read::<u32>("status")?;
        Ok(equal("rows", &outcome.read("out")?, &expected)
            .and_then(|()| equal("status", &status, &[STATUS_INDEX_OUT_OF_RANGE])))
    })
}
