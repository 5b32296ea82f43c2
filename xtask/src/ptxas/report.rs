//! What the gate prints, and what it holds against a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::assemble::Verdict;
use super::find::Release;

/// Names of kernels whose products must run under their softmax begin with this.
const ATTENTION: &str = "attention_";
/// But for this one, which has none.
const MERGE: &str = "attention_merge_";
/// Names of kernels whose products must not wait for each other begin so, for a target that has any.
const ESTIMATES: [&str; 3] = ["antidiagonal_sums_", "vertical_slash_statistics_", "vertical_slash_scores_"];

/// One kernel under one ptxas release.
pub(super) struct Row {
    pub(super) kernel: String,
    pub(super) target: String,
    pub(super) release: Release,
    pub(super) verdict: Verdict,
}

/// One line per kernel and release; sizes in bytes, and of products what [`Products`](super::products::Products) counts.
pub(super) fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.kernel.len()).chain([6]).max().unwrap_or_default();
    let mut text = format!(
        "{:width$}  {:7}  {:9}  {:>9}  {:>13}  {:>5}  {:>13}  {:>5}  {:>7}  {:>5}  {:>6}\n",
        "kernel",
        "target",
        "ptxas",
        "registers",
        "spilled (w+r)",
        "stack",
        "static shared",
        "HGMMA",
        "arrives",
        "waits",
        "hidden"
    );
    for row in rows {
        let _ = write!(text, "{:width$}  {:7}  {:9}  ", row.kernel, row.target, row.release);
        let _ = match &row.verdict {
            Verdict::Assembled(usage) => {
                let products = usage.products.map(|products| format!("  {products}")).unwrap_or_default();
                writeln!(
                    text,
                    "{:>9}  {:>13}  {:>5}  {:>13}{products}",
                    usage.registers,
                    usage.spill_stores + usage.spill_loads,
                    usage.stack,
                    usage.shared
                )
            }
            Verdict::TooNew { needs, reads } => {
                writeln!(text, "not assembled: needs PTX {}.{}, reads {}.{}", needs.0, needs.1, reads.0, reads.1)
            }
            Verdict::Failed(_) => writeln!(text, "FAILED"),
        };
    }
    text
}

/// One line per release.
pub(super) fn summary(rows: &[Row]) -> String {
    let mut releases: BTreeMap<Release, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        releases.entry(row.release).or_default().push(row);
    }
    let mut text = String::new();
    for (release, rows) in releases {
        let (mut assembled, mut too_new, mut failed) = (0, 0, 0);
        let (mut registers, mut spilled, mut warned) = (0, 0, 0);
        for row in rows {
            match &row.verdict {
                Verdict::TooNew { .. } => too_new += 1,
                Verdict::Failed(_) => failed += 1,
                Verdict::Assembled(usage) => {
                    assembled += 1;
                    registers = registers.max(usage.registers);
                    spilled += usize::from(usage.spill_stores + usage.spill_loads > 0);
                    warned += usize::from(!usage.warnings.is_empty());
                }
            }
        }
        let _ = writeln!(
            text,
            "ptxas {release:9} {assembled} assembled (at most {registers} registers), {failed} failed, {spilled} with \
             spills, {warned} with warnings, {too_new} too new for it"
        );
    }
    text
}

/// Everything for which the gate fails.
pub(super) fn problems(rows: &[Row]) -> Vec<String> {
    let mut problems = Vec::new();
    for row in rows {
        let mut report = |what: String| {
            problems.push(format!("{} ({}, ptxas {}): {what}", row.kernel, row.target, row.release));
        };
        match &row.verdict {
            Verdict::TooNew { .. } => {}
            Verdict::Failed(said) => report(said.clone()),
            Verdict::Assembled(usage) => {
                if usage.entries == 0 {
                    report("no entry function, so nothing was checked".to_owned());
                }
                if usage.spill_stores + usage.spill_loads > 0 {
                    report(format!(
                        "spills {} bytes of stores and {} of loads at {} registers",
                        usage.spill_stores, usage.spill_loads, usage.registers
                    ));
                }
                usage.warnings.iter().cloned().for_each(&mut report);
                let problem = usage.products.and_then(|products| {
                    let of = |name| row.kernel.starts_with(name);
                    let attends = of(ATTENTION) && !of(MERGE);
                    let estimates = ESTIMATES.into_iter().any(of);
                    attends.then(|| products.problem()).or_else(|| estimates.then(|| products.serialised()))?
                });
                problem.into_iter().for_each(&mut report);
            }
        }
    }
    let checked: BTreeSet<_> =
        rows.iter().filter(|row| !matches!(row.verdict, Verdict::TooNew { .. })).map(|row| &row.kernel).collect();
    let unchecked: BTreeSet<_> =
        rows.iter().map(|row| &row.kernel).filter(|kernel| !checked.contains(kernel)).collect();
    problems.extend(unchecked.into_iter().map(|kernel| format!("{kernel}: too new for every ptxas found")));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptxas::assemble::Usage;
    use crate::ptxas::products::Products;

    fn row(kernel: &str, release: Release, verdict: Verdict) -> Row {
        Row { kernel: kernel.to_owned(), target: "sm_80".to_owned(), release, verdict }
    }

    fn clean() -> Usage {
        Usage { entries: 1, registers: 168, shared: 49152, ..Usage::default() }
    }

    /// Disassembled, and nothing was found.
    fn without_products() -> Usage {
        Usage { products: Some(Products::default()), ..clean() }
    }

    const OLD: Release = Release(12, 0, 140);
    const NEW: Release = Release(13, 0, 88);
    const TOO_NEW: Verdict = Verdict::TooNew { needs: (8, 6), reads: (8, 0) };

    #[test]
    fn table_has_a_line_per_kernel_and_release() {
        let rows = [
            row("dense_causal", OLD, TOO_NEW),
            row("dense_causal", NEW, Verdict::Assembled(clean())),
            row("dense_causal", NEW, Verdict::Assembled(without_products())),
        ];
        let expected = "\
kernel        target   ptxas      registers  spilled (w+r)  stack  static shared  HGMMA  arrives  waits  hidden
dense_causal  sm_80    12.0.140   not assembled: needs PTX 8.6, reads 8.0
dense_causal  sm_80    13.0.88          168              0      0          49152
dense_causal  sm_80    13.0.88          168              0      0          49152      0        0      0       0
";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn summary_has_a_line_per_release() {
        let spilled = Usage { spill_stores: 8, ..clean() };
        let rows = [
            row("a", OLD, Verdict::Assembled(clean())),
            row("a", NEW, Verdict::Assembled(spilled)),
            row("b", NEW, Verdict::Failed("error".to_owned())),
        ];
        let expected = "\
ptxas 12.0.140  1 assembled (at most 168 registers), 0 failed, 0 with spills, 0 with warnings, 0 too new for it
ptxas 13.0.88   1 assembled (at most 168 registers), 1 failed, 1 with spills, 0 with warnings, 0 too new for it
";
        assert_eq!(summary(&rows), expected);
    }

    #[test]
    fn a_clean_kernel_has_no_problem() {
        assert!(problems(&[row("a", OLD, TOO_NEW), row("a", NEW, Verdict::Assembled(clean()))]).is_empty());
    }

    #[test]
    fn each_fault_is_a_problem_that_names_kernel_and_release() {
        let faults = [
            (Verdict::Failed("line 6; error : Arguments mismatch".to_owned()), "Arguments mismatch"),
            (Verdict::Assembled(Usage { spill_loads: 4, ..clean() }), "0 bytes of stores and 4 of loads"),
            (Verdict::Assembled(Usage { warnings: vec!["(C7508) ignored".to_owned()], ..clean() }), "C7508"),
            (Verdict::Assembled(Usage { entries: 0, ..clean() }), "no entry function"),
        ];
        for (verdict, expected) in faults {
            let problems = problems(&[row("a", NEW, verdict)]);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(
                problems[0].starts_with("a (sm_80, ptxas 13.0.88): ") && problems[0].contains(expected),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn serialised_products_are_a_problem_of_attention_alone() {
        let problems = |kernel| problems(&[row(kernel, NEW, Verdict::Assembled(without_products()))]);
        assert!(problems("attention_dense").first().is_some_and(|problem| problem.contains("HGMMA")));
        assert!(["antidiagonal_sums", "attention_merge_m128", "rope"].iter().all(|kernel| problems(kernel).is_empty()));
        for kernel in ["antidiagonal_sums_s16", "vertical_slash_scores_h4"] {
            assert!(problems(kernel).first().is_some_and(|problem| problem.contains("HGMMA")));
        }
    }

    #[test]
    fn a_kernel_that_no_release_reads_is_a_problem() {
        assert_eq!(problems(&[row("a", OLD, TOO_NEW), row("a", NEW, TOO_NEW)]), ["a: too new for every ptxas found"]);
    }
}
