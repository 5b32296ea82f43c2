//! `harness demo`: a long prompt, prefilled densely and sparsely, and its answer by confident decoding.

use crate::{
    Outcome, Result,
    comparison::{self, Report},
    layer,
    output::say,
    progress,
    session::Session,
    task::{self, Run, Source, Task},
};
use kernel_core::Status;
use kernel_tests::{model::SparseAttention, oracle, records::vocabulary};
use ptx::isa::MmaType;
use serde_json::json;
use std::time::Duration;

/// What leaving out pairs may cost of a layer's attention output. At 1 it would be as near without any attention.
const SPARSE_BOUND: f64 = 0.5;

#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// One JSON object on stdout instead of the report
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

/// One thing that must hold.
struct Check {
    name: &'static str,
    passed: bool,
    detail: String,
}

pub(crate) fn run(session: &Session, options: &Options) -> Result<Outcome> {
    let task = options.source.task(session)?;
    let patterns = session.patterns()?;
    let sample = &task.sample;
    // Whether the prompt fits the model is known before anything is printed.
    task::batch(session, sample)?;
    let sparse = SparseAttention::new(&session.stream, &session.config, &patterns, sample.prompt.len(), session.arch)?;
    let print = |text: String| {
        if !options.json {
            say!("{text}");
        }
    };
    print(header(session, &task));

    let bar = progress::bar("dense beside sparse attention, prefills, answers", session.config.layers as u64 + 2);
    let reports = comparison::compare(session, sample, sparse.layers(), &patterns, || bar.inc(1))?;
    bar.suspend(|| print(layers_text(&reports)));
    let dense = Run::new(session, sample, session.transformer.dense())?;
    bar.inc(1);
    let sparse_run = Run::new(session, sample, &sparse)?;
    bar.finish_and_clear();
    print(steps_text(&sparse_run));

    let mut checks = checks(&reports, &dense, &sparse_run);
    let status = sparse.layers().iter().try_fold(true, |clean, layer| -> Result<bool> {
        Ok(clean && layer.status(&session.stream)? == Status::default())
    })?;
    checks.push(Check { name: "no length or index was clamped", passed: status, detail: String::new() });
    print(answer_text(&task, &dense, &sparse_run, &checks));
    if options.json {
        say!("{}", report(session, &task, &reports, &dense, &sparse_run, &checks));
    }
    Ok(if checks.iter().all(|check| check.passed) { Outcome::Passed } else { Outcome::Failed })
}

fn checks(reports: &[Report], dense: &Run, sparse: &Run) -> Vec<Check> {
    let worst = |of: fn(&Report) -> f64| reports.iter().map(of).fold(0.0, f64::max);
    let (kernel, error, bound) = (worst(|r| r.kernel_error), worst(|r| r.error), oracle::error::bound(MmaType::Bf16));
    vec![
        Check { name: "the answer after dense prefill is right", passed: dense.correct, detail: String::new() },
        Check { name: "the answer after sparse prefill is right", passed: sparse.correct, detail: String::new() },
        Check {
            name: "sparse attention is what its index stands for",
            passed: kernel < bound,
            detail: format!("error {kernel:.1e}, bound {bound:.0e}"),
        },
        Check {
            name: "sparse attention is near dense attention in every layer",
            passed: error < SPARSE_BOUND,
            detail: format!("error {error:.2}, bound {SPARSE_BOUND:.2}"),
        },
    ]
}

fn header(session: &Session, task: &Task) -> String {
    let sample = &task.sample;
    format!(
        "device    {}\nmodel     {}\nprompt    {}: {} tokens, {} records, asked about number {}\nquestion  {}\n",
        session.device_line(),
        session.model_text(),
        task.name,
        sample.prompt.len(),
        sample.records,
        sample.asked + 1,
        vocabulary::decode(&sample.question.tokens()),
    )
}

fn layers_text(reports: &[Report]) -> String {
    let mut text = format!(
        "{:5}  {:7}  {:>9}  {:>9}  {:>8}  {:>8}  patterns by head (share of the causal pairs)\n",
        "layer", "visited", "to dense", "to exact", "dense", "sparse"
    );
    for (number, report) in reports.iter().enumerate() {
        let heads: Vec<_> = report
            .heads
            .iter()
            .map(|(pattern, density)| format!("{} ({:.0} %)", layer::describe(*pattern), 100.0 * density))
            .collect();
        text += &format!(
            "{number:5}  {:5.1} %  {:9.4}  {:9.1e}  {:>8}  {:>8}  {}\n",
            100.0 * report.density(),
            report.error,
            report.kernel_error,
            time(report.dense),
            time(report.sparse),
            heads.join(", "),
        );
    }
    let total = |of: fn(&Report) -> Duration| time(reports.iter().map(of).sum());
    let (dense, sparse) = (total(|report| report.dense), total(|report| report.sparse));
    text + &format!(
        "to dense: distance of the sparse from the dense output; to exact: from double precision over the same pairs\n\
         attention of the prompt: {dense} dense, {sparse} sparse with its index\n"
    )
}

fn steps_text(run: &Run) -> String {
    let steps = run.steps.iter().enumerate();
    let lines: Vec<_> = steps.map(|(step, tokens)| format!("{:4}  {}", step + 1, task::partial_text(tokens))).collect();
    format!("answer, filling in step by step (tokens more than 95 % sure, at least one):\n{}\n", lines.join("\n"))
}

fn answer_text(task: &Task, dense: &Run, sparse: &Run, checks: &[Check]) -> String {
    let mut text = format!("answer    {}\n", task::text(&sparse.response.tokens));
    let expected = task.sample.answer.map(u32::from);
    if !sparse.correct {
        text += &format!("expected  {}\n", task::text(&expected));
    }
    for (name, run) in [("dense", dense), ("sparse", sparse)] {
        text += &format!(
            "{name:9} prefill {}, {} forward passes for {} positions in {}\n",
            time(run.prefill),
            run.response.passes,
            run.response.tokens.len(),
            time(run.decode)
        );
    }
    for check in checks {
        let detail = if check.detail.is_empty() { String::new() } else { format!(" ({})", check.detail) };
        text += &format!("{:9} {}{detail}\n", if check.passed { "ok" } else { "FAILED" }, check.name);
    }
    text.trim_end().to_string()
}

fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 { format!("{:.1} ms", 1e3 * seconds) } else { format!("{seconds:.1} s") }
}

fn report(
    session: &Session,
    task: &Task,
    reports: &[Report],
    dense: &Run,
    sparse: &Run,
    checks: &[Check],
) -> serde_json::Value {
    let run = |run: &Run| {
        json!({
            "prefill_seconds": run.prefill.as_secs_f64(),
            "decode_seconds": run.decode.as_secs_f64(),
            "forward_passes": run.response.passes,
            "response_length": run.response.tokens.len(),
            "answer": task::text(&run.response.tokens),
            "correct": run.correct,
            "steps": run.steps.iter().map(|tokens| task::partial_text(tokens)).collect::<Vec<_>>(),
            "filled_at": run.response.trajectory.iter().map(|place| place.map(|filling| filling.step)).collect::<Vec<_>>(),
        })
    };
    let layers: Vec<_> = reports
        .iter()
        .map(|report| {
            let heads: Vec<_> = report
                .heads
                .iter()
                .map(|(pattern, density)| json!({ "pattern": layer::describe(*pattern), "density": density }))
                .collect();
            json!({
                "heads": heads,
                "density": report.density(),
                "error_to_dense": report.error,
                "error_to_exact": report.kernel_error,
                "dense_seconds": report.dense.as_secs_f64(),
                "sparse_seconds": report.sparse.as_secs_f64(),
            })
        })
        .collect();
    let checks: Vec<_> = checks
        .iter()
        .map(|check| json!({ "name": check.name, "passed": check.passed, "detail": check.detail }))
        .collect();
    json!({
        "device": session.device_text,
        "arch": session.arch.target(),
        "emulator": session.device.is_emulator(),
        "model": session.model_text(),
        "prompt": { "source": task.name, "tokens": task.sample.prompt.len(), "records": task.sample.records },
        "question": vocabulary::decode(&task.sample.question.tokens()),
        "expected": task::text(&task.sample.answer.map(u32::from)),
        "layers": layers,
        "dense": run(dense),
        "sparse": run(sparse),
        "checks": checks,
    })
}
