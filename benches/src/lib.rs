//! Criterion benchmarks over the standard workloads: what they measure is device time, between two events.

use criterion::{
    Throughput,
    measurement::{Measurement, ValueFormatter},
};
use kernel_core::{Device, Error, Stream, device::Event};

/// Device time in milliseconds, with operations a second where a benchmark says how many it does.
pub struct GpuTime;

impl Measurement for GpuTime {
    type Intermediate = ();
    type Value = f64;

    // Benchmarks time themselves with `iter_custom`: a device has no clock to start here.
    fn start(&self) {}

    fn end(&self, (): ()) -> f64 {
        0.0
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Milliseconds
    }
}

struct Milliseconds;

impl ValueFormatter for Milliseconds {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "ms"
    }

    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (amount, unit) = match throughput {
            Throughput::Elements(operations) => (*operations as f64 * 1e-9, "TFLOP/s"),
            Throughput::Bytes(bytes) | Throughput::BytesDecimal(bytes) => (*bytes as f64 * 1e-6, "GB/s"),
            _ => (1.0, "1/ms"),
        };
        values.iter_mut().for_each(|ms| *ms = amount / *ms);
        unit
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "ms"
    }
}

/// Device milliseconds of `times` calls of `work`, enqueued one after the other.
pub fn time(stream: &Stream, times: u64, work: impl Fn() -> Result<(), Error>) -> Result<f64, Error> {
    let start = Event::record(stream)?;
    for _ in 0..times {
        work()?;
    }
    Event::record(stream)?.milliseconds_since(&start)
}

/// The GPU to measure on, or the reason why there is none, said loudly: these figures mean nothing elsewhere.
pub fn gpu() -> Option<Device> {
    match Device::cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var("REQUIRE_GPU").is_err(), "a GPU is required and there is none: {error}");
            eprintln!("BENCHMARKS NOT RUN: {error}");
            None
        }
    }
}
