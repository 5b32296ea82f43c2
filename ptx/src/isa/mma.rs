//! Tensor-core products and the loads that feed them.

use super::{Builder, Operand, R32, RF};

/// Half-precision type of a product's factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MmaType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl MmaType {
    /// Name in opcodes.
    pub const fn suffix(self) -> &'static str {
        match self {
            MmaType::Bf16 => "bf16",
            MmaType::F16 => "f16",
        }
    }
}

impl Builder {
    /// Loads four 8×8 matrices of 16-bit elements: lanes 8i to 8i+7 give the row addresses of matrix i. With `transpose`
    /// each matrix arrives transposed.
    pub fn load_matrices(&mut self, address: R32, offset: i64, transpose: bool) -> [R32; 4] {
        let targets = self.fresh_array();
        let trans = if transpose { ".trans" } else { "" };
        let vector = Operand::Vector(targets.map(Operand::from).to_vec());
        let from = Operand::Address(Box::new(address.into()), offset);
        self.emit(format!("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16"), vec![vector, from]);
        targets
    }

    /// Stores four 8×8 matrices of 16-bit elements: lanes 8i to 8i+7 give the row addresses of matrix i.
    pub fn store_matrices(&mut self, address: R32, offset: i64, matrices: [R32; 4]) {
        let vector = Operand::Vector(matrices.map(Operand::from).to_vec());
        let to = Operand::Address(Box::new(address.into()), offset);
        self.emit("stmatrix.sync.aligned.m8n8.x4.shared.b16", vec![to, vector]);
    }

    /// `accumulator += a · b` on a 16×8 tile over 16 inner elements, accumulating in single precision.
    ///
    /// With g = lane / 4 and t = lane % 4: `a` holds rows (g, g+8, g, g+8) at inner elements (2t, 2t, 2t+8, 2t+8) and the
    /// next, `b` column g at inner elements 2t and 2t+8 and the next, the accumulator row g then g+8 at columns 2t, 2t+1.
    pub fn mma_16x8x16(&mut self, kind: MmaType, accumulator: [RF; 4], a: [R32; 4], b: [R32; 2]) {
        let vector = |registers: Vec<Operand>| Operand::Vector(registers);
        let c = vector(accumulator.map(Operand::from).to_vec());
        let t = kind.suffix();
        self.emit(
            format!("mma.sync.aligned.m16n8k16.row.col.f32.{t}.{t}.f32"),
            vec![c.clone(), vector(a.map(Operand::from).to_vec()), vector(b.map(Operand::from).to_vec()), c],
        );
    }
}
