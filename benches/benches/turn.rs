//! A worker's turn without the kernel, in time; `core-cost` has the same in cycles and instructions.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use switch_core::batch::BATCH_FRAMES;
use vswitch_benches::turns::{Aim, NOW, Turns};

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("turn");
    group.throughput(Throughput::Elements(BATCH_FRAMES as u64));
    for (name, aim) in [("64 bytes, 1000 flows", Aim::Warm), ("64 bytes, random over the table", Aim::Random)] {
        let mut turns = Turns::new(1, aim).expect("descriptors can be had");
        group.bench_function(name, |b| b.iter(|| assert!(turns.workers[0].turn(NOW))));
        turns.check().expect("all frames arrive");
    }
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
