//! No allocation per frame: a counting allocator around a worker's turns.
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    sync::Arc,
};

use lab::{Source, Swallow, worker_parts};
use switch_core::{
    batch::Batch,
    clock::Clock,
    id::PortId,
    port::{
        Notifier, Opened, QueuePair, dgram,
        stream::{self, Place, StreamConfig},
    },
    stats::Counter,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to the system allocator; counting touches only a thread-local cell that
// needs no allocation itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

mod lab {
    //! A worker on ports that make frames out of nothing and swallow what they are sent.

    use super::{Arc, Batch, Clock, PortId};
    use std::os::fd::RawFd;
    use switch_core::{
        egress::Egress,
        fdb::Fdb,
        frame::offload::{Capabilities, VNET_HDR_BYTES},
        id::{DomainId, Epoch},
        port::{PortRx, PortTx, QueuePair, RxStatus, Sent},
        topology::{Attachment, DomainDef, Dress, PortDef, PortShared, Role, StormLimits, Topology},
        worker::{PollMode, Worker},
    };

    pub struct Source(pub u8);
    pub struct Swallow;

    impl PortRx for Source {
        fn rx(&mut self, batch: &mut Batch) -> RxStatus {
            while batch.has_room() {
                let (slot, _) = batch.receive_buffers();
                let frame = &mut slot[VNET_HDR_BYTES..VNET_HDR_BYTES + 60];
                frame.fill(0);
                frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 3 - self.0]);
                frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, self.0]);
                frame[12] = 8;
                batch.push_received(60);
            }
            RxStatus::More
        }

        fn readiness(&self) -> Option<RawFd> {
            None
        }
    }

    impl PortTx for Swallow {
        fn capabilities(&self) -> Capabilities {
            Capabilities::NONE
        }

        fn tx(&mut self, egress: &Egress<'_>) -> Sent {
            Sent {
                frames: egress.len() as u32,
                bytes: egress.iter().map(|f| u64::from(f.len)).sum(),
                ..Sent::default()
            }
        }
    }

    /// A worker on two ports that reach each other.
    pub fn worker_parts(clock: Clock, queues: [QueuePair; 2]) -> (Worker, Vec<Arc<PortShared>>) {
        let parts = switch_core::worker::channels();
        let (mut worker, _waker) =
            Worker::new(0, Arc::new(Fdb::with_seed(4096, 1)), clock, PollMode::Busy, parts.inbox, parts.report)
                .expect("descriptors");
        let member = Attachment { domain: DomainId(0), dress: Dress::Untagged, role: Role::PROMISCUOUS };
        let (rx, tx): (Vec<_>, Vec<_>) = queues.into_iter().map(|q| (q.rx, q.tx)).unzip();
        let shared: Vec<_> = tx.into_iter().map(|tx| Arc::new(PortShared::new(vec![tx], 1))).collect();
        let defs = (0..2u16)
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
        worker.take_up(Arc::new(Topology::build(Epoch(1), defs, &domains).expect("valid")));
        for (i, rx) in (0..).zip(rx) {
            worker.own(PortId(i), 0, rx, Arc::default()).expect("watched");
        }
        (worker, shared)
    }
}

#[test]
fn turns_do_not_allocate() {
    let clock = Clock::start();
    let queues = [1, 2].map(|i| QueuePair { rx: Box::new(Source(i)), tx: Box::new(Swallow) });
    let (mut worker, shared) = worker_parts(clock, queues);
    let before_setup = ALLOCATIONS.with(Cell::get);
    assert!(before_setup > 0, "the counter counts");
    for _ in 0..4 {
        worker.turn(clock.now());
    }
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..1000 {
        assert!(worker.turn(clock.now()));
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "allocations in 1000 turns of 128 frames");
    let sent: u64 = shared.iter().map(|s| s.counters.total().get(Counter::TxFrames)).sum();
    assert!(sent > 100_000, "frames were really moved: {sent}");
}

fn frame(to: u8, from: u8) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0]);
    frame
}

#[test]
fn turns_on_sockets_do_not_allocate() {
    const FRAMES: usize = 32;
    let directory = std::env::temp_dir().join(vswitch_benches::netns::unique("vswitch-alloc-"));
    std::fs::create_dir(&directory).expect("made");
    let (ours, theirs) = (directory.join("ours"), directory.join("theirs"));
    let place = Place::Path(directory.join("stream"));
    let config = StreamConfig { place, server: true, owner: None, group: None, perm: None };
    let mut stream = stream::open(&config, Notifier::new(|| {})).expect("opened");
    let ends = dgram::Ends::Unix { path: ours.clone(), peer: theirs.clone() };
    let config = dgram::DgramConfig { ends, owner: None, group: None, perm: None };
    let mut dgram = dgram::open(&config).expect("opened");
    let mut connected = UnixStream::connect(directory.join("stream")).expect("it listens");
    let bound = UnixDatagram::bind(&theirs).expect("bound");
    bound.set_nonblocking(true).expect("set");
    vswitch_benches::netns::wait_for("both are up", vswitch_tests::PATIENCE, || {
        stream.control.missing().is_none() && dgram.control.missing().is_none()
    })
    .expect("up");
    let queue = |opened: &mut Opened| opened.queues.pop().expect("one queue");
    let clock = Clock::start();
    let (mut worker, shared) = worker_parts(clock, [queue(&mut stream), queue(&mut dgram)]);
    let burst = [&[0, 0, 0, 60][..], &frame(2, 1)].concat().repeat(FRAMES);
    let mut bytes = vec![0; burst.len()];
    let mut turn = || {
        connected.write_all(&burst).expect("sent");
        // Some may find the queue of datagrams full: its length is the system's.
        for _ in 0..4 {
            bound.send_to(&frame(1, 2), &ours).expect("sent");
        }
        let before = ALLOCATIONS.with(Cell::get);
        worker.turn(clock.now());
        let after = ALLOCATIONS.with(Cell::get);
        connected.read_exact(&mut bytes[..4 * 64]).expect("what the datagrams brought");
        while bound.recv(&mut bytes).is_ok() {}
        after - before
    };
    for _ in 0..4 {
        turn();
    }
    let allocations: u64 = (0..200).map(|_| turn()).sum();
    assert_eq!(allocations, 0);
    let sent = |i: usize| shared[i].counters.total().get(Counter::TxFrames);
    assert!(sent(0) == 4 * 204 && sent(1) >= 4 * 204, "frames were really moved: {} {}", sent(0), sent(1));
    std::fs::remove_dir_all(&directory).expect("removed");
}
