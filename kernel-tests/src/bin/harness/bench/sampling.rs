//! `harness bench sampling`: a step of sampling, beside the bandwidth of a copy.

use super::table::{self, Row, Table};
use crate::{Outcome, Result, session};
use kernel_tests::bench::{DeviceCopy, SamplingCase, sampling_cases};
use serde_json::json;

/// Bytes of the copy that bandwidth is measured with.
const COPY_BYTES: usize = 1 << 30;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    table: table::Options,
}

impl table::Case for SamplingCase {
    const COLUMNS: &'static [(&'static str, usize)] = &[("launches", 8), ("µs", 9), ("GB/s", 8), ("of copy", 8)];
    const NOTE: Option<&'static str> = Some(
        "µs: a step, row kernel and selection, of as many back to back as have 256 MB of logits in turn, or one in cache, \
         and under mixed rules the first; \
         GB/s: logits, once, over time; of copy: over what a copy of 1 GiB reads and writes in the same run",
    );

    fn name(&self) -> &str {
        &self.name
    }
}

pub(super) fn run(options: &Options, session: &session::Options) -> Result<Outcome> {
    let table = Table::open(&options.table, session)?;
    let copy = {
        let copy = DeviceCopy::prepare(&table.stream, COPY_BYTES)?;
        gigabytes_a_second(copy.bytes(), table.median_ms_launched(|stream| copy.run(stream))?)
    };
    table.print(sampling_cases(), |case| {
        let prepared = case.prepare(&table.device, &table.stream)?;
        let launches = table.stream.capture(|stream| prepared.run(stream))?.operations() / prepared.turns();
        let ms = table.median_ms_after(|stream| prepared.restart(stream), |stream| prepared.run(stream))?;
        Ok(row(case, ms / prepared.turns() as f64, launches, copy))
    })?;
    Ok(Outcome::Passed)
}

fn gigabytes_a_second(bytes: usize, ms: f64) -> f64 {
    bytes as f64 / ms * 1e-6
}

fn row(case: &SamplingCase, ms: f64, launches: usize, copy: f64) -> Row {
    let read = gigabytes_a_second(case.bytes(), ms);
    let share = read / copy;
    Row {
        ms,
        cells: vec![launches.to_string(), format!("{:.1}", ms * 1e3), format!("{read:.0}"), format!("{share:.2}")],
        remark: String::new(),
        json: json!({
            "ms": ms, "launches": launches, "gb_per_s": read, "copy_gb_per_s": copy, "of_copy": share,
            "logits_bytes": case.bytes(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_the_headings() {
        // 1024 rows of 152064 bf16 logits are 311 MB.
        let row = row(&sampling_cases()[0], 0.1, 2, 4000.0);
        assert_eq!(row.cells, ["2", "100.0", "3114", "0.78"]);
        assert_eq!(row.json["logits_bytes"], 311_427_072);
    }
}
