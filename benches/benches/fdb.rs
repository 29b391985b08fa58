//! The MAC table alone: what a lookup and a refresh cost when the table is full.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use switch_core::{
    clock::Now,
    fdb::{Fdb, FlapTable},
    id::{DomainId, PortId},
    mac::MacAddr,
};

const ENTRIES: u64 = 100_000;
const WARM: u64 = 1000;
const PORTS: u64 = 16;
const SECOND: u64 = 1_000_000_000;

fn mac(number: u64) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | number)
}

fn port(number: u64) -> PortId {
    PortId((number % PORTS) as u16)
}

/// xorshift64: the next of a sequence that no prefetcher guesses.
fn step(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn table(flaps: &mut FlapTable) -> Fdb {
    let fdb = Fdb::with_seed(131_072, 1);
    for number in 0..ENTRIES {
        fdb.learn(&fdb.hash(DomainId(0), mac(number)), port(number), Now::from_nanos(0), flaps);
    }
    // Some addresses find their two buckets full.
    assert!(fdb.len() as u64 > ENTRIES * 98 / 100, "the table holds what it was given: {}", fdb.len());
    fdb
}

fn benches(c: &mut Criterion) {
    let mut flaps = FlapTable::default();
    let fdb = table(&mut flaps);
    let look = |number| fdb.lookup(&fdb.hash(DomainId(0), black_box(mac(number))));
    let mut next = 0;
    c.bench_function("fdb/hit of 1000 warm keys", |b| {
        b.iter(|| {
            next = (next + 1) % WARM;
            look(next)
        });
    });
    let mut state = 1;
    c.bench_function("fdb/hit of 100000 random keys", |b| b.iter(|| look(step(&mut state) % ENTRIES)));
    c.bench_function("fdb/learn, nothing to write", |b| {
        b.iter(|| {
            next = (next + 1) % WARM;
            let hash = fdb.hash(DomainId(0), black_box(mac(next)));
            fdb.learn(&hash, port(next), Now::from_nanos(0), &mut flaps)
        });
    });
    // What ageing looks through, without finding anything old.
    let tick = Now::from_nanos(SECOND).tick;
    c.bench_function("fdb/age, nothing old", |b| b.iter(|| assert_eq!(fdb.age(black_box(tick), |_| 300), 0)));
    // A new tick at each pass over the keys, so that every call writes.
    let mut now = Now::from_nanos(SECOND);
    c.bench_function("fdb/learn, refresh", |b| {
        b.iter(|| {
            next += 1;
            if next >= WARM {
                next = 0;
                now = Now::from_nanos(now.nanos + SECOND);
            }
            let hash = fdb.hash(DomainId(0), black_box(mac(next)));
            fdb.learn(&hash, port(next), now, &mut flaps)
        });
    });
}

criterion_group!(group, benches);
criterion_main!(group);
