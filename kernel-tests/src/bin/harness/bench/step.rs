//! `harness bench step`: a decoding step of a 7B model, beside the time to read its weights.

use super::table::{self, Row, Table};
use crate::{Outcome, Result, session};
use kernel_tests::bench::{DeviceCopy, StepCase, dream_7b, random_model, step_cases, weight_bytes};
use serde_json::json;

/// Bytes of the copy that bandwidth is measured with.
const COPY_BYTES: usize = 1 << 30;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    table: table::Options,
    /// Multiplies few rows by the kernels of this project only, where cuBLASLt is faster by itself too
    #[arg(long)]
    without_cublas: bool,
}

impl table::Case for StepCase {
    const COLUMNS: &'static [(&'static str, usize)] = &[("ms", 8), ("of weights", 10), ("launches", 8)];
    const NOTE: Option<&'static str> = Some(
        "a step of 28 layers at the shape of a 7B model, as a graph: pass, LM head, row and selection kernel; of weights: over the \
         time to read 15.2 GB of weights at the bandwidth of a copy of 1 GiB in the same run",
    );

    fn name(&self) -> &str {
        &self.name
    }
}

pub(super) fn run(options: &Options, session: &session::Options) -> Result<Outcome> {
    let table = Table::open(&options.table, session)?;
    let stream = &table.stream;
    let bandwidth = {
        let copy = DeviceCopy::prepare(stream, COPY_BYTES)?;
        copy.bytes() as f64 / table.median_ms_launched(|stream| copy.run(stream))? * 1e-6
    };
    let config = dream_7b(16384);
    let model = random_model(stream, &config, table.arch)?;
    let model = if options.without_cublas { model.without_cublas() } else { model };
    table.print(step_cases(), |case| {
        let batch = case.batch(stream, &model)?;
        let step = case.capture(stream, &model, &batch)?;
        let ms = table.median_ms(|stream| step.run(stream))?;
        let masked = step.masked(stream)?;
        if masked as usize != case.batch * case.block {
            return Err(format!("{masked} positions are masked: the steps were not alike").into());
        }
        Ok(row(ms, weight_bytes(&config), bandwidth, step.operations()))
    })?;
    Ok(Outcome::Passed)
}

fn row(ms: f64, bytes: usize, bandwidth: f64, launches: usize) -> Row {
    let floor = bytes as f64 / bandwidth * 1e-6;
    Row {
        ms,
        cells: vec![format!("{ms:.3}"), format!("{:.2} ×", ms / floor), launches.to_string()],
        remark: String::new(),
        json: json!({
            "ms": ms, "weight_bytes": bytes, "copy_gb_per_s": bandwidth, "weights_ms": floor, "of_weights": ms / floor,
            "launches": launches,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_the_headings() {
        // 15.2 GB at 4 TB/s: 3.8 ms.
        assert_eq!(row(4.18, 15_200_000_000, 4000.0, 260).cells, ["4.180", "1.10 ×", "260"]);
    }
}
