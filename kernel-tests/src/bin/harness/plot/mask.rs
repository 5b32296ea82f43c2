//! What a pattern selects, over the head's true attention.

use super::{Common, FONT, cannot};
use crate::{
    Result, inspect,
    layer::{self, Layer},
    policy::pattern,
    session::Session,
};
use kernel_core::{HeadPattern, LayerPatterns};
use kernel_tests::oracle::Mask;
use plotters::prelude::*;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Cells along an edge, at most; each is the sum of a square of pairs.
const CELLS: usize = 640;
/// Pixels around the map.
const MARGIN: i32 = 30;
/// Cells whose attention is below this share of the row's are as white as none.
const FAINTEST: f32 = 1e-4;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Layer, from 0
    #[arg(long)]
    layer: usize,
    /// Query head, from 0
    #[arg(long)]
    head: usize,
    /// Such as a_shape:64,256 (sink, local window), vertical_slash:100,200 (columns, slashes), block_sparse:8 (blocks);
    /// by default the head's own in patterns.json
    #[arg(long, value_parser = pattern)]
    pattern: Option<HeadPattern>,
}

/// A head's attention and what of it a mask keeps.
struct Map {
    attention: Vec<Vec<f32>>,
    mask: Mask,
}

pub(super) fn draw(session: &Session, options: &Options) -> Result<PathBuf> {
    let (layers, heads) = (session.config.layers, session.config.heads);
    if options.layer >= layers || options.head >= heads {
        let (layer, head) = (options.layer, options.head);
        return Err(
            format!("there is no layer {layer} head {head}; the model has {layers} layers of {heads} heads").into()
        );
    }
    let head = options.head;
    let pattern = match options.pattern {
        Some(pattern) => pattern,
        None => session.patterns()?.layer(options.layer)?.head(head as u32),
    };
    let task = options.common.source.task(session)?;
    let mut map = None;
    inspect::prefill(session, &task.sample, &mut |number, call| {
        if number == options.layer {
            let patterns = LayerPatterns::uniform(heads as u32, pattern);
            let mask = layer::planned_masks(&session.stream, session.arch, &patterns, call)?.swap_remove(head);
            map = Some(Map { attention: Layer::read(&session.stream, call)?.head(head).attention(), mask });
        }
        Ok(())
    })?;
    let map = map.ok_or("the layer was not reached")?;
    let title = format!(
        "layer {} head {head}: {} keeps {:.1} % of the attention in {:.1} % of the pairs",
        options.layer,
        layer::describe(pattern),
        100.0 * layer::recall(&map.attention, &map.mask),
        100.0 * map.mask.density()
    );
    let out = &options.common.out;
    picture(&map, &title, out).map_err(cannot(out))?;
    Ok(out.clone())
}

fn picture(map: &Map, title: &str, out: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let rows = map.attention.len();
    let side = rows.div_ceil(CELLS);
    let cells = rows.div_ceil(side);
    let size = (cells as u32 + 2 * MARGIN as u32).max(640);
    let root = BitMapBackend::new(out, (size, cells as u32 + 3 * MARGIN as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32| (FONT, size).into_text_style(&root);
    let foot = 2 * MARGIN + cells as i32 + 8;
    root.draw(&Text::new(title, (MARGIN, 10), text(14)))?;
    let legend = "gold: selected; blue: true attention, darker for more (logarithmic, mean over each cell)";
    root.draw(&Text::new(legend, (MARGIN, 32), text(12)))?;
    root.draw(&Text::new(format!("key position, 0 to {}", rows - 1), (MARGIN, foot), text(12)))?;
    let upright = text(12).transform(FontTransform::Rotate90);
    root.draw(&Text::new(format!("query position, 0 to {}", rows - 1), (MARGIN - 8, 2 * MARGIN), upright))?;
    let colors: Vec<Vec<RGBColor>> =
        (0..cells).into_par_iter().map(|row| (0..cells).map(|column| cell(map, side, row, column)).collect()).collect();
    for (row, colors) in colors.iter().enumerate() {
        for (column, color) in colors.iter().enumerate() {
            root.draw_pixel((MARGIN + column as i32, 2 * MARGIN + row as i32), color)?;
        }
    }
    root.present()?;
    Ok(())
}

/// Color of one cell: gold in the share that is selected, blue by the logarithm of its attention.
fn cell(map: &Map, side: usize, row: usize, column: usize) -> RGBColor {
    let rows = map.attention.len();
    let (mut attention, mut kept, mut pairs) = (0f32, 0f32, 0f32);
    for query in (row * side..(row + 1) * side).take_while(|query| *query < rows) {
        for key in (column * side..(column + 1) * side).take_while(|key| *key <= query) {
            attention += map.attention[query][key];
            kept += f32::from(u8::from(map.mask.keeps(query, key)));
            pairs += 1.0;
        }
    }
    if pairs == 0.0 {
        return RGBColor(240, 240, 240);
    }
    // Mean attention of a row of the cell, from FAINTEST to 1 on a logarithmic scale.
    let strength = 1.0 - (attention / side as f32).clamp(FAINTEST, 1.0).log(FAINTEST);
    let blend = |from: f32, to: f32, share: f32| from + (to - from) * share;
    let channel = |gold: f32, blue: f32| blend(blend(255.0, gold, kept / pairs), blue, strength) as u8;
    RGBColor(channel(255.0, 10.0), channel(214.0, 40.0), channel(90.0, 140.0))
}
