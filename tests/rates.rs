//! Rates, on a worker whose clock the test holds: what is read from a port waits and is not lost, what goes to one is
//! dropped beyond the rate, and both to the byte.

use std::sync::Arc;

use switch_core::{
    clock::{Clock, Now},
    fdb::Fdb,
    frame::offload::{Capabilities, Gso, Offload},
    id::{DomainId, Epoch, PortId},
    mac::MacAddr,
    port::mem::{self, MemPeer},
    rate::{Limiter, Rate},
    stats::{Counter, Totals},
    topology::{Attachment, DomainDef, Dress, Policy, PortDef, PortShared, Role, StormLimits, Topology},
    verdict::{DropReason, Side},
    worker::{self, PollMode, Worker},
};
use vswitch_benches::{
    netns::wait_for,
    packets::{TCP, ether, ipv4},
};
use vswitch_tests::{Bench, PATIENCE, Setup};

const SECOND: u64 = 1_000_000_000;
const KIB: u64 = 1024;

fn limiter(text: &str) -> Arc<Limiter> {
    Arc::new(Limiter::new(text.parse::<Rate>().expect("a rate")))
}

fn domain(rate: Option<Arc<Limiter>>) -> DomainDef {
    DomainDef { id: DomainId(0), mtu: 1500, group_fwd_mask: 1, rate }
}

fn member() -> Attachment {
    Attachment { domain: DomainId(0), dress: Dress::Untagged, role: Role::PROMISCUOUS }
}

/// A worker with two ports, from the first of which frames go to the second.
struct Pair {
    worker: Worker,
    peers: Vec<MemPeer>,
    shared: Vec<Arc<PortShared>>,
    now: u64,
    arrived: u64,
}

impl Pair {
    fn new(policies: [Policy; 2], rate: Option<Arc<Limiter>>) -> Pair {
        let channels = worker::channels();
        let fdb = Arc::new(Fdb::with_seed(256, 1));
        let (worker, _) =
            Worker::new(0, fdb, Clock::start(), PollMode::Interrupt, channels.inbox, channels.report).expect("made");
        let mut pair = Pair { worker, peers: Vec::new(), shared: Vec::new(), now: SECOND, arrived: 0 };
        let mut queues = Vec::new();
        for _ in &policies {
            let (queue, peer) = mem::pair(Capabilities::ALL).expect("descriptors");
            pair.shared.push(Arc::new(PortShared::new(vec![queue.tx], 1)));
            pair.peers.push(peer);
            queues.push(queue.rx);
        }
        pair.publish(policies, rate);
        for (id, rx) in (0..).map(PortId).zip(queues) {
            pair.worker.own(id, 0, rx, Arc::default()).expect("watched");
        }
        pair
    }

    fn publish(&mut self, policies: [Policy; 2], rate: Option<Arc<Limiter>>) {
        let defs = (0..).map(PortId).zip(policies).zip(&self.shared).map(|((id, policy), shared)| PortDef {
            id,
            attachments: vec![member()],
            hairpin: false,
            up: true,
            carrier: true,
            learning: true,
            storm: StormLimits { broadcast: 0, multicast: 0, unknown: 0 },
            policy,
            shared: Arc::clone(shared),
        });
        let topology = Topology::build(Epoch(1), defs.collect(), &[domain(rate)]).expect("valid");
        self.worker.take_up(Arc::new(topology));
    }

    /// Works until nothing can be done at this instant; the bytes that have arrived at the second port so far.
    fn settle(&mut self) -> u64 {
        self.worker.look();
        while self.worker.turn(Now::from_nanos(self.now)) {}
        self.arrived += self.peers[1].take().iter().map(|f| f.bytes.len() as u64).sum::<u64>();
        self.arrived
    }

    fn totals(&self, port: usize) -> Totals {
        self.shared[port].counters.total()
    }
}

fn frame(bytes: usize) -> Vec<u8> {
    let mut frame = [&MacAddr::BROADCAST.0[..], &[2, 0, 0, 0, 0, 1], &[8, 0]].concat();
    frame.resize(bytes, 0);
    frame
}

#[test]
fn what_is_read_from_a_port_keeps_the_rate_and_waits_where_it_is() {
    let from = Policy { rate_from: Some(limiter("100::64")), ..Policy::default() };
    let mut pair = Pair::new([from, Policy::default()], None);
    (0..1000).for_each(|_| pair.peers[0].send(&frame(1000)));
    for millisecond in 0..5000u64 {
        pair.now = SECOND * 2 + millisecond * 1_000_000;
        let arrived = pair.settle();
        // A burst, what the time has paid for, and the frame that was begun with something left.
        let paid = 64 * KIB + 100 * KIB * millisecond / 1000;
        assert!((paid..=paid + 1000).contains(&arrived), "{arrived} bytes after {millisecond} ms, {paid} paid for");
        assert_eq!(pair.peers[0].waiting() as u64, 1000 - arrived / 1000);
        assert!(pair.worker.may_sleep(), "a pause keeps nobody awake");
    }
    assert_eq!(pair.totals(0).dropped_on(Side::Ingress), 0);
    pair.publish([Policy::default(), Policy::default()], None);
    assert_eq!(pair.settle(), 1_000_000, "without the rate the rest comes at once");
}

#[test]
fn what_goes_to_a_port_beyond_the_rate_is_dropped_to_the_byte() {
    let to = Policy { rate_to: Some(limiter("100:400:64")), ..Policy::default() };
    let mut pair = Pair::new([Policy::default(), to], None);
    let model = limiter("100:400:64");
    let mut expected = 0;
    for step in 0..4000u64 {
        pair.now = SECOND + step * 700_000;
        let bytes = 60 + (step * 7919 % 1400);
        pair.peers[0].send(&frame(bytes as usize));
        if model.at(pair.now).admit(bytes) {
            expected += bytes;
        }
        assert_eq!(pair.settle(), expected, "step {step}");
    }
    let dropped = pair.totals(1).dropped(DropReason::RateTo);
    assert!(dropped > 1000);
    assert_eq!(pair.totals(0).get(Counter::CopiesDecided), pair.totals(1).get(Counter::TxFrames) + dropped);
    assert_eq!(pair.totals(1).dropped_on(Side::Egress), dropped);
    // Whoever sends steadily too much gets the average, after one burst.
    let seconds = 4000.0 * 0.0007;
    assert!((expected as f64 - (64.0 + 100.0 * seconds) * 1024.0).abs() < 4000.0, "{expected}");
}

#[test]
fn a_frame_that_will_be_cut_counts_all_its_bytes() {
    let to = Policy { rate_to: Some(limiter("1::100")), ..Policy::default() };
    let mut pair = Pair::new([Policy::default(), to], None);
    let mut tcp = vec![0; 20];
    tcp[12] = 0x50;
    tcp.resize(20 + 60_000, 0);
    let any = std::net::Ipv4Addr::new(10, 0, 0, 1);
    let long = ether(MacAddr::BROADCAST, MacAddr([2, 0, 0, 0, 0, 1]), 0x0800, &ipv4(any, any, TCP, 0, &tcp));
    let offload =
        Offload { gso: Gso::TcpV4, gso_size: 1400, hdr_len: 54, csum_start: 34, csum_offset: 16, ..Offload::NONE };
    let offload = Offload { needs_csum: true, ..offload };
    pair.peers[0].send_owed(&long, offload);
    pair.peers[0].send_owed(&long, offload);
    assert_eq!(pair.settle(), long.len() as u64, "two of them are more than the burst");
    assert_eq!(pair.totals(1).dropped(DropReason::RateTo), 1, "{:?}", pair.totals(0));
}

#[test]
fn a_domains_rate_is_for_all_its_ports_together() {
    let mut pair = Pair::new([Policy::default(), Policy::default()], Some(limiter("1::10")));
    (0..20).for_each(|_| pair.peers[0].send(&frame(1024)));
    assert_eq!(pair.settle(), 10 * KIB);
    assert_eq!(pair.totals(0).dropped(DropReason::RateDomain), 10);
    pair.peers[1].send(&frame(1024));
    pair.settle();
    assert_eq!(pair.totals(1).dropped(DropReason::RateDomain), 1, "nothing is left for the other either");
    pair.now += 3 * SECOND;
    (0..5).for_each(|_| pair.peers[0].send(&frame(1024)));
    assert_eq!(pair.settle(), 13 * KIB);
}

#[test]
fn a_sleeping_worker_wakes_up_when_the_rate_has_something_again() {
    let setup = |policy| Setup { attachments: vec![member()], capabilities: Capabilities::ALL, hairpin: false, policy };
    let from = Policy { rate_from: Some(limiter("1000::4")), ..Policy::default() };
    let bench = Bench::new(1, vec![setup(from), setup(Policy::default())], &[domain(None)]).expect("starts");
    (0..100).for_each(|_| bench.ports[0].peer.send(&frame(1000)));
    let mut arrived = 0;
    wait_for("all frames", PATIENCE, || {
        arrived += bench.ports[1].peer.take().len();
        arrived == 100
    })
    .expect("arrive");
    bench.settle(100).expect("accounts balance");
    // It had to wait, and it was not told by an event: all frames were there before.
    assert_eq!(bench.totals(0).dropped_on(Side::Ingress), 0);
}
