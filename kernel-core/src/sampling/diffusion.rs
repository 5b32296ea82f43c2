//! The loop of steps: replayed graphs, and a look at the progress between them.

use super::{Decoder, Progress};
use crate::{Error, Stream, device::Graph};

/// Decodes a batch by replaying its steps.
///
/// A step is whatever the engine enqueues for it: the model's forward pass, its LM head on the listed rows, and
/// [`Decoder::step`]. `capture` records a few of them as one graph; the host reads how many requests are left after each
/// replay, and at no other time. Steps after a request's last one leave it alone, so that nothing changes but time where a
/// graph is longer than what was left to do.
pub struct DiffusionDecoder {
    graph: Graph,
    refresh: Option<Graph>,
    steps: u32,
    decoder: Decoder,
}

impl DiffusionDecoder {
    /// Records `steps` steps as one graph. Addresses are those of the capture: everything `step` uses must outlive this, at
    /// its place. `step` must do the same whatever the progress: the list of rows is read on the device, its bound is the
    /// decoder's capacity.
    ///
    /// # Errors
    /// What `step` returned; [`Error::Setting`] for no steps; [`Error::Capture`] where the stream is being captured already.
    pub fn capture<E: From<Error>>(
        stream: &Stream,
        decoder: Decoder,
        steps: u32,
        mut step: impl FnMut(&Stream, &Decoder) -> Result<(), E>,
    ) -> Result<DiffusionDecoder, E> {
        if steps == 0 {
            let message = "is 0; a graph has at least one step".into();
            return Err(Error::Setting { setting: "steps", message }.into());
        }
        let graph = stream.capture_with(|stream| (0..steps).try_for_each(|_| step(stream, &decoder)))?;
        Ok(DiffusionDecoder { graph, refresh: None, steps, decoder })
    }

    /// Records what requests wait for whose settings ask for a [`Refresh`](super::Refresh): [`Decoder::list_waiting`], a pass that computes all
    /// their keys and values, and [`Decoder::refreshed_step`]. Without it they wait for ever.
    ///
    /// # Errors
    /// What `refresh` returned; [`Error::Capture`] where the stream is being captured already.
    pub fn capture_refresh<E: From<Error>>(
        &mut self,
        stream: &Stream,
        refresh: impl FnOnce(&Stream, &Decoder) -> Result<(), E>,
    ) -> Result<(), E> {
        self.refresh = Some(stream.capture_with(|stream| refresh(stream, &self.decoder))?);
        Ok(())
    }

    /// Replays until every request is done, or for `most` steps, rounded up to whole graphs; or until all that are left wait for
    /// a refresh that was not captured. Waits, once a graph. Some wait for a refresh from within a graph: it follows the graph.
    pub fn run(&self, stream: &Stream, most: u32) -> Result<Progress, Error> {
        let mut taken = 0u32;
        loop {
            let progress = self.decoder.progress(stream)?;
            let stuck = self.refresh.is_none() && progress.waiting == progress.requests;
            if progress.requests == 0 || stuck || taken >= most {
                return Ok(progress);
            }
            if let Some(refresh) = self.refresh.as_ref().filter(|_| progress.waiting > 0) {
                refresh.launch(stream)?;
                taken = taken.saturating_add(1);
            }
            self.launch(stream)?;
            taken = taken.saturating_add(self.steps);
        }
    }

    /// Replays the graph once, without waiting: for engines with a loop of their own.
    pub fn launch(&self, stream: &Stream) -> Result<(), Error> {
        self.graph.launch(stream)
    }

    /// Steps of one replay.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Launches, fills and copies of one replay.
    pub fn operations(&self) -> usize {
        self.graph.operations()
    }

    /// The decoder: new requests are [started](Decoder::start) on it between runs.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }
}
