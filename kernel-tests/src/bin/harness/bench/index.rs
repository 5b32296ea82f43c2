//! `harness bench index`: plans alone.

use super::table::{self, Row, Table};
use crate::{Outcome, Result, session};
use kernel_tests::bench::{IndexCase, index_cases};
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    table: table::Options,
}

impl table::Case for IndexCase {
    const COLUMNS: &'static [(&'static str, usize)] =
        &[("block", 9), ("launches", 8), ("ms", 9), ("workspace MB", 12), ("keys GB/s", 9)];
    const NOTE: Option<&'static str> = Some(
        "keys GB/s: bytes of all keys, counted once, over time; up to some 16K \
                                             tokens of 8 heads lie in the L2 cache",
    );

    fn name(&self) -> &str {
        &self.name
    }
}

pub(super) fn run(options: &Options, session: &session::Options) -> Result<Outcome> {
    let table = Table::open(&options.table, session)?;
    table.print(index_cases(), |case| {
        let prepared = case.prepare(&table.device, &table.stream, table.arch)?;
        let plan = |stream: &kernel_core::Stream| prepared.plan(stream).map(drop);
        let launches = table.stream.capture(plan)?.operations();
        let ms = table.median_ms(plan)?;
        Ok(row(case, ms, prepared.block(), launches, prepared.workspace_bytes()))
    })?;
    Ok(Outcome::Passed)
}

fn row(case: &IndexCase, ms: f64, block: (u32, u32), launches: usize, workspace: u64) -> Row {
    let (megabytes, gigabytes_a_second) = (workspace as f64 * 1e-6, case.key_bytes() as f64 / ms * 1e-6);
    Row {
        ms,
        cells: vec![
            format!("{}x{}", block.0, block.1),
            launches.to_string(),
            format!("{ms:.4}"),
            format!("{megabytes:.1}"),
            format!("{gigabytes_a_second:.0}"),
        ],
        remark: String::new(),
        json: json!({
            "block": [block.0, block.1], "launches": launches, "ms": ms, "workspace_bytes": workspace,
            "key_bytes": case.key_bytes(), "keys_gb_per_s": gigabytes_a_second,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_the_headings() {
        let cases = index_cases();
        // 131072 tokens of 8 heads of 128 bf16 elements are 268 MB.
        let case =
            cases.iter().find(|case| (case.tokens, case.kv_heads) == (131_072, 8)).expect("a case of 128K tokens");
        let row = row(case, 0.5, (128, 64), 3, 34_000_000);
        assert_eq!(row.cells, ["128x64", "3", "0.5000", "34.0", "537"]);
        assert_eq!(row.json["key_bytes"], 268_435_456);
    }
}
