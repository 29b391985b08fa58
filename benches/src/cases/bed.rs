//! One worker between ports that are made for a case: what comes in by port 0 and where it goes.

use std::{any::Any, sync::Arc};

use anyhow::ensure;
use switch_core::{
    batch::{Batch, HEAD_BYTES},
    clock::Clock,
    fdb::{Fdb, FlapTable},
    frame::offload::VNET_HDR_BYTES,
    id::{DomainId, Epoch, PortId},
    mac::MacAddr,
    port::{PortRx, PortTx, RxStatus, mem::MemFrame},
    stats::Counter,
    topology::{Attachment, DomainDef, Dress, Policy, PortDef, PortShared, Role, StormLimits, Topology},
    worker::{Channels, PollMode, Worker, channels},
};

use super::Case;
use crate::turns::NOW;

/// No storm control: time stands still, so a limit would be reached.
const UNLIMITED: StormLimits = StormLimits { broadcast: 0, multicast: 0, unknown: 0 };
const CAPACITY: usize = 4096;

/// Sends the same frames again and again, so many in a batch.
pub(super) struct Repeat {
    pub frames: Vec<MemFrame>,
    pub batch: usize,
    pub next: usize,
}

impl Repeat {
    pub fn new(frames: Vec<MemFrame>, batch: usize) -> Repeat {
        Repeat { frames, batch, next: 0 }
    }
}

impl PortRx for Repeat {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        for _ in 0..self.batch {
            if !batch.has_room() {
                break;
            }
            let frame = &self.frames[self.next];
            self.next = (self.next + 1) % self.frames.len();
            let (slot, overflow) = batch.receive_buffers();
            let (head, tail) = frame.bytes.split_at(frame.bytes.len().min(HEAD_BYTES));
            slot[VNET_HDR_BYTES..VNET_HDR_BYTES + head.len()].copy_from_slice(head);
            overflow[..tail.len()].copy_from_slice(tail);
            batch.push_received(frame.bytes.len()).offload = frame.offload;
        }
        RxStatus::More
    }

    fn readiness(&self) -> Option<std::os::fd::RawFd> {
        None
    }
}

/// See the module page.
pub(super) struct Bed {
    worker: Worker,
    fdb: Arc<Fdb>,
    shared: Vec<Arc<PortShared>>,
    far_ends: Vec<Box<dyn Any>>,
}

impl Bed {
    /// Ports, all in one domain, the first of which receives by `rx`.
    pub fn new(rx: Box<dyn PortRx>, ports: Vec<(Dress, Box<dyn PortTx>)>) -> anyhow::Result<Bed> {
        let fdb = Arc::new(Fdb::with_seed(CAPACITY, 1));
        let Channels { commands, inbox, report, reports } = channels();
        let (mut worker, waker) = Worker::new(0, Arc::clone(&fdb), Clock::start(), PollMode::Busy, inbox, report)?;
        let (mut shared, mut defs) = (Vec::new(), Vec::new());
        for ((dress, tx), id) in ports.into_iter().zip(0..) {
            let port = Arc::new(PortShared::new(vec![tx], 1));
            shared.push(Arc::clone(&port));
            defs.push(PortDef {
                id: PortId(id),
                attachments: vec![Attachment { domain: DomainId(0), dress, role: Role::PROMISCUOUS }],
                hairpin: false,
                up: true,
                carrier: true,
                learning: true,
                storm: UNLIMITED,
                policy: Policy::default(),
                shared: port,
            });
        }
        let domains = [DomainDef { id: DomainId(0), mtu: 1500, group_fwd_mask: 1, rate: None }];
        worker.take_up(Arc::new(Topology::build(Epoch(1), defs, &domains)?));
        worker.own(PortId(0), 0, rx, Arc::default())?;
        Ok(Bed { worker, fdb, shared, far_ends: vec![Box::new((commands, reports, waker))] })
    }

    /// Has the table know where an address is.
    pub fn know(&self, mac: MacAddr, port: u16) {
        self.fdb.learn(&self.fdb.hash(DomainId(0), mac), PortId(port), NOW, &mut FlapTable::default());
    }

    /// Keeps something until the case ends.
    pub fn keep(&mut self, far_end: impl Any) {
        self.far_ends.push(Box::new(far_end));
    }

    /// The case whose work is a turn that moves so many frames, `copies` of each.
    pub fn case(self, frames: u64, copies: u64, prepare: impl FnMut() -> anyhow::Result<()> + 'static) -> Case {
        let Bed { mut worker, shared, far_ends, .. } = self;
        Case {
            frames,
            prepare: Box::new(prepare),
            work: Box::new(move || assert!(worker.turn(NOW))),
            check: Box::new(move |calls| {
                let _ = &far_ends;
                let total = |counter| shared.iter().map(|s| s.counters.total().get(counter)).sum::<u64>();
                let (received, sent) = (total(Counter::RxFrames), total(Counter::TxFrames));
                let wanted = calls * frames;
                ensure!(received == wanted && sent == wanted * copies, "{wanted} frames: {received} in, {sent} out");
                Ok(())
            }),
        }
    }
}
