//! `harness bench decode`: attention of decoding, beside the bandwidth of a copy.

use super::table::{self, Row, Table};
use crate::{Outcome, Result, session};
use kernel_tests::bench::{DecodeCase, DeviceCopy, decode_cases};
use serde_json::json;

/// Bytes of the copy that bandwidth is measured with.
const COPY_BYTES: usize = 1 << 30;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    table: table::Options,
}

impl table::Case for DecodeCase {
    const COLUMNS: &'static [(&'static str, usize)] = &[("µs", 9), ("GB/s", 8), ("of copy", 8), ("TFLOP/s", 8)];
    const NOTE: Option<&'static str> = Some(
        "µs: a step, of as many back to back as have 256 MB of keys and values in turn; GB/s: keys and values, once, over time; \
         of copy: over what a copy of 1 GiB reads and writes in the same run",
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
    table.print(decode_cases(), |case| {
        let prepared = case.prepare(&table.device, &table.stream, table.arch)?;
        let ms = table.median_ms(|stream| prepared.run(stream))?;
        Ok(row(case, ms / prepared.turns() as f64, copy))
    })?;
    Ok(Outcome::Passed)
}

fn gigabytes_a_second(bytes: usize, ms: f64) -> f64 {
    bytes as f64 / ms * 1e-6
}

fn row(case: &DecodeCase, ms: f64, copy: f64) -> Row {
    let (read, teraflops) = (gigabytes_a_second(case.bytes(), ms), case.operations() / ms * 1e-9);
    let share = read / copy;
    Row {
        ms,
        cells: vec![format!("{:.1}", ms * 1e3), format!("{read:.0}"), format!("{share:.2}"), format!("{teraflops:.0}")],
        remark: String::new(),
        json: json!({
            "ms": ms, "gb_per_s": read, "copy_gb_per_s": copy, "of_copy": share, "tflops": teraflops,
            "kv_bytes": case.bytes(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_the_headings() {
        let cases = decode_cases();
        // 131105 keys of 4 heads: 268 MB of keys and values, 62 GFLOP for 33 rows of 28 heads.
        let row = row(&cases[2], 0.1, 4000.0);
        assert_eq!(row.cells, ["100.0", "2685", "0.67", "620"]);
        assert_eq!(row.json["kv_bytes"], 268_503_040);
    }
}
