//! The rings: arrays of a power of two of entries, in which one side writes and the other reads.
//!
//! Positions count for ever and wrap; where one lies in the array is its low bits. What the other side says of its own
//! position is believed only if the difference to ours is possible: no more than there are entries. Each ring has one
//! owner on our side; the other is the kernel.

use std::{
    io,
    marker::PhantomData,
    os::fd::RawFd,
    ptr::NonNull,
    sync::atomic::{
        AtomicU32,
        Ordering::{Acquire, Relaxed, Release},
    },
};

/// Where the parts of a ring lie in its mapping: `struct xdp_ring_offset`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offsets {
    pub(super) producer: u64,
    pub(super) consumer: u64,
    pub(super) flags: u64,
    pub(super) entries: u64,
}

/// Memory that is unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapped {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; whoever reads or writes it says why that is sound.
unsafe impl Send for Mapped {}
// SAFETY: as above; the type itself gives no access.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `bytes` bytes of a descriptor from an offset on; `None`: memory of our own, zeroed.
    pub(super) fn new(bytes: usize, of: Option<(RawFd, libc::off_t)>) -> io::Result<Mapped> {
        let (fd, offset) = of.unwrap_or((-1, 0));
        let kind = if of.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, kind | libc::MAP_POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that anybody has.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        Ok(Mapped { base, bytes })
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, is unmapped only here, and all that points into it goes with its owner.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// What both kinds of rings are: a mapping with two positions, flags and entries of type `T`.
#[derive(Debug)]
struct Ring<T> {
    memory: Mapped,
    offsets: Offsets,
    size: u32,
    entry: PhantomData<T>,
}

impl<T: Copy> Ring<T> {
    fn new(memory: Mapped, offsets: Offsets, size: u32) -> io::Result<Ring<T>> {
        let fits = |at: u64, bytes: usize, align: usize| {
            usize::try_from(at).is_ok_and(|at| {
                at.is_multiple_of(align) && at.checked_add(bytes).is_some_and(|end| end <= memory.bytes())
            })
        };
        let words = [offsets.producer, offsets.consumer, offsets.flags].into_iter().all(|at| fits(at, 4, 4));
        if !words || !size.is_power_of_two() || !fits(offsets.entries, size as usize * size_of::<T>(), align_of::<T>())
        {
            return Err(io::Error::other("the kernel describes a ring that cannot be"));
        }
        Ok(Ring { memory, offsets, size, entry: PhantomData })
    }

    fn word(&self, at: u64) -> &AtomicU32 {
        // SAFETY: `new` has checked that four bytes lie there, aligned; a page is aligned to more. The memory stays mapped
        // as long as `self`, and nobody accesses the word but by atomic operations, here and in the kernel.
        unsafe { &*self.memory.base().add(at as usize).cast::<AtomicU32>() }
    }

    fn entry(&self, position: u32) -> *mut T {
        let index = (position & (self.size - 1)) as usize;
        // SAFETY: the index is less than `size`, and `new` has checked that so many entries lie there, aligned.
        unsafe { self.memory.base().add(self.offsets.entries as usize).cast::<T>().add(index) }
    }
}

/// A ring that we write: of frames to send, or of chunks to fill.
#[derive(Debug)]
pub(super) struct Producer<T> {
    ring: Ring<T>,
    /// Where the next entry goes.
    next: u32,
}

impl<T: Copy> Producer<T> {
    pub(super) fn new(memory: Mapped, offsets: Offsets, size: u32) -> io::Result<Producer<T>> {
        let ring = Ring::new(memory, offsets, size)?;
        let next = ring.word(offsets.producer).load(Relaxed);
        Ok(Producer { ring, next })
    }

    /// Entries that the kernel has not read yet, published or not; all of them if it says what cannot be.
    pub(super) fn waiting(&self) -> u32 {
        let read = self.ring.word(self.ring.offsets.consumer).load(Acquire);
        self.next.wrapping_sub(read).min(self.ring.size)
    }

    /// Writes an entry, for [`publish`](Self::publish) to show; false if there is no room.
    pub(super) fn push(&mut self, value: T) -> bool {
        if self.waiting() == self.ring.size {
            return false;
        }
        // SAFETY: the entry lies in the mapping. There is room, so the kernel has read it and does not before it is
        // published; on our side only the owner of `self` writes.
        unsafe { self.ring.entry(self.next).write(value) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Shows the kernel what was written.
    pub(super) fn publish(&mut self) {
        self.ring.word(self.ring.offsets.producer).store(self.next, Release);
    }

    /// Whether the kernel wants to be called when there is something new.
    pub(super) fn wants_call(&self) -> bool {
        self.ring.word(self.ring.offsets.flags).load(Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A ring that the kernel writes: of frames received, or of chunks that are free again.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    /// The next entry to read.
    next: u32,
    /// What the kernel knows of that.
    released: u32,
}

impl<T: Copy> Consumer<T> {
    pub(super) fn new(memory: Mapped, offsets: Offsets, size: u32) -> io::Result<Consumer<T>> {
        let ring = Ring::new(memory, offsets, size)?;
        let next = ring.word(offsets.consumer).load(Relaxed);
        Ok(Consumer { ring, next, released: next })
    }

    /// The next entry. None as well if the kernel says what cannot be.
    pub(super) fn pop(&mut self) -> Option<T> {
        let written = self.ring.word(self.ring.offsets.producer).load(Acquire);
        let waiting = written.wrapping_sub(self.next);
        if waiting == 0 || waiting > self.ring.size {
            return None;
        }
        // SAFETY: the entry lies in the mapping, and the kernel has written it before the position that was acquired and
        // writes it again only after `release`. Any bytes are a `T`: it is an integer or a plain struct of such.
        let value = unsafe { self.ring.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(value)
    }

    /// Gives the entries that were read back to the kernel; false, and nothing is written, if there were none.
    pub(super) fn release(&mut self) -> bool {
        if self.released == self.next {
            return false;
        }
        self.ring.word(self.ring.offsets.consumer).store(self.next, Release);
        self.released = self.next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSETS: Offsets = Offsets { producer: 0, consumer: 64, flags: 128, entries: 192 };
    const SIZE: u32 = 8;

    fn memory(position: u32) -> Mapped {
        let memory = Mapped::new(4096, None).expect("a page");
        for at in [OFFSETS.producer, OFFSETS.consumer] {
            // SAFETY: inside the page, aligned, and nobody else has it.
            unsafe { memory.base().add(at as usize).cast::<u32>().write(position) };
        }
        memory
    }

    #[test]
    fn positions_wrap_and_a_full_ring_takes_nothing() {
        let mut ring = Producer::<u64>::new(memory(u32::MAX - 2), OFFSETS, SIZE).expect("fits");
        assert!((0..SIZE.into()).all(|value| ring.push(value)));
        assert!(!ring.push(9) && ring.waiting() == SIZE);
        ring.publish();
        assert_eq!(ring.ring.word(OFFSETS.producer).load(Relaxed), 5);
        ring.ring.word(OFFSETS.consumer).store(0, Relaxed);
        assert_eq!(ring.waiting(), 5, "three were read");
        assert!(ring.push(8) && ring.push(9) && ring.push(10) && !ring.push(11));
    }

    #[test]
    fn what_was_written_is_read_once_and_in_order_across_the_wrap() {
        let mut ring = Consumer::<u64>::new(memory(u32::MAX - 2), OFFSETS, SIZE).expect("fits");
        assert_eq!(ring.pop(), None);
        for i in 0..6u32 {
            // SAFETY: the entry lies in the mapping and nobody else has it.
            unsafe { ring.ring.entry((u32::MAX - 2).wrapping_add(i)).write(u64::from(i)) };
        }
        ring.ring.word(OFFSETS.producer).store(3, Release);
        assert!((0..6).all(|i| ring.pop() == Some(i)) && ring.pop().is_none());
        assert_eq!(ring.ring.word(OFFSETS.consumer).load(Relaxed), u32::MAX - 2, "not given back yet");
        assert!(ring.release() && !ring.release());
        assert_eq!(ring.ring.word(OFFSETS.consumer).load(Relaxed), 3);
    }

    #[test]
    fn positions_that_cannot_be_are_not_believed() {
        let mut read = Consumer::<u64>::new(memory(0), OFFSETS, SIZE).expect("fits");
        read.ring.word(OFFSETS.producer).store(SIZE + 1, Relaxed);
        assert_eq!(read.pop(), None);
        let mut written = Producer::<u64>::new(memory(0), OFFSETS, SIZE).expect("fits");
        written.ring.word(OFFSETS.consumer).store(1, Relaxed);
        assert!(!written.push(0), "more was read than was written");
        for wrong in [
            Offsets { producer: 4094, ..OFFSETS },
            Offsets { flags: 2, ..OFFSETS },
            Offsets { entries: 4090, ..OFFSETS },
        ] {
            assert!(Producer::<u64>::new(memory(0), wrong, SIZE).is_err(), "{wrong:?}");
        }
        assert!(
            Producer::<u64>::new(memory(0), OFFSETS, 1024).is_err()
                && Producer::<u64>::new(memory(0), OFFSETS, 7).is_err()
        );
    }
}
