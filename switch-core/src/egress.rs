//! What a driver gets to send: frames of a batch, with the tag edits of one port applied on the way out.
//!
//! Slots are immutable, so an edit is a *prefix*: a new virtio-net header, the two addresses and the new tag, made once
//! per (frame, attachment) in the worker's scratch; the driver gathers prefix, rest of the head and tail.

use crate::{
    frame::offload::{Offload, VNET_HDR_BYTES},
    sys::buf::{Gather, Piece},
};

/// One frame as it leaves by one port.
#[derive(Clone, Copy, Debug)]
pub struct OutFrame<'a> {
    /// Bytes that begin with the 12-byte virtio-net header; followed by `rest`, then `tail`.
    pub(crate) first: &'a [u8],
    pub(crate) rest: &'a [u8],
    pub(crate) tail: &'a [Piece],
    /// What is owed on this frame; the same as in the virtio-net header.
    pub offload: Offload,
    /// Length without the virtio-net header.
    pub len: u32,
}

impl<'a> OutFrame<'a> {
    /// Appends the frame to a gather list, with its virtio-net header or without. False if it has too many parts.
    #[inline]
    pub fn gather(&self, with_header: bool, into: &mut Gather<'a>) -> bool {
        let first = if with_header { self.first } else { &self.first[VNET_HDR_BYTES..] };
        into.push(first) && into.push(self.rest) && self.tail.iter().all(|piece| into.push_piece(*piece))
    }

    /// The whole frame as one slice, if it is contiguous (with its virtio-net header or without).
    #[inline]
    #[must_use]
    pub fn contiguous(&self, with_header: bool) -> Option<&'a [u8]> {
        (self.rest.is_empty() && self.tail.is_empty())
            .then(|| if with_header { self.first } else { &self.first[VNET_HDR_BYTES..] })
    }

    /// The private parts in order (after the virtio-net header), and the tail: for drivers that copy into memory
    /// of their own.
    #[inline]
    #[must_use]
    pub fn parts(&self) -> (&'a [u8], &'a [u8], &'a [Piece]) {
        (&self.first[VNET_HDR_BYTES..], self.rest, self.tail)
    }

    /// The virtio-net header.
    #[inline]
    #[must_use]
    pub fn header(&self) -> &'a [u8; VNET_HDR_BYTES] {
        self.first[..VNET_HDR_BYTES].try_into().expect("a frame begins with its virtio-net header")
    }

    /// Copies the frame without its virtio-net header; returns its length, or `None` if `to` is too short.
    pub fn copy_to(&self, to: &mut [u8]) -> Option<usize> {
        let len = self.len as usize;
        if to.len() < len {
            return None;
        }
        let (first, rest, tail) = self.parts();
        to[..first.len()].copy_from_slice(first);
        let mut at = first.len();
        to[at..at + rest.len()].copy_from_slice(rest);
        at += rest.len();
        for piece in tail {
            at += piece.copy_to(&mut to[at..len]);
        }
        Some(at)
    }
}

/// The frames for one transmit queue, in order.
#[derive(Clone, Copy, Debug)]
pub struct Egress<'a> {
    frames: &'a [OutFrame<'a>],
}

impl<'a> Egress<'a> {
    /// Frames to send.
    #[must_use]
    pub const fn new(frames: &'a [OutFrame<'a>]) -> Egress<'a> {
        Egress { frames }
    }

    /// How many frames there are.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frames.
    #[inline]
    #[must_use]
    pub const fn frames(&self) -> &'a [OutFrame<'a>] {
        self.frames
    }

    /// The frames, one after the other.
    #[inline]
    pub fn iter(&self) -> std::slice::Iter<'a, OutFrame<'a>> {
        self.frames.iter()
    }
}
