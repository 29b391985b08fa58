//! What it costs to judge one frame of a clean port.

use std::{
    hint::black_box,
    net::{Ipv4Addr, Ipv6Addr},
};

use criterion::{Criterion, criterion_group, criterion_main};
use switch_core::{
    clean::{
        Clean, Notice,
        bindings::{Bindings, MAX_BINDINGS, Writing},
        judge,
    },
    mac::MacAddr,
};
use vswitch_benches::packets::{TCP, arp, ether, ipv4, ipv6, tcp};

const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("clean");
    let extended = [&[TCP, 0, 1, 4, 0, 0, 0, 0][..], &tcp()].concat();
    let frames = [
        ("IPv4, TCP", ether(PEER, STATION, 0x0800, &ipv4(V4, Ipv4Addr::new(10, 0, 0, 2), TCP, 0x4000, &tcp()))),
        ("IPv6, TCP", ether(PEER, STATION, 0x86dd, &ipv6(V6, V6, TCP, 64, &tcp()))),
        ("IPv6, one extension header, TCP", ether(PEER, STATION, 0x86dd, &ipv6(V6, V6, 60, 64, &extended))),
        ("ARP", ether(PEER, STATION, 0x0806, &arp(2, (STATION, V4), (PEER, Ipv4Addr::new(10, 0, 0, 2))))),
    ];
    let given = Clean::new(STATION, "10.0.0.1+fd00::1".parse().expect("valid"));
    let learned = Clean::new(STATION, "learn".parse().expect("valid"));
    let (none, full) = (Bindings::default(), Bindings::default());
    let writing = Writing::begin();
    // The addresses come last among as many as there may be.
    for other in 0..MAX_BINDINGS as u128 - 2 {
        assert!(full.lease(&writing, (0xfd << 120) | (2 + other), u64::MAX, 0));
    }
    for address in [V4.to_ipv6_mapped().to_bits(), V6.to_bits()] {
        assert!(full.lease(&writing, address, u64::MAX, 0));
    }
    drop(writing);
    for (name, frame) in &frames {
        for (kind, clean, bindings) in [("given", &given, &none), ("last of 16 bindings", &learned, &full)] {
            assert_eq!(judge(clean, bindings, frame, 1), Ok(Notice::None), "{name}");
            group.bench_function(format!("{name}, {kind}"), |b| {
                b.iter(|| judge(clean, bindings, black_box(frame), 1));
            });
        }
    }
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
