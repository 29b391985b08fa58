//! Judging an untrusted virtio-net header against our own parse of the frame (virtio 1.3 §5.1.6.2).
//!
//! What passes here is safe to hand to another guest or to the kernel, and to complete in software. Nothing is taken
//! from the sender that we can tell ourselves: `hdr_len` is ours. Pure functions, any thread.

use super::{
    layout::{L3, L4, Layout, link},
    offload::{Gso, Offload},
};
use crate::{batch::MAX_FRAME_BYTES, verdict::DropReason};

/// The smallest segment that a sender may ask for: it bounds the work that one frame can cause.
pub const MIN_GSO_SIZE: u16 = 64;
/// Segments that one frame can yield at most.
pub const MAX_SEGMENTS: usize = MAX_FRAME_BYTES.div_ceil(MIN_GSO_SIZE as usize);

/// The offload as the switch carries it on, or why the frame is dropped.
///
/// # Errors
/// [`DropReason::BadOffload`]: the header does not fit the frame.
#[inline]
pub fn validate(head: &[u8], frame_len: usize, offload: Offload) -> Result<Offload, DropReason> {
    if !offload.owes() {
        return Ok(Offload { data_valid: offload.data_valid, ..Offload::NONE });
    }
    judge(head, frame_len, offload).ok_or(DropReason::BadOffload)
}

fn judge(head: &[u8], frame_len: usize, offload: Offload) -> Option<Offload> {
    if !offload.needs_csum || frame_len > MAX_FRAME_BYTES {
        return None;
    }
    let known = &head[..head.len().min(frame_len)];
    let (l2_len, _) = link(known)?;
    // The field must be in the private head: a completed checksum is written there, never to leased memory.
    let field_end = usize::from(offload.csum_start) + usize::from(offload.csum_offset) + 2;
    if usize::from(offload.csum_start) < l2_len || field_end > known.len() {
        return None;
    }
    let csum_only = Offload { gso: Gso::None, ecn: false, hdr_len: 0, gso_size: 0, ..offload };
    if offload.gso == Gso::None {
        return Some(csum_only);
    }
    let layout = Layout::parse(known, frame_len)?;
    let fits = match offload.gso {
        Gso::TcpV4 => layout.l3 == L3::V4 && layout.l4 == L4::Tcp,
        Gso::TcpV6 => layout.l3 == L3::V6 && layout.l4 == L4::Tcp,
        Gso::UdpL4 => layout.l4 == L4::Udp && !offload.ecn,
        Gso::None | Gso::Ufo => false,
    };
    if !fits
        || offload.gso_size < MIN_GSO_SIZE
        || offload.csum_start != layout.l4_offset
        || offload.csum_offset != layout.csum_offset()
    {
        return None;
    }
    if frame_len - usize::from(layout.payload_offset) <= usize::from(offload.gso_size) {
        return Some(csum_only);
    }
    Some(Offload { hdr_len: layout.payload_offset, ..offload })
}

/// Layer-2 length of one full segment of a validated GSO frame, by which it is judged against an MTU.
#[inline]
#[must_use]
pub fn gso_packet_len(offload: &Offload) -> u32 {
    u32::from(offload.hdr_len) + u32::from(offload.gso_size)
}
