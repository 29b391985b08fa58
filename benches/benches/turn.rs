//! A worker's part of a step of each case, without the kernel, in time: classify, learn, decide, flood, tags, owed work,
//! rings. `core-cost` has the same in cycles and instructions.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vswitch_benches::cases::{CASES, Case};

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("turn");
    for (name, title) in CASES {
        let mut case = Case::new(name).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        let mut steps = 0;
        group.throughput(Throughput::Elements(case.frames));
        group.bench_function(*title, |b| {
            // Some microseconds of work between two readings of the clock.
            b.iter_custom(|count| {
                steps += count;
                (0..count).fold(Duration::ZERO, |total, _| {
                    case.prepare().expect("the far end is content");
                    let begin = Instant::now();
                    case.work();
                    total + begin.elapsed()
                })
            });
        });
        // Without steps it was not asked for.
        if steps > 0 {
            case.check(steps).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        }
    }
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
