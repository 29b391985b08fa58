//! No allocation per frame: a counting allocator around a worker's turns.
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};

use lab::worker_parts;
use switch_core::{batch::Batch, clock::Clock, id::PortId};

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
        port::{PortRx, PortTx, RxStatus, Sent},
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

    pub fn worker_parts(clock: Clock) -> (Worker, Vec<Arc<PortShared>>) {
        let parts = switch_core::worker::channels();
        let (mut worker, _waker) =
            Worker::new(0, Arc::new(Fdb::with_seed(4096, 1)), clock, PollMode::Busy, parts.inbox, parts.report)
                .expect("descriptors");
        let member = Attachment { domain: DomainId(0), dress: Dress::Untagged, role: Role::PROMISCUOUS };
        let shared: Vec<_> = (0..2).map(|_| Arc::new(PortShared::new(vec![Box::new(Swallow)], 1))).collect();
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
        for i in 0..2u8 {
            worker.own(PortId(u16::from(i)), 0, Box::new(Source(i + 1)), Arc::default()).expect("nothing to watch");
        }
        (worker, shared)
    }
}

#[test]
fn turns_do_not_allocate() {
    let clock = Clock::start();
    let (mut worker, shared) = worker_parts(clock);
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
    let sent: u64 = shared.iter().map(|s| s.counters.total().get(switch_core::stats::Counter::TxFrames)).sum();
    assert!(sent > 100_000, "frames were really moved: {sent}");
}
