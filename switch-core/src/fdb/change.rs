//! The writing half of the table: entries that come, move and make room. Everything happens under the locks of a key's
//! buckets, the first one before the second.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    Fdb, FdbError, FdbHash, FlapTable, Kind, Learned,
    bucket::{Locked, WAYS},
    entry::{age_of, kind_of, pack, port_of},
};
use crate::{
    clock::{Now, Tick},
    id::{DomainId, PortId},
    mac::MacAddr,
};

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

impl Fdb {
    /// The writing half of `learn`; everything is judged again under the lock.
    #[cold]
    pub(super) fn write(&self, hash: &FdbHash, port: PortId, now: Now, flaps: &mut FlapTable) -> Learned {
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

    pub(super) fn uncount(&self, key: u64, value: u32) {
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
}
