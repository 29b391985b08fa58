//! Rings of anything: whatever a driver writes into its memory, nothing outside of it is touched, a turn ends, and a
//! fault is all that comes of it. proptest keeps a failure's seed in `proptest-regressions/`.

use std::{
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use proptest::prelude::*;

use super::{
    Shared,
    features::{self, Features},
    log::{DirtyLog, RingLog},
    ring::{Running, Start},
    rx::VhostRx,
    tests::{AVAILABLE, BYTES, Guest, INDIRECT, NEXT, SECOND, SIZE, TABLE, USED, WRITE},
    tx::VhostTx,
};
use crate::{
    batch::Batch,
    egress::{Egress, OutFrame},
    frame::offload::Offload,
    port::{Notifier, PortRx, PortTx, RxStatus},
};

/// Between the two regions, and behind them: in the file, but not the guest's.
const GAP: std::ops::Range<u64> = SECOND..SECOND + 0x5000;
const CANARY: u8 = 0xc5;
/// Calls of `rx` for one index: more than a ring has entries.
const MAX_CALLS: usize = SIZE as usize + 1;

#[derive(Clone, Debug)]
struct Write {
    table: bool,
    slot: u16,
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn descriptor() -> impl Strategy<Value = Write> {
    let addr = prop_oneof![
        4 => 0x4000..BYTES,
        2 => Just(TABLE),
        1 => (SECOND - 64)..(SECOND + 64),
        1 => (BYTES - 64)..(BYTES + 64),
        1 => any::<u64>(),
    ];
    let len =
        prop_oneof![4 => 0u32..3000, 2 => (1u32..20).prop_map(|n| 16 * n), 1 => any::<u32>(), 1 => Just(70_000u32)];
    let flags = prop_oneof![
        3 => Just(0), 3 => Just(NEXT), 3 => Just(WRITE), 2 => Just(WRITE | NEXT), 2 => Just(INDIRECT), 1 => any::<u16>()
    ];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (any::<bool>(), 0u16..24, addr, len, flags, next).prop_map(|(table, slot, addr, len, flags, next)| Write {
        table,
        slot,
        addr,
        len,
        flags,
        next,
    })
}

fn canaries(guest: &Guest, fill: bool) -> bool {
    let mut bytes = vec![CANARY; (GAP.end - GAP.start) as usize];
    if fill {
        guest.file.write_all_at(&bytes, GAP.start).expect("written");
    } else {
        guest.file.read_exact_at(&mut bytes, GAP.start).expect("read");
    }
    bytes.iter().all(|byte| *byte == CANARY)
}

fn scribble(guest: &Guest, writes: &[Write], heads: &[u16], index: u16) {
    for write in writes {
        let (table, slot) = if write.table { (TABLE, write.slot) } else { (0, write.slot % SIZE) };
        guest.descriptor(table, slot, write.addr, write.len, write.flags, write.next);
    }
    for (slot, head) in heads.iter().enumerate() {
        guest.put(AVAILABLE + 4 + 2 * slot as u64, &head.to_le_bytes());
    }
    guest.put(AVAILABLE + 2, &index.to_le_bytes());
}

#[test]
fn anything_in_a_ring_is_a_frame_or_a_fault() {
    let config = ProptestConfig { cases: 600, ..ProptestConfig::default() };
    let totals: [AtomicUsize; 3] = Default::default();
    proptest!(config, |(
        turns in prop::collection::vec(
            (
                prop::collection::vec(descriptor(), 0..10),
                prop::collection::vec(prop_oneof![8 => 0..SIZE, 1 => any::<u16>()], SIZE as usize),
                prop_oneof![6 => 0u16..=SIZE, 1 => any::<u16>()],
            ),
            1..5,
        ),
        writable: bool,
        features in prop_oneof![3 => Just(features::offered(true)), 1 => any::<u64>()],
        frames in prop::collection::vec(14usize..9000, 1..8),
    )| {
        let mut seen = [0; 3];
        let guest = Guest::new();
        canaries(&guest, true);
        // In order for one direction, before it is spoilt.
        for slot in 0..SIZE {
            guest.descriptor(0, slot, 0x4000 + 0x800 * u64::from(slot), 2048, if writable { WRITE } else { 0 }, 0);
        }
        let shared = Arc::new(Shared::new(1, Notifier::new(|| {})).expect("made"));
        let log = Arc::new(DirtyLog::new(log_file(), 0, 64).expect("mapped"));
        let features = Features(features);
        for ring in &shared.rings {
            let log = Some(RingLog::new(Arc::clone(&log), Some(USED)));
            let memory = guest.ring();
            ring.lock().running =
                Some(Running::start(Start { memory, next: 0, features, call: None, log, inflight: None }));
        }
        let (mut rx, mut tx) = (VhostRx::new(&shared, 0), VhostTx::new(&shared, 0));
        let mut batch = Batch::new();
        let mut index = 0u16;
        shared.active.store(1, Relaxed);
        for (writes, heads, advance) in turns {
            index = index.wrapping_add(advance);
            scribble(&guest, &writes, &heads, index);
            let mut received = 0;
            for call in 0.. {
                prop_assert!(call < MAX_CALLS, "the queue never drains");
                let status = rx.rx(&mut batch);
                received += batch.len();
                let empty = batch.is_empty();
                for slot in 0..batch.len() {
                    // All of each frame can be read.
                    let mut bytes = vec![0; batch.slot(slot).len as usize];
                    prop_assert_eq!(batch.copy_frame(slot, 0, &mut bytes), bytes.len());
                }
                if !empty {
                    rx.release(&mut batch);
                    batch.clear();
                }
                if status != RxStatus::More {
                    break;
                }
            }
            seen[0] += received;
            prop_assert!(received <= usize::from(SIZE), "{} frames from a ring of {}", received, SIZE);
            let bytes: Vec<Vec<u8>> = frames.iter().map(|len| vec![0xab; 12 + len]).collect();
            let out: Vec<OutFrame<'_>> = bytes
                .iter()
                .map(|bytes| OutFrame {
                    first: bytes,
                    rest: &[],
                    tail: &[],
                    offload: Offload::NONE,
                    len: bytes.len() as u32 - 12,
                })
                .collect();
            let sent = tx.tx(&Egress::new(&out));
            seen[1] += sent.frames as usize;
            let dropped: u32 = sent.drops().iter().map(|(_, n)| n).sum();
            prop_assert_eq!((sent.frames + dropped) as usize, out.len());
            prop_assert!(canaries(&guest, false), "written outside of the guest's memory");
        }
        seen[2] += shared.rings.iter().filter(|ring| ring.lock().fault.is_some()).count();
        for (total, seen) in totals.iter().zip(seen) {
            total.fetch_add(seen, Relaxed);
        }
    });
    let [received, sent, faults] = totals.map(AtomicUsize::into_inner);
    assert!(received > 50 && sent > 50 && faults > 50, "{received} received, {sent} sent, {faults} faults");
}

fn log_file() -> std::fs::File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = std::fs::File::from(memfd_create("log", MFdFlags::MFD_CLOEXEC).expect("memfd"));
    file.set_len(64).expect("length");
    file
}

#[test]
fn pages_are_marked_at_their_bits() {
    let file = log_file();
    let log = DirtyLog::new(file.try_clone().expect("fd"), 8, 16).expect("mapped");
    let check = |guest: u64, len: usize, pages: &[u64]| {
        file.write_all_at(&[0; 64], 0).expect("written");
        log.mark(guest, len);
        let mut bytes = [0; 64];
        file.read_exact_at(&mut bytes, 0).expect("read");
        let marked: Vec<u64> =
            (0..64 * 8).filter(|bit| bytes[(bit / 8) as usize] >> (bit % 8) & 1 != 0).map(|bit| bit as u64).collect();
        let wanted: Vec<u64> = pages.iter().map(|page| 64 + page).collect();
        assert_eq!(marked, wanted, "{len} bytes at {guest:#x}");
    };
    check(0, 0, &[]);
    check(0, 1, &[0]);
    check(0xfff, 1, &[0]);
    check(0xfff, 2, &[0, 1]);
    check(0x7000, 0x2001, &[7, 8, 9]);
    // The log has room for 128 pages.
    check(127 << 12, 0x2000, &[127]);
    check(128 << 12, 1, &[]);
    check(u64::MAX, 10, &[]);
}
