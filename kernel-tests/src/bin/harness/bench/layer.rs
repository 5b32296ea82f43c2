//! `harness bench layer`: plan and attention of a layer, beside dense attention.

use super::table::{self, Row, Table};
use crate::{Outcome, Result, session};
use kernel_tests::bench::{LayerCase, layer_cases};
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    table: table::Options,
}

impl table::Case for LayerCase {
    const COLUMNS: &'static [(&'static str, usize)] =
        &[("index ms", 9), ("attention ms", 12), ("total ms", 9), ("density", 8)];
    const NOTE: Option<&'static str> = Some(
        "index: planned from the case's own queries and keys, random normal numbers; attention: by the workload's \
              fixed index of the same budget, since random numbers have no slashes to find; peers: dense attention",
    );

    fn name(&self) -> &str {
        &self.name
    }

    fn peer_name(&self) -> &str {
        &self.dense
    }
}

pub(super) fn run(options: &Options, session: &session::Options) -> Result<Outcome> {
    let table = Table::open(&options.table, session)?;
    table.print(layer_cases(table.arch), |case| {
        let prepared = case.prepare(&table.device, &table.stream)?;
        let plan = || table.median_ms(|stream| prepared.plan(stream).map(drop));
        let index = if prepared.is_planned() { plan()? } else { 0.0 };
        let attention = table.median_ms(|stream| prepared.attend(stream))?;
        Ok(row(case, index, attention))
    })?;
    Ok(Outcome::Passed)
}

fn row(case: &LayerCase, index: f64, attention: f64) -> Row {
    let (ms, density) = (index + attention, case.attention.density());
    Row {
        ms,
        cells: vec![format!("{index:.4}"), format!("{attention:.4}"), format!("{ms:.4}"), format!("{density:.4}")],
        remark: String::new(),
        json: json!({ "index_ms": index, "attention_ms": attention, "ms": ms, "density": density, "dense": case.dense }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptx::Arch;

    #[test]
    fn the_total_is_what_peers_are_compared_with() {
        let cases = layer_cases(Arch::Sm90a);
        assert_eq!(cases.len(), 5);
        assert!(cases[0].index.is_none() && cases[0].attention.tokens == 8192, "dense below its crossover");
        let row = row(&cases[3], 0.25, 20.0);
        assert_eq!(row.ms, 20.25);
        assert_eq!(row.cells[..3], ["0.2500", "20.0000", "20.2500"]);
        assert!(cases[3].attention.density() < 0.11, "{}", row.cells[3]);
    }
}
