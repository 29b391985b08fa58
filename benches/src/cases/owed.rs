//! Frames on which work is owed, for a port that takes only complete ones.

use switch_core::{
    batch::BATCH_FRAMES,
    frame::offload::{Gso, Offload},
    port::mem::MemFrame,
    topology::Dress,
};

use super::{Case, frame, one_way, station};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
const HEADERS: usize = ETHERNET + IPV4 + TCP;
/// The longest IP packet with an Ethernet header.
const LONGEST: usize = 65_535 + ETHERNET;
/// TCP payload of a packet of 1500 bytes.
const MSS: u16 = 1460;

/// TCP over IPv4 as a driver hands it over: the checksum is left out, `offload` says so.
pub fn tcp(bytes: usize, gso: Gso) -> MemFrame {
    let mut made = frame(station(1), bytes);
    made.bytes[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
    let packet = &mut made.bytes[ETHERNET..];
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&(packet.len() as u16).to_be_bytes());
    packet[..IPV4].copy_from_slice(&ip);
    // Ports, sequence and acknowledgement, 5 words with ACK, window, no checksum.
    let tcp = [0x1f, 0x90, 0xc0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    packet[IPV4..IPV4 + TCP].copy_from_slice(&tcp);
    made.offload = Offload {
        needs_csum: true,
        csum_start: (ETHERNET + IPV4) as u16,
        csum_offset: 16,
        gso,
        hdr_len: if gso == Gso::None { 0 } else { HEADERS as u16 },
        gso_size: if gso == Gso::None { 0 } else { MSS },
        ..Offload::NONE
    };
    made
}

/// The frame of which many segments are made.
#[must_use]
pub fn long() -> MemFrame {
    tcp(LONGEST, Gso::TcpV4)
}

pub(super) fn checksum() -> anyhow::Result<Case> {
    one_way(vec![tcp(1514, Gso::None)], BATCH_FRAMES, [Dress::Untagged; 2])
}

pub(super) fn segments() -> anyhow::Result<Case> {
    one_way(vec![long()], 1, [Dress::Untagged; 2])
}
