//! [`Event`]: a point in a stream's work, for timing.

use super::{Stream, cuda, stream::Handle};
use crate::Error;
#[cfg(feature = "emulator")]
use std::time::Instant;

/// A point in the work of a stream.
pub struct Event {
    point: Point,
}

enum Point {
    Cuda(cuda::Event),
    #[cfg(feature = "emulator")]
    Emulator(Instant),
}

impl Event {
    /// Marks where `stream` is now: after everything enqueued so far.
    pub fn record(stream: &Stream) -> Result<Event, Error> {
        let point = match stream.handle() {
            Handle::Cuda(stream) => Point::Cuda(cuda::Event::record(stream)?),
            #[cfg(feature = "emulator")]
            Handle::Emulator(_) => Point::Emulator(Instant::now()),
        };
        Ok(Event { point })
    }

    /// Milliseconds of device time from `earlier` to here. Waits until both have been reached.
    pub fn milliseconds_since(&self, earlier: &Event) -> Result<f64, Error> {
        match (&self.point, &earlier.point) {
            (Point::Cuda(end), Point::Cuda(start)) => end.milliseconds_since(start),
            #[cfg(feature = "emulator")]
            (Point::Emulator(end), Point::Emulator(start)) => Ok(end.duration_since(*start).as_secs_f64() * 1e3),
            #[cfg(feature = "emulator")]
            _ => Err(Error::ForeignDevice { what: "event" }),
        }
    }
}
