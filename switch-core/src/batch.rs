//! The receive batch: a fixed number of slots, filled by one receive queue, judged by the pipeline, sent from
//! and then released.
//!
//! ```text
//! slot i:   | spare (52) | virtio-net header (12) | frame bytes, up to HEAD_BYTES ...          |
//!           ^ 64-byte aligned                     ^ HEADROOM: frame offset 0
//! tail:     pieces [first .. first + count) of the batch's piece table: the rest of a long frame, in the
//!           overflow arena (system-call drivers) or in guest memory (a lease)
//! ```
//!
//! The virtio-net header lies directly before the frame so that an unchanged frame leaves a TAP with one
//! contiguous `write`. The stride is an odd number of cache lines: with a power of two all slots would share
//! the same few L1 sets. After the pipeline has decided, a slot is immutable until `clear`.

use crate::{
    frame::offload::{Offload, VNET_HDR_BYTES},
    id::DomainId,
    sys::buf::{Arena, Piece},
};

/// Frames per batch.
pub const BATCH_FRAMES: usize = 64;
/// Bytes before the frame in a slot.
pub const HEADROOM: usize = 64;
/// Frame bytes that a slot holds itself.
pub const HEAD_BYTES: usize = 33 * 64;
const STRIDE: usize = HEADROOM + HEAD_BYTES + 64;
/// The longest frame the switch carries: 64 KiB of IP packet with Ethernet header and two tags.
pub const MAX_FRAME_BYTES: usize = 65_535 + 14 + 8;
/// Room for long frames in one batch. One frame always fits; more than this much waiting data is not worth
/// the cache it would push out.
pub const OVERFLOW_BYTES: usize = 4 * (MAX_FRAME_BYTES - HEAD_BYTES);
/// Pieces in one batch.
pub const BATCH_PIECES: usize = 1024;

/// What is known about one frame of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Length of the whole frame.
    pub len: u32,
    /// How much of it lies in the slot itself; the rest is in pieces.
    pub head_len: u16,
    first_piece: u16,
    pieces: u16,
    /// What the sender owes, as it said (receive) and after validation (pipeline).
    pub offload: Offload,
    /// For the driver: which descriptor chain the pieces are leased from.
    pub lease: u32,
    /// Set by the pipeline: the domain that the frame belongs to.
    pub domain: DomainId,
    /// Set by the pipeline: bytes of tag that ingress takes off (0 or 4, at offset 12).
    pub strip: u8,
    /// Set by the pipeline: what remains after the stripped tag begins with a VLAN tag of its own (VID not 0).
    pub inner_tag: bool,
    /// Set by the pipeline: priority and drop-eligible bits of the stripped tag, in TCI position.
    pub priority: u16,
}

const EMPTY: Slot = Slot {
    len: 0,
    head_len: 0,
    first_piece: 0,
    pieces: 0,
    offload: Offload::NONE,
    lease: 0,
    domain: DomainId(0),
    strip: 0,
    inner_tag: false,
    priority: 0,
};

/// Frames on their way through one worker. See the module page for the layout.
#[derive(Debug)]
pub struct Batch {
    memory: Box<[u8]>,
    slots: Box<[Slot; BATCH_FRAMES]>,
    len: usize,
    pieces: Vec<Piece>,
    overflow: Arena,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch; the only place where it allocates.
    #[must_use]
    pub fn new() -> Batch {
        Batch {
            memory: vec![0; STRIDE * BATCH_FRAMES].into_boxed_slice(),
            slots: Box::new([EMPTY; BATCH_FRAMES]),
            len: 0,
            pieces: Vec::with_capacity(BATCH_PIECES),
            overflow: Arena::new(OVERFLOW_BYTES),
        }
    }

    /// Frames in the batch.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the batch holds no frame.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether no further frame fits.
    #[inline]
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.len == BATCH_FRAMES
    }

    /// Whether another frame of any length up to [`MAX_FRAME_BYTES`] can be received.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.len < BATCH_FRAMES
            && self.overflow.room() >= MAX_FRAME_BYTES - HEAD_BYTES
            && self.pieces.len() + crate::sys::buf::MAX_GATHER <= BATCH_PIECES
    }

    /// The buffers for the next frame: the slot from its virtio-net header on (12 + [`HEAD_BYTES`] bytes), and the
    /// overflow area for what does not fit. Follow with [`push_received`](Self::push_received).
    #[inline]
    pub fn receive_buffers(&mut self) -> (&mut [u8], &mut [u8]) {
        let start = self.len * STRIDE + HEADROOM - VNET_HDR_BYTES;
        (&mut self.memory[start..start + VNET_HDR_BYTES + HEAD_BYTES], self.overflow.spare())
    }

    /// Accepts a frame of `len` bytes that was written to the [`receive_buffers`](Self::receive_buffers): its first
    /// [`HEAD_BYTES`] bytes after the virtio-net header of the slot, the rest in the overflow area.
    /// Returns the slot, so that the driver can set `offload`.
    ///
    /// # Panics
    /// If the batch is full or `len` exceeds what the buffers hold.
    #[inline]
    pub fn push_received(&mut self, len: usize) -> &mut Slot {
        let head_len = len.min(HEAD_BYTES);
        let first_piece = self.pieces.len();
        if len > HEAD_BYTES {
            let piece = self.overflow.commit(len - HEAD_BYTES);
            self.pieces.push(piece);
        }
        let pieces = self.pieces.len() - first_piece;
        let slot = &mut self.slots[self.len];
        self.len += 1;
        *slot = Slot {
            len: len as u32,
            head_len: head_len as u16,
            first_piece: first_piece as u16,
            pieces: pieces as u16,
            ..EMPTY
        };
        slot
    }

    /// Accepts a frame whose head was written to the slot of [`receive_buffers`](Self::receive_buffers) and whose tail
    /// is leased from the sender. Returns `None`, and takes nothing, if there are too many pieces.
    ///
    /// # Panics
    /// If the batch is full or `head_len` exceeds [`HEAD_BYTES`].
    #[inline]
    pub fn push_leased(&mut self, head_len: usize, tail: &[Piece], lease: u32) -> Option<&mut Slot> {
        assert!(head_len <= HEAD_BYTES);
        if self.pieces.len() + tail.len() > BATCH_PIECES {
            return None;
        }
        let first_piece = self.pieces.len();
        self.pieces.extend_from_slice(tail);
        let len = head_len + tail.iter().map(Piece::len).sum::<usize>();
        let slot = &mut self.slots[self.len];
        self.len += 1;
        *slot = Slot {
            len: len as u32,
            head_len: head_len as u16,
            first_piece: first_piece as u16,
            pieces: tail.len() as u16,
            lease,
            ..EMPTY
        };
        Some(slot)
    }

    /// A frame's slot.
    #[inline]
    #[must_use]
    pub fn slot(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    /// A frame's slot, for the pipeline.
    #[inline]
    pub fn slot_mut(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index]
    }

    /// The frame's private head.
    #[inline]
    #[must_use]
    pub fn head(&self, index: usize) -> &[u8] {
        let start = index * STRIDE + HEADROOM;
        &self.memory[start..start + usize::from(self.slots[index].head_len)]
    }

    /// Head and slot at once, both writable: ingress only (validation, restored VLAN tags).
    #[inline]
    pub fn head_and_slot_mut(&mut self, index: usize) -> (&mut [u8], &mut Slot) {
        let start = index * STRIDE + HEADROOM;
        let slot = &mut self.slots[index];
        (&mut self.memory[start..start + usize::from(slot.head_len)], slot)
    }

    /// The virtio-net header followed by the frame's head, contiguous. Current only after
    /// [`write_header`](Self::write_header).
    #[inline]
    #[must_use]
    pub fn header_and_head(&self, index: usize) -> &[u8] {
        let start = index * STRIDE + HEADROOM;
        &self.memory[start - VNET_HDR_BYTES..start + usize::from(self.slots[index].head_len)]
    }

    /// Writes the slot's (validated) offload into the virtio-net header before its frame.
    #[inline]
    pub fn write_header(&mut self, index: usize) {
        let start = index * STRIDE + HEADROOM - VNET_HDR_BYTES;
        let wire: &mut [u8; VNET_HDR_BYTES] =
            (&mut self.memory[start..start + VNET_HDR_BYTES]).try_into().expect("the range has the header's length");
        self.slots[index].offload.encode(wire);
    }

    /// The pieces after the head.
    #[inline]
    #[must_use]
    pub fn tail(&self, index: usize) -> &[Piece] {
        let slot = &self.slots[index];
        let first = usize::from(slot.first_piece);
        &self.pieces[first..first + usize::from(slot.pieces)]
    }

    /// Copies the frame from byte `from` on into `to`; returns how many bytes there were.
    pub fn copy_frame(&self, index: usize, from: usize, to: &mut [u8]) -> usize {
        let head = self.head(index);
        let mut done = 0;
        let mut skip = from;
        if skip < head.len() {
            let n = (head.len() - skip).min(to.len());
            to[..n].copy_from_slice(&head[skip..skip + n]);
            done = n;
            skip = 0;
        } else {
            skip -= head.len();
        }
        for piece in self.tail(index) {
            if done == to.len() {
                break;
            }
            let rest = piece.skip(skip);
            skip -= piece.len() - rest.len();
            done += rest.copy_to(&mut to[done..]);
        }
        done
    }

    /// Forgets all frames. The driver's `release` has been called.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
        self.pieces.clear();
        self.overflow.reset();
    }
}
