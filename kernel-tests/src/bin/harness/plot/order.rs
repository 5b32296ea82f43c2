//! Which position of the response each step filled.

use super::{Common, FONT, cannot};
use crate::{
    Result,
    session::Session,
    task::{self, Run, Task},
};
use kernel_tests::{model::SparseAttention, records::vocabulary};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use std::path::{Path, PathBuf};

/// Pixels of a position, of a step, of what surrounds the grid.
const CELL: (i32, i32) = (28, 24);
const LEFT: i32 = 60;
const TOP: i32 = 70;
const BOTTOM: i32 = 110;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
}

pub(super) fn draw(session: &Session, options: &Options) -> Result<PathBuf> {
    let task = options.common.source.task(session)?;
    let patterns = session.patterns()?;
    let sparse =
        SparseAttention::new(&session.stream, &session.config, &patterns, task.sample.prompt.len(), session.arch)?;
    let run = Run::new(session, &task.sample, &sparse)?;
    let out = &options.common.out;
    picture(&task, &run, out).map_err(cannot(out))?;
    Ok(out.clone())
}

fn picture(task: &Task, run: &Run, out: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (positions, steps) = (run.response.tokens.len() as i32, run.response.passes as i32);
    let size = (LEFT + positions * CELL.0 + 20, TOP + steps * CELL.1 + BOTTOM);
    let root = BitMapBackend::new(out, (size.0 as u32, size.1 as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32| (FONT, size).into_text_style(&root);
    let question = vocabulary::decode(&task.sample.question.tokens());
    root.draw(&Text::new(question, (LEFT, 12), text(15)))?;
    let subtitle = format!(
        "{steps} forward passes for {positions} positions; dark: filled by this step, light: by an earlier one, grey: given"
    );
    root.draw(&Text::new(subtitle, (LEFT, 36), text(12)))?;
    let right = text(12).pos(Pos::new(HPos::Right, VPos::Center));
    for step in 0..steps {
        let middle = TOP + step * CELL.1 + CELL.1 / 2;
        root.draw(&Text::new(format!("step {}", step + 1), (LEFT - 8, middle), right.clone()))?;
    }
    let upright = text(12).transform(FontTransform::Rotate90).pos(Pos::new(HPos::Left, VPos::Center));
    for (position, filled) in run.response.trajectory.iter().enumerate() {
        let x = LEFT + position as i32 * CELL.0;
        for step in 0..steps {
            let y = TOP + step * CELL.1;
            let color = match filled {
                None => RGBColor(205, 205, 205),
                Some(filled) if filled.step as i32 == step => RGBColor(10, 40, 140),
                Some(filled) if (filled.step as i32) < step => RGBColor(190, 205, 240),
                Some(_) => RGBColor(255, 255, 255),
            };
            let corners = [(x + 1, y + 1), (x + CELL.0 - 1, y + CELL.1 - 1)];
            root.draw(&Rectangle::new(corners, color.filled()))?;
            root.draw(&Rectangle::new(corners, RGBColor(225, 225, 225)))?;
        }
        let word = task::word(run.response.tokens[position]);
        let foot = (x + CELL.0 / 2, TOP + steps * CELL.1 + 8);
        root.draw(&Text::new(word, foot, upright.clone()))?;
    }
    root.present()?;
    Ok(())
}
