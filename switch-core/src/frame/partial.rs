//! Telling from a frame alone that its checksum is still owed, where nobody says so (AF_XDP).
//!
//! A sender that leaves a TCP or UDP checksum to the device writes the folded sum of the pseudo-header into its place, not
//! complemented (Linux: `CHECKSUM_PARTIAL`). A frame with exactly that number there is taken for an owed one. Of complete
//! frames 1 in 65,535 looks so too, and completing it again changes nothing: its sum is all ones with that very number in
//! the field, so the number is what the completion finds. Pure functions, any thread.

use super::{
    checksum::Sum,
    layout::{L3, L4, Layout, PROTO_TCP, PROTO_UDP},
    offload::Offload,
    vlan::be16,
};

/// What is owed on a frame of `frame_len` bytes of which `head` is the beginning: its checksum, or nothing.
#[inline]
#[must_use]
pub fn partial_checksum(head: &[u8], frame_len: usize) -> Offload {
    owed(head, frame_len).unwrap_or(Offload::NONE)
}

fn owed(head: &[u8], frame_len: usize) -> Option<Offload> {
    let layout = Layout::parse(head, frame_len)?;
    let (l3, l4) = (usize::from(layout.l3_offset), usize::from(layout.l4_offset));
    // Layers 3 and above end where IP says; the rest is padding.
    let (end, addresses) = match layout.l3 {
        L3::V4 => (l3 + usize::from(be16(head, l3 + 2)?), l3 + 12..l3 + 20),
        L3::V6 => (l3 + 40 + usize::from(be16(head, l3 + 4)?), l3 + 8..l3 + 40),
    };
    if end > frame_len || end < usize::from(layout.payload_offset) {
        return None;
    }
    // The completion sums up to the end of the frame.
    if end < frame_len && (frame_len > head.len() || head[end..frame_len].iter().any(|byte| *byte != 0)) {
        return None;
    }
    let mut pseudo = Sum::new();
    pseudo.add(head.get(addresses)?);
    pseudo.add_u16(u16::from(if layout.l4 == L4::Tcp { PROTO_TCP } else { PROTO_UDP }));
    pseudo.add_u16(u16::try_from(end - l4).ok()?);
    let field = be16(head, l4 + usize::from(layout.csum_offset()))?;
    (field == !pseudo.finish()).then_some(Offload {
        needs_csum: true,
        csum_start: layout.l4_offset,
        csum_offset: layout.csum_offset(),
        ..Offload::NONE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{checksum::checksum, complete::Completer, validate::validate};

    /// TCP or UDP over IPv4 or IPv6 with its checksum owed, behind a tag or not.
    fn owed_frame(v6: bool, proto: u8, tag: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if tag {
            frame.extend([0x81, 0, 0, 7]);
        }
        let header = if proto == PROTO_TCP { 20 } else { 8 };
        let l4_len = (header + payload.len()) as u16;
        let mut pseudo = Sum::new();
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(l4_len.to_be_bytes());
            frame.extend([proto, 64]);
            let addresses: Vec<u8> = (1..33).collect();
            frame.extend(&addresses);
            pseudo.add(&addresses);
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + l4_len).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            pseudo.add(&[10, 0, 0, 1, 10, 0, 0, 2]);
        }
        pseudo.add_u16(proto.into());
        pseudo.add_u16(l4_len);
        let partial = (!pseudo.finish()).to_be_bytes();
        if proto == PROTO_TCP {
            frame.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0]);
            frame.extend(partial);
            frame.extend([0, 0]);
        } else {
            frame.extend([0, 80, 0, 81]);
            frame.extend(l4_len.to_be_bytes());
            frame.extend(partial);
        }
        frame.extend(payload);
        frame
    }

    fn completed(frame: &[u8], offload: Offload) -> Vec<u8> {
        let offload = validate(frame, frame.len(), offload).expect("what we say ourselves is valid");
        let mut completer = Completer::new();
        let range = completer.complete(frame, &[], frame.len(), offload).expect("done");
        let derived = completer.derived(range.start);
        let (from, to) = derived.head_range;
        [&derived.header[crate::frame::offload::VNET_HDR_BYTES..], &frame[from as usize..to as usize]].concat()
    }

    #[test]
    fn an_owed_checksum_is_seen_and_a_complete_one_is_left_alone() {
        for (v6, proto, tag) in
            [(false, PROTO_TCP, false), (false, PROTO_UDP, true), (true, PROTO_TCP, true), (true, PROTO_UDP, false)]
        {
            for len in [0, 1, 37, 1400] {
                let payload: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
                let frame = owed_frame(v6, proto, tag, &payload);
                let offload = partial_checksum(&frame, frame.len());
                assert!(offload.needs_csum, "v6 {v6} proto {proto} tag {tag} len {len}");
                let whole = completed(&frame, offload);
                assert_ne!(whole, frame);
                assert_eq!(partial_checksum(&whole, whole.len()), Offload::NONE);
                // Padded with zeros it is seen as well; with anything else it is not touched.
                let padded = [&frame[..], &[0; 6]].concat();
                assert!(partial_checksum(&padded, padded.len()).needs_csum);
                let noise = [&frame[..], &[1; 6]].concat();
                assert_eq!(partial_checksum(&noise, noise.len()), Offload::NONE);
            }
        }
    }

    #[test]
    fn a_complete_frame_that_looks_owed_stays_as_it_is() {
        // The payload makes up for the pseudo-header, so that the right checksum is the sum of the pseudo-header.
        let mut frame = owed_frame(false, PROTO_TCP, false, &[0, 0]);
        let l4 = 34;
        let field = be16(&frame, l4 + 16).expect("there");
        let last = frame.len() - 2;
        let fill = checksum(&[&frame[l4..last], &field.to_be_bytes()].concat());
        frame[last..].copy_from_slice(&fill.to_be_bytes());
        let offload = partial_checksum(&frame, frame.len());
        assert!(offload.needs_csum);
        assert_eq!(completed(&frame, offload), frame);
    }

    #[test]
    fn what_is_neither_tcp_nor_udp_owes_nothing() {
        for frame in [vec![0; 60], vec![0xff; 13], owed_frame(false, 1, false, &[0; 40])] {
            assert_eq!(partial_checksum(&frame, frame.len()), Offload::NONE);
        }
        // No checksum at all, which UDP over IPv4 may have.
        let mut none = owed_frame(false, PROTO_UDP, false, b"data");
        none[40..42].fill(0);
        assert_eq!(partial_checksum(&none, none.len()), Offload::NONE);
        // A length that goes beyond the frame.
        let frame = owed_frame(true, PROTO_UDP, false, &[7; 40]);
        assert_eq!(partial_checksum(&frame[..80], 80), Offload::NONE);
    }
}
