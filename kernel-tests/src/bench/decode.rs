//! Attention of decoding: a block of queries over a long prefix, and what a device copies meanwhile.

use super::heads_text;
use crate::noise::noise;
use kernel_core::{
    Bounds, Buffer, DType, DecodeArgs, DecodeAttention, Device, Error, Lengths, Stream, TensorView, Workspace,
};
use ptx::Arch;

const HEAD_DIM: usize = 128;

/// Keys and values that are read in turn: several times the L2 cache, since no layer finds its own there when its turn comes.
const TURN_BYTES: usize = 256 << 20;

/// One step: requests of as many queries and keys each, bf16, d128.
#[derive(Clone, Debug)]
pub struct DecodeCase {
    /// Name, the same as peers print.
    pub name: String,
    /// Requests.
    pub batch: usize,
    /// Query rows of a request.
    pub rows: usize,
    /// Keys before those of the rows.
    pub prefix: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
}

/// The cases of the performance page: blocks of 32 and a token before them, and of 8, with the heads of a 7B model.
pub fn decode_cases() -> Vec<DecodeCase> {
    let shapes = [(4096, 1), (32768, 1), (131_072, 1), (4096, 16), (32768, 4)];
    let case = |rows| shapes.map(|(prefix, batch)| DecodeCase::new(rows, (28, 4), prefix, batch));
    [33, 8].into_iter().flat_map(case).collect()
}

impl DecodeCase {
    fn new(rows: usize, (heads, kv_heads): (usize, usize), prefix: usize, batch: usize) -> DecodeCase {
        let several = if batch > 1 { format!(" × {batch}") } else { String::new() };
        let name = format!("decode {rows} rows d{HEAD_DIM} {} {prefix}{several}", heads_text(heads, kv_heads));
        DecodeCase { name, batch, rows, prefix, heads, kv_heads }
    }

    fn keys(&self) -> usize {
        self.prefix + self.rows
    }

    /// Bytes of keys and values, once.
    pub fn bytes(&self) -> usize {
        2 * 2 * self.batch * self.keys() * self.kv_heads * HEAD_DIM
    }

    /// Floating-point operations: 4 · head_dim a pair of query and key.
    pub fn operations(&self) -> f64 {
        (4 * HEAD_DIM * self.batch * self.heads * self.rows) as f64 * self.keys() as f64
    }

    /// Keys and values to take turns.
    fn turns(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.bytes())
    }

    /// Allocates and fills the inputs and loads the kernels of an architecture.
    ///
    /// # Errors
    /// From the device.
    pub fn prepare(&self, device: &Device, stream: &Stream, arch: Arch) -> Result<PreparedDecode, Error> {
        self.prepare_turns(device, stream, arch, self.turns(TURN_BYTES))
    }

    fn prepare_turns(
        &self,
        device: &Device,
        stream: &Stream,
        arch: Arch,
        turns: usize,
    ) -> Result<PreparedDecode, Error> {
        let attention = DecodeAttention::builder()
            .heads(self.heads as u32)
            .kv_heads(self.kv_heads as u32)
            .head_dim(HEAD_DIM as u32)
            .arch(arch)
            .build(device)?;
        let queries = self.batch * self.rows * self.heads * HEAD_DIM;
        let keys = self.batch * self.keys() * self.kv_heads * HEAD_DIM;
        let side = |seed: usize| noise(stream, keys, seed as u64, 1.0);
        let caches = (0..turns).map(|turn| Ok([side(2 * turn + 2)?, side(2 * turn + 3)?]));
        Ok(PreparedDecode {
            q: noise(stream, queries, 1, 1.0)?,
            caches: caches.collect::<Result<_, Error>>()?,
            out: device.allocate(2 * queries)?,
            workspace: device.allocate(attention.workspace_bytes(&self.bounds()).max(1) as usize)?,
            attention,
            case: self.clone(),
        })
    }

    fn bounds(&self) -> Bounds {
        Bounds { batch: self.batch as u32, max_q: self.rows as u32, max_kv: self.keys() as u32 }
    }
}

/// A case ready to launch.
pub struct PreparedDecode {
    case: DecodeCase,
    attention: DecodeAttention,
    q: Buffer,
    /// Keys and values.
    caches: Vec<[Buffer; 2]>,
    out: Buffer,
    workspace: Buffer,
}

impl PreparedDecode {
    /// Steps of a run.
    pub fn turns(&self) -> usize {
        self.caches.len()
    }

    /// Launches a step over each of the keys and values in turn.
    ///
    /// # Errors
    /// From the launch.
    pub fn run(&self, stream: &Stream) -> Result<(), Error> {
        let DecodeCase { batch, rows, heads, kv_heads, .. } = self.case;
        let view = |buffer, rows: usize, heads: usize| {
            TensorView::new(buffer, DType::Bf16, &[batch, rows, heads, HEAD_DIM].map(|size| size as u64))
        };
        self.caches.iter().try_for_each(|[k, v]| {
            let args = DecodeArgs {
                q: view(&self.q, rows, heads)?,
                k: view(k, self.case.keys(), kv_heads)?.into(),
                v: view(v, self.case.keys(), kv_heads)?.into(),
                out: view(&self.out, rows, heads)?,
                lse: None,
                lengths: Lengths::default(),
                bounds: self.case.bounds(),
                blocks: None,
                workspace: Workspace::from(&self.workspace),
            };
            self.attention.run(stream, &args)
        })
    }
}

/// The driver's own copy from device memory to device memory: what bandwidth is measured with.
pub struct DeviceCopy {
    from: Buffer,
    to: Buffer,
}

impl DeviceCopy {
    /// Of `bytes` bytes, a multiple of 16.
    ///
    /// # Errors
    /// From the device.
    pub fn prepare(stream: &Stream, bytes: usize) -> Result<DeviceCopy, Error> {
        Ok(DeviceCopy { from: noise(stream, bytes / 2, 1, 1.0)?, to: stream.device().allocate(bytes)? })
    }

    /// Bytes that are read and written.
    pub fn bytes(&self) -> usize {
        2 * self.from.bytes()
    }

    /// Copies once.
    ///
    /// # Errors
    /// From the device.
    pub fn run(&self, stream: &Stream) -> Result<(), Error> {
        self.to.copy_from(stream, &self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_steps_launch() {
        let device = Device::emulator();
        let stream = Stream::new(&device).expect("a device gives streams");
        let case = DecodeCase::new(5, (4, 2), 1200, 2);
        assert_eq!(case.name, "decode 5 rows d128 4/2 heads 1200 × 2");
        assert_eq!(case.bytes(), 2 * 2 * 1205 * 2 * 128 * 2);
        let prepared = case.prepare_turns(&device, &stream, Arch::Sm80, 2).expect("a valid case");
        prepared.run(&stream).expect("a valid launch");
        let out = prepared.out.read::<half::bf16>(&stream).expect("every element written");
        assert!(out.iter().all(|x| x.is_finite()) && out.iter().any(|x| x.to_f32() != 0.0));
        let run = |stream: &Stream| prepared.run(stream);
        assert_eq!(
            stream.capture(run).expect("steps can be captured").operations(),
            4,
            "parts and their merging, twice"
        );
    }

    #[test]
    fn short_cases_take_turns() {
        let cases = decode_cases();
        let turns: Vec<usize> = cases.iter().map(|case| case.turns(TURN_BYTES)).collect();
        assert_eq!(turns[..5], [32, 4, 1, 2, 1]);
        let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 10);
    }

    #[test]
    fn a_copy_copies() {
        let device = Device::emulator();
        let stream = Stream::new(&device).expect("a device gives streams");
        let copy = DeviceCopy::prepare(&stream, 3 * 8192).expect("memory");
        copy.run(&stream).expect("a valid launch");
        assert_eq!(copy.bytes(), 6 * 8192);
        let [from, to] = [&copy.from, &copy.to].map(|buffer| buffer.read::<u16>(&stream).expect("memory"));
        assert!(from == to && from.iter().any(|word| *word != 0));
    }
}
