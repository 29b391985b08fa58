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
mod flap;
#[cfg(vswitch_loom)]
mod loom_tests;
#[cfg(all(test, not(vswitch_loom)))]
mod model_tests;
mod sync;

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU32 as Count, Ordering::Relaxed},
};

use bucket::{Bucket, Locked, WAYS};
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
const PORT_SLOTS: usize = if cfg!(vswitch_loom) { 8 } else { MAX_PORTS };
const DOMAIN_SLOTS: usize = if cfg!(vswitch_loom) { 8 } else { MAX_DOMAINS };
/// Average entries per bucket at capacity: the rest is room for uneven hashing.
const FILL: f64 = 3.5;

/// How an entry came to be and what may happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Ages and moves.
    Learned,
    /// Ages, never moves.
    Sticky,
    /// Neither.
    Static,
}

/// A key and where to look for it. Made once per frame and address.
#[derive(Clone, Copy, Debug)]
pub struct FdbHash {
    key: u64,
    first: u32,
    second: u32,
}

impl FdbHash {
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

/// What came of a source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Known here, and the tick has not changed: nothing was written.
    Fresh,
    /// Known here; the tick was updated.
    Refreshed,
    /// New.
    New,
    /// Was on another port.
    Moved {
        /// Which one.
        from: PortId,
    },
    /// Static or sticky on another port: left there.
    Violation {
        /// Which one.
        pinned_to: PortId,
    },
    /// Flapping: left where it was.
    Held,
    /// A quota is used up, or nothing may be evicted.
    Full,
    /// Another writer was there first.
    Raced,
}

/// One entry, for humans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The domain.
    pub domain: DomainId,
    /// The address.
    pub mac: MacAddr,
    /// The port.
    pub port: PortId,
    /// The kind.
    pub kind: Kind,
    /// Seconds since the last frame.
    pub age_s: u32,
}

/// An entry that the control side wants cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdbError {
    /// Both buckets are full of static entries.
    #[error("no room for {0}: the table has too many static entries; start the switch with a larger fdb-size")]
    Full(MacAddr),
    /// A worker kept the bucket.
    #[error("the table entry for {0} is busy; try again")]
    Busy(MacAddr),
    /// Not an address of one host.
    #[error("{0} is not a unicast address")]
    NotUnicast(MacAddr),
}

/// Which entries to flush.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flush {
    /// Only this port's.
    pub port: Option<PortId>,
    /// Only this domain's.
    pub domain: Option<DomainId>,
    /// Static entries too.
    pub include_static: bool,
}

const PORT_SHIFT: u32 = 18;
const KIND_SHIFT: u32 = 16;

fn pack(port: PortId, kind: Kind, tick: Tick) -> u32 {
    debug_assert!(port.index() < MAX_PORTS, "a port id has 14 bits");
    (u32::from(port.0) << PORT_SHIFT) | ((kind as u32) << KIND_SHIFT) | (tick.0 & 0xffff)
}

#[inline]
fn port_of(value: u32) -> PortId {
    PortId((value >> PORT_SHIFT) as u16)
}

#[inline]
fn kind_of(value: u32) -> Kind {
    match (value >> KIND_SHIFT) & 3 {
        0 => Kind::Learned,
        1 => Kind::Sticky,
        _ => Kind::Static,
    }
}

/// Seconds by which two readings of the clock may be apart: the sweep reads it before a worker does.
const CLOCK_SKEW_S: u32 = 60;

#[inline]
fn age_of(value: u32, now: Tick) -> u32 {
    let age = now.0.wrapping_sub(value) & 0xffff;
    // An entry that is newer than `now` wraps to the top of the range, which real ages never reach.
    if age > 0xffff - CLOCK_SKEW_S { 0 } else { age }
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
    #[inline]
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
        crate::sys::prefetch::prefetch(&self.buckets[hash.first as usize]);
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

    /// The writing half of `learn`; everything is judged again under the lock.
    #[cold]
    fn write(&self, hash: &FdbHash, port: PortId, now: Now, flaps: &mut FlapTable) -> Learned {
        let Some(first) = self.buckets[hash.first as usize].try_lock() else { return Learned::Raced };
        if let Some(way) = first.find(hash.key) {
            return self.update(&first, way, hash.key, port, now, flaps);
        }
        let second = if hash.second == hash.first {
            None
        } else {
            let Some(second) = self.buckets[hash.second as usize].try_lock() else { return Learned::Raced };
            if let Some(way) = second.find(hash.key) {
                return self.update(&second, way, hash.key, port, now, flaps);
            }
            Some(second)
        };
        let now = now.tick;
        let domain = (hash.key >> 48) as usize;
        if self.port_counts[port.index()].load(Relaxed) >= self.port_quotas[port.index()].load(Relaxed) {
            return Learned::Full;
        }
        let rule = if self.domain_counts[domain].load(Relaxed) >= self.domain_quotas[domain].load(Relaxed) {
            Eviction::SameDomain
        } else {
            Eviction::Fair
        };
        let value = pack(port, Kind::Learned, now);
        if self.insert(&first, second.as_ref(), hash.key, value, now, rule) { Learned::New } else { Learned::Full }
    }

    fn update(
        &self,
        bucket: &Locked<'_>,
        way: usize,
        key: u64,
        port: PortId,
        now: Now,
        flaps: &mut FlapTable,
    ) -> Learned {
        let value = bucket.value(way);
        let from = port_of(value);
        if from == port {
            if kind_of(value) != Kind::Static {
                bucket.put(way, key, pack(port, kind_of(value), now.tick));
            }
            return Learned::Refreshed;
        }
        if kind_of(value) != Kind::Learned {
            return Learned::Violation { pinned_to: from };
        }
        if !flaps.may_move(key, from, port, now) {
            return Learned::Held;
        }
        self.replace(bucket, way, key, pack(port, Kind::Learned, now.tick));
        Learned::Moved { from }
    }

    /// Gives a key that is there another value.
    fn replace(&self, bucket: &Locked<'_>, way: usize, key: u64, value: u32) {
        self.port_counts[port_of(bucket.value(way)).index()].fetch_sub(1, Relaxed);
        bucket.put(way, key, value);
        self.port_counts[port_of(value).index()].fetch_add(1, Relaxed);
    }

    /// Puts a key that is in neither bucket into one of them, evicting if it must and may.
    fn insert(
        &self,
        first: &Locked<'_>,
        second: Option<&Locked<'_>>,
        key: u64,
        value: u32,
        now: Tick,
        rule: Eviction,
    ) -> bool {
        let places = || [Some(first), second].into_iter().flatten().flat_map(|b| (0..WAYS).map(move |w| (b, w)));
        let mut place = None;
        if rule != Eviction::SameDomain {
            place = places().find(|(bucket, way)| bucket.key(*way) == 0);
        }
        if place.is_none() {
            let candidates = places()
                .filter(|(bucket, way)| bucket.key(*way) != 0)
                .filter(|(bucket, way)| rule != Eviction::SameDomain || bucket.key(*way) >> 48 == key >> 48);
            place = self.victim(candidates, port_of(value), now, rule == Eviction::AnyLearned);
        }
        let Some((bucket, way)) = place else { return false };
        if bucket.key(way) != 0 {
            self.uncount(bucket.key(way), bucket.value(way));
        }
        bucket.put(way, key, value);
        self.port_counts[port_of(value).index()].fetch_add(1, Relaxed);
        self.domain_counts[(key >> 48) as usize].fetch_add(1, Relaxed);
        true
    }

    fn victim<'b, 'a: 'b>(
        &self,
        places: impl Iterator<Item = (&'b Locked<'a>, usize)>,
        port: PortId,
        now: Tick,
        force: bool,
    ) -> Option<(&'b Locked<'a>, usize)> {
        let mine = self.port_counts[port.index()].load(Relaxed);
        places
            .filter(|(bucket, way)| kind_of(bucket.value(*way)) == Kind::Learned)
            .filter(|(bucket, way)| {
                let holder = port_of(bucket.value(*way));
                force || holder == port || self.port_counts[holder.index()].load(Relaxed) > mine + 1
            })
            // Own entries first, then the oldest.
            .max_by_key(|(bucket, way)| {
                let value = bucket.value(*way);
                (port_of(value) == port, age_of(value, now))
            })
    }

    fn uncount(&self, key: u64, value: u32) {
        self.port_counts[port_of(value).index()].fetch_sub(1, Relaxed);
        self.domain_counts[(key >> 48) as usize].fetch_sub(1, Relaxed);
    }

    /// Makes a static or sticky entry, replacing whatever is there for the address.
    ///
    /// # Errors
    /// The address is no unicast address, there is no room for it, or a worker kept a bucket: nothing has changed.
    pub fn pin(&self, domain: DomainId, mac: MacAddr, port: PortId, kind: Kind, now: Tick) -> Result<(), FdbError> {
        if mac.is_multicast() || mac == MacAddr::ZERO {
            return Err(FdbError::NotUnicast(mac));
        }
        let hash = self.hash(domain, mac);
        let first = self.buckets[hash.first as usize].lock().ok_or(FdbError::Busy(mac))?;
        let second = if hash.second == hash.first {
            None
        } else {
            Some(self.buckets[hash.second as usize].lock().ok_or(FdbError::Busy(mac))?)
        };
        let value = pack(port, kind, now);
        for bucket in [Some(&first), second.as_ref()].into_iter().flatten() {
            if let Some(way) = bucket.find(hash.key) {
                self.replace(bucket, way, hash.key, value);
                return Ok(());
            }
        }
        if self.insert(&first, second.as_ref(), hash.key, value, now, Eviction::AnyLearned) {
            Ok(())
        } else {
            Err(FdbError::Full(mac))
        }
    }

    /// Removes an entry of any kind; false if there was none.
    ///
    /// # Errors
    /// A worker kept the bucket.
    pub fn remove(&self, domain: DomainId, mac: MacAddr) -> Result<bool, FdbError> {
        let hash = self.hash(domain, mac);
        let first = self.buckets[hash.first as usize].lock().ok_or(FdbError::Busy(mac))?;
        if self.clear_key(&first, hash.key) {
            return Ok(true);
        }
        if hash.second == hash.first {
            return Ok(false);
        }
        let second = self.buckets[hash.second as usize].lock().ok_or(FdbError::Busy(mac))?;
        Ok(self.clear_key(&second, hash.key))
    }

    fn clear_key(&self, bucket: &Locked<'_>, key: u64) -> bool {
        let Some(way) = bucket.find(key) else { return false };
        self.uncount(key, bucket.value(way));
        bucket.put(way, 0, 0);
        true
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

/// Which entry may make room for a new one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Eviction {
    /// An empty place, else an entry of the newcomer's own port or of one that holds more.
    Fair,
    /// As `Fair`, but one of the same domain must go: its quota is used up.
    SameDomain,
    /// An empty place, else any learned entry.
    AnyLearned,
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
