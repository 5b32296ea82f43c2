//! The search over attention whose shape is known.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use kernel_core::{Buffer, DType, Device, TensorView};

const ROWS: usize = 1024;
const HEAD_DIM: usize = 64;

/// `rows` rows of two heads: element 0 is what `value` gives for (row, head), all others are 0.
fn tensor(stream: &Stream, value: impl Fn(usize, usize) -> f32) -> Buffer {
    let mut bits = vec![0u16; 2 * ROWS * HEAD_DIM];
    for (i, row) in bits.chunks_mut(HEAD_DIM).enumerate() {
        row[0] = half::bf16::from_f32(value(i / 2, i % 2)).to_bits();
    }
    stream.device().upload(stream, &bits).unwrap()
}

/// One layer of two heads: the first looks at every key alike, the second at the first key alone.
#[test]
fn spread_attention_stays_dense_and_sharp_attention_does_not() {
    let device = Device::emulator();
    let stream = Stream::new(&device).unwrap();
    let q = tensor(&stream, |_, head| [0.0, 16.0][head]);
    let k = tensor(&stream, |row, head| if head == 1 && row == 0 { 16.0 } else { 0.0 });
    let view = |buffer| TensorView::new(buffer, DType::Bf16, &[1, ROWS as u64, 2, HEAD_DIM as u64]).unwrap();
    let call = AttentionCall { q: view(&q), k: view(&k), v: view(&k), out: view(&q) };
    let mut heads = vec![None; 2];
    for density in densities(0.2) {
        let mut found = fit(&stream, Arch::Sm80, &call, density).unwrap();
        add_recalls(&stream, Arch::Sm80, &call, &mut found).unwrap();
        settle(&mut heads, &found, 1.0, 0.9);
        assert!(heads[1].is_some(), "the sharp head has its pattern at once");
    }
    assert_eq!(heads[0], None);
    let (pattern, recall) = heads[1].unwrap();
    assert!(pattern != HeadPattern::Dense && recall > 0.99, "{pattern:?} keeps {recall}");

    let patterns = HeadPatterns::from_json(&patterns(&[heads]).unwrap().to_json().unwrap()).unwrap().layer(0).unwrap();
    assert_eq!((patterns.head(0), patterns.head(1)), (HeadPattern::Dense, pattern), "as the file is read again");
}

/// A head takes the first density at which a pattern is good enough, and keeps it.
#[test]
fn densities_rise_until_the_floor_holds() {
    assert_eq!(densities(0.2).collect::<Vec<_>>(), [0.2, 0.4]);
    assert_eq!(densities(0.125).collect::<Vec<_>>(), [0.125, 0.25, 0.5]);
    assert_eq!(densities(0.6).collect::<Vec<_>>(), [0.6], "what is asked for is searched");
    let blocks = |blocks| Some(HeadPattern::BlockSparse { blocks });
    let mut heads = vec![None];
    // Sums over two prompts.
    settle(&mut heads, &vec![vec![(blocks(1), 1.0), (None, 2.0), (blocks(2), 1.7)]], 2.0, 0.9);
    assert_eq!(heads, [None], "the best has 85 %");
    settle(&mut heads, &vec![vec![(blocks(3), 1.82), (blocks(4), 1.9), (blocks(5), 1.9)]], 2.0, 0.9);
    assert_eq!(heads, [Some((HeadPattern::BlockSparse { blocks: 4 }, 0.95))]);
    settle(&mut heads, &vec![vec![(blocks(6), 2.0)]], 2.0, 0.9);
    assert_eq!(heads, [Some((HeadPattern::BlockSparse { blocks: 4 }, 0.95))]);
}
