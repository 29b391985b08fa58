//! Workers on ports that make frames out of nothing and swallow them: the switch without the kernel.
//!
//! Each worker has one port that sends, to addresses behind two others of its own, from as many addresses as there are
//! flows; all are known beforehand, among 100 000 in the table that workers share. Frames are the shortest of Ethernet:
//! 64 bytes, 60 without the checksum. What it costs to write the addresses into a frame is part of a turn.

use std::{any::Any, os::fd::RawFd, sync::Arc};

use anyhow::ensure;
use switch_core::{
    batch::Batch,
    clock::{Clock, Now},
    egress::Egress,
    fdb::{Fdb, FlapTable},
    frame::offload::{Capabilities, VNET_HDR_BYTES},
    id::{DomainId, Epoch, PortId},
    mac::MacAddr,
    port::{PortRx, PortTx, RxStatus, Sent},
    stats::Counter,
    topology::{Attachment, DomainDef, Dress, Policy, PortDef, PortShared, Role, StormLimits, Topology},
    worker::{Channels, PollMode, Worker, channels},
};

/// Addresses in the table.
pub const ENTRIES: u64 = 100_000;
/// Sources of each worker, and destinations of the warm case.
pub const FLOWS: u64 = 1000;
/// The time at which everything happens.
pub const NOW: Now = Now::from_nanos(0);
const CAPACITY: usize = 131_072;
const FRAME_BYTES: usize = 60;
/// The first one of each worker sends, the others swallow.
const PORTS: u16 = 3;

/// Where frames go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// To 1000 addresses, in turn.
    Warm,
    /// To any address of the table, at random.
    Random,
}

fn source(lane: u16, number: u64) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | u64::from(lane) << 24 | number)
}

fn destination(lane: u16, number: u64) -> MacAddr {
    MacAddr::from_u64(0x0201_0000_0000 | u64::from(lane) << 24 | number)
}

/// xorshift64: the next of a sequence that no prefetcher guesses.
pub fn step(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

struct Source {
    lane: u16,
    destinations: u64,
    aim: Aim,
    count: u64,
    state: u64,
}

impl Source {
    fn pick(&mut self) -> u64 {
        self.count += 1;
        match self.aim {
            Aim::Warm => self.count % FLOWS,
            Aim::Random => step(&mut self.state) % self.destinations,
        }
    }
}

impl PortRx for Source {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        while batch.has_room() {
            let to = destination(self.lane, self.pick());
            let from = source(self.lane, self.count % FLOWS);
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

/// Takes every frame that is complete, and does nothing with it.
pub(crate) struct Swallow;

impl PortTx for Swallow {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        Sent { frames: egress.len() as u32, bytes: egress.iter().map(|f| u64::from(f.len)).sum(), ..Sent::default() }
    }
}

/// Workers, and what must stay alive beside them.
pub struct Turns {
    /// Each to be turned by its own thread.
    pub workers: Vec<Worker>,
    shared: Vec<Arc<PortShared>>,
    _far_ends: Vec<Box<dyn Any>>,
}

impl Turns {
    /// Makes so many workers with their ports, and one table.
    ///
    /// # Errors
    /// No descriptors can be had.
    pub fn new(workers: u16, aim: Aim) -> anyhow::Result<Turns> {
        let fdb = Arc::new(Fdb::with_seed(CAPACITY, 1));
        let destinations = ENTRIES / u64::from(workers) - FLOWS;
        let mut flaps = FlapTable::default();
        let mut learn = |mac, port| {
            fdb.learn(&fdb.hash(DomainId(0), mac), PortId(port), NOW, &mut flaps);
        };
        for lane in 0..workers {
            (0..FLOWS).for_each(|n| learn(source(lane, n), lane * PORTS));
            let home = |n: u64| lane * PORTS + 1 + (n % u64::from(PORTS - 1)) as u16;
            (0..destinations).for_each(|n| learn(destination(lane, n), home(n)));
        }
        let swallow = || PortShared::new(vec![Box::new(Swallow)], usize::from(workers));
        let shared: Vec<_> = (0..workers * PORTS).map(|_| Arc::new(swallow())).collect();
        let member = Attachment { domain: DomainId(0), dress: Dress::Untagged, role: Role::PROMISCUOUS };
        let port = |(i, shared): (u16, &Arc<PortShared>)| PortDef {
            id: PortId(i),
            attachments: vec![member],
            hairpin: false,
            up: true,
            carrier: true,
            learning: true,
            storm: StormLimits::default(),
            policy: Policy::default(),
            shared: Arc::clone(shared),
        };
        let domains = [DomainDef { id: DomainId(0), mtu: 1500, group_fwd_mask: 1, rate: None }];
        let topology = Arc::new(Topology::build(Epoch(1), (0..).zip(&shared).map(port).collect(), &domains)?);
        let mut turns = Turns { workers: Vec::new(), shared, _far_ends: Vec::new() };
        for lane in 0..workers {
            let Channels { commands, inbox, report, reports } = channels();
            let (mut worker, _waker) =
                Worker::new(usize::from(lane), Arc::clone(&fdb), Clock::start(), PollMode::Busy, inbox, report)?;
            worker.take_up(Arc::clone(&topology));
            let rx = Source { lane, destinations, aim, count: 0, state: 1 + u64::from(lane) };
            worker.own(PortId(lane * PORTS), 0, Box::new(rx), Arc::default())?;
            turns.workers.push(worker);
            turns._far_ends.push(Box::new((commands, reports)));
        }
        Ok(turns)
    }

    /// An error unless every frame went to one port, save a few whose addresses found no place in the table.
    ///
    /// # Errors
    /// Frames were lost, or flooded.
    pub fn check(&self) -> anyhow::Result<()> {
        self.checker()()
    }

    /// What [`check`](Self::check) does, for whoever has given the workers away.
    pub(crate) fn checker(&self) -> impl Fn() -> anyhow::Result<()> + 'static {
        let shared = self.shared.clone();
        move || {
            let total = |counter| shared.iter().map(|s| s.counters.total().get(counter)).sum::<u64>();
            let (received, sent) = (total(Counter::RxFrames), total(Counter::TxFrames));
            ensure!(received > 0 && sent.abs_diff(received) <= received / 50, "{received} frames in, {sent} out");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_forwards_between_its_own_ports() {
        for aim in [Aim::Warm, Aim::Random] {
            let mut turns = Turns::new(2, aim).expect("descriptors can be had");
            for worker in &mut turns.workers {
                assert!((0..100).all(|_| worker.turn(NOW)));
            }
            turns.check().expect("all frames arrived");
        }
    }

    #[test]
    fn cycles_of_all_stages_are_summed_where_that_is_compiled_in() {
        let mut turns = Turns::new(1, Aim::Warm).expect("descriptors can be had");
        let read = turns.workers[0].stages();
        assert!((0..100).all(|_| turns.workers[0].turn(NOW)));
        let sums = read();
        assert_eq!(sums.is_some(), cfg!(feature = "stages"));
        if let Some(sums) = sums {
            assert_eq!(sums.frames, 6400);
            let counted = sums.cycles.iter().filter(|cycles| **cycles > 0).count();
            assert_eq!(counted, if cfg!(target_arch = "x86_64") { sums.cycles.len() } else { 0 }, "{sums:?}");
        }
    }
}
