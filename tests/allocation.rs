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
    frame::offload::Offload,
    id::PortId,
    mac::MacAddr,
    port::{
        Notifier, Opened, QueuePair, dgram,
        mem::MemFrame,
        stream::{self, Place, StreamConfig},
        vhost_user::{self, VhostConfig},
    },
    stats::Counter,
};
use vswitch_benches::{
    frames,
    frontend::{FrontEnd, Options},
    netns::unique,
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
        topology::{Attachment, DomainDef, Dress, Policy, PortDef, PortShared, Role, StormLimits, Topology},
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
                policy: Policy::default(),
                shared: Arc::clone(&shared[usize::from(i)]),
            })
            .collect();
        let domains = [DomainDef { id: DomainId(0), mtu: 9000, group_fwd_mask: 1, rate: None }];
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

#[test]
fn turns_of_vhost_user_ports_do_not_allocate() {
    let directory = std::env::temp_dir().join(unique("vswitch-allocation-"));
    std::fs::create_dir(&directory).expect("made");
    let clock = Clock::start();
    let (mut queues, mut controls, mut fronts) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..2 {
        let config = VhostConfig::new(directory.join(format!("{i}.sock")));
        let mut opened = vhost_user::open(&config, Notifier::new(|| {})).expect("opened");
        queues.push(opened.queues.remove(0));
        controls.push(opened.control);
        fronts.push(FrontEnd::connect(&config.path, Options::default()).expect("connected"));
    }
    let [one, two] = queues.try_into().ok().expect("two");
    let (mut worker, _shared) = worker_parts(clock, [one, two]);
    let macs = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
    let frame = |from: usize, len, number| MemFrame {
        bytes: frames::build(macs[1 - from], macs[from], len, number),
        offload: Offload::NONE,
    };
    // Queues are looked at once, and from then on if they had frames.
    for (from, front) in fronts.iter_mut().enumerate() {
        front.send(0, &[frame(from, 60, 0)]).expect("sent");
    }
    while worker.turn(clock.now()) {}
    for front in &mut fronts {
        assert_eq!(front.receive(0).expect("received").len(), 1);
    }
    let mut counted = 0;
    let mut moved = 0;
    for round in 0..200 {
        for from in 0..2 {
            // Short ones are copied, long ones leased.
            let some: Vec<_> =
                [60, 1500, 5000, 9000].iter().cycle().take(24).map(|len| frame(from, *len, round)).collect();
            assert_eq!(fronts[from].send(0, &some).expect("sent"), some.len());
            let before = ALLOCATIONS.with(Cell::get);
            while worker.turn(clock.now()) {}
            counted += ALLOCATIONS.with(Cell::get) - before;
            let got = fronts[1 - from].receive(0).expect("received");
            moved += got.len();
            assert!(got == some, "round {round}");
        }
    }
    assert_eq!(counted, 0, "allocations while {moved} frames were moved");
    drop((fronts, worker, controls));
    std::fs::remove_dir_all(&directory).expect("removed");
}
