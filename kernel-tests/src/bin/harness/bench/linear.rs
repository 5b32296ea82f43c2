//! `harness bench linear`: products of few rows, beside cuBLASLt.

use super::table::{self, Row, Table};
use crate::{Outcome, Result, session};
use kernel_tests::bench::{LinearCase, linear_cases};
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    table: table::Options,
    /// Rows of the weights that a block has at a time, instead of what the reference model takes: 64, 128 or 256
    #[arg(long, value_name = "N")]
    tile: Option<u32>,
    /// Blocks that share a product, instead of what the reference model takes
    #[arg(long, value_name = "N")]
    blocks: Option<u32>,
}

impl table::Case for LinearCase {
    const COLUMNS: &'static [(&'static str, usize)] = &[("us", 8), ("TB/s", 6), ("cuBLASLt us", 11), ("TB/s", 6)];
    const NOTE: Option<&'static str> = Some(
        "a launch reads several matrices in turn, so that none is in the L2 cache; us: of one product; TB/s: bytes of \
              the weights over time; gated: cuBLASLt without the activation",
    );

    fn name(&self) -> &str {
        &self.name
    }
}

pub(super) fn run(options: &Options, session: &session::Options) -> Result<Outcome> {
    let table = Table::open(&options.table, session)?;
    table.print(linear_cases(), |case| {
        let prepared = case.prepare(&table.stream, table.arch, (options.tile, options.blocks), true)?;
        let products = prepared.products() as f64;
        let own = table.median_ms(|stream| prepared.run(stream))? / products;
        let cublas = table.median_ms(|stream| prepared.run_cublas(stream))? / products;
        Ok(row(case, own, cublas))
    })?;
    Ok(Outcome::Passed)
}

fn row(case: &LinearCase, own: f64, cublas: f64) -> Row {
    let terabytes_a_second = |ms: f64| case.weight_bytes() as f64 / ms * 1e-9;
    let cells = [own, cublas].into_iter().flat_map(|ms| {
        let speed = terabytes_a_second(ms);
        [format!("{:.2}", ms * 1e3), format!("{speed:.2}")]
    });
    Row {
        ms: own,
        cells: cells.collect(),
        remark: String::new(),
        json: json!({
            "ms": own, "tb_per_s": terabytes_a_second(own), "cublas_ms": cublas,
            "cublas_tb_per_s": terabytes_a_second(cublas), "weight_bytes": case.weight_bytes(), "rows": case.rows,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_the_headings() {
        let cases = linear_cases();
        let head = cases.iter().find(|case| case.name.contains("head")).expect("a case");
        // 152064 outputs of 3584 bf16 inputs are 1.09 GB.
        let row = row(head, 0.25, 0.5);
        assert_eq!(row.cells, ["250.00", "4.36", "500.00", "2.18"]);
        assert_eq!(row.json["weight_bytes"], 1_089_994_752);
    }
}
