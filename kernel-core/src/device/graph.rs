//! [`Graph`]: a recorded sequence of launches, replayed with one call.

use super::{Device, Stream, cuda, stream::Handle};
use crate::Error;

/// Launches and fills captured from a stream. Addresses and arguments are those of the capture: what they point at must
/// be alive at every replay, and new data is passed by writing it there.
pub struct Graph {
    replay: Replay,
    /// After `replay`: the graph goes before its context, and so do the modules that the context keeps for it.
    device: Device,
}

enum Replay {
    Cuda(cuda::Graph),
    #[cfg(feature = "emulator")]
    Emulator(super::emulator::Recording),
}

impl Stream {
    /// Captures what `work` enqueues on this stream, without running it. On CUDA this is a capture in thread-local mode;
    /// the embedded backend records launches, fills and work on the host.
    ///
    /// # Errors
    /// What `work` returned; [`Error::Capture`] if a capture is already going on; [`Error::Driver`] if `work` did what a
    /// capture forbids.
    pub fn capture(&self, work: impl FnOnce(&Stream) -> Result<(), Error>) -> Result<Graph, Error> {
        self.capture_with(work)
    }

    /// As [`Stream::capture`], for work with errors of its own.
    ///
    /// # Errors
    /// As there.
    pub fn capture_with<E: From<Error>>(&self, work: impl FnOnce(&Stream) -> Result<(), E>) -> Result<Graph, E> {
        self.forbid_capture("beginning another capture", "end the first one")?;
        let replay = match self.handle() {
            Handle::Cuda(stream) => Replay::Cuda(stream.capture(|| work(self))?),
            #[cfg(feature = "emulator")]
            Handle::Emulator(queue) => Replay::Emulator(queue.capture(|| work(self))?),
        };
        Ok(Graph { replay, device: self.device().clone() })
    }
}

impl Graph {
    /// How many launches and fills were captured.
    pub fn operations(&self) -> usize {
        match &self.replay {
            Replay::Cuda(graph) => graph.nodes(),
            #[cfg(feature = "emulator")]
            Replay::Emulator(recording) => recording.len(),
        }
    }

    /// Enqueues everything that was captured. Replays of one graph must not overlap: use one stream.
    pub fn launch(&self, stream: &Stream) -> Result<(), Error> {
        if !stream.device().same(&self.device) {
            return Err(Error::ForeignDevice { what: "graph" });
        }
        stream.forbid_capture("launching a graph", "capture the work itself")?;
        match (&self.replay, stream.handle()) {
            (Replay::Cuda(graph), Handle::Cuda(stream)) => graph.launch(stream),
            #[cfg(feature = "emulator")]
            (Replay::Emulator(recording), Handle::Emulator(queue)) => queue.replay(recording),
            #[cfg(feature = "emulator")]
            _ => Err(Error::ForeignDevice { what: "graph" }),
        }
    }
}
