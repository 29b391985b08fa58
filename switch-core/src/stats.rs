//! Counters: one cache-aligned block per (port, worker), written by that worker alone and read by the
//! control thread, so that counting never contends.
//!
//! The accounts (invariant 1): on each port `rx_frames = Σ ingress drops + rx_decided`; over the switch
//! `Σ copies_decided = Σ tx_frames + Σ egress drops`. Segments made by software GSO are counted apart in
//! `tx_segments`: a GSO frame that leaves in 40 segments is one `tx_frames`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::verdict::DropReason;

macro_rules! counters {
    ($($variant:ident, $name:literal, $sentence:literal;)*) => {
        /// A counter other than a drop. `as usize` indexes a block.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Counter {
            $(#[doc = $sentence] $variant,)*
        }

        impl Counter {
            /// All counters in block order.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in `--json`, tables and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)* }
            }

            /// One sentence for humans.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Counter::$variant => $sentence,)* }
            }
        }
    };
}

counters! {
    RxFrames, "rx_frames", "Frames received.";
    RxBytes, "rx_bytes", "Bytes received, from the destination address to the end of the payload.";
    RxDecided, "rx_decided", "Received frames for which at least one copy was decided.";
    CopiesDecided, "copies_decided", "Copies decided for frames received here (one for unicast, n for a flood).";
    RxFlooded, "rx_flooded", "Received frames that were flooded.";
    TxFrames, "tx_frames", "Frames sent.";
    TxBytes, "tx_bytes", "Bytes sent.";
    TxSegments, "tx_segments", "Segments sent for frames whose owed segmentation was done in software.";
    TxCompleted, "tx_completed", "Frames whose owed checksum or segmentation was done in software.";
    FdbLearned, "fdb_learned", "Source addresses learned on this port.";
    FdbMoved, "fdb_moved", "Source addresses that moved to this port.";
    FdbPinned, "fdb_pinned", "Frames from an address that is static or sticky on another port (forwarded, not learned).";
    FdbFull, "fdb_full", "Source addresses not learned: a quota or the table was full.";
    RxLost, "rx_lost", "Frames that the kernel dropped before the switch could take them.";
    RxErrors, "rx_errors", "Connections closed or turned away and datagrams refused: what came in were no frames, or from a second peer, or broke a ring's rules.";
}

const DROP_BASE: usize = Counter::COUNT;
const FIELDS: usize = DROP_BASE + DropReason::COUNT;

/// One worker's counters of one port.
#[repr(align(128))]
#[derive(Debug)]
pub struct CounterBlock {
    fields: [AtomicU64; FIELDS],
}

impl Default for CounterBlock {
    fn default() -> Self {
        CounterBlock { fields: [const { AtomicU64::new(0) }; FIELDS] }
    }
}

impl CounterBlock {
    /// Adds to a counter. Only the owning worker calls this: a plain load and store, no locked operation.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        self.bump(counter as usize, n);
    }

    /// Counts `n` drops. Only the owning worker calls this.
    #[inline]
    pub fn drop_frames(&self, reason: DropReason, n: u64) {
        self.bump(DROP_BASE + reason as usize, n);
    }

    #[inline]
    fn bump(&self, field: usize, n: u64) {
        let cell = &self.fields[field];
        cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
    }
}

/// All blocks of one port, indexed by worker.
#[derive(Debug)]
pub struct PortCounters {
    blocks: Box<[CounterBlock]>,
}

impl PortCounters {
    /// Zeroed counters for `workers` workers.
    #[must_use]
    pub fn new(workers: usize) -> PortCounters {
        PortCounters { blocks: (0..workers).map(|_| CounterBlock::default()).collect() }
    }

    /// The block that `worker` owns.
    #[inline]
    #[must_use]
    pub fn of(&self, worker: usize) -> &CounterBlock {
        &self.blocks[worker]
    }

    /// The sum over all workers. Exact when the switch is quiet.
    #[must_use]
    pub fn total(&self) -> Totals {
        let mut totals = Totals::default();
        for block in &self.blocks {
            for (sum, cell) in totals.fields.iter_mut().zip(&block.fields) {
                *sum = sum.wrapping_add(cell.load(Relaxed));
            }
        }
        totals
    }
}

/// A snapshot of one port's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    fields: [u64; FIELDS],
}

impl Default for Totals {
    fn default() -> Self {
        Totals { fields: [0; FIELDS] }
    }
}

impl Totals {
    /// The value of a counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.fields[counter as usize]
    }

    /// How many frames were dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.fields[DROP_BASE + reason as usize]
    }

    /// The sum of all drops on one side.
    #[must_use]
    pub fn dropped_on(&self, side: crate::verdict::Side) -> u64 {
        DropReason::ALL.iter().filter(|r| r.side() == side).map(|r| self.dropped(*r)).sum()
    }
}
