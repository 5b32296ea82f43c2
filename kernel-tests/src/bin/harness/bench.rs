//! `harness bench`: device time of the standard cases, in one table with the peers'; first loads are in [`load`], indices in
//! [`plan`].

use crate::{Outcome, Result, load, output::say, plan, progress, session};
use kernel_core::{Device, Stream, device::Event};
use kernel_tests::bench::{self, Case};
use ptx::{Arch, kernels::attention::Pattern};
use serde::Deserialize;
use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// What is measured.
#[derive(clap::Subcommand)]
pub(crate) enum Subject {
    /// Attention kernels on the standard workloads
    Attention(Options),
    /// The index of one layer, by the pattern of its heads
    Plan(plan::Options),
    /// First load of each kernel, from its text and from an image
    Load(load::Options),
}

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Tile of the kernels, such as 128x64, instead of each case's own
    #[arg(long, value_name = "ROWSxKEYS", value_parser = block)]
    block: Option<(u32, u32)>,
    /// Only cases whose name contains TEXT
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Launches a case that are timed, one by one
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Launches before those, at least three: a GPU at its power limit slows down within some ten milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50)]
    warm_up: u64,
    /// JSON lines of benches/peers/attention.py, measured on the same machine and with the same warm-up
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,
    /// Compare each output with that of the sm_80 kernel
    #[arg(long)]
    verify: bool,
    /// One JSON object a case instead of the table
    #[arg(long)]
    json: bool,
}

/// A line of a peer's figures; other lines say what machine it was.
#[derive(Deserialize)]
struct Peer {
    case: String,
    peer: String,
    ms: f64,
}

struct Figure {
    ms: f64,
    teraflops: f64,
    /// Relative distance to the sm_80 kernel's output.
    distance: Option<f64>,
}

pub(crate) fn run(subject: &Subject, session: &session::Options) -> Result<Outcome> {
    match subject {
        Subject::Attention(options) => attention(options, session),
        Subject::Plan(options) => plan::run(options),
        Subject::Load(options) => load::run(options),
    }
}

fn attention(options: &Options, session: &session::Options) -> Result<Outcome> {
    let device = Device::cuda(0)?;
    let arch = session.arch(&device);
    let peers = options.peers.as_ref().map(read_peers).transpose()?.unwrap_or_default();
    let mut cases = bench::cases(arch);
    cases.retain(|case| case.name.contains(&options.filter));
    if let Some(block) = options.block {
        cases.iter_mut().for_each(|case| case.spec.block = block);
    }
    if cases.is_empty() {
        return Err(format!("no case contains '{}'", options.filter).into());
    }
    let stream = Stream::new(&device)?;
    let bar = progress::bar("cases", cases.len() as u64);
    if !options.json {
        say!("{}, {} kernels, median of {} launches", device.name(), arch.target(), options.runs);
        say!(
            "{:52} {:>9} {:>9} {:>8} {:>8}  peers (ms, our speed over theirs)",
            "case",
            "block",
            "ms",
            "TFLOP/s",
            "density"
        );
    }
    let mut agrees = true;
    for case in &cases {
        let figure = measure(case, &device, &stream, options)?;
        agrees &= figure.distance.is_none_or(|distance| distance < 5e-3);
        let peers: Vec<&Peer> = peers.iter().filter(|peer| peer.case == case.name).collect();
        if options.json {
            say!("{}", json(case, &figure, &peers));
        } else {
            say!("{}", row(case, &figure, &peers));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(if agrees { Outcome::Passed } else { Outcome::Failed })
}

pub(crate) fn block(text: &str) -> std::result::Result<(u32, u32), String> {
    let sizes = text.split_once('x').and_then(|(rows, keys)| Some((rows.parse().ok()?, keys.parse().ok()?)));
    sizes.ok_or_else(|| format!("'{text}' is no tile; write rows and keys, such as 128x64"))
}

fn read_peers(path: &PathBuf) -> Result<Vec<Peer>> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Median device time of `runs` launches, in milliseconds.
pub(crate) fn median(
    stream: &Stream,
    runs: u32,
    warm_up: u64,
    launch: impl Fn() -> std::result::Result<(), kernel_core::Error>,
) -> Result<f64> {
    // As the peers' script does it: clocks depend on what ran before.
    let begin = Instant::now();
    for turn in 0.. {
        if turn >= 3 && begin.elapsed() >= Duration::from_millis(warm_up) {
            break;
        }
        launch()?;
        stream.synchronize()?;
    }
    let mut times = Vec::new();
    for _ in 0..runs {
        let start = Event::record(stream)?;
        launch()?;
        times.push(Event::record(stream)?.milliseconds_since(&start)?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn measure(case: &Case, device: &Device, stream: &Stream, options: &Options) -> Result<Figure> {
    let prepared = case.prepare(device, stream)?;
    let ms = median(stream, options.runs, options.warm_up, || prepared.run(stream))?;
    let distance = if options.verify {
        reference(case, device, stream)?
            .map(|reference| {
                let own = prepared.output(stream)?;
                let (mut difference, mut norm) = (0.0, 0.0);
                for (own, reference) in own.iter().zip(&reference) {
                    let (own, reference) = (f64::from(own.to_f32()), f64::from(reference.to_f32()));
                    difference += (own - reference).powi(2);
                    norm += reference.powi(2);
                }
                Ok::<_, kernel_core::Error>((difference / norm).sqrt())
            })
            .transpose()?
    } else {
        None
    };
    Ok(Figure { ms, teraflops: case.operations() / ms * 1e-9, distance })
}

/// What the sm_80 kernel of the same case gives, if there is one that visits the same pairs.
fn reference(case: &Case, device: &Device, stream: &Stream) -> Result<Option<Vec<half::bf16>>> {
    let blocks = matches!(case.spec.pattern, Pattern::VerticalSlash | Pattern::BlockSparse);
    let same = |other: &Case| other.name == case.name && (!blocks || other.spec.block == case.spec.block);
    let Some(other) = bench::cases(Arch::Sm80).into_iter().find(same) else {
        return Ok(None);
    };
    let prepared = other.prepare(device, stream)?;
    prepared.run(stream)?;
    Ok(Some(prepared.output(stream)?))
}

fn row(case: &Case, figure: &Figure, peers: &[&Peer]) -> String {
    let block = format!("{}x{}", case.spec.block.0, case.spec.block.1);
    let peers: Vec<String> =
        peers.iter().map(|peer| format!("{} {:.3} ({:.2}x)", peer.peer, peer.ms, peer.ms / figure.ms)).collect();
    let distance = figure.distance.map(|distance| format!("  to sm_80 {distance:.1e}")).unwrap_or_default();
    format!(
        "{:52} {block:>9} {:9.4} {:8.1} {:8.4}  {}{distance}",
        case.name,
        figure.ms,
        figure.teraflops,
        case.density(),
        peers.join("  ")
    )
}

fn json(case: &Case, figure: &Figure, peers: &[&Peer]) -> serde_json::Value {
    let peers: serde_json::Map<_, _> = peers.iter().map(|peer| (peer.peer.clone(), peer.ms.into())).collect();
    serde_json::json!({
        "case": case.name, "arch": case.spec.arch.target(), "block": [case.spec.block.0, case.spec.block.1],
        "ms": figure.ms, "tflops": figure.teraflops, "density": case.density(), "to_sm_80": figure.distance,
        "peers_ms": peers,
    })
}
