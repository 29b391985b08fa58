//! The bucket under loom: every interleaving of two threads.
//!
//! `RUSTFLAGS="--cfg vswitch_loom" cargo test -p switch-core --lib --release fdb::loom_tests`

use loom::{sync::Arc, thread};

use super::*;

fn at() -> Now {
    Now::from_nanos(5_000_000_000)
}

fn mac(n: u64) -> MacAddr {
    MacAddr::from_u64(n)
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
    loom::model(|| {
        let fdb = Arc::new(Fdb::with_seed(1, 3));
        let other = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || fdb.learn(&fdb.hash(DomainId(0), mac(1)), PortId(1), at(), &mut FlapTable::default()))
        };
        fdb.learn(&fdb.hash(DomainId(0), mac(1)), PortId(1), at(), &mut FlapTable::default());
        other.join().expect("no panic");
        assert_eq!(fdb.entries(at().tick).len(), 1);
        assert_eq!(fdb.len(), 1);
    });
}

/// Removing and refreshing at once leaves either nothing or the whole entry, and right counts.
#[test]
fn refresh_against_remove() {
    loom::model(|| {
        let fdb = Arc::new(Fdb::with_seed(1, 3));
        fdb.pin(DomainId(0), mac(1), PortId(1), Kind::Sticky, Tick(1)).expect("room");
        let other = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || fdb.learn(&fdb.hash(DomainId(0), mac(1)), PortId(1), at(), &mut FlapTable::default()))
        };
        fdb.remove(DomainId(0), mac(1)).expect("bounded wait");
        other.join().expect("no panic");
        let entries = fdb.entries(at().tick);
        assert_eq!(entries.len(), fdb.len());
        assert!(entries.iter().all(|e| e.port == PortId(1)));
    });
}
