//! Completed frames are judged by etherparse: its strict parse and its own checksum functions, none of which ours use.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::{frame::validate::validate, sys::buf::Arena, verdict::DropReason};

/// A frame split into a private head and pieces, with the arena that the pieces lie in.
struct Split {
    head: Vec<u8>,
    tail: Vec<Piece>,
    _arena: Arena,
}

fn split(frame: &[u8], head_len: usize, cuts: &[usize]) -> Split {
    let mut arena = Arena::new(frame.len());
    let mut cuts: Vec<usize> = cuts.iter().map(|c| (*c).clamp(head_len, frame.len())).collect();
    cuts.push(frame.len());
    cuts.sort_unstable();
    let (mut tail, mut from) = (Vec::new(), head_len);
    for to in cuts {
        arena.spare()[..to - from].copy_from_slice(&frame[from..to]);
        tail.push(arena.commit(to - from));
        from = to;
    }
    Split { head: frame[..head_len].to_vec(), tail, _arena: arena }
}

fn bytes_of(split: &Split, derived: Derived<'_>) -> Vec<u8> {
    assert_eq!(derived.header[..VNET_HDR_BYTES], [0; VNET_HDR_BYTES]);
    let mut out = derived.header[VNET_HDR_BYTES..].to_vec();
    out.extend_from_slice(&split.head[derived.head_range.0 as usize..derived.head_range.1 as usize]);
    for piece in derived.tail {
        let mut part = vec![0; piece.len()];
        piece.copy_to(&mut part);
        out.extend_from_slice(&part);
    }
    assert_eq!(out.len(), derived.len as usize);
    out
}

/// A big frame with wrong lengths left to the segmenter, `tags` VLAN tags, and the offload of an honest sender.
fn build(v6: bool, tcp: bool, tags: usize, payload: &[u8], gso_size: u16) -> (Vec<u8>, Offload) {
    let mut frame = Vec::new();
    let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if v6 { link.ipv6([1; 16], [9; 16], 64) } else { link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64) };
    if tcp {
        ip.tcp(5000, 80, 0xffff_ff00, 1000).psh().fin().ack(7).cwr().write(&mut frame, payload).expect("fits");
    } else {
        ip.udp(5000, 53).write(&mut frame, payload).expect("fits");
    }
    for _ in 0..tags {
        frame.splice(12..12, [0x81, 0, 0, 5]);
    }
    let l4 = 14 + 4 * tags + if v6 { 40 } else { 20 };
    let csum_offset = if tcp { 16 } else { 6 };
    // The partial checksum of an honest sender: the pseudo-header's sum, not complemented.
    let layout = Layout::parse(&frame, frame.len()).expect("TCP or UDP");
    let partial = !pseudo(&frame, &layout, payload.len()).finish();
    frame[l4 + csum_offset..l4 + csum_offset + 2].copy_from_slice(&partial.to_be_bytes());
    let gso = match (gso_size, tcp, v6) {
        (0, ..) => Gso::None,
        (_, false, _) => Gso::UdpL4,
        (_, true, false) => Gso::TcpV4,
        (_, true, true) => Gso::TcpV6,
    };
    let offload = Offload {
        needs_csum: true,
        gso,
        gso_size,
        csum_start: l4 as u16,
        csum_offset: csum_offset as u16,
        ..Offload::NONE
    };
    (frame, offload)
}

/// The payload of a strictly parsed frame whose checksums all hold; `nth` of `count` segments.
fn check(bytes: &[u8], nth: usize, count: usize, sent: usize) -> Vec<u8> {
    let packet = SlicedPacket::from_ethernet(bytes).expect("a segment parses strictly");
    let transport = packet.transport.expect("TCP or UDP");
    match (packet.net.expect("IP"), transport) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(usize::from(ip.identification), nth);
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(ip.source, ip.destination).expect("short"));
            check_tcp(&tcp.to_header(), nth, count, sent);
            tcp.payload().to_vec()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let ip = ip.header().to_header();
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(ip.source, ip.destination).expect("short"));
            check_tcp(&tcp.to_header(), nth, count, sent);
            tcp.payload().to_vec()
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let (ip, header) = (ip.header().to_header(), udp.to_header());
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(header.checksum, header.calc_checksum_ipv4(&ip, udp.payload()).expect("short"));
            udp.payload().to_vec()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let (ip, header) = (ip.header().to_header(), udp.to_header());
            assert_eq!(header.checksum, header.calc_checksum_ipv6(&ip, udp.payload()).expect("short"));
            udp.payload().to_vec()
        }
        other => panic!("unexpected {other:?}"),
    }
}

fn check_tcp(tcp: &etherparse::TcpHeader, nth: usize, count: usize, sent: usize) {
    assert_eq!(tcp.sequence_number, 0xffff_ff00u32.wrapping_add(sent as u32));
    assert_eq!((tcp.fin, tcp.psh), (nth + 1 == count, nth + 1 == count));
    assert_eq!(tcp.cwr, nth == 0);
    assert!(tcp.ack);
}

proptest! {
    #[test]
    fn segments_hold_up_against_etherparse(
        v6: bool, tcp: bool, tags in 0usize..3,
        payload in prop::collection::vec(any::<u8>(), 0..6000),
        gso_size in prop_oneof![Just(0u16), 64u16..2000],
        head in 0usize..3000, cuts in prop::collection::vec(0usize..6000, 0..6),
    ) {
        let (frame, offload) = build(v6, tcp, tags, &payload, gso_size);
        let layout = Layout::parse(&frame, frame.len()).expect("TCP or UDP");
        let head = (usize::from(layout.payload_offset) + head).min(frame.len());
        let split = split(&frame, head, &cuts);
        let offload = validate(&split.head, frame.len(), offload).expect("an honest offload");
        let mut completer = Completer::new();
        let range = completer.complete(&split.head, &split.tail, frame.len(), offload).expect("completes");
        let count = range.len();
        let expected = if gso_size == 0 { 1 } else { payload.len().div_ceil(usize::from(gso_size)).max(1) };
        prop_assert_eq!(count, expected);
        let mut got = Vec::new();
        for (nth, index) in range.enumerate() {
            let part = check(&bytes_of(&split, completer.derived(index)), nth, count, got.len());
            got.extend_from_slice(&part);
        }
        prop_assert_eq!(got, payload);
    }

    #[test]
    fn arbitrary_offloads_never_panic_and_accepted_ones_complete(
        v6: bool, tcp: bool, tags in 0usize..3, noise in prop::collection::vec((0usize..90, any::<u8>()), 0..4),
        header: [u8; 12], honest: bool, cut in 0usize..400,
    ) {
        let (mut frame, offload) = build(v6, tcp, tags, &[7; 300], 100);
        for (at, value) in noise {
            frame[at] = value;
        }
        let split = split(&frame, cut.min(frame.len()), &[]);
        let offload = if honest { offload } else { Offload::decode(&header).unwrap_or(offload) };
        let mut completer = Completer::new();
        if let Ok(offload) = validate(&split.head, frame.len(), offload) {
            let completed = completer.complete(&split.head, &split.tail, frame.len(), offload);
            let field_end = usize::from(offload.csum_start) + usize::from(offload.csum_offset) + 2;
            let long = usize::from(offload.hdr_len).max(field_end) > MAX_HEADER_BYTES;
            prop_assert_eq!(completed.is_err(), long, "{:?}", completed);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 0usize..70_000, header: [u8; 12]) {
        if let Ok(offload) = Offload::decode(&header) {
            let _ = validate(&bytes, len, offload);
        }
        let _ = crate::frame::flow::flow_hash(&bytes, None);
        let _ = Layout::parse(&bytes, len);
    }
}

#[test]
fn wrong_offloads_are_refused() {
    let (frame, good) = build(false, true, 1, &[1; 1000], 100);
    let wrong = [
        Offload { needs_csum: false, ..good },
        Offload { gso: Gso::Ufo, ..good },
        Offload { gso: Gso::TcpV6, ..good },
        Offload { gso: Gso::UdpL4, ..good },
        Offload { gso_size: 63, ..good },
        Offload { csum_start: good.csum_start - 4, ..good },
        Offload { csum_offset: 6, ..good },
        Offload { gso: Gso::None, csum_start: 14, ..good },
        Offload { gso: Gso::None, csum_offset: 2000, ..good },
    ];
    for offload in wrong {
        assert_eq!(validate(&frame, frame.len(), offload), Err(DropReason::BadOffload), "{offload:?}");
    }
    let judged = validate(&frame, frame.len(), Offload { hdr_len: 9999, ..good }).expect("good");
    assert_eq!(judged.hdr_len, 14 + 4 + 20 + 20);
    assert_eq!(crate::frame::validate::gso_packet_len(&judged), 58 + 100);
}

#[test]
fn a_full_completer_takes_nothing_and_goes_on_after_clear() {
    let (frame, offload) = build(false, false, 0, &vec![3; 65_000], 64);
    let offload = validate(&frame, frame.len(), offload).expect("good");
    let mut completer = Completer::new();
    let first = completer.complete(&frame, &[], frame.len(), offload).expect("room");
    assert_eq!(first, 0..1016);
    assert_eq!(completer.complete(&frame, &[], frame.len(), offload), Ok(1016..2032));
    assert_eq!(completer.complete(&frame, &[], frame.len(), offload), Err(CompleteError::Full));
    completer.clear();
    assert_eq!(completer.complete(&frame, &[], frame.len(), offload), Ok(0..1016));
}
