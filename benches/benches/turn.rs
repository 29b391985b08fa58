//! A worker's turn on ports that make frames out of nothing and swallow them: the switch without the kernel.
//!
//! One port sends, to addresses behind two others, from as many addresses as there are flows; all are known
//! beforehand, among 100 000 in the table. Frames are the shortest of Ethernet: 64 bytes, 60 without the checksum.

use std::{os::fd::RawFd, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use switch_core::{
    batch::{BATCH_FRAMES, Batch},
    clock::Now,
    egress::Egress,
    fdb::{Fdb, FlapTable},
    frame::offload::{Capabilities, VNET_HDR_BYTES},
    id::{DomainId, Epoch, PortId},
    mac::MacAddr,
    port::{PortRx, PortTx, RxStatus, Sent},
    stats::Counter,
    topology::{Attachment, DomainDef, Dress, PortDef, PortShared, Role, StormLimits, Topology},
    worker::{Channels, PollMode, Worker, channels},
};

const ENTRIES: u64 = 100_000;
const FLOWS: u64 = 1000;
const FRAME_BYTES: usize = 60;
/// The first one sends, the others swallow.
const PORTS: u16 = 3;
const NOW: Now = Now::from_nanos(0);

fn source(number: u64) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | number)
}

fn destination(number: u64) -> MacAddr {
    MacAddr::from_u64(0x0201_0000_0000 | number)
}

fn home(number: u64) -> PortId {
    PortId(1 + (number % u64::from(PORTS - 1)) as u16)
}

/// Makes frames to `destinations` addresses, in turn or at random.
struct Source {
    destinations: u64,
    random: bool,
    count: u64,
    state: u64,
}

impl Source {
    fn pick(&mut self) -> u64 {
        self.count += 1;
        if !self.random {
            return self.count % self.destinations;
        }
        // xorshift64: a sequence that no prefetcher guesses.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % self.destinations
    }
}

impl PortRx for Source {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        while batch.has_room() {
            let to = destination(self.pick());
            let from = source(self.count % FLOWS);
            let (slot, _) = batch.receive_buffers();
            let frame = &mut slot[VNET_HDR_BYTES..VNET_HDR_BYTES + FRAME_BYTES];
            frame[..6].copy_from_slice(&to.0);
            frame[6..12].copy_from_slice(&from.0);
            frame[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
            batch.push_received(FRAME_BYTES);
        }
        RxStatus::More
    }

    fn readiness(&self) -> Option<RawFd> {
        None
    }
}

struct Swallow;

impl PortTx for Swallow {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        Sent { frames: egress.len() as u32, bytes: egress.iter().map(|f| u64::from(f.len)).sum(), ..Sent::default() }
    }
}

/// A worker, and what must stay alive beside it.
struct Lab {
    worker: Worker,
    shared: Vec<Arc<PortShared>>,
    _far_ends: (Box<dyn std::any::Any>, Box<dyn std::any::Any>),
}

fn lab(rx: Source) -> Lab {
    let fdb = Arc::new(Fdb::with_seed(131_072, 1));
    let mut flaps = FlapTable::default();
    for number in 0..FLOWS {
        fdb.learn(&fdb.hash(DomainId(0), source(number)), PortId(0), NOW, &mut flaps);
    }
    for number in 0..ENTRIES - FLOWS {
        fdb.learn(&fdb.hash(DomainId(0), destination(number)), home(number), NOW, &mut flaps);
    }
    let Channels { commands, inbox, report, reports } = channels();
    let (mut worker, _waker) = Worker::new(0, fdb, switch_core::clock::Clock::start(), PollMode::Busy, inbox, report)
        .expect("descriptors can be had");
    let member = Attachment { domain: DomainId(0), dress: Dress::Untagged, role: Role::PROMISCUOUS };
    let shared: Vec<_> = (0..PORTS).map(|_| Arc::new(PortShared::new(vec![Box::new(Swallow)], 1))).collect();
    let defs = (0..PORTS)
        .map(|i| PortDef {
            id: PortId(i),
            attachments: vec![member],
            hairpin: false,
            up: true,
            carrier: true,
            learning: true,
            storm: StormLimits::default(),
            shared: Arc::clone(&shared[usize::from(i)]),
        })
        .collect();
    let domains = [DomainDef { id: DomainId(0), mtu: 1500, group_fwd_mask: 1 }];
    worker.take_up(Arc::new(Topology::build(Epoch(1), defs, &domains).expect("the topology is valid")));
    worker.own(PortId(0), 0, Box::new(rx), Arc::default()).expect("there is nothing to watch");
    Lab { worker, shared, _far_ends: (Box::new(commands), Box::new(reports)) }
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("turn");
    group.throughput(Throughput::Elements(BATCH_FRAMES as u64));
    for (name, destinations, random) in
        [("64 bytes, 1000 flows", FLOWS, false), ("64 bytes, random over the table", ENTRIES - FLOWS, true)]
    {
        let mut lab = lab(Source { destinations, random, count: 0, state: 1 });
        group.bench_function(name, |b| b.iter(|| assert!(lab.worker.turn(NOW))));
        let total = |counter| lab.shared.iter().map(|s| s.counters.total().get(counter)).sum::<u64>();
        let (received, sent) = (total(Counter::RxFrames), total(Counter::TxFrames));
        // A few addresses found no place in the table and are flooded to both other ports.
        assert!(sent >= received && sent <= received + received / 50, "{received} frames in, {sent} out");
    }
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
