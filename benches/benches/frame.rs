//! What is done with one frame, function by function: tags, validation, checksums, segments, hashes, and the batch that
//! they lie in.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use switch_core::{
    batch::{BATCH_FRAMES, Batch},
    frame::{
        checksum::checksum,
        complete::Completer,
        flow::flow_hash,
        offload::{Gso, Offload, VNET_HDR_BYTES},
        validate::validate,
        vlan::{OuterTag, insert_tag},
    },
};
use vswitch_benches::cases::owed::{long, tcp};

fn checksums(c: &mut Criterion) {
    let bytes: Vec<u8> = (0..65_536).map(|at| at as u8).collect();
    let mut group = c.benchmark_group("checksum");
    for len in [64, 1500, 65_536] {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len} bytes"), |b| b.iter(|| checksum(black_box(&bytes[..len]))));
    }
    group.finish();
}

fn headers(c: &mut Criterion) {
    let short = tcp(60, Gso::None);
    let long = long();
    let judge = |head: &[u8], len: usize, offload| validate(black_box(head), len, black_box(offload));
    assert!(judge(&long.bytes, long.bytes.len(), long.offload).is_ok_and(|o| o.gso == Gso::TcpV4));
    c.bench_function("validate/nothing owed", |b| b.iter(|| judge(&short.bytes, 60, Offload::NONE)));
    c.bench_function("validate/checksum", |b| b.iter(|| judge(&short.bytes, 60, short.offload)));
    c.bench_function("validate/TSO", |b| b.iter(|| judge(&long.bytes[..256], long.bytes.len(), long.offload)));
    c.bench_function("flow hash", |b| b.iter(|| flow_hash(black_box(&short.bytes), None)));

    let mut wire = [0; VNET_HDR_BYTES];
    c.bench_function("offload/encode and decode", |b| {
        b.iter(|| {
            black_box(long.offload).encode(&mut wire);
            Offload::decode(black_box(&wire))
        });
    });
}

fn tags(c: &mut Criterion) {
    let mut tagged = tcp(60, Gso::None).bytes;
    tagged.splice(12..12, [0x81, 0, 0xa0, 10]);
    let tag = OuterTag::read(&tagged).expect("a tag was put in");
    c.bench_function("tag/read", |b| b.iter(|| OuterTag::read(black_box(&tagged))));
    let mut buffer = [0; 64];
    c.bench_function("tag/insert", |b| b.iter(|| insert_tag(black_box(&mut buffer), tag)));
}

fn completing(c: &mut Criterion) {
    let mut completer = Completer::new();
    let mut group = c.benchmark_group("complete");
    for (name, frame) in [("checksum of 1514 bytes", tcp(1514, Gso::None)), ("segments of 64 KiB", long())] {
        let offload = validate(&frame.bytes, frame.bytes.len(), frame.offload).expect("a good frame");
        group.throughput(Throughput::Bytes(frame.bytes.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                completer.clear();
                completer.complete(black_box(&frame.bytes), &[], frame.bytes.len(), offload).expect("there is room")
            });
        });
    }
    group.finish();
}

fn batches(c: &mut Criterion) {
    let mut batch = Batch::new();
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH_FRAMES as u64));
    group.bench_function("accept and clear", |b| {
        b.iter(|| {
            while batch.has_room() {
                batch.push_received(black_box(60));
            }
            black_box(batch.len());
            batch.clear();
        });
    });
    group.finish();
}

criterion_group!(group, checksums, headers, tags, completing, batches);
criterion_main!(group);
