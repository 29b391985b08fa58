//! The table against a naive model, and its promises under attack.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn at(second: u32) -> Now {
    Now::from_nanos(u64::from(second) * 1_000_000_000)
}

fn mac(n: u64) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | n)
}

fn learn(fdb: &Fdb, flaps: &mut FlapTable, d: u16, m: u64, p: u16, now: Now) -> Learned {
    fdb.learn(&fdb.hash(DomainId(d), mac(m)), PortId(p), now, flaps)
}

fn look(fdb: &Fdb, d: u16, m: u64) -> Option<u16> {
    fdb.lookup(&fdb.hash(DomainId(d), mac(m))).map(|p| p.0)
}

#[test]
fn a_host_is_learned_refreshed_and_moved() {
    let fdb = Fdb::with_seed(1024, 7);
    let mut flaps = FlapTable::default();
    assert_eq!(learn(&fdb, &mut flaps, 1, 1, 3, at(10)), Learned::New);
    assert_eq!(learn(&fdb, &mut flaps, 1, 1, 3, at(10)), Learned::Fresh);
    assert_eq!(learn(&fdb, &mut flaps, 1, 1, 3, at(11)), Learned::Refreshed);
    assert_eq!(learn(&fdb, &mut flaps, 1, 1, 4, at(11)), Learned::Moved { from: PortId(3) });
    assert_eq!((look(&fdb, 1, 1), look(&fdb, 2, 1)), (Some(4), None), "domains are apart");
    assert_eq!((fdb.port_len(PortId(3)), fdb.port_len(PortId(4))), (0, 1));
}

#[test]
fn flapping_is_held_and_reported_and_ends() {
    let fdb = Fdb::with_seed(1024, 7);
    let mut flaps = FlapTable::default();
    learn(&fdb, &mut flaps, 0, 1, 0, at(1));
    let results: Vec<_> = (0..10).map(|i| learn(&fdb, &mut flaps, 0, 1, (i + 1) % 2, at(1))).collect();
    assert_eq!(results.iter().filter(|r| matches!(r, Learned::Moved { .. })).count(), MOVES_TO_HOLD as usize);
    assert!(results.contains(&Learned::Held));
    let event = flaps.take_event().expect("one event");
    assert_eq!((event.mac, event.domain), (mac(1), DomainId(0)));
    assert_eq!(flaps.take_event(), None);
    let kept = look(&fdb, 0, 1).expect("still there");
    assert!(matches!(learn(&fdb, &mut flaps, 0, 1, 1 - kept, at(12)), Learned::Moved { .. }), "the hold is over");
}

#[test]
fn pinned_entries_do_not_move_and_static_ones_do_not_age() {
    let fdb = Fdb::with_seed(1024, 7);
    let mut flaps = FlapTable::default();
    fdb.pin(DomainId(0), mac(1), PortId(1), Kind::Static, Tick(1)).expect("room");
    fdb.pin(DomainId(0), mac(2), PortId(2), Kind::Sticky, Tick(1)).expect("room");
    for m in [1, 2] {
        assert_eq!(learn(&fdb, &mut flaps, 0, m, 9, at(5)), Learned::Violation { pinned_to: PortId(m as u16) });
    }
    assert_eq!(fdb.age(Tick(400), |_| 300), 1, "the sticky one ages");
    assert_eq!((look(&fdb, 0, 1), look(&fdb, 0, 2)), (Some(1), None));
    assert_eq!(
        fdb.pin(DomainId(0), MacAddr::BROADCAST, PortId(1), Kind::Static, Tick(1)),
        Err(FdbError::NotUnicast(MacAddr::BROADCAST))
    );
}

#[test]
fn ageing_zero_outlives_the_wrap_of_ticks() {
    let fdb = Fdb::with_seed(1024, 7);
    let mut flaps = FlapTable::default();
    learn(&fdb, &mut flaps, 0, 1, 1, at(1));
    for tick in (0..200_000).step_by(1000) {
        assert_eq!(fdb.age(Tick(tick), |_| 0), 0);
    }
    assert_eq!(look(&fdb, 0, 1), Some(1));
    assert!(fdb.entries(Tick(200_000))[0].age_s >= MAX_AGEING_S);
}

#[test]
fn an_entry_newer_than_the_sweeps_clock_stays() {
    let fdb = Fdb::with_seed(1024, 7);
    learn(&fdb, &mut FlapTable::default(), 0, 1, 1, at(11));
    assert_eq!(fdb.age(Tick(10), |_| 300), 0);
    assert_eq!(fdb.entries(Tick(10))[0].age_s, 0);
}

#[test]
fn a_flood_of_sources_leaves_other_ports_hosts_alone() {
    let fdb = Fdb::with_seed(2048, 99);
    let mut flaps = FlapTable::default();
    for host in 0..100 {
        assert_eq!(learn(&fdb, &mut flaps, 0, host, 1, at(1)), Learned::New);
    }
    for quota in [u32::MAX, 512] {
        fdb.set_port_quota(PortId(2), quota);
        for n in 0..200_000 {
            learn(&fdb, &mut flaps, 0, 0x10_0000 + n, 2, at(2));
        }
    }
    assert!((0..100).all(|host| look(&fdb, 0, host) == Some(1)));
    assert_eq!(fdb.entries(Tick(2)).len(), fdb.len());
    assert!(
        (100..150).all(|host| learn(&fdb, &mut flaps, 0, host, 1, at(3)) == Learned::New),
        "the quiet port still learns"
    );
}

#[test]
fn a_move_that_the_unlocked_read_missed_is_held_too() {
    let fdb = Fdb::with_seed(1024, 7);
    let mut flaps = FlapTable::default();
    learn(&fdb, &mut flaps, 0, 1, 0, at(1));
    assert!((0..10).any(|i| learn(&fdb, &mut flaps, 0, 1, (i + 1) % 2, at(1)) == Learned::Held));
    let kept = look(&fdb, 0, 1).expect("still there");
    // What `learn` does after its read lost against a writer.
    let late = fdb.write(&fdb.hash(DomainId(0), mac(1)), PortId(1 - kept), at(2), &mut flaps);
    assert_eq!((late, look(&fdb, 0, 1)), (Learned::Held, Some(kept)));
}

#[test]
fn an_address_that_flaps_in_two_domains_at_once_is_held_in_both() {
    let fdb = Fdb::with_seed(1024, 7);
    let mut flaps = FlapTable::default();
    let mut held = [0, 0];
    for round in 0..20 {
        for d in [0, 1] {
            held[d] += u32::from(learn(&fdb, &mut flaps, d as u16, 1, round % 2, at(1)) == Learned::Held);
        }
    }
    assert!(held.iter().all(|n| *n > 0), "{held:?}");
}

#[test]
fn a_pin_that_fails_changes_nothing() {
    // One bucket of five places, all static but one.
    let fdb = Fdb::with_seed(1, 7);
    let mut flaps = FlapTable::default();
    let pin = |m, p| fdb.pin(DomainId(0), mac(m), PortId(p), Kind::Static, Tick(1));
    for m in 1..=4 {
        pin(m, 1).expect("room");
    }
    learn(&fdb, &mut flaps, 0, 5, 2, at(1));
    pin(5, 3).expect("it is there already");
    let before = fdb.entries(Tick(1));
    assert_eq!(pin(6, 4), Err(FdbError::Full(mac(6))));
    assert_eq!(fdb.entries(Tick(1)), before);
    // A worker has the bucket.
    let taken = fdb.buckets[0].try_lock().expect("free");
    assert_eq!(pin(5, 4), Err(FdbError::Busy(mac(5))));
    drop(taken);
    assert_eq!(fdb.entries(Tick(1)), before);
    assert_eq!((fdb.port_len(PortId(1)), fdb.port_len(PortId(3)), fdb.len()), (4, 1, 5));
}

#[test]
fn a_pin_that_loses_the_second_bucket_keeps_the_entry_in_the_first() {
    let fdb = Fdb::with_seed(7, 3);
    let m = (1..)
        .find(|m| {
            let h = fdb.hash(DomainId(0), mac(*m));
            h.first != h.second
        })
        .expect("some");
    fdb.pin(DomainId(0), mac(m), PortId(1), Kind::Static, Tick(1)).expect("room");
    let taken = fdb.buckets[fdb.hash(DomainId(0), mac(m)).second as usize].try_lock().expect("free");
    assert_eq!(fdb.pin(DomainId(0), mac(m), PortId(2), Kind::Static, Tick(1)), Err(FdbError::Busy(mac(m))));
    drop(taken);
    assert_eq!(look(&fdb, 0, m), Some(1));
}

#[test]
fn the_zero_address_is_never_there() {
    let fdb = Fdb::with_seed(1024, 7);
    for d in [0, 1] {
        assert_eq!(fdb.lookup(&fdb.hash(DomainId(d), MacAddr::ZERO)), None);
        assert_eq!(fdb.remove(DomainId(d), MacAddr::ZERO), Ok(false));
    }
    assert_eq!(fdb.len(), 0);
}

#[derive(Clone, Debug)]
enum Operation {
    Learn { domain: u16, mac: u64, port: u16 },
    Pin { domain: u16, mac: u64, port: u16, sticky: bool },
    Remove { domain: u16, mac: u64 },
    FlushPort { port: u16, all: bool },
    Advance { seconds: u32 },
}

fn operation(macs: u64) -> impl Strategy<Value = Operation> {
    let d = 0..3u16;
    let m = 0..macs;
    let p = 0..4u16;
    prop_oneof![
        12 => (d.clone(), m.clone(), p.clone()).prop_map(|(domain, mac, port)| Operation::Learn { domain, mac, port }),
        2 => (d.clone(), m.clone(), p.clone(), any::<bool>())
            .prop_map(|(domain, mac, port, sticky)| Operation::Pin { domain, mac, port, sticky }),
        1 => (d, m).prop_map(|(domain, mac)| Operation::Remove { domain, mac }),
        1 => (p, any::<bool>()).prop_map(|(port, all)| Operation::FlushPort { port, all }),
        2 => (0..40u32).prop_map(|seconds| Operation::Advance { seconds }),
    ]
}

/// What the table should be, without hashing, packing or bounds.
#[derive(Default)]
struct Model {
    entries: HashMap<(u16, u64), (u16, Kind, u32)>,
}

const LIMIT_S: u32 = 60;

fn run(fdb: &Fdb, operations: &[Operation], mut check: impl FnMut(&Fdb, &Model, u32)) {
    let mut model = Model::default();
    let mut now = 10;
    for operation in operations {
        // Hold-down has its own test; a fresh table per operation keeps it out of this one.
        let mut flaps = FlapTable::default();
        match *operation {
            Operation::Learn { domain, mac, port } => {
                learn(fdb, &mut flaps, domain, mac, port, at(now));
                let entry = model.entries.entry((domain, mac)).or_insert((port, Kind::Learned, now));
                if entry.1 == Kind::Learned || entry.0 == port {
                    *entry = (port, entry.1, now);
                }
            }
            Operation::Pin { domain, mac: m, port, sticky } => {
                let kind = if sticky { Kind::Sticky } else { Kind::Static };
                if fdb.pin(DomainId(domain), mac(m), PortId(port), kind, Tick(now)).is_ok() {
                    model.entries.insert((domain, m), (port, kind, now));
                }
            }
            Operation::Remove { domain, mac: m } => {
                fdb.remove(DomainId(domain), mac(m)).expect("nobody else is there");
                model.entries.remove(&(domain, m));
            }
            Operation::FlushPort { port, all } => {
                fdb.flush(Flush { port: Some(PortId(port)), include_static: all, ..Flush::default() });
                model.entries.retain(|_, e| e.0 != port || (e.1 == Kind::Static && !all));
            }
            Operation::Advance { seconds } => {
                now += seconds;
                fdb.age(Tick(now), |_| LIMIT_S);
                model.entries.retain(|_, e| e.1 == Kind::Static || now - e.2 <= LIMIT_S);
            }
        }
        check(fdb, &model, now);
    }
}

proptest! {
    #[test]
    fn equals_the_model_while_there_is_room(operations in prop::collection::vec(operation(40), 1..200), seed: u64) {
        let fdb = Fdb::with_seed(4096, seed);
        run(&fdb, &operations, |fdb, model, now| {
            let mut expected: Vec<_> = model.entries.iter().map(|((d, m), (p, kind, tick))| FdbEntry {
                domain: DomainId(*d), mac: mac(*m), port: PortId(*p), kind: *kind,
                age_s: if *kind == Kind::Static { 0 } else { now - tick },
            }).collect();
            expected.sort_by_key(|e| (e.domain, e.mac));
            assert_eq!(fdb.entries(Tick(now)), expected);
            for (d, m) in (0..3).flat_map(|d| (0..40).map(move |m| (d, m))) {
                assert_eq!(look(fdb, d, m), model.entries.get(&(d, m)).map(|e| e.0));
            }
        });
    }

    #[test]
    fn stays_sound_when_it_is_too_small(operations in prop::collection::vec(operation(400), 1..400), seed: u64) {
        let fdb = Fdb::with_seed(32, seed);
        run(&fdb, &operations, |fdb, _, now| {
            let entries = fdb.entries(Tick(now));
            let mut keys: Vec<_> = entries.iter().map(|e| (e.domain, e.mac)).collect();
            keys.dedup();
            assert_eq!(keys.len(), entries.len(), "no duplicates");
            for p in 0..4 {
                assert_eq!(fdb.port_len(PortId(p)), entries.iter().filter(|e| e.port.0 == p).count());
            }
        });
    }
}
