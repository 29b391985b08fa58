//! The inflight area (vhost-user specification, "Inflight I/O tracking"): which chains were taken and not returned, in memory
//! that the VMM keeps while the switch is away.
//!
//! This device returns chains in the order in which it takes them, all of them within one turn, so a switch that was
//! killed has left at most one turn's chains, and the used index alone says which. The area is kept nevertheless, as
//! the specification lays it out, for VMMs that rely on it and for other back-ends that take a VM over or hand one over,
//! which may return chains out of order. A chain is written down when its used entry is, and struck off when that is
//! published; nothing that the guest can see happens in between.
//!
//! ```text
//! 0 features:u64  8 version:u16  10 desc_num:u16  12 last_batch_head:u16  14 used_idx:u16
//! 16 + 16 i  inflight:u8  pad[5]  next:u16  counter:u64          one per descriptor
//! ```
//! Everything in it is the VMM's word and bounded here.

use std::sync::{Arc, atomic::Ordering::Relaxed, atomic::Ordering::SeqCst};

use crate::sys::mapping::Mapping;

const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
/// Each ring's part of the area begins at a multiple of this, as other back-ends have it.
const ALIGNMENT: usize = 64;

/// Bytes of one ring's part.
#[must_use]
pub const fn part_bytes(size: u16) -> usize {
    (HEADER_BYTES + ENTRY_BYTES * size as usize).next_multiple_of(ALIGNMENT)
}

/// The area of one VM.
#[derive(Clone, Debug)]
pub struct Area {
    map: Arc<Mapping>,
    /// Entries of each ring's part.
    size: u16,
    rings: u16,
}

impl Area {
    /// The area in a mapping; `None` if the rings do not fit or it is not aligned.
    #[must_use]
    pub fn new(map: Mapping, rings: u16, size: u16) -> Option<Area> {
        let fits = part_bytes(size).checked_mul(usize::from(rings)).is_some_and(|bytes| bytes <= map.len());
        (fits && size > 0 && map.double(0).is_some()).then(|| Area { map: Arc::new(map), size, rings })
    }

    /// One ring's part, if there is one for a ring of that size.
    #[must_use]
    pub fn ring(&self, index: usize, size: u16) -> Option<Inflight> {
        let base = part_bytes(self.size) * index;
        let there = index < usize::from(self.rings) && size <= self.size;
        there.then(|| Inflight { map: Arc::clone(&self.map), base, size, counter: 1 })
    }
}

/// The chains of one ring.
#[derive(Debug)]
pub struct Inflight {
    map: Arc<Mapping>,
    base: usize,
    size: u16,
    /// Of the next chain that is taken.
    counter: u64,
}

impl Inflight {
    fn half(&self, at: usize) -> u16 {
        self.map.half(self.base + at).map_or(0, |half| half.load(Relaxed))
    }

    fn set_half(&self, at: usize, value: u16) {
        if let Some(half) = self.map.half(self.base + at) {
            // In program order, also for one who looks after this process was killed: a killed thread's stores are all done.
            half.store(value, SeqCst);
        }
    }

    fn entry(index: u16) -> usize {
        HEADER_BYTES + ENTRY_BYTES * usize::from(index)
    }

    fn set_taken(&self, index: u16, taken: bool) {
        if let Some(byte) = self.map.byte(self.base + Inflight::entry(index)) {
            byte.store(u8::from(taken), SeqCst);
        }
    }

    /// See [`Mapping::is_dead`].
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.map.is_dead()
    }

    /// Finds out what a switch that was killed left, when the used index of the ring is `used`; the heads of chains that
    /// were taken and never returned, in the order in which they were taken.
    #[must_use]
    pub fn recover(&mut self, used: u16) -> Vec<u16> {
        if self.half(8) != VERSION || self.half(10) != self.size {
            self.set_half(12, 0);
            self.set_half(14, used);
            for index in 0..self.size {
                self.set_taken(index, false);
            }
            self.set_half(10, self.size);
            self.set_half(8, VERSION);
            return Vec::new();
        }
        // What was published without having been struck off.
        self.strike_off(used.wrapping_sub(self.half(14)).min(self.size), used);
        let mut taken: Vec<(u64, u16)> = (0..self.size)
            .filter(|index| self.map.byte(self.base + Inflight::entry(*index)).is_some_and(|b| b.load(Relaxed) == 1))
            .map(|index| {
                let counter = self.map.double(self.base + Inflight::entry(index) + 8);
                (counter.map_or(0, |counter| counter.load(Relaxed)), index)
            })
            .collect();
        taken.sort_unstable();
        self.counter = taken.last().map_or(1, |(counter, _)| counter.wrapping_add(1));
        taken.into_iter().map(|(_, index)| index).collect()
    }

    /// A chain's used entry is being written.
    pub fn took(&mut self, head: u16) {
        if head >= self.size {
            return;
        }
        let entry = Inflight::entry(head);
        if let Some(counter) = self.map.double(self.base + entry + 8) {
            counter.store(self.counter, Relaxed);
        }
        self.counter = self.counter.wrapping_add(1);
        self.set_taken(head, true);
        self.set_half(entry + 6, self.half(12));
        self.set_half(12, head);
    }

    /// The used index was published as `used`, with the last `n` chains.
    pub fn returned(&mut self, n: u16, used: u16) {
        self.strike_off(n.min(self.size), used);
    }

    fn strike_off(&self, n: u16, used: u16) {
        let mut head = self.half(12);
        for _ in 0..n {
            if head >= self.size {
                break;
            }
            self.set_taken(head, false);
            head = self.half(Inflight::entry(head) + 6);
        }
        self.set_half(14, used);
    }
}
