//! An own mask and an own score: documents packed into one sequence do not see each other, and scores fall with distance
//! (ALiBi). The expressions are plain data here; `attention!` writes the same as Rust.

mod support;

use kernel_core::{AttentionArgs, AttentionKernel, DType, Stream, TensorView};
use ptx::{
    Arch,
    isa::MmaType,
    kernels::{
        attention::{
            AttentionSpec, Pattern,
            expr::{Binary, Expr, ExprType, SideBuffer, Variable},
        },
        meta::Element,
    },
};
use support::{Result, Shape};

fn binary(operator: Binary, a: Expr, b: Expr) -> Expr {
    Expr::Binary(operator, Box::new(a), Box::new(b))
}

fn at(side: usize, index: Variable) -> Expr {
    Expr::Index(side, Box::new(Expr::Variable(index)))
}

fn main() -> Result {
    let device = support::device();
    let stream = Stream::new(&device)?;
    let shape = Shape { tokens: 150, heads: 2, kv_heads: 2, head_dim: 64 };
    let [q, k, v] = [1, 2, 3].map(|seed| support::random(150 * 2 * 64, seed));
    let documents: Vec<u32> = (0..150).map(|token| token / 60).collect();
    let slopes = [0.5f32, 0.0625];

    // mask:  document[q] == document[k]
    // score: s - slope[head] * (q - k) as f32
    let mut spec = AttentionSpec::new(Pattern::Dense, (64, 64), 64, MmaType::Bf16, Arch::Sm80);
    spec.side = vec![
        SideBuffer { name: "document".into(), element: Element::U32 },
        SideBuffer { name: "slope".into(), element: Element::F32 },
    ];
    spec.mask = Some(binary(Binary::Eq, at(0, Variable::Query), at(0, Variable::Key)));
    let distance = binary(Binary::Sub, Expr::Variable(Variable::Query), Expr::Variable(Variable::Key));
    let distance = Expr::Cast(Box::new(distance), ExprType::F32);
    let bias = binary(Binary::Mul, at(1, Variable::Head), distance);
    spec.score = Some(binary(Binary::Sub, Expr::Variable(Variable::Score), bias));
    let attention = AttentionKernel::generate(&spec)?.build(&device)?;

    let (q_buffer, k_buffer) = (device.upload(&stream, &q)?, device.upload(&stream, &k)?);
    let (v_buffer, out_buffer) = (device.upload(&stream, &v)?, device.allocate(q.len() * 2)?);
    let (document_buffer, slope_buffer) = (device.upload(&stream, &documents)?, device.upload(&stream, &slopes)?);
    let mut args = AttentionArgs::new(
        TensorView::new(&q_buffer, DType::Bf16, &shape.queries())?,
        TensorView::new(&k_buffer, DType::Bf16, &shape.keys())?,
        TensorView::new(&v_buffer, DType::Bf16, &shape.keys())?,
        TensorView::new(&out_buffer, DType::Bf16, &shape.queries())?,
    );

    // Side buffers are bound by name and checked.
    match attention.run(&stream, &args) {
        Err(error) => println!("without side buffers: {error}"),
        Ok(()) => return Err("launched without its side buffers".into()),
    }
    let side = [
        ("document", TensorView::new(&document_buffer, DType::U32, &[150])?),
        ("slope", TensorView::new(&slope_buffer, DType::F32, &[2])?),
    ];
    args.side = &side;
    attention.run(&stream, &args)?;

    let reference = support::reference(
        shape,
        [&q, &k, &v],
        |_, q, k| documents[q] == documents[k],
        |head, q, k, score| score - f64::from(slopes[head]) * (q - k) as f64,
    );
    support::check("own mask", &out_buffer.read(&stream)?, &reference)
}
