//! One table of cases: which of them, how they are timed, and how they are printed beside the peers' figures.

use crate::{Result, output::say, progress, session};
use kernel_core::{Device, Error, Stream, device::Event};
use ptx::Arch;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(super) struct Options {
    /// Only cases whose name contains TEXT
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Launches a case that are timed, one by one
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Launches before those, at least three: a GPU at its power limit slows down within some ten milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50)]
    warm_up: u64,
    /// Replay each case from a CUDA graph, so that the time that the host needs for its launches does not count
    #[arg(long)]
    graph: bool,
    /// JSON lines of the scripts in benches/peers, measured on the same machine and with the same warm-up
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,
    /// One JSON object a case instead of the table
    #[arg(long)]
    json: bool,
}

/// A case that has a row.
pub(super) trait Case {
    /// The columns between the name and the peers: heading and width.
    const COLUMNS: &'static [(&'static str, usize)];
    /// What a reader must know, in a line under the title.
    const NOTE: Option<&'static str> = None;

    /// Name, by which cases are chosen.
    fn name(&self) -> &str;

    /// Name under which peers have measured what it is compared with.
    fn peer_name(&self) -> &str {
        self.name()
    }
}

/// What was measured of a case.
pub(super) struct Row {
    /// What peers are compared with.
    pub(super) ms: f64,
    /// A text for each column.
    pub(super) cells: Vec<String>,
    /// After the peers.
    pub(super) remark: String,
    /// The same for programs, an object.
    pub(super) json: Value,
}

/// A line of a peer's figures; other lines say what machine it was.
#[derive(Deserialize)]
struct Peer {
    case: String,
    peer: String,
    ms: f64,
}

/// The device, and what is asked of the table.
pub(super) struct Table<'a> {
    pub(super) device: Device,
    pub(super) stream: Stream,
    pub(super) arch: Arch,
    options: &'a Options,
    peers: Vec<Peer>,
}

impl<'a> Table<'a> {
    /// The GPU: times mean nothing elsewhere.
    pub(super) fn open(options: &'a Options, session: &session::Options) -> Result<Table<'a>> {
        let device = Device::cuda(0)?;
        let arch = session.arch(&device);
        Table::on(device, arch, options)
    }

    fn on(device: Device, arch: Arch, options: &'a Options) -> Result<Table<'a>> {
        let peers = options.peers.as_deref().map(read_peers).transpose()?.unwrap_or_default();
        Ok(Table { stream: Stream::new(&device)?, device, arch, options, peers })
    }

    /// Measures and prints the cases that the filter leaves.
    pub(super) fn print<C: Case>(&self, mut cases: Vec<C>, mut measure: impl FnMut(&C) -> Result<Row>) -> Result<()> {
        let Options { filter, runs, json, .. } = self.options;
        cases.retain(|case| case.name().contains(filter));
        if cases.is_empty() {
            return Err(format!("no case contains '{filter}'").into());
        }
        let bar = progress::bar("cases", cases.len() as u64);
        if !json {
            let launches = if self.options.graph { "replays of a graph" } else { "launches" };
            say!("{}, {} kernels, median of {runs} {launches}", self.device.name(), self.arch.target());
            if let Some(note) = C::NOTE {
                say!("{note}");
            }
            let headings = C::COLUMNS.iter().map(|(heading, _)| heading.to_string());
            say!("{}  peers (ms, our speed over theirs)", line::<C>("case", headings));
        }
        for case in &cases {
            let row = measure(case)?;
            let peers: Vec<&Peer> = self.peers.iter().filter(|peer| peer.case == case.peer_name()).collect();
            if *json {
                say!("{}", object(case.name(), self.arch, row, &peers));
            } else {
                say!("{}", text(case, row, &peers));
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Milliseconds of `work`: the median over the runs, each between two events of its own.
    pub(super) fn median_ms<E>(&self, work: impl Fn(&Stream) -> std::result::Result<(), E>) -> Result<f64>
    where
        E: From<Error> + std::error::Error + Send + Sync + 'static,
    {
        self.median(|_| Ok(()), work, self.options.graph)
    }

    /// The same, each run after `before`, which is launched and not timed.
    pub(super) fn median_ms_after(
        &self,
        before: impl Fn(&Stream) -> std::result::Result<(), Error>,
        work: impl Fn(&Stream) -> std::result::Result<(), Error>,
    ) -> Result<f64> {
        self.median(before, work, self.options.graph)
    }

    /// The same by plain launches, whatever the options say: copies are slower in a graph.
    pub(super) fn median_ms_launched(&self, work: impl Fn(&Stream) -> std::result::Result<(), Error>) -> Result<f64> {
        self.median(|_| Ok(()), work, false)
    }

    fn median<E>(
        &self,
        before: impl Fn(&Stream) -> std::result::Result<(), E>,
        work: impl Fn(&Stream) -> std::result::Result<(), E>,
        graph: bool,
    ) -> Result<f64>
    where
        E: From<Error> + std::error::Error + Send + Sync + 'static,
    {
        let stream = &self.stream;
        let graph = graph.then(|| stream.capture_with(&work)).transpose()?;
        let launch = || graph.as_ref().map_or_else(|| work(stream), |graph| Ok(graph.launch(stream)?));
        // As the peers' scripts do it: clocks depend on what ran before.
        let begin = Instant::now();
        for turn in 0.. {
            if turn >= 3 && begin.elapsed() >= Duration::from_millis(self.options.warm_up) {
                break;
            }
            before(stream)?;
            launch()?;
            stream.synchronize()?;
        }
        let mut times = Vec::new();
        for _ in 0..self.options.runs {
            before(stream)?;
            let start = Event::record(stream)?;
            launch()?;
            times.push(Event::record(stream)?.milliseconds_since(&start)?);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}

fn read_peers(path: &Path) -> Result<Vec<Peer>> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Name and cells, each in its column.
fn line<C: Case>(name: &str, cells: impl IntoIterator<Item = String>) -> String {
    let cells = cells.into_iter().zip(C::COLUMNS);
    cells.fold(format!("{name:58}"), |line, (cell, (_, width))| format!("{line} {cell:>width$}"))
}

fn text<C: Case>(case: &C, row: Row, peers: &[&Peer]) -> String {
    let peers: Vec<String> =
        peers.iter().map(|peer| format!("{} {:.3} ({:.2}x)", peer.peer, peer.ms, peer.ms / row.ms)).collect();
    format!("{}  {}{}", line::<C>(case.name(), row.cells), peers.join("  "), row.remark)
}

fn object(name: &str, arch: Arch, row: Row, peers: &[&Peer]) -> Value {
    let peers: Map<_, _> = peers.iter().map(|peer| (peer.peer.clone(), peer.ms.into())).collect();
    let mut object = json!({ "case": name, "arch": arch.target(), "peers_ms": peers });
    if let (Value::Object(object), Value::Object(own)) = (&mut object, row.json) {
        object.extend(own);
    }
    object
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use std::{cell::Cell, io::Write};

    struct One;

    impl Case for One {
        const COLUMNS: &'static [(&'static str, usize)] = &[("ms", 7), ("GB/s", 6)];

        fn name(&self) -> &str {
            "one case"
        }

        fn peer_name(&self) -> &str {
            "its peer"
        }
    }

    fn row() -> Row {
        let cells = vec!["2.000".into(), "9".into()];
        Row { ms: 2.0, cells, remark: "  fine".into(), json: json!({ "ms": 2.0 }) }
    }

    fn peers(file: &mut tempfile::NamedTempFile) -> Vec<Peer> {
        let lines = r#"{"device": "a GPU"}
{"case": "its peer", "peer": "cudnn", "ms": 3.0}
no JSON
{"case": "one case", "peer": "torch", "ms": 4.0}"#;
        file.write_all(lines.as_bytes()).unwrap();
        read_peers(file.path()).unwrap()
    }

    #[test]
    fn rows_have_their_cells_and_the_peers_of_their_name() {
        let peers = peers(&mut tempfile::NamedTempFile::new().unwrap());
        assert_eq!(peers.len(), 2, "what is no figure is passed over");
        let own: Vec<&Peer> = peers.iter().filter(|peer| peer.case == One.peer_name()).collect();
        let name = format!("{:58}", "one case");
        assert_eq!(text(&One, row(), &own), format!("{name}   2.000      9  cudnn 3.000 (1.50x)  fine"));
        let expected = json!({ "case": "one case", "arch": "sm_80", "ms": 2.0, "peers_ms": { "cudnn": 3.0 } });
        assert_eq!(object("one case", Arch::Sm80, row(), &own), expected);
        assert!(read_peers(Path::new("no/such/file")).is_err_and(|error| error.to_string().contains("no/such/file")));
    }

    #[test]
    fn launches_are_three_and_the_timed_ones_or_one_capture() {
        let count = Cell::new(0);
        let mut options = Options { filter: "one".into(), runs: 5, warm_up: 0, graph: false, peers: None, json: false };
        let time = |options: &Options| {
            let table = Table::on(Device::emulator(), Arch::Sm80, options).unwrap();
            let work = |_: &Stream| {
                count.set(count.get() + 1);
                Ok::<_, Error>(())
            };
            assert!(table.median_ms(work).unwrap() >= 0.0);
        };
        time(&options);
        assert_eq!(count.replace(0), 8);
        options.graph = true;
        time(&options);
        assert_eq!(count.get(), 1);
        let table = Table::on(Device::emulator(), Arch::Sm80, &options).unwrap();
        let before = |_: &Stream| {
            count.set(count.get() + 1);
            Ok(())
        };
        assert!(table.median_ms_after(before, |_| Ok(())).unwrap() >= 0.0);
        assert_eq!(count.get(), 9, "before each run, not in the graph");

        options.filter = "two".into();
        let table = Table::on(Device::emulator(), Arch::Sm80, &options).unwrap();
        assert!(
            table.print(vec![One], |_| Ok(row())).is_err_and(|error| error.to_string() == "no case contains 'two'")
        );
    }
}
