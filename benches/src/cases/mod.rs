//! What the switch's work consists of, one case each, without the kernel: for `core-cost`, which counts, and for the
//! criterion benches, which time.
//!
//! A case repeats one step: `prepare` does what others would do (a guest that posts frames) and is not measured, `work` is
//! what the switch does with them, a batch at a time. Nothing depends on the time of day or on chance, so the same program
//! executes the same instructions each time. The source and the sink of a case are as cheap as they can be, and part of it.

mod bed;
mod guests;
pub mod owed;

use std::hint::black_box;

use anyhow::bail;
use switch_core::{
    batch::BATCH_FRAMES,
    fdb::{Fdb, FlapTable},
    frame::offload::{Capabilities, Offload},
    id::{DomainId, PortId},
    mac::{MacAddr, MacBits},
    port::{
        PortTx,
        mem::{self, MemFrame},
    },
    topology::Dress,
};

use self::bed::{Bed, Repeat};
use crate::{
    frames,
    turns::{Aim, ENTRIES, FLOWS, NOW, Swallow, Turns},
};

/// The cases: name and what is done.
pub const CASES: &[(&str, &str)] = &[
    ("warm", "frame, 1000 warm flows"),
    ("random", "frame, random destinations of 100,000"),
    ("hit", "FDB hit with its hash, 1000 warm keys"),
    ("flood", "broadcast to 16 ports"),
    ("tagged", "frame of VLAN 10 that leaves in VLAN 20"),
    ("mem", "frame between in-memory ports"),
    ("from-guest", "frame out of a guest's ring"),
    ("to-guest", "frame into a guest's ring"),
    ("guests", "frame from a guest's ring to another's"),
    ("checksum", "owed checksum of 1514 bytes, completed"),
    ("tso", "64 KiB of TCP, cut into segments"),
];

/// The addresses of the hits begin here.
const HOSTS: u64 = 0x0200_0000_0000;
const BATCH: u64 = BATCH_FRAMES as u64;
/// The shortest frame of Ethernet, without its checksum.
const SHORTEST: usize = 60;
const FLOOD_PORTS: usize = 16;

/// See the module page.
pub struct Case {
    /// Frames (or lookups) of one step.
    pub frames: u64,
    prepare: Box<dyn FnMut() -> anyhow::Result<()>>,
    work: Box<dyn FnMut()>,
    check: Box<dyn Fn(u64) -> anyhow::Result<()>>,
}

impl Case {
    /// The case of this name, ready for its first step.
    ///
    /// # Errors
    /// There is no such case, or no descriptors can be had.
    pub fn new(name: &str) -> anyhow::Result<Case> {
        match name {
            "warm" => turns(Aim::Warm),
            "random" => turns(Aim::Random),
            "hit" => Ok(plain(BATCH, hits())),
            "flood" => flood(),
            "tagged" => tagged(),
            "mem" => in_memory(),
            "from-guest" => guests::from_guest(),
            "to-guest" => guests::to_guest(),
            "guests" => guests::between(),
            "checksum" => owed::checksum(),
            "tso" => owed::segments(),
            _ => bail!(
                "no case \"{name}\"; there are {}",
                CASES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
            ),
        }
    }

    /// Does what others would do before the next step.
    ///
    /// # Errors
    /// The far end did not get what it should have.
    pub fn prepare(&mut self) -> anyhow::Result<()> {
        (self.prepare)()
    }

    /// The switch's part of a step.
    ///
    /// # Panics
    /// There was nothing to do.
    #[inline]
    pub fn work(&mut self) {
        (self.work)();
    }

    /// Whether so many steps have moved all their frames.
    ///
    /// # Errors
    /// Frames were lost, or flooded.
    pub fn check(&self, steps: u64) -> anyhow::Result<()> {
        (self.check)(steps)
    }
}

fn plain(frames: u64, work: impl FnMut() + 'static) -> Case {
    Case { frames, prepare: Box::new(|| Ok(())), work: Box::new(work), check: Box::new(|_| Ok(())) }
}

fn turns(aim: Aim) -> anyhow::Result<Case> {
    let mut turns = Turns::new(1, aim)?;
    let check = turns.checker();
    let case = plain(BATCH, move || assert!(turns.workers[0].turn(NOW)));
    Ok(Case { check: Box::new(move |_| check()), ..case })
}

fn hits() -> impl FnMut() {
    let fdb = Fdb::with_seed(131_072, 1);
    let mut flaps = FlapTable::default();
    for number in 0..ENTRIES {
        fdb.learn(&fdb.hash_bits(DomainId(0), MacBits(HOSTS | number)), PortId((number % 16) as u16), NOW, &mut flaps);
    }
    let mut next = 0;
    move || {
        for _ in 0..BATCH_FRAMES {
            next = (next + 1) % FLOWS;
            // As the frame path has it: an address read into a register.
            black_box(fdb.lookup(&fdb.hash_bits(DomainId(0), black_box(MacBits(HOSTS | next)))));
        }
    }
}

/// The station behind a port.
fn station(port: u16) -> MacAddr {
    MacAddr::from_u64(HOSTS | u64::from(port))
}

/// A frame from the station of port 0 to that of another, with nothing owed on it.
fn frame(to: MacAddr, bytes: usize) -> MemFrame {
    MemFrame { bytes: frames::build(to, station(0), bytes, 0), offload: Offload::NONE }
}

fn swallow(dress: Dress) -> (Dress, Box<dyn PortTx>) {
    (dress, Box::new(Swallow))
}

/// Frames that stay what they are on their way from port 0 to port 1.
fn one_way(frames: Vec<MemFrame>, batch: usize, dress: [Dress; 2]) -> anyhow::Result<Case> {
    let bed = Bed::new(Box::new(Repeat::new(frames, batch)), dress.map(swallow).into())?;
    bed.know(station(1), 1);
    Ok(bed.case(batch as u64, 1, || Ok(())))
}

fn flood() -> anyhow::Result<Case> {
    let ports = (0..=FLOOD_PORTS).map(|_| swallow(Dress::Untagged)).collect();
    let source = Repeat::new(vec![frame(MacAddr::BROADCAST, SHORTEST)], BATCH_FRAMES);
    Ok(Bed::new(Box::new(source), ports)?.case(BATCH, FLOOD_PORTS as u64, || Ok(())))
}

fn tagged() -> anyhow::Result<Case> {
    let mut tagged = frame(station(1), SHORTEST);
    tagged.bytes.splice(12..12, [0x81, 0, 0, 10]);
    let dress = |vid| Dress::Tagged { tpid: 0x8100, vid };
    one_way(vec![tagged], BATCH_FRAMES, [dress(10), dress(20)])
}

fn in_memory() -> anyhow::Result<Case> {
    let (near, from) = mem::pair(Capabilities::NONE)?;
    let (far, to) = mem::pair(Capabilities::NONE)?;
    let mut bed = Bed::new(near.rx, vec![(Dress::Untagged, near.tx), (Dress::Untagged, far.tx)])?;
    bed.know(station(1), 1);
    bed.keep(far.rx);
    let sent = frame(station(1), SHORTEST);
    Ok(bed.case(BATCH, 1, move || {
        drop(to.take());
        (0..BATCH).for_each(|_| from.send(&sent.bytes));
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_moves_all_its_frames() {
        for (name, _) in CASES {
            let mut case = Case::new(name).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            for _ in 0..20 {
                case.prepare().unwrap_or_else(|e| panic!("{name}: {e:#}"));
                case.work();
            }
            case.check(20).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        }
        assert!(Case::new("none").is_err_and(|e| e.to_string().contains("tagged, mem")));
    }
}
