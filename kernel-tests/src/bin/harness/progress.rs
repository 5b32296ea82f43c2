//! Progress of long work, on stderr, where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `steps` steps; indicatif draws nothing where stderr is no terminal.
pub(crate) fn bar(what: &str, steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps).with_message(what.to_string());
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.tick();
    bar
}
