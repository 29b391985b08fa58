//! Rings as no driver should make them, and the bell.

use std::{fs::File, os::fd::AsRawFd, os::unix::fs::FileExt, sync::Arc, time::Duration};

use mio::{Events, Interest, Poll, Token, unix::SourceFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{
    Bell,
    features::{self, Features},
    ring::{Fault, MAX_CHAIN, Running, Spans, Start, chain},
};
use crate::sys::guest::{GuestMemory, RegionSpec, RingAddresses, RingMemory};

pub(super) const SIZE: u16 = 8;
pub(super) const BYTES: u64 = 0x2_0000;
/// Two regions that touch in the guest, but not in the file.
pub(super) const SECOND: u64 = 0x1_0000;
pub(super) const USER: u64 = 0x7000_0000;
pub(super) const AVAILABLE: u64 = 0x1000;
pub(super) const USED: u64 = 0x2000;
pub(super) const TABLE: u64 = 0x3000;
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

pub(super) struct Guest {
    pub file: File,
    pub memory: Arc<GuestMemory>,
}

impl Guest {
    pub fn new() -> Guest {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).expect("memfd"));
        file.set_len(BYTES + 0x5000).expect("length");
        let first = RegionSpec { guest: 0, user: USER, len: SECOND, offset: 0 };
        let second =
            RegionSpec { guest: SECOND, user: USER + 0x100_0000, len: BYTES - SECOND, offset: SECOND + 0x5000 };
        let memory = GuestMemory::default()
            .with(first, file.try_clone().expect("fd"))
            .and_then(|m| m.with(second, file.try_clone().expect("fd")))
            .expect("mapped");
        Guest { file, memory: Arc::new(memory) }
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, if at < SECOND { at } else { at + 0x5000 }).expect("written");
    }

    pub fn half(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, at).expect("read");
        u16::from_le_bytes(bytes)
    }

    pub fn descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&addr.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    pub fn ring(&self) -> RingMemory {
        let addresses = RingAddresses { descriptors: USER, available: USER + AVAILABLE, used: USER + USED };
        RingMemory::new(&self.memory, SIZE, addresses).expect("a ring")
    }

    /// What the chain at descriptor 0 is found to be: its length and parts, or the fault.
    fn check(&self, expected: Result<(usize, usize), Fault>) {
        let ring = self.ring();
        let mut spans = Spans::new();
        let all = Features(features::offered(true));
        let found = chain(&ring, 0, false, all, &mut spans).map(|total| (total, spans.len()));
        assert_eq!(found, expected);
    }
}

#[test]
fn chains_that_are_in_order_are_followed() {
    let guest = Guest::new();
    guest.descriptor(0, 0, 0x4000, 12, NEXT, 5);
    guest.descriptor(0, 5, 0x5000, 100, NEXT, 2);
    guest.descriptor(0, 2, 0x6000, 0, 0, 0);
    guest.check(Ok((112, 2)));
    // A buffer over both regions is two parts.
    guest.put(0xfff0, &[7; 16]);
    guest.put(0x1_0000, &[8; 16]);
    guest.descriptor(0, 0, 0xfff0, 32, 0, 0);
    guest.check(Ok((32, 2)));
    let ring = guest.ring();
    let mut spans = Spans::new();
    chain(&ring, 0, false, Features(0), &mut spans).expect("a chain");
    let mut bytes = [0; 32];
    assert_eq!(spans[0].read(&mut bytes) + spans[1].read(&mut bytes[16..]), 32);
    assert_eq!(bytes, *[[7; 16], [8; 16]].concat());
    // Empty ones are allowed, wherever they are.
    guest.descriptor(0, 0, u64::MAX, 0, 0, 0);
    guest.check(Ok((0, 0)));
    // A table.
    guest.descriptor(0, 0, TABLE, 48, INDIRECT, 0);
    guest.descriptor(TABLE, 0, 0x4000, 10, NEXT, 2);
    guest.descriptor(TABLE, 2, 0x5000, 20, 0, 0);
    guest.check(Ok((30, 2)));
}

#[test]
fn chains_that_no_driver_makes_are_faults() {
    let guest = Guest::new();
    let one = |addr, len, flags, next, fault| {
        guest.descriptor(0, 0, addr, len, flags, next);
        guest.check(Err(fault));
    };
    one(0x4000, 4, NEXT, 0, Fault::TooLong);
    one(0x4000, 4, NEXT, SIZE, Fault::Descriptor);
    one(0x4000, 4, WRITE, 0, Fault::Direction);
    one(BYTES, 4, 0, 0, Fault::Address);
    one(BYTES - 2, 4, 0, 0, Fault::Address);
    one(0x4000, u32::MAX, 0, 0, Fault::Address);
    one(u64::MAX - 1, 4, 0, 0, Fault::Address);
    one(TABLE, 0, INDIRECT, 0, Fault::Indirect);
    one(TABLE, 17, INDIRECT, 0, Fault::Indirect);
    one(TABLE + 1, 16, INDIRECT, 0, Fault::Indirect);
    one(TABLE, 16, INDIRECT | NEXT, 1, Fault::Indirect);
    one(BYTES, 16, INDIRECT, 0, Fault::Address);
    guest.descriptor(TABLE, 0, TABLE, 16, INDIRECT, 0);
    one(TABLE, 16, INDIRECT, 0, Fault::Indirect);
    guest.descriptor(TABLE, 0, 0x4000, 4, NEXT, 1);
    one(TABLE, 16, INDIRECT, 0, Fault::Descriptor);
    // A table of the greatest length, that loops inside.
    guest.descriptor(TABLE, 1, 0x4000, 4, NEXT, 0);
    one(TABLE, 0xffff_fff0, INDIRECT, 0, Fault::TooLong);
    // Not negotiated.
    let ring = guest.ring();
    assert_eq!(chain(&ring, 0, false, Features(0), &mut Spans::new()), Err(Fault::Indirect));
    assert_eq!(chain(&ring, SIZE, false, Features(0), &mut Spans::new()), Err(Fault::Descriptor));
    const { assert!(MAX_CHAIN * 16 < SECOND as usize, "the table above is longer than is looked at") };
}

#[test]
fn memory_is_checked_against_its_file_and_rings_against_memory() {
    let guest = Guest::new();
    let map = |len, offset| {
        let spec = RegionSpec { guest: 0, user: 0, len, offset };
        GuestMemory::default().with(spec, guest.file.try_clone().expect("fd")).map(drop)
    };
    let bytes = BYTES + 0x5000;
    map(bytes, 0).expect("all of the file");
    map(0x800, bytes - 0x800).expect("the end of the file, from the middle of a page on");
    for (len, offset) in [(bytes + 1, 0), (1, bytes), (0, 0), (u64::MAX, 1), (2, u64::MAX - 1)] {
        assert!(map(len, offset).is_err(), "{len} bytes at {offset}");
    }
    let spec = RegionSpec { guest: 0, user: 0, len: 1, offset: 0 };
    let device = File::open("/dev/zero").expect("there");
    assert!(GuestMemory::default().with(spec, device).is_err(), "a device is no memory");

    let ring = |size, descriptors, available, used| {
        let at = |x| USER + x;
        let addresses = RingAddresses { descriptors: at(descriptors), available: at(available), used: at(used) };
        RingMemory::new(&guest.memory, size, addresses).is_some()
    };
    assert!(ring(8, 0, AVAILABLE, USED));
    assert!(!ring(0, 0, AVAILABLE, USED) && !ring(6, 0, AVAILABLE, USED) && !ring(0xffff, 0, AVAILABLE, USED));
    assert!(!ring(8, 8, AVAILABLE, USED) && !ring(8, 0, AVAILABLE + 1, USED) && !ring(8, 0, AVAILABLE, USED + 2));
    assert!(ring(8, SECOND - 128, AVAILABLE, USED) && !ring(8, SECOND - 112, AVAILABLE, USED), "over the region's end");
    assert!(ring(8, 0, SECOND - 22, USED) && !ring(8, 0, SECOND - 20, USED));
    assert!(ring(8, 0, AVAILABLE, SECOND - 72) && !ring(8, 0, AVAILABLE, SECOND - 68));
}

#[test]
fn an_index_that_jumps_is_a_fault_and_kicks_are_asked_for_by_index() {
    let guest = Guest::new();
    guest.put(AVAILABLE + 2, &u16::to_le_bytes(5));
    let mut running = Running::start(Start {
        memory: guest.ring(),
        next: 5,
        features: Features(features::EVENT_IDX),
        call: None,
        log: None,
        inflight: None,
    });
    assert_eq!(guest.half(USED + 4 + 8 * 8), 5, "the next chain is to be kicked for");
    assert_eq!(running.cursor.pop(&running.memory), Ok(None));
    guest.put(AVAILABLE + 4 + 2 * 5, &u16::to_le_bytes(3));
    guest.put(AVAILABLE + 2, &u16::to_le_bytes(6));
    assert!(running.arm(), "one slipped in");
    assert_eq!(running.cursor.pop(&running.memory), Ok(Some(3)));
    running.cursor.push_used(&running.memory, 3, 77);
    assert_eq!(guest.half(USED + 2), 0, "not published yet");
    running.publish().expect("no call descriptor");
    assert_eq!((guest.half(USED + 2), guest.half(USED + 4), guest.half(USED + 8)), (1, 3, 77));
    assert!(!running.arm());
    assert_eq!(guest.half(USED + 4 + 8 * 8), 6);
    guest.put(AVAILABLE + 2, &u16::to_le_bytes(6 + SIZE + 1));
    assert_eq!(running.cursor.pop(&running.memory), Err(Fault::Index));
    guest.put(AVAILABLE + 2, &u16::to_le_bytes(5));
    assert_eq!(running.cursor.pop(&running.memory), Err(Fault::Index), "backwards");
}

/// Where a ring goes on whose driver has made `available` chains available and got `used` back, and says that `base` is next.
fn place(base: u16, available: u16, used: u16) -> Result<u16, Fault> {
    let guest = Guest::new();
    guest.put(AVAILABLE + 2, &available.to_le_bytes());
    guest.put(USED + 2, &used.to_le_bytes());
    let mut running = Running::start(Start {
        memory: guest.ring(),
        next: base,
        features: Features::default(),
        call: None,
        log: None,
        inflight: None,
    });
    running.cursor.pop(&running.memory).map(|taken| running.cursor.next.wrapping_sub(u16::from(taken.is_some())))
}

#[test]
fn a_driver_that_names_the_beginning_of_a_ring_in_use_gets_back_what_it_has_not_got() {
    // As it should be: nothing, something taken and not returned, something waiting.
    assert_eq!((place(0, 0, 0), place(7, 7, 7), place(7, 9, 7), place(8, 9, 7)), (Ok(0), Ok(7), Ok(7), Ok(8)));
    // As DPDK's says it, also where the indices have gone round.
    assert_eq!((place(0, 5, 5), place(0, 5, 3), place(0, 1000, 998)), (Ok(5), Ok(3), Ok(998)));
    assert_eq!((place(0, 0x8000, 0x8000), place(3, 2, 0xfffe)), (Ok(0x8000), Ok(0xfffe)));
    // What cannot be true stays a fault, and a place is found once: memory that has not come yet is waited for.
    assert_eq!((place(0, 1000, 10), place(1000, 0, 0)), (Err(Fault::Index), Err(Fault::Index)));
}

#[test]
fn every_kick_is_an_edge_although_nothing_is_read() {
    use nix::sys::eventfd::{EfdFlags, EventFd};
    let bell = Bell::new().expect("made");
    let mut poll = Poll::new().expect("poll");
    poll.registry().register(&mut SourceFd(&bell.as_raw_fd()), Token(0), Interest::READABLE).expect("watched");
    let mut events = Events::with_capacity(4);
    let mut edges = || {
        poll.poll(&mut events, Some(Duration::from_millis(5))).expect("polled");
        events.iter().count()
    };
    let kick = || EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).expect("eventfd");
    let (first, second) = (kick(), kick());
    assert_eq!(edges(), 0);
    bell.add(&first).expect("added");
    for _ in 0..100 {
        first.write(1).expect("kicked");
        assert_eq!(edges(), 1);
        assert_eq!(edges(), 0, "once per kick");
    }
    bell.ring();
    assert_eq!(edges(), 1);
    // Another descriptor that was kicked before it came.
    second.write(1).expect("kicked");
    bell.remove(&first);
    bell.add(&second).expect("added");
    assert_eq!(edges(), 1);
    first.write(1).expect("kicked");
    assert_eq!(edges(), 0, "the old one is forgotten");
    second.write(1).expect("kicked");
    assert_eq!(edges(), 1);
}
