//! The addresses that a station has been seen to obtain: from a DHCP server, or by claiming them first.
//!
//! Every frame of a guarded port reads them, a lease or a duplicate address detection writes them: the readers take no
//! lock. One sequence number says whether the cells were changed meanwhile (even: at rest); writers of all ports follow
//! one another under one lock, because whether an address is free is a question to all ports of a domain at once.
//! IPv4 addresses are kept as IPv4-mapped ones, so that there is one kind of cell.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
        fence,
    },
};

use parking_lot::{Mutex, MutexGuard};

/// Addresses that one port may have beside those it was given.
pub const MAX_BINDINGS: usize = 16;
/// How long a claim waits for somebody to object before it holds (RFC 6620 §3.4, TENT_LT).
pub const TENTATIVE_NANOS: u64 = 500_000_000;
/// A claimed address that was not heard of for so long gives its place to another, if one is needed.
pub const STALE_NANOS: u64 = 3_600 * 1_000_000_000;
/// Attempts of a reader; then the address does not count as held, and the frame is dropped.
const READS: usize = 64;
/// Claims per second that a port may make; each is a question to all ports of the domain.
const CLAIMS_PER_SECOND: u64 = 32;
/// How many of them may come at once.
const CLAIM_BURST_NANOS: u64 = 1_000_000_000;
/// In `until`: the address was claimed; it goes stale and does not end.
const CLAIMED: u64 = 1 << 63;

static WRITERS: Mutex<()> = Mutex::new(());

/// The right to write bindings, of any port.
pub struct Writing(#[expect(dead_code, reason = "held for as long as the right lasts")] MutexGuard<'static, ()>);

impl Writing {
    /// Waits for other writers, who write for a microsecond.
    #[must_use]
    pub fn begin() -> Writing {
        Writing(WRITERS.lock())
    }
}

/// An address is free where both halves are zero.
#[derive(Debug, Default)]
struct Cell {
    high: AtomicU64,
    low: AtomicU64,
    /// Nanoseconds of the switch's clock at which it begins to hold.
    from: AtomicU64,
    /// A lease: when it ends. [`CLAIMED`]: when it goes stale.
    until: AtomicU64,
}

impl Cell {
    fn address(&self) -> u128 {
        (u128::from(self.high.load(Relaxed)) << 64) | u128::from(self.low.load(Relaxed))
    }

    fn ended(&self, now: u64) -> bool {
        let until = self.until.load(Relaxed);
        until & CLAIMED == 0 && until <= now
    }

    fn holds(&self, now: u64) -> bool {
        self.from.load(Relaxed) <= now && !self.ended(now)
    }

    /// Whether another may take the place: free, ended or stale.
    fn vacant(&self, now: u64) -> bool {
        self.address() == 0 || (self.until.load(Relaxed) & !CLAIMED) <= now
    }

    fn set(&self, address: u128, from: u64, until: u64) {
        self.high.store((address >> 64) as u64, Relaxed);
        self.low.store(address as u64, Relaxed);
        self.from.store(from, Relaxed);
        self.until.store(until, Relaxed);
    }
}

/// One binding, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The address.
    pub address: IpAddr,
    /// From a DHCP server; else claimed first.
    pub leased: bool,
    /// Claimed just now: somebody may still object.
    pub tentative: bool,
    /// Seconds until it ends or goes stale.
    pub left_s: u64,
}

/// The bindings of one port. See the module page.
#[derive(Debug, Default)]
pub struct Bindings {
    version: AtomicU32,
    /// Claims of late: the generic cell rate algorithm.
    claims_due: AtomicU64,
    cells: [Cell; MAX_BINDINGS],
}

impl Bindings {
    fn read<T: Default>(&self, mut look: impl FnMut(&[Cell; MAX_BINDINGS]) -> T) -> T {
        for _ in 0..READS {
            let before = self.version.load(Acquire);
            if before & 1 == 0 {
                let found = look(&self.cells);
                fence(Acquire);
                if self.version.load(Relaxed) == before {
                    return found;
                }
            }
            std::hint::spin_loop();
        }
        T::default()
    }

    fn write<T>(&self, _: &Writing, change: impl FnOnce(&[Cell; MAX_BINDINGS]) -> T) -> T {
        let version = self.version.load(Relaxed);
        self.version.store(version.wrapping_add(1), Relaxed);
        fence(Release);
        let result = change(&self.cells);
        self.version.store(version.wrapping_add(2), Release);
        result
    }

    /// Whether the station has the address now.
    #[inline]
    #[must_use]
    pub fn holds(&self, address: u128, now: u64) -> bool {
        self.read(|cells| cells.iter().any(|cell| cell.address() == address && cell.holds(now)))
    }

    /// Whether the address is the station's: `Some(true)` if it holds, `Some(false)` if it is claimed and somebody may
    /// still object.
    #[must_use]
    pub fn owns(&self, address: u128, now: u64) -> Option<bool> {
        self.read(|cells| {
            let cell = cells.iter().find(|cell| cell.address() == address && !cell.ended(now))?;
            Some(cell.holds(now))
        })
    }

    /// A lease until an instant, in place of what is vacant, or of the claim that will be stale first. False: there are
    /// [`MAX_BINDINGS`] other leases.
    pub fn lease(&self, writing: &Writing, address: u128, until: u64, now: u64) -> bool {
        self.write(writing, |cells| {
            let place = cells
                .iter()
                .find(|cell| cell.address() == address)
                .or_else(|| cells.iter().find(|cell| cell.vacant(now)))
                .or_else(|| {
                    let claims = cells.iter().filter(|cell| cell.until.load(Relaxed) & CLAIMED != 0);
                    claims.min_by_key(|cell| cell.until.load(Relaxed))
                });
            let Some(cell) = place else { return false };
            cell.set(address, 0, until.min(CLAIMED - 1));
            true
        })
    }

    /// A claim, which holds unless somebody objects, or a sign of life of one that the port has. False: there is no room.
    pub fn claim(&self, writing: &Writing, address: u128, now: u64) -> bool {
        self.write(writing, |cells| {
            if let Some(cell) = cells.iter().find(|cell| cell.address() == address && !cell.ended(now)) {
                let until = cell.until.load(Relaxed);
                if until & CLAIMED != 0 {
                    cell.until.store(CLAIMED | (now + STALE_NANOS), Relaxed);
                }
                return true;
            }
            match cells.iter().find(|cell| cell.vacant(now)) {
                Some(cell) => {
                    cell.set(address, now + TENTATIVE_NANOS, CLAIMED | (now + STALE_NANOS));
                    true
                }
                None => false,
            }
        })
    }

    /// A claim that held before and holds again at once: nobody has to be asked. False: there is no room.
    pub fn keep_claim(&self, writing: &Writing, address: u128, now: u64) -> bool {
        self.write(writing, |cells| {
            let place = cells.iter().find(|cell| cell.address() == address || cell.vacant(now));
            place.inspect(|cell| cell.set(address, 0, CLAIMED | (now + STALE_NANOS))).is_some()
        })
    }

    /// Whether one more claim may be looked into now.
    #[must_use]
    pub fn may_claim(&self, now: u64) -> bool {
        let due = self.claims_due.load(Relaxed).max(now);
        if due - now > CLAIM_BURST_NANOS {
            return false;
        }
        self.claims_due.store(due + 1_000_000_000 / CLAIMS_PER_SECOND, Relaxed);
        true
    }

    /// Whether a sign of life of a claimed address is worth writing down: at most one per minute is.
    #[must_use]
    pub fn fades(&self, address: u128, now: u64) -> bool {
        const MINUTE: u64 = 60_000_000_000;
        self.read(|cells| {
            cells.iter().any(|cell| {
                let until = cell.until.load(Relaxed);
                cell.address() == address && until & CLAIMED != 0 && (until & !CLAIMED) < now + STALE_NANOS - MINUTE
            })
        })
    }

    /// Somebody who is trusted has the address: a claim that does not hold yet is void.
    pub fn object(&self, writing: &Writing, address: u128, now: u64) {
        self.write(writing, |cells| {
            cells
                .iter()
                .filter(|cell| cell.address() == address && cell.from.load(Relaxed) > now)
                .for_each(|cell| cell.set(0, 0, 0));
        });
    }

    /// The station gives an address back.
    pub fn release(&self, writing: &Writing, address: u128) {
        self.write(writing, |cells| {
            cells.iter().filter(|cell| cell.address() == address).for_each(|cell| cell.set(0, 0, 0));
        });
    }

    /// Forgets everything: another station is behind the port.
    pub fn clear(&self) {
        self.write(&Writing::begin(), |cells| cells.iter().for_each(|cell| cell.set(0, 0, 0)));
    }

    /// All that have not ended.
    #[must_use]
    pub fn list(&self, now: u64) -> Vec<Bound> {
        self.read(|cells| {
            cells
                .iter()
                .filter(|cell| cell.address() != 0 && !cell.ended(now))
                .map(|cell| {
                    let until = cell.until.load(Relaxed);
                    Bound {
                        address: Ipv6Addr::from_bits(cell.address()).to_canonical(),
                        leased: until & CLAIMED == 0,
                        tentative: cell.from.load(Relaxed) > now,
                        left_s: (until & !CLAIMED).saturating_sub(now) / 1_000_000_000,
                    }
                })
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn leases_end_and_claims_wait_and_give_way() {
        let bindings = Bindings::default();
        let writing = Writing::begin();
        assert!(bindings.lease(&writing, 1, 10 * SECOND, SECOND));
        assert!(bindings.claim(&writing, 2, SECOND));
        assert!(bindings.holds(1, SECOND) && !bindings.holds(2, SECOND));
        assert_eq!(bindings.owns(2, SECOND), Some(false));
        assert!(bindings.holds(2, SECOND + TENTATIVE_NANOS));
        bindings.object(&writing, 2, 2 * SECOND);
        assert!(bindings.holds(2, 2 * SECOND), "it is too late to object");
        assert!(!bindings.holds(1, 10 * SECOND), "the lease has ended");
        assert!(bindings.claim(&writing, 3, 3 * SECOND));
        bindings.object(&writing, 3, 3 * SECOND);
        assert_eq!(bindings.owns(3, 3 * SECOND), None);
        bindings.release(&writing, 2);
        assert_eq!(bindings.list(20 * SECOND), []);
    }

    #[test]
    fn a_full_port_claims_no_more_until_something_is_stale_and_a_lease_takes_a_claims_place() {
        let bindings = Bindings::default();
        let writing = Writing::begin();
        for address in 1..=MAX_BINDINGS as u128 {
            assert!(bindings.claim(&writing, address, address as u64 * SECOND));
        }
        let late = 100 * SECOND;
        assert!(!bindings.claim(&writing, 99, late));
        assert!(bindings.lease(&writing, 98, 10 * STALE_NANOS, late));
        assert!(!bindings.holds(1, late), "the oldest claim gave way");
        assert!(bindings.fades(2, late));
        assert!(bindings.claim(&writing, 2, late), "a sign of life");
        assert!(!bindings.fades(2, late));
        let later = STALE_NANOS + 50 * SECOND;
        assert!(bindings.holds(3, later), "stale, but nobody needs the place");
        assert!(bindings.claim(&writing, 99, later));
        assert!(!bindings.holds(3, later) && bindings.holds(2, later) && bindings.holds(98, later));
    }

    #[test]
    fn claims_are_few_per_second() {
        let bindings = Bindings::default();
        let made = (0..10_000u64).filter(|i| bindings.may_claim(i * SECOND / 1000)).count();
        assert!((320..=354).contains(&made), "10 s at 32/s and one burst, got {made}");
    }

    #[test]
    fn a_reader_never_sees_half_an_address() {
        let bindings = Bindings::default();
        let pair = |n: u64| (u128::from(n) << 64) | u128::from(n);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let writing = Writing::begin();
                for n in 1..20_000 {
                    bindings.release(&writing, pair(n - 1));
                    bindings.lease(&writing, pair(n), u64::MAX, 0);
                }
            });
            for _ in 0..20_000 {
                for bound in bindings.list(0) {
                    let IpAddr::V6(address) = bound.address else { panic!("{bound:?}") };
                    let bits = address.to_bits();
                    assert_eq!((bits >> 64) as u64, bits as u64);
                }
            }
        });
    }
}
