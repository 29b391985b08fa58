//! Doing in software what a sender left owed, before a port that cannot carry it: the checksum or the segmentation.
//!
//! ```text
//! derived frame:  | zeroed virtio-net header (12) | private headers (<= 192) | head range | pieces |
//!                 `---------------- header ---------------------------------'  by reference, not copied
//! ```
//!
//! All memory is taken at set-up. When it is full the caller sends what there is, clears, and goes on; an empty
//! completer has room for any one frame. Owned by one worker.

use std::ops::Range;

use super::{
    checksum::{Sum, checksum},
    layout::{L3, L4, Layout, PROTO_TCP, PROTO_UDP},
    offload::{Gso, Offload, VNET_HDR_BYTES},
    validate::MAX_SEGMENTS,
};
use crate::{batch::BATCH_PIECES, sys::buf::Piece};

/// Headers that can be rewritten; frames with longer ones are refused.
pub const MAX_HEADER_BYTES: usize = 192;
/// Derived frames that a completer holds: twice what one frame can yield.
pub const MAX_DERIVED: usize = 2 * MAX_SEGMENTS;
const MAX_PIECES: usize = MAX_DERIVED + 2 * BATCH_PIECES;
const STRIDE: usize = VNET_HDR_BYTES + MAX_HEADER_BYTES + 4;
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// Why a frame was not completed; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompleteError {
    /// No room: send the derived frames, [`clear`](Completer::clear), and try again.
    #[error("the completer is full")]
    Full,
    /// Cannot be done for this frame: drop the copy as `EgressOffload`.
    #[error("the owed work cannot be done for this frame")]
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    header_len: u16,
    head_range: (u32, u32),
    pieces: (u32, u32),
    len: u32,
}

/// One complete frame.
#[derive(Clone, Copy, Debug)]
pub struct Derived<'a> {
    /// A zeroed virtio-net header (12 bytes) and the rewritten headers.
    pub header: &'a [u8],
    /// What follows the headers in the original frame's head: from, to.
    pub head_range: (u32, u32),
    /// What follows that.
    pub tail: &'a [Piece],
    /// Length without the virtio-net header.
    pub len: u32,
}

/// Where completed frames are made. See the module page.
#[derive(Debug)]
pub struct Completer {
    headers: Box<[u8]>,
    entries: Vec<Entry>,
    pieces: Vec<Piece>,
}

impl Default for Completer {
    fn default() -> Self {
        Self::new()
    }
}

/// What is left of a frame's payload: a range of the head, then pieces.
struct Cursor<'a> {
    head_at: usize,
    head_end: usize,
    tail: &'a [Piece],
    skip: usize,
}

impl Completer {
    /// An empty completer; the only place where it allocates.
    #[must_use]
    pub fn new() -> Completer {
        Completer {
            headers: vec![0; STRIDE * MAX_DERIVED].into_boxed_slice(),
            entries: Vec::with_capacity(MAX_DERIVED),
            pieces: Vec::with_capacity(MAX_PIECES),
        }
    }

    /// Forgets all derived frames.
    #[inline]
    pub fn clear(&mut self) {
        self.entries.clear();
        self.pieces.clear();
    }

    /// A derived frame.
    #[inline]
    #[must_use]
    pub fn derived(&self, index: usize) -> Derived<'_> {
        let entry = &self.entries[index];
        let start = index * STRIDE;
        Derived {
            header: &self.headers[start..start + VNET_HDR_BYTES + usize::from(entry.header_len)],
            head_range: entry.head_range,
            tail: &self.pieces[entry.pieces.0 as usize..entry.pieces.1 as usize],
            len: entry.len,
        }
    }

    /// Completes a frame of `len` bytes (`head`, then `tail`) with a validated `offload`; returns the indices of the
    /// derived frames, in order.
    ///
    /// # Errors
    /// See [`CompleteError`].
    pub fn complete(
        &mut self,
        head: &[u8],
        tail: &[Piece],
        len: usize,
        offload: Offload,
    ) -> Result<Range<usize>, CompleteError> {
        let refused = CompleteError::Refused;
        if head.len() + tail.iter().map(Piece::len).sum::<usize>() != len || tail.len() > BATCH_PIECES {
            return Err(refused);
        }
        let field = usize::from(offload.csum_start) + usize::from(offload.csum_offset);
        let layout = match offload.gso {
            Gso::None => None,
            _ => Some(Layout::parse(head, len).ok_or(refused)?),
        };
        let header_len = match &layout {
            Some(layout) => usize::from(layout.payload_offset),
            None if offload.needs_csum => field + 2,
            None => head.len().min(MAX_HEADER_BYTES),
        };
        let size = if layout.is_some() { usize::from(offload.gso_size) } else { usize::MAX };
        if header_len > MAX_HEADER_BYTES || header_len > head.len() || size == 0 {
            return Err(refused);
        }
        let payload = len - header_len;
        let count = payload.div_ceil(size).max(1);
        if count > MAX_SEGMENTS {
            return Err(refused);
        }
        if self.entries.len() + count > MAX_DERIVED || self.pieces.len() + tail.len() + count > MAX_PIECES {
            return Err(CompleteError::Full);
        }
        let first = self.entries.len();
        let mut cursor = Cursor { head_at: header_len, head_end: head.len(), tail, skip: 0 };
        for nth in 0..count {
            let bytes = (payload - nth * size.min(payload)).min(size);
            let entry = self.take(&mut cursor, header_len, bytes);
            let start = self.entries.len() * STRIDE;
            self.entries.push(entry);
            let slot = &mut self.headers[start..start + VNET_HDR_BYTES + header_len];
            slot[..VNET_HDR_BYTES].fill(0);
            let header = &mut slot[VNET_HDR_BYTES..];
            header.copy_from_slice(&head[..header_len]);
            let data = &head[entry.head_range.0 as usize..entry.head_range.1 as usize];
            let pieces = &self.pieces[entry.pieces.0 as usize..entry.pieces.1 as usize];
            if let Some(layout) = &layout {
                rewrite(header, layout, nth, nth + 1 == count, size, bytes);
                finish(
                    header,
                    usize::from(layout.l4_offset),
                    layout.csum_offset(),
                    data,
                    pieces,
                    pseudo(head, layout, bytes),
                );
            } else if offload.needs_csum {
                finish(header, usize::from(offload.csum_start), offload.csum_offset, data, pieces, Sum::new());
            }
        }
        Ok(first..self.entries.len())
    }

    /// The next `bytes` bytes of payload, by reference.
    fn take(&mut self, cursor: &mut Cursor<'_>, header_len: usize, bytes: usize) -> Entry {
        let from_head = (cursor.head_end - cursor.head_at).min(bytes);
        let head_range = (cursor.head_at as u32, (cursor.head_at + from_head) as u32);
        cursor.head_at += from_head;
        let first = self.pieces.len() as u32;
        let mut left = bytes - from_head;
        while left > 0 {
            let Some(piece) = cursor.tail.first() else { break };
            let part = piece.skip(cursor.skip).first(left);
            left -= part.len();
            cursor.skip += part.len();
            if cursor.skip == piece.len() {
                cursor.tail = &cursor.tail[1..];
                cursor.skip = 0;
            }
            if !part.is_empty() {
                self.pieces.push(part);
            }
        }
        Entry {
            header_len: header_len as u16,
            head_range,
            pieces: (first, self.pieces.len() as u32),
            len: (header_len + bytes) as u32,
        }
    }
}

/// The pseudo-header of one segment (RFC 9293 §3.1, RFC 8200 §8.1).
fn pseudo(head: &[u8], layout: &Layout, payload: usize) -> Sum {
    let l3 = usize::from(layout.l3_offset);
    let mut sum = Sum::new();
    match layout.l3 {
        L3::V4 => sum.add(&head[l3 + 12..l3 + 20]),
        L3::V6 => sum.add(&head[l3 + 8..l3 + 40]),
    }
    sum.add_u16(u16::from(if layout.l4 == L4::Tcp { PROTO_TCP } else { PROTO_UDP }));
    sum.add_u16((usize::from(layout.l4_header_len) + payload) as u16);
    sum
}

/// Lengths, identification, sequence number and flags of the `nth` segment; its checksum field is left zero.
fn rewrite(header: &mut [u8], layout: &Layout, nth: usize, last: bool, size: usize, payload: usize) {
    let (l3, l4) = (usize::from(layout.l3_offset), usize::from(layout.l4_offset));
    let l4_len = usize::from(layout.l4_header_len) + payload;
    match layout.l3 {
        L3::V4 => {
            header[l3 + 2..l3 + 4].copy_from_slice(&((l4 - l3 + l4_len) as u16).to_be_bytes());
            let id = u16::from_be_bytes([header[l3 + 4], header[l3 + 5]]).wrapping_add(nth as u16);
            header[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes());
            header[l3 + 10..l3 + 12].fill(0);
            let sum = checksum(&header[l3..l4]);
            header[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
        }
        L3::V6 => header[l3 + 4..l3 + 6].copy_from_slice(&((l4 - l3 - 40 + l4_len) as u16).to_be_bytes()),
    }
    match layout.l4 {
        L4::Tcp => {
            let at = l4 + 4;
            let sequence = u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            header[at..at + 4].copy_from_slice(&sequence.wrapping_add((nth * size) as u32).to_be_bytes());
            if !last {
                header[l4 + 13] &= !TCP_FIN_PSH;
            }
            if nth > 0 {
                header[l4 + 13] &= !TCP_CWR;
            }
        }
        L4::Udp => header[l4 + 4..l4 + 6].copy_from_slice(&(l4_len as u16).to_be_bytes()),
    }
    let field = l4 + usize::from(layout.csum_offset());
    header[field..field + 2].fill(0);
}

/// Sums from `start` on and stores the checksum. A zero in the place where UDP has its checksum is sent as 0xffff, the
/// same number in one's complement (RFC 768).
fn finish(header: &mut [u8], start: usize, offset: u16, data: &[u8], pieces: &[Piece], mut sum: Sum) {
    sum.add(&header[start..]);
    sum.add(data);
    for piece in pieces {
        sum.add_piece(*piece);
    }
    let value = match sum.finish() {
        0 if offset == 6 => 0xffff,
        value => value,
    };
    let field = start + usize::from(offset);
    header[field..field + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests;
