//! Attention on the standard workloads.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernel_benches::{GpuTime, gpu, time};
use kernel_core::Stream;
use kernel_tests::bench::cases;

fn attention(criterion: &mut Criterion<GpuTime>) {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).expect("a device gives streams");
    let mut group = criterion.benchmark_group("attention");
    group.sample_size(10);
    for case in cases(device.arch()) {
        let prepared = case.prepare(&device, &stream).expect("the standard cases are valid");
        group.throughput(Throughput::Elements(case.operations() as u64));
        let (rows, keys) = case.spec.block;
        group.bench_function(BenchmarkId::new(&case.name, format!("{rows}x{keys}")), |bencher| {
            bencher.iter_custom(|times| time(&stream, times, || prepared.run(&stream)).expect("the launch is valid"));
        });
    }
}

criterion_group!(name = benches; config = Criterion::default().with_measurement(GpuTime); targets = attention);
criterion_main!(benches);
