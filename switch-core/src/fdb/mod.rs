//! The MAC table ("FDB", as in `bridge fdb`): (domain, address) → port, shared by all workers.
//!
//! Fixed capacity, two-choice hashing over buckets of one cache line ([`bucket`]), lock-free reads. The complications,
//! and why they are there:
//!
//! - *Refreshing writes nothing* until the coarse tick changes: a busy host costs one write per second, not per frame.
//! - *Writers skip*: a worker that finds a bucket taken by another writer learns at the next frame instead.
//! - *No duplicates*: whoever writes an entry for a key holds the key's first bucket, and the second one too if it
//!   touches that.
//! - *Fair eviction*: a flood of random sources can replace entries of its own port and of ports that hold more than
//!   it does, never those of a quiet port; quotas per port and domain stop it earlier.
//! - Hashing is seeded, because addresses are chosen by guests.
//!
//! Thread safety: every method takes `&self`. Workers call `hash`, `prefetch`, `lookup` and `learn`; the control thread
//! everything else.

mod bucket;
mod change;
mod entry;
mod flap;
#[cfg(all(test, feature = "loom"))]
mod loom_tests;
#[cfg(all(test, not(feature = "loom")))]
mod model_tests;
mod sync;

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU32 as Count, Ordering::Relaxed},
};

use bucket::{Bucket, WAYS};
pub use entry::{FdbEntry, FdbError, Flush, Kind, Learned};
use entry::{KIND_SHIFT, PORT_SHIFT, age_of, kind_of, pack, port_of};
pub use flap::{FlapEvent, FlapTable, HOLD_NS, MOVES_TO_HOLD, WINDOW_NS};

use crate::{
    clock::{Now, Tick},
    id::{DomainId, MAX_DOMAINS, MAX_PORTS, PortId},
    mac::{MacAddr, MacBits},
};

/// Entries of a table unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 65_536;
/// The largest table.
pub const MAX_CAPACITY: usize = 1 << 20;
/// The longest ageing time, bounded by the 16 bits of an entry's tick.
pub const MAX_AGEING_S: u32 = 60_000;
/// The ageing time of IEEE 802.1Q-2022 table 8-6.
pub const DEFAULT_AGEING_S: u32 = 300;
/// Loom makes a table for each interleaving, so there it is small.
const PORT_SLOTS: usize = if cfg!(feature = "loom") { 8 } else { MAX_PORTS };
const DOMAIN_SLOTS: usize = if cfg!(feature = "loom") { 8 } else { MAX_DOMAINS };
/// Average entries per bucket at capacity: the rest is room for uneven hashing.
const FILL: f64 = 3.5;

/// A key and where to look for it. Made once per frame and address.
#[derive(Clone, Copy, Debug)]
pub struct FdbHash {
    key: u64,
    first: u32,
    second: u32,
}

impl FdbHash {
    /// Of no address: what an unused place holds.
    pub const EMPTY: FdbHash = FdbHash { key: 0, first: 0, second: 0 };

    /// The domain.
    #[inline]
    #[must_use]
    pub const fn domain(&self) -> DomainId {
        DomainId((self.key >> 48) as u16)
    }

    /// The address.
    #[inline]
    #[must_use]
    pub const fn mac(&self) -> MacBits {
        MacBits(self.key & 0xffff_ffff_ffff)
    }

    /// Whether both are for the same address in the same domain.
    #[inline]
    #[must_use]
    pub const fn same(&self, other: &FdbHash) -> bool {
        self.key == other.key
    }
}

/// The table.
pub struct Fdb {
    buckets: Box<[Bucket]>,
    seed: u64,
    factor: u128,
    capacity: usize,
    port_counts: Box<[Count]>,
    port_quotas: Box<[Count]>,
    domain_counts: Box<[Count]>,
    domain_quotas: Box<[Count]>,
}

fn counts(n: usize, value: u32) -> Box<[Count]> {
    (0..n).map(|_| Count::new(value)).collect()
}

impl Fdb {
    /// A table for `capacity` entries (bounded to 1024 … [`MAX_CAPACITY`]) with a random seed.
    #[must_use]
    pub fn new(capacity: usize) -> Fdb {
        Fdb::with_seed(capacity.clamp(1024, MAX_CAPACITY), RandomState::new().hash_one(capacity))
    }

    /// A table of any size with a given seed, for tests and simulation.
    #[must_use]
    pub fn with_seed(capacity: usize, seed: u64) -> Fdb {
        let buckets = ((capacity as f64 / FILL).ceil() as usize).max(1);
        // No port takes more than half of the table unless its quota says so.
        let port_quota = (capacity / 2).max(1) as u32;
        Fdb {
            buckets: (0..buckets).map(|_| Bucket::new()).collect(),
            seed: seed | 1,
            factor: (u128::from((seed | 1).rotate_left(32) | 1) << 1) | 1,
            capacity,
            port_counts: counts(PORT_SLOTS, 0),
            port_quotas: counts(PORT_SLOTS, port_quota),
            domain_counts: counts(DOMAIN_SLOTS, 0),
            domain_quotas: counts(DOMAIN_SLOTS, u32::MAX),
        }
    }

    /// Entries that the table is made for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Where a key lies.
    #[inline]
    #[must_use]
    pub fn hash(&self, domain: DomainId, mac: MacAddr) -> FdbHash {
        self.hash_bits(domain, MacBits(mac.to_u64()))
    }

    /// As [`hash`](Self::hash), on the frame path.
    #[inline(always)]
    #[must_use]
    pub fn hash_bits(&self, domain: DomainId, mac: MacBits) -> FdbHash {
        let key = (u64::from(domain.0) << 48) | mac.0;
        // Multiply and fold: both halves of a 128-bit product with a secret factor, then each half of the result
        // scaled to the number of buckets.
        let product = u128::from(key ^ self.seed).wrapping_mul(self.factor);
        let mixed = ((product as u64) ^ ((product >> 64) as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let scale = |half: u64| ((half * self.buckets.len() as u64) >> 32) as u32;
        FdbHash { key, first: scale(mixed >> 32), second: scale((mixed ^ (mixed >> 29)) & 0xffff_ffff) }
    }

    /// Brings a key's first bucket into the cache.
    #[inline]
    pub fn prefetch(&self, hash: &FdbHash) {
        // A hint needs no check of its bounds.
        crate::sys::prefetch::prefetch_line(self.buckets.as_ptr().wrapping_add(hash.first as usize).cast());
    }

    /// The port of an address.
    #[inline(always)]
    #[must_use]
    pub fn lookup(&self, hash: &FdbHash) -> Option<PortId> {
        self.get(hash).map(port_of)
    }

    #[inline(always)]
    fn get(&self, hash: &FdbHash) -> Option<u32> {
        match self.buckets[hash.first as usize].get(hash.key) {
            // The zero address in domain 0 has the key of an empty place.
            Some(_) if hash.key == 0 => None,
            Some(value) => Some(value),
            None => self.get_second(hash),
        }
    }

    #[inline(never)]
    fn get_second(&self, hash: &FdbHash) -> Option<u32> {
        if hash.key == 0 { None } else { self.buckets[hash.second as usize].get(hash.key) }
    }

    /// Notes that a frame from this address came in by `port`.
    #[inline(always)]
    pub fn learn(&self, hash: &FdbHash, port: PortId, now: Now, flaps: &mut FlapTable) -> Learned {
        let value = self.get(hash);
        // The kind does not matter: on its own port an entry of any kind is at home.
        let fresh = (u32::from(port.0) << PORT_SHIFT) | (now.tick.0 & 0xffff);
        if value.is_some_and(|value| value & !(3 << KIND_SHIFT) == fresh) {
            return Learned::Fresh;
        }
        self.learn_news(value, hash, port, now, flaps)
    }

    #[inline(never)]
    fn learn_news(&self, value: Option<u32>, hash: &FdbHash, port: PortId, now: Now, flaps: &mut FlapTable) -> Learned {
        if let Some(value) = value {
            if port_of(value) == port && kind_of(value) == Kind::Static {
                return Learned::Fresh;
            }
            if port_of(value) != port {
                if kind_of(value) != Kind::Learned {
                    return Learned::Violation { pinned_to: port_of(value) };
                }
                // A flapping address costs a read, not a lock. Every other move is asked for under the lock.
                if flaps.holds(hash.key, now) {
                    return Learned::Held;
                }
            }
        }
        self.write(hash, port, now, flaps)
    }

    /// Removes entries by port and domain; returns how many.
    pub fn flush(&self, what: Flush) -> usize {
        self.sweep(0..self.buckets.len(), |key, value| {
            let hit = what.port.is_none_or(|p| p == port_of(value))
                && what.domain.is_none_or(|d| u64::from(d.0) == key >> 48)
                && (what.include_static || kind_of(value) != Kind::Static);
            if hit { Sweep::Remove } else { Sweep::Keep }
        })
    }

    /// Ages the whole table: removes learned and sticky entries older than their domain's limit (0 = never). To be
    /// called at least every 1000 s, or ticks would wrap. Returns how many were removed.
    pub fn age(&self, now: Tick, ageing_s: impl Fn(DomainId) -> u32) -> usize {
        self.sweep(0..self.buckets.len(), |key, value| {
            let age = age_of(value, now);
            let limit = ageing_s(DomainId((key >> 48) as u16)).min(MAX_AGEING_S);
            if kind_of(value) != Kind::Static && limit != 0 && age > limit {
                Sweep::Remove
            } else if age > MAX_AGEING_S {
                Sweep::Touch(Tick(now.0.wrapping_sub(MAX_AGEING_S)))
            } else {
                Sweep::Keep
            }
        })
    }

    fn sweep(&self, range: std::ops::Range<usize>, judge: impl Fn(u64, u32) -> Sweep) -> usize {
        let mut removed = 0;
        for bucket in &self.buckets[range] {
            // Look without the lock first: most buckets need no write.
            if bucket.entries_relaxed().all(|(key, value)| key == 0 || matches!(judge(key, value), Sweep::Keep)) {
                continue;
            }
            let Some(locked) = bucket.lock() else { continue };
            for way in 0..WAYS {
                let (key, value) = (locked.key(way), locked.value(way));
                if key == 0 {
                    continue;
                }
                match judge(key, value) {
                    Sweep::Keep => {}
                    Sweep::Touch(tick) => locked.put(way, key, pack(port_of(value), kind_of(value), tick)),
                    Sweep::Remove => {
                        self.uncount(key, value);
                        locked.put(way, 0, 0);
                        removed += 1;
                    }
                }
            }
        }
        removed
    }

    /// All entries, ordered by domain and address.
    #[must_use]
    pub fn entries(&self, now: Tick) -> Vec<FdbEntry> {
        let mut all: Vec<FdbEntry> = self
            .buckets
            .iter()
            .flat_map(Bucket::entries)
            .filter(|(key, _)| *key != 0)
            .map(|(key, value)| FdbEntry {
                domain: DomainId((key >> 48) as u16),
                mac: MacAddr::from_u64(key),
                port: port_of(value),
                kind: kind_of(value),
                age_s: if kind_of(value) == Kind::Static { 0 } else { age_of(value, now) },
            })
            .collect();
        all.sort_by_key(|e| (e.domain, e.mac));
        all
    }

    /// Entries of all kinds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.port_counts.iter().map(|c| c.load(Relaxed) as usize).sum()
    }

    /// Whether the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries of one port.
    #[must_use]
    pub fn port_len(&self, port: PortId) -> usize {
        self.port_counts[port.index()].load(Relaxed) as usize
    }

    /// Bounds the learned entries of a port.
    pub fn set_port_quota(&self, port: PortId, entries: u32) {
        self.port_quotas[port.index()].store(entries, Relaxed);
    }

    /// Bounds the learned entries of a domain.
    pub fn set_domain_quota(&self, domain: DomainId, entries: u32) {
        self.domain_quotas[domain.index()].store(entries, Relaxed);
    }
}

enum Sweep {
    Keep,
    Touch(Tick),
    Remove,
}

impl std::fmt::Debug for Fdb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fdb").field("len", &self.len()).field("capacity", &self.capacity).finish()
    }
}
