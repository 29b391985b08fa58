//! One cache line of the table: five entries under a sequence number.
//!
//! ```text
//! seq: u32 | value: 5 × u32 | key: 5 × u64                                = 64 bytes
//! key   = domain (16) | MAC (48); 0 = empty (the zero address is never learned)
//! value = port (14) | kind (2) | tick of the last frame (16)
//! ```
//!
//! Writers make `seq` odd with a compare-and-swap (that is the lock) and even again when they are done. Readers take
//! no lock: they read `seq`, the entry and `seq` again. The argument (Boehm, "Can seqlocks get along with programming
//! language memory models?", 2012): a reader that sees any store made under an odd sequence also sees that sequence or
//! a later one at its second read, because the writer's release fence comes between its first store of `seq` and its
//! stores of data, and the reader's acquire fence between its loads of data and its second load of `seq`. So an
//! unchanged even `seq` means an untorn entry.

use super::sync::{AtomicU32, AtomicU64, fence, spin_loop};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Entries per bucket. Two are enough for every case, and few enough for loom to go through all of them.
pub(super) const WAYS: usize = if cfg!(feature = "loom") { 2 } else { 5 };
/// How often a reader tries again before it reports a miss (which floods the frame: correct, only slower).
const READ_ATTEMPTS: usize = 4;
/// How long the control side waits for a worker that holds a bucket. A worker holds one for nanoseconds; the bound is
/// for one that was descheduled there.
const LOCK_SPINS: usize = 1 << 20;

#[repr(C)]
#[cfg_attr(not(feature = "loom"), repr(align(64)))]
pub(super) struct Bucket {
    seq: AtomicU32,
    values: [AtomicU32; WAYS],
    keys: [AtomicU64; WAYS],
}

#[cfg(not(feature = "loom"))]
const _: () = assert!(size_of::<Bucket>() == 64 && align_of::<Bucket>() == 64);

/// A bucket whose sequence is odd on our behalf.
pub(super) struct Locked<'a> {
    bucket: &'a Bucket,
    seq: u32,
}

impl Bucket {
    pub(super) fn new() -> Bucket {
        Bucket {
            seq: AtomicU32::new(0),
            values: std::array::from_fn(|_| AtomicU32::new(0)),
            keys: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// The value of `key`, untorn. `None`: not here, or writers kept interfering.
    #[inline]
    pub(super) fn get(&self, key: u64) -> Option<u32> {
        self.read(key).unwrap_or_else(|| self.read_again(key))
    }

    #[cold]
    fn read_again(&self, key: u64) -> Option<u32> {
        for _ in 1..READ_ATTEMPTS {
            spin_loop();
            if let Some(result) = self.read(key) {
                return result;
            }
        }
        None
    }

    /// What is here for `key`; `None`: a writer interfered. Without a branch on which way matches: it cannot be
    /// predicted, and five comparisons cost less than one branch that was predicted wrongly.
    #[inline]
    fn read(&self, key: u64) -> Option<Option<u32>> {
        let before = self.seq.load(Acquire);
        let mut hits = 0u32;
        for (way, at) in self.keys.iter().enumerate() {
            hits |= u32::from(at.load(Relaxed) == key) << way;
        }
        let value = self.values[(hits.trailing_zeros() as usize).min(WAYS - 1)].load(Relaxed);
        fence(Acquire);
        let untorn = before & 1 == 0 && self.seq.load(Relaxed) == before;
        untorn.then_some((hits != 0).then_some(value))
    }

    /// All entries, untorn. Control side only.
    pub(super) fn entries(&self) -> [(u64, u32); WAYS] {
        let locked = self.lock();
        let mut all = [(0, 0); WAYS];
        if let Some(locked) = &locked {
            for (way, entry) in all.iter_mut().enumerate() {
                *entry = (locked.key(way), locked.value(way));
            }
        }
        all
    }

    /// All entries as they happen to be, possibly torn: to decide whether a lock is worth taking.
    pub(super) fn entries_relaxed(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.keys.iter().zip(&self.values).map(|(key, value)| (key.load(Relaxed), value.load(Relaxed)))
    }

    /// Takes the bucket, or says at once that somebody else has it.
    #[inline]
    pub(super) fn try_lock(&self) -> Option<Locked<'_>> {
        let seq = self.seq.load(Relaxed);
        if seq & 1 == 1 || self.seq.compare_exchange(seq, seq.wrapping_add(1), Acquire, Relaxed).is_err() {
            return None;
        }
        // Between the odd sequence and the stores of data that follow; see the module page.
        fence(Release);
        Some(Locked { bucket: self, seq })
    }

    /// Takes the bucket, waiting for a worker that holds it. Control side only.
    pub(super) fn lock(&self) -> Option<Locked<'_>> {
        for _ in 0..LOCK_SPINS {
            if let Some(locked) = self.try_lock() {
                return Some(locked);
            }
            spin_loop();
            #[cfg(feature = "loom")]
            loom::thread::yield_now();
        }
        None
    }
}

impl Locked<'_> {
    pub(super) fn key(&self, way: usize) -> u64 {
        self.bucket.keys[way].load(Relaxed)
    }

    pub(super) fn value(&self, way: usize) -> u32 {
        self.bucket.values[way].load(Relaxed)
    }

    pub(super) fn find(&self, key: u64) -> Option<usize> {
        (0..WAYS).find(|way| key != 0 && self.key(*way) == key)
    }

    pub(super) fn put(&self, way: usize, key: u64, value: u32) {
        self.bucket.values[way].store(value, Relaxed);
        self.bucket.keys[way].store(key, Relaxed);
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.bucket.seq.store(self.seq.wrapping_add(2), Release);
    }
}
