//! `harness plot`: pictures.

mod mask;
mod order;

use crate::{Outcome, Result, output::say, session::Session, task::Source};
use plotters::style::{FontStyle, register_font};
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub(crate) enum Picture {
    /// What a pattern selects, over the head's true attention
    Mask(mask::Options),
    /// Which position of the response each step filled
    Order(order::Options),
}

/// The prompt of a picture, and where the picture goes.
#[derive(clap::Args)]
struct Common {
    /// PNG file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    source: Source,
}

const FONT: &str = "sans-serif";

pub(crate) fn run(session: &Session, picture: &Picture) -> Result<Outcome> {
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular()).map_err(|_| "the embedded font is broken")?;
    let out = match picture {
        Picture::Mask(options) => mask::draw(session, options)?,
        Picture::Order(options) => order::draw(session, options)?,
    };
    say!("written to {}", out.display());
    Ok(Outcome::Passed)
}

/// What the drawing library says, with the file.
fn cannot<E: std::fmt::Display>(out: &std::path::Path) -> impl Fn(E) -> String + '_ {
    move |error| format!("cannot draw {}: {error}", out.display())
}
