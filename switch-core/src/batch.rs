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
pub const OVERFLOW_BYTES: usize = 4 * REGION_BYTES;
/// What a slot does not hold of the longest frame.
const REGION_BYTES: usize = MAX_FRAME_BYTES - HEAD_BYTES;
/// Frames that can be received by one system call. Each has a region of its own in the overflow arena in case it is
/// long; the regions beyond [`OVERFLOW_BYTES`] are touched only when many long frames come at once, so that they cost
/// addresses and no cache.
pub const BURST_FRAMES: usize = 16;
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
    /// Set by the pipeline: what remains after the stripped tag would be read as a VLAN of its own.
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

/// Where the frames of one receiving system call go: a value, so that the batch is not borrowed meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    slot: usize,
    arena: usize,
}

/// Frames on their way through one worker. See the module page for the layout.
#[derive(Debug)]
pub struct Batch {
    memory: Box<[u8]>,
    slots: Box<[Slot; BATCH_FRAMES]>,
    len: usize,
    /// Frames that are to be received, [`BATCH_FRAMES`] at most.
    limit: usize,
    pieces: Vec<Piece>,
    overflow: Arena,
    owing: bool,
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
            limit: BATCH_FRAMES,
            pieces: Vec::with_capacity(BATCH_PIECES),
            overflow: Arena::new(OVERFLOW_BYTES + BURST_FRAMES * REGION_BYTES),
            owing: false,
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
        self.len < self.limit
            && self.overflow.used() + REGION_BYTES <= OVERFLOW_BYTES
            && self.pieces.len() + crate::sys::buf::MAX_GATHER <= BATCH_PIECES
    }

    /// Frames that can still be received, if they are short.
    #[inline]
    #[must_use]
    pub const fn room(&self) -> usize {
        self.limit.saturating_sub(self.len)
    }

    /// Has [`has_room`](Self::has_room) say no after so many frames, until it is told otherwise.
    pub fn set_limit(&mut self, frames: usize) {
        self.limit = frames.clamp(1, BATCH_FRAMES);
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
        let first_piece = self.pieces.len();
        if len > HEAD_BYTES {
            let piece = self.overflow.commit(len - HEAD_BYTES);
            self.pieces.push(piece);
        }
        self.push_slot(len, first_piece)
    }

    /// Begins to receive several frames by one system call; [`has_room`](Self::has_room) has been asked.
    #[inline]
    #[must_use]
    pub fn begin_burst(&self) -> Burst {
        Burst { slot: self.len, arena: self.overflow.used() }
    }

    /// The buffers for the next frames, at most [`BURST_FRAMES`]: each as [`receive_buffers`](Self::receive_buffers)
    /// says.
    #[inline]
    pub fn burst_buffers(&mut self, burst: Burst) -> impl Iterator<Item = (&mut [u8], &mut [u8])> {
        let start = burst.slot * STRIDE + HEADROOM - VNET_HDR_BYTES;
        let slots = self.memory[start..].chunks_mut(STRIDE).map(|slot| &mut slot[..VNET_HDR_BYTES + HEAD_BYTES]);
        let frames = BURST_FRAMES.min(self.limit.saturating_sub(burst.slot));
        slots.zip(self.overflow.after(burst.arena).chunks_exact_mut(REGION_BYTES)).take(frames)
    }

    /// The buffers of one frame of the burst, not accepted yet.
    #[inline]
    pub fn burst_buffer(&mut self, burst: Burst, index: usize) -> (&mut [u8], &mut [u8]) {
        let start = (burst.slot + index) * STRIDE + HEADROOM - VNET_HDR_BYTES;
        let region = self.overflow.after(burst.arena + index * REGION_BYTES);
        (&mut self.memory[start..start + VNET_HDR_BYTES + HEAD_BYTES], &mut region[..REGION_BYTES])
    }

    /// Accepts the frame in the burst's buffers of this index. Frames are accepted in the order of their indices, and
    /// those that are left out are forgotten.
    ///
    /// # Panics
    /// If the batch is full or `len` exceeds what the buffers hold.
    #[inline]
    pub fn push_burst(&mut self, burst: Burst, index: usize, len: usize) -> &mut Slot {
        if self.len < burst.slot + index {
            // One before it was left out.
            let from = (burst.slot + index) * STRIDE + HEADROOM;
            let to = self.len * STRIDE + HEADROOM;
            self.memory.copy_within(from..from + len.min(HEAD_BYTES), to);
        }
        let first_piece = self.pieces.len();
        if len > HEAD_BYTES {
            let piece = self.overflow.commit_at(burst.arena + index * REGION_BYTES, len - HEAD_BYTES);
            self.pieces.push(piece);
        }
        self.push_slot(len, first_piece)
    }

    #[inline]
    fn push_slot(&mut self, len: usize, first_piece: usize) -> &mut Slot {
        let pieces = self.pieces.len() - first_piece;
        let slot = &mut self.slots[self.len];
        self.len += 1;
        *slot = Slot {
            len: len as u32,
            head_len: len.min(HEAD_BYTES) as u16,
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

    /// Writes the slot's (validated) offload into the virtio-net header before its frame. Without a flag or a type the
    /// other fields are noise, which nobody else shall see: slot and header are cleared.
    #[inline]
    pub fn write_header(&mut self, index: usize) {
        let start = index * STRIDE + HEADROOM - VNET_HDR_BYTES;
        let wire: &mut [u8; VNET_HDR_BYTES] =
            (&mut self.memory[start..start + VNET_HDR_BYTES]).try_into().expect("the range has the header's length");
        let offload = &mut self.slots[index].offload;
        if offload.is_none() {
            *offload = Offload::NONE;
            *wire = [0; VNET_HDR_BYTES];
        } else {
            offload.encode(wire);
            self.owing |= offload.owes();
        }
    }

    /// Whether anything is owed on any frame whose header was [written](Self::write_header).
    #[inline]
    #[must_use]
    pub const fn owing(&self) -> bool {
        self.owing
    }

    /// The pieces after the head.
    #[inline]
    #[must_use]
    pub fn tail(&self, index: usize) -> &[Piece] {
        let slot = &self.slots[index];
        let first = usize::from(slot.first_piece);
        &self.pieces[first..first + usize::from(slot.pieces)]
    }

    /// Takes as much more of the frame into its private head as that has room for; the tail begins behind it. For the
    /// pipeline, where more is judged than the driver has copied.
    pub fn draw_in(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let start = index * STRIDE + HEADROOM;
        while slot.pieces > 0 && usize::from(slot.head_len) < HEAD_BYTES {
            let piece = &mut self.pieces[usize::from(slot.first_piece)];
            let taken = piece.copy_to(&mut self.memory[start + usize::from(slot.head_len)..start + HEAD_BYTES]);
            slot.head_len += taken as u16;
            *piece = piece.skip(taken);
            if !piece.is_empty() {
                return;
            }
            slot.first_piece += 1;
            slot.pieces -= 1;
        }
    }

    /// A frame as it leaves unchanged: its slot, the virtio-net header followed by the head, contiguous, and the
    /// [`tail`](Self::tail). The header is current only after [`write_header`](Self::write_header).
    #[inline]
    #[must_use]
    pub fn leaving(&self, index: usize) -> (&Slot, &[u8], &[Piece]) {
        let slot = &self.slots[index];
        let start = index * STRIDE + HEADROOM;
        let first = &self.memory[start - VNET_HDR_BYTES..start + usize::from(slot.head_len)];
        let tail = if slot.pieces == 0 { &[] } else { self.tail(index) };
        (slot, first, tail)
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
        self.owing = false;
        self.pieces.clear();
        self.overflow.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(batch: &mut Batch, lens: &[Option<usize>]) {
        let burst = batch.begin_burst();
        for ((slot, overflow), (index, len)) in batch.burst_buffers(burst).zip(lens.iter().enumerate()) {
            let all = slot[VNET_HDR_BYTES..].iter_mut().chain(overflow);
            all.take(len.unwrap_or(9000)).enumerate().for_each(|(at, byte)| *byte = (index + at % 251) as u8);
        }
        for (index, len) in lens.iter().enumerate() {
            if let Some(len) = len {
                batch.push_burst(burst, index, *len);
            }
        }
    }

    fn check(batch: &Batch, frame: usize, index: usize, len: usize) {
        let mut bytes = vec![0; MAX_FRAME_BYTES];
        assert_eq!((batch.copy_frame(frame, 0, &mut bytes), batch.slot(frame).len as usize), (len, len));
        assert!(bytes[..len].iter().enumerate().all(|(at, byte)| *byte == (index + at % 251) as u8), "frame {frame}");
    }

    #[test]
    fn frames_of_a_burst_keep_their_bytes_whatever_their_lengths_and_gaps() {
        let mut batch = Batch::new();
        for _ in 0..2 {
            let first = [Some(60), None, Some(HEAD_BYTES + 1), Some(HEAD_BYTES), None, Some(MAX_FRAME_BYTES), Some(14)];
            fill(&mut batch, &first);
            let kept: Vec<_> = first.iter().enumerate().filter_map(|(index, len)| Some((index, (*len)?))).collect();
            assert_eq!(batch.len(), kept.len());
            for (frame, (index, len)) in kept.iter().enumerate() {
                check(&batch, frame, *index, *len);
            }
            // The long ones lie beyond what a batch may hold, so it is full; the worst burst of all still fits.
            assert!(!batch.has_room());
            batch.clear();
            fill(&mut batch, &[Some(100), Some(HEAD_BYTES + REGION_BYTES / 2)]);
            assert!(batch.has_room());
            fill(&mut batch, &[Some(MAX_FRAME_BYTES); BURST_FRAMES]);
            check(&batch, 0, 0, 100);
            check(&batch, 1, 1, HEAD_BYTES + REGION_BYTES / 2);
            (0..BURST_FRAMES).for_each(|index| check(&batch, 2 + index, index, MAX_FRAME_BYTES));
            batch.clear();
        }
    }

    #[test]
    fn a_burst_is_never_more_than_the_slots_that_are_left() {
        let mut batch = Batch::new();
        while batch.has_room() {
            let burst = batch.begin_burst();
            let offered = batch.burst_buffers(burst).count();
            assert_eq!(offered, BURST_FRAMES.min(BATCH_FRAMES - batch.len()));
            (0..offered.min(7)).for_each(|index| {
                batch.push_burst(burst, index, 60);
            });
        }
        assert_eq!(batch.len(), BATCH_FRAMES);
    }

    #[test]
    fn noise_beside_a_header_without_flag_or_type_leaves_neither_in_the_slot_nor_before_the_frame() {
        let mut batch = Batch::new();
        let (memory, _) = batch.receive_buffers();
        memory.fill(0xaa);
        batch.push_received(60).offload = Offload { hdr_len: 7, csum_start: 9, ..Offload::NONE };
        batch.write_header(0);
        let (slot, first, tail) = batch.leaving(0);
        assert_eq!((slot.offload, first.len(), tail.len()), (Offload::NONE, VNET_HDR_BYTES + 60, 0));
        assert_eq!((&first[..VNET_HDR_BYTES], first[VNET_HDR_BYTES]), (&[0; VNET_HDR_BYTES][..], 0xaa));
        assert!(!batch.owing());

        let owed = Offload { needs_csum: true, csum_start: 34, csum_offset: 16, ..Offload::NONE };
        batch.push_received(60).offload = owed;
        batch.write_header(1);
        assert_eq!(batch.leaving(1).1[..VNET_HDR_BYTES], [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
        assert!(batch.owing());
        batch.clear();
        assert!(!batch.owing());
    }
}
