//! Frame memory: byte ranges that a batch refers to, and the gather lists made of them.
//!
//! A received frame is a private *head* (bytes that decisions were made on) and a *tail*: ranges of memory
//! that the worker has not looked at, in the batch's own overflow arena or in a guest. A [`Piece`] is such a
//! range. It is a raw address because the memory may be written to by a guest at any time, so no Rust
//! reference to it may exist; it can only be copied from or handed to the kernel.

use std::{
    marker::PhantomData,
    sync::atomic::{Ordering, compiler_fence},
};

/// A range of memory that holds part of a frame until its batch is cleared.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    base: *const u8,
    len: u32,
}

// SAFETY: a Piece is only an address and a length; whoever made it promised (see `from_raw`) that the memory
// stays readable from any thread until the batch that holds the piece is cleared.
unsafe impl Send for Piece {}
// SAFETY: as above; there is no interior state.
unsafe impl Sync for Piece {}

impl Piece {
    /// A piece of memory outside the control of the borrow checker.
    ///
    /// # Safety
    /// `base .. base + len` must stay mapped and readable until the batch that the piece is put into has been
    /// released and cleared. The bytes may change under the reader.
    #[must_use]
    pub const unsafe fn from_raw(base: *const u8, len: u32) -> Piece {
        Piece { base, len }
    }

    /// Bytes in the piece.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the piece has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address, for gather lists and copies in `sys`.
    #[must_use]
    pub const fn as_ptr(&self) -> *const u8 {
        self.base
    }

    /// The piece without its first `n` bytes (at most all of them).
    #[must_use]
    pub fn skip(self, n: usize) -> Piece {
        let n = n.min(self.len());
        // SAFETY: n <= len, so the result stays inside the same range.
        Piece { base: unsafe { self.base.add(n) }, len: self.len - n as u32 }
    }

    /// The first `n` bytes of the piece (at most all of them).
    #[must_use]
    pub fn first(self, n: usize) -> Piece {
        Piece { base: self.base, len: self.len.min(n as u32) }
    }

    /// Copies the beginning of the piece into `to`; returns how many bytes were copied.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let n = self.len().min(to.len());
        // SAFETY: the source is readable for `len >= n` bytes (contract of `from_raw`), the destination is a
        // unique slice of at least n bytes, and the two cannot overlap: `to` is borrowed exclusively.
        unsafe { std::ptr::copy_nonoverlapping(self.base, to.as_mut_ptr(), n) };
        // A piece may be a guest's memory: what is judged of the copy is not read from there again.
        compiler_fence(Ordering::SeqCst);
        n
    }
}

/// A fixed area that long frames spill into. Never moved or reallocated, so pieces of it stay valid; space is
/// handed out in order and taken back all at once by [`reset`](Self::reset).
#[derive(Debug)]
pub struct Arena {
    memory: Box<[u8]>,
    used: usize,
}

impl Arena {
    /// An arena of `bytes` bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Arena {
        Arena { memory: vec![0; bytes].into_boxed_slice(), used: 0 }
    }

    /// Bytes left.
    #[must_use]
    pub fn room(&self) -> usize {
        self.memory.len() - self.used
    }

    /// Bytes taken, with gaps.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// All bytes from an offset on, which is not before what was [`used`](Self::used) when the receiving began.
    pub(crate) fn after(&mut self, offset: usize) -> &mut [u8] {
        &mut self.memory[offset.max(self.used)..]
    }

    /// Takes `n` bytes from an offset on as a piece; what is before them is not handed out any more.
    ///
    /// # Panics
    /// If the range overlaps what was taken, or goes over the end.
    pub(crate) fn commit_at(&mut self, offset: usize, n: usize) -> Piece {
        assert!(offset >= self.used, "arena overlap");
        self.used = offset;
        self.commit(n)
    }

    /// The unused rest, to be written by a system call before [`commit`](Self::commit).
    #[inline]
    pub fn spare(&mut self) -> &mut [u8] {
        &mut self.memory[self.used..]
    }

    /// Takes the first `n` bytes of the unused rest as a piece.
    ///
    /// # Panics
    /// If `n` is more than [`room`](Self::room).
    pub fn commit(&mut self, n: usize) -> Piece {
        assert!(n <= self.room(), "arena overrun");
        // SAFETY: the range lies inside `memory`, which lives as long as the arena and never moves; it is not
        // handed out again before `reset`, which only `Batch::clear` calls, after the pieces are gone.
        let piece = unsafe { Piece::from_raw(self.memory.as_ptr().add(self.used), n as u32) };
        self.used += n;
        piece
    }

    /// Takes everything back. The caller has dropped all pieces.
    pub(crate) fn reset(&mut self) {
        self.used = 0;
    }
}

/// Parts that one frame is gathered from at most (`UIO_MAXIOV` is 1024; a 64 KiB frame in 4 KiB guest pages
/// needs 17, and drivers refuse frames in more).
pub const MAX_GATHER: usize = 64;

/// A gather list for `writev` and friends, on the stack of a driver.
pub struct Gather<'a> {
    parts: [libc::iovec; MAX_GATHER],
    len: usize,
    bytes: usize,
    source: PhantomData<&'a [u8]>,
}

impl Default for Gather<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Gather<'a> {
    /// An empty list.
    #[must_use]
    pub fn new() -> Gather<'a> {
        const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Gather { parts: [EMPTY; MAX_GATHER], len: 0, bytes: 0, source: PhantomData }
    }

    /// Empties the list.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
        self.bytes = 0;
    }

    /// Appends bytes; empty ones are left out. False if the list is full.
    #[inline]
    pub fn push(&mut self, bytes: &'a [u8]) -> bool {
        self.push_part(bytes.as_ptr(), bytes.len())
    }

    /// Appends a piece. The caller keeps the batch that the piece came from uncleared for `'a`.
    #[inline]
    pub fn push_piece(&mut self, piece: Piece) -> bool {
        self.push_part(piece.as_ptr(), piece.len())
    }

    #[inline]
    fn push_part(&mut self, base: *const u8, len: usize) -> bool {
        if len == 0 {
            return true;
        }
        if self.len == MAX_GATHER {
            return false;
        }
        self.parts[self.len] = libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len };
        self.len += 1;
        self.bytes += len;
        true
    }

    /// The parts as the kernel wants them.
    #[inline]
    #[must_use]
    pub fn as_iovecs(&self) -> &[libc::iovec] {
        &self.parts[..self.len]
    }

    /// Sum of all parts.
    #[inline]
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}
