//! The table under loom: every interleaving of two threads, up to [`PREEMPTIONS`] forced switches each.
//!
//! `cargo test -p switch-core --lib --features loom fdb::loom_tests`

use loom::{sync::Arc, thread};

use super::*;

/// How often a thread may be stopped in the middle: enough for any two critical sections to cross in both directions.
const PREEMPTIONS: usize = 3;

fn explore(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(test);
}

fn at() -> Now {
    Now::from_nanos(5_000_000_000)
}

fn mac(n: u64) -> MacAddr {
    MacAddr::from_u64(n)
}

fn learn(fdb: &Fdb, m: u64, port: u16) -> Learned {
    fdb.learn(&fdb.hash(DomainId(0), mac(m)), PortId(port), at(), &mut FlapTable::default())
}

/// A table of one bucket.
fn one_bucket() -> Arc<Fdb> {
    Arc::new(Fdb::with_seed(1, 3))
}

/// A table of two buckets, and `n` addresses that have their first choice in the one and their second in the other,
/// alternately.
fn two_buckets(n: usize) -> (Arc<Fdb>, Vec<u64>) {
    let fdb = Fdb::with_seed(7, 3);
    let mut found = Vec::new();
    for m in 1.. {
        let hash = fdb.hash(DomainId(0), mac(m));
        if hash.first != hash.second && hash.first == found.len() as u32 % 2 {
            found.push(m);
        }
        if found.len() == n {
            break;
        }
    }
    (Arc::new(fdb), found)
}

/// What must hold when all is quiet: no address twice, and the counts are those of the entries.
fn sound(fdb: &Fdb) -> Vec<FdbEntry> {
    let entries = fdb.entries(at().tick);
    let mut keys: Vec<_> = entries.iter().map(|e| (e.domain, e.mac)).collect();
    keys.dedup();
    assert_eq!(keys.len(), entries.len(), "an address is there twice");
    assert_eq!(entries.len(), fdb.len());
    for port in 0..4 {
        assert_eq!(fdb.port_len(PortId(port)), entries.iter().filter(|e| e.port.0 == port).count());
    }
    for entry in &entries {
        assert_eq!(fdb.lookup(&fdb.hash(entry.domain, entry.mac)), Some(entry.port));
    }
    entries
}

/// A reader of one key never gets the value of another that replaces it.
#[test]
fn a_reader_never_sees_a_torn_entry() {
    loom::model(|| {
        let bucket = Arc::new(Bucket::new());
        bucket.try_lock().expect("free").put(0, 1, 100);
        let writer = {
            let bucket = Arc::clone(&bucket);
            thread::spawn(move || bucket.try_lock().expect("only writer").put(0, 2, 200))
        };
        assert!(matches!(bucket.get(1), Some(100) | None));
        assert!(matches!(bucket.get(2), Some(200) | None));
        writer.join().expect("no panic");
        assert_eq!((bucket.get(1), bucket.get(2)), (None, Some(200)));
    });
}

/// Two workers that learn the same address at once make one entry.
#[test]
fn two_learners_make_no_duplicate() {
    explore(|| {
        let fdb = one_bucket();
        let other = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || learn(&fdb, 1, 1))
        };
        learn(&fdb, 1, 1);
        other.join().expect("no panic");
        assert_eq!(sound(&fdb).len(), 1);
    });
}

/// Removing and refreshing at once leaves either nothing or the whole entry, and right counts.
#[test]
fn refresh_against_remove() {
    explore(|| {
        let fdb = one_bucket();
        fdb.pin(DomainId(0), mac(1), PortId(1), Kind::Sticky, Tick(1)).expect("room");
        let other = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || learn(&fdb, 1, 1))
        };
        fdb.remove(DomainId(0), mac(1)).expect("bounded wait");
        other.join().expect("no panic");
        assert!(sound(&fdb).iter().all(|e| e.port == PortId(1)));
    });
}

/// The same address on two ports, with two places where it could be put.
#[test]
fn two_buckets_learner_against_learner() {
    explore(|| {
        let (fdb, macs) = two_buckets(1);
        let m = macs[0];
        let other = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || learn(&fdb, m, 1))
        };
        learn(&fdb, m, 2);
        other.join().expect("no panic");
        assert_eq!(sound(&fdb).len(), 1);
    });
}

/// Two addresses whose writers take the same two buckets in opposite order: nobody waits for the other for ever.
#[test]
fn two_buckets_in_opposite_order() {
    explore(|| {
        let (fdb, macs) = two_buckets(2);
        let (one, two) = (macs[0], macs[1]);
        let other = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || learn(&fdb, one, 1))
        };
        fdb.pin(DomainId(0), mac(two), PortId(2), Kind::Static, Tick(1))
            .expect("a learner holds a bucket only briefly");
        let learned = other.join().expect("no panic");
        assert_eq!(sound(&fdb).len(), if learned == Learned::Raced { 1 } else { 2 });
    });
}

/// Whoever comes first, an address that was pinned is where it was pinned.
#[test]
fn two_buckets_learner_against_pin() {
    explore(|| {
        let (fdb, macs) = two_buckets(1);
        let m = macs[0];
        let other = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || learn(&fdb, m, 1))
        };
        fdb.pin(DomainId(0), mac(m), PortId(2), Kind::Static, Tick(1)).expect("room");
        other.join().expect("no panic");
        let entries = sound(&fdb);
        assert_eq!((entries.len(), entries[0].port, entries[0].kind), (1, PortId(2), Kind::Static));
    });
}

/// An entry in its second bucket is moved and removed at once. It may come back as a new one, but whole and once.
#[test]
fn two_buckets_mover_against_remove() {
    explore(|| {
        let (fdb, macs) = two_buckets(1);
        let m = macs[0];
        let hash = fdb.hash(DomainId(0), mac(m));
        {
            let second = fdb.buckets[hash.second as usize].try_lock().expect("free");
            second.put(0, hash.key, pack(PortId(1), Kind::Learned, at().tick));
            fdb.port_counts[1].fetch_add(1, Relaxed);
            fdb.domain_counts[0].fetch_add(1, Relaxed);
        }
        let other = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || learn(&fdb, m, 2))
        };
        fdb.remove(DomainId(0), mac(m)).expect("bounded wait");
        other.join().expect("no panic");
        assert!(sound(&fdb).iter().all(|e| e.port == PortId(2)));
    });
}
