//! `harness bench attention`: attention kernels on fixed index sets.

use super::table::{self, Row, Table};
use crate::{Outcome, Result, session};
use kernel_tests::bench::{self, Case, Prepared};
use ptx::{Arch, kernels::attention::Pattern};
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Tile of the kernels, such as 128x64, instead of each case's own
    #[arg(long, value_name = "ROWSxKEYS", value_parser = block)]
    block: Option<(u32, u32)>,
    /// Compare each output with that of the sm_80 kernel
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    table: table::Options,
}

impl table::Case for Case {
    const COLUMNS: &'static [(&'static str, usize)] = &[("block", 9), ("ms", 9), ("TFLOP/s", 8), ("density", 8)];

    fn name(&self) -> &str {
        &self.name
    }
}

pub(super) fn run(options: &Options, session: &session::Options) -> Result<Outcome> {
    let table = Table::open(&options.table, session)?;
    let mut cases = bench::cases(table.arch);
    if let Some(block) = options.block {
        cases.iter_mut().for_each(|case| case.spec.block = block);
    }
    let mut agrees = true;
    table.print(cases, |case| {
        let prepared = case.prepare(&table.device, &table.stream)?;
        let ms = table.median_ms(|stream| prepared.run(stream))?;
        let distance = if options.verify { distance(case, &prepared, &table)? } else { None };
        agrees &= distance.is_none_or(|distance| distance < 5e-3);
        Ok(row(case, ms, distance))
    })?;
    Ok(if agrees { Outcome::Passed } else { Outcome::Failed })
}

fn block(text: &str) -> std::result::Result<(u32, u32), String> {
    let sizes = text.split_once('x').and_then(|(rows, keys)| Some((rows.parse().ok()?, keys.parse().ok()?)));
    sizes.ok_or_else(|| format!("'{text}' is no tile; write rows and keys, such as 128x64"))
}

/// Relative distance to what the sm_80 kernel of the same case gives, if there is one that visits the same pairs.
fn distance(case: &Case, prepared: &Prepared, table: &Table<'_>) -> Result<Option<f64>> {
    let blocks = matches!(case.spec.pattern, Pattern::VerticalSlash | Pattern::BlockSparse);
    let same = |other: &Case| other.name == case.name && (!blocks || other.spec.block == case.spec.block);
    let Some(other) = bench::cases(Arch::Sm80).into_iter().find(same) else {
        return Ok(None);
    };
    let reference = other.prepare(&table.device, &table.stream)?;
    reference.run(&table.stream)?;
    let (mut difference, mut norm) = (0.0, 0.0);
    for (own, reference) in prepared.output(&table.stream)?.iter().zip(reference.output(&table.stream)?) {
        let (own, reference) = (f64::from(own.to_f32()), f64::from(reference.to_f32()));
        difference += (own - reference).powi(2);
        norm += reference.powi(2);
    }
    Ok(Some((difference / norm).sqrt()))
}

fn row(case: &Case, ms: f64, distance: Option<f64>) -> Row {
    let (block, teraflops, density) = (case.spec.block, case.operations() / ms * 1e-9, case.density());
    Row {
        ms,
        cells: vec![
            format!("{}x{}", block.0, block.1),
            format!("{ms:.4}"),
            format!("{teraflops:.1}"),
            format!("{density:.4}"),
        ],
        remark: distance.map(|distance| format!("  to sm_80 {distance:.1e}")).unwrap_or_default(),
        json: json!({
            "block": [block.0, block.1], "ms": ms, "tflops": teraflops, "density": density, "to_sm_80": distance,
        }),
    }
}
