//! Whole layers: a plan, and attention.
//!
//! The plan is made from the case's queries and keys. Attention takes the workload's fixed index of the same budget: random
//! queries and keys have no slashes, so that what a plan finds in them is scattered and nearly dense, as no real head is.
//! A plan reads every key and every score whatever it finds.

use super::{
    attention::{Case, Prepared, Work, case},
    index::{IndexCase, Planner},
};
use crate::workloads::Layout;
use kernel_core::{Device, Error, HeadPattern, Index, Stream, embedded};
use ptx::{Arch, kernels::attention::Pattern};

/// A layer of one sequence, bf16, causal, d128, all heads of one pattern.
#[derive(Clone, Debug)]
pub struct LayerCase {
    /// Name, the same as peers print.
    pub name: String,
    /// Name of dense attention over the same tensors.
    pub dense: String,
    /// The plan; none of a layer that is dense below its crossover.
    pub index: Option<IndexCase>,
    /// Attention, by an index of the same budget, or dense.
    pub attention: Case,
}

/// The cases of the performance page, with the blocks that are best on an architecture: sparse at every length, and dense where
/// `SparsePrefill` is unless told otherwise.
pub fn layer_cases(arch: Arch) -> Vec<LayerCase> {
    let (budget, heads) = ((1000, 6096), (32, 8));
    let cases = [8192, 32768, 131_072, 1 << 20].map(|tokens| LayerCase::new(arch, budget, heads, tokens));
    let pattern = HeadPattern::VerticalSlash { columns: budget.0, slashes: budget.1 };
    let crossover = pattern.crossover(embedded::block(Pattern::VerticalSlash, 128, arch).1) as usize;
    let dense = cases.iter().filter(|case| case.attention.tokens < crossover);
    let dense: Vec<LayerCase> = dense.map(|case| case.dense(arch)).collect();
    dense.into_iter().chain(cases).collect()
}

impl LayerCase {
    fn new(arch: Arch, (columns, slashes): (u32, u32), heads: (usize, usize), tokens: usize) -> LayerCase {
        let block = |pattern| embedded::block(pattern, 128, arch);
        let work = Work::VerticalSlash(columns as usize, slashes as usize, Layout::Clustered);
        let attention = case(arch, work, (block(Pattern::VerticalSlash), 128, true), heads, tokens);
        let dense = case(arch, Work::Dense, (block(Pattern::Dense), 128, true), heads, tokens);
        let index = IndexCase::new(HeadPattern::VerticalSlash { columns, slashes }, heads, tokens, tokens);
        LayerCase { name: format!("layer {}", attention.name), dense: dense.name, index: Some(index), attention }
    }

    /// The same heads below their crossover.
    fn dense(&self, arch: Arch) -> LayerCase {
        let Case { heads, kv_heads, tokens, .. } = self.attention;
        let shape = (embedded::block(Pattern::Dense, 128, arch), 128, true);
        let attention = case(arch, Work::Dense, shape, (heads, kv_heads), tokens);
        LayerCase {
            name: format!("{}, below its crossover", self.name),
            dense: self.dense.clone(),
            index: None,
            attention,
        }
    }

    /// Allocates and fills the inputs, loads the kernels, uploads the fixed index and allocates the plan's workspace.
    ///
    /// # Errors
    /// From the device.
    pub fn prepare(&self, device: &Device, stream: &Stream) -> Result<PreparedLayer, Error> {
        let arch = self.attention.spec.arch;
        let planner = self.index.as_ref().map(|index| Planner::new(index, device, arch)).transpose()?;
        Ok(PreparedLayer { planner, attention: self.attention.prepare(device, stream)? })
    }
}

/// A layer ready to launch.
pub struct PreparedLayer {
    planner: Option<Planner>,
    attention: Prepared,
}

impl PreparedLayer {
    /// Whether the layer has a plan.
    pub fn is_planned(&self) -> bool {
        self.planner.is_some()
    }

    /// Launches the plan once, if there is one.
    ///
    /// # Errors
    /// From the launch.
    pub fn plan(&self, stream: &Stream) -> Result<Index<'_>, Error> {
        let (q, k) = (&self.attention.q, &self.attention.k);
        self.planner.as_ref().map_or_else(|| Ok(Index::default()), |planner| planner.plan(stream, q, k))
    }

    /// Launches attention by the fixed index once.
    ///
    /// # Errors
    /// From the launch.
    pub fn attend(&self, stream: &Stream) -> Result<(), Error> {
        self.attention.run(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_layers_plan_and_attend() {
        let device = Device::emulator();
        let stream = Stream::new(&device).expect("a device gives streams");
        let case = LayerCase::new(Arch::Sm80, (40, 128), (2, 1), 256);
        assert_eq!(case.name, "layer vertical-slash (40, 128) clustered d128 2/1 heads 256");
        assert_eq!(case.dense, "dense causal d128 2/1 heads 256");
        let prepared = case.prepare(&device, &stream).expect("a valid case");
        let index = prepared.plan(&stream).expect("a valid plan").vertical_slash.expect("vertical-slash heads");
        assert_eq!(index.columns().counts.read::<u32>(&stream).expect("written"), [40; 2]);
        prepared.attend(&stream).expect("a valid launch");
        let out = prepared.attention.output(&stream).expect("every element written");
        assert!(out.iter().all(|x| x.is_finite()) && out.iter().any(|x| x.to_f32() != 0.0));
    }

    #[test]
    fn a_plan_and_its_attention_have_one_granularity() {
        let device = Device::emulator();
        for arch in [Arch::Sm80, Arch::Sm90a] {
            let case = LayerCase::new(arch, (40, 128), (2, 1), 256);
            let planner = Planner::new(case.index.as_ref().expect("a plan"), &device, arch).expect("a valid case");
            assert_eq!(planner.block(), case.attention.spec.block);
        }
    }
}
