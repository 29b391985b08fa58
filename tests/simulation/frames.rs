//! Random frames: mostly what hosts send, with enough of everything else.

use switch_core::frame::offload::{Gso, Offload};
use vswitch_tests::rng::Rng;

use super::model::{Frame, Mac, Port, Wire};

/// Addresses of hosts that exist.
pub const HOSTS: usize = 14;
/// VIDs that are used, here and there wrongly.
pub const VIDS: [u16; 4] = [5, 6, 7, 4094];

pub fn host(n: usize) -> Mac {
    [2, 0, 0, 0, (n % 3) as u8, n as u8]
}

fn destination(rng: &mut Rng) -> Mac {
    match rng.below(100) {
        0..60 => host(rng.below(HOSTS)),
        60..75 => [0xff; 6],
        75..85 => [1, 0, 0x5e, 0, 0, rng.below(3) as u8],
        85..93 => [1, 0x80, 0xc2, 0, 0, rng.below(18) as u8],
        93..98 => [2, 9, 9, 9, 9, rng.below(255) as u8],
        _ => [0; 6],
    }
}

/// Most hosts stay at home: three at each port.
fn source(rng: &mut Rng, port: u16) -> Mac {
    match rng.below(100) {
        0..88 => host((usize::from(port) * 3 + rng.below(3)) % HOSTS),
        88..96 => host(rng.below(HOSTS)),
        96..98 => [3, 0, 0, 0, 0, 1],
        _ => [0; 6],
    }
}

fn tag(tpid: u16, pcp: usize, vid: u16) -> [u8; 4] {
    let (tpid, tci) = (tpid.to_be_bytes(), ((pcp << 13) as u16 | vid).to_be_bytes());
    [tpid[0], tpid[1], tci[0], tci[1]]
}

fn any_tag(rng: &mut Rng) -> [u8; 4] {
    let vid = if rng.chance(25) { 0 } else { rng.pick(&VIDS) };
    tag(rng.pick(&[0x8100, 0x8100, 0x88a8]), rng.below(8), vid)
}

/// Tags as the port expects them in most cases, or any.
fn tags(rng: &mut Rng, port: &Port) -> Vec<u8> {
    let mut tags = Vec::new();
    if rng.chance(80) && !port.members.is_empty() {
        if let Wire::Tag(tpid, vid) = rng.pick(&port.members).wire {
            tags.extend(tag(tpid, rng.below(8), vid));
        } else if rng.chance(15) {
            tags.extend(tag(0x8100, rng.below(8), 0));
        }
    } else {
        tags.extend(any_tag(rng));
    }
    while rng.chance(15) && tags.len() < 16 {
        tags.extend(any_tag(rng));
    }
    tags
}

fn length(rng: &mut Rng) -> usize {
    match rng.below(100) {
        0..70 => rng.between(60, 200),
        70..85 => rng.between(570, 610),
        85..95 => rng.between(1500, 1530),
        95..98 => rng.between(2100, 9100),
        _ => rng.between(60_000, 65_500),
    }
}

/// A frame for a port. It ends with `id`, unless it is too short or owes something.
pub fn random(rng: &mut Rng, number: u16, port: &Port, id: u64) -> Frame {
    let mut bytes = [destination(rng), source(rng, number)].concat();
    bytes.extend(tags(rng, port));
    if rng.chance(4) {
        bytes.truncate(rng.below(20));
        return Frame { bytes, owed: Offload::NONE };
    }
    if rng.chance(12) {
        return owing(rng, bytes);
    }
    bytes.extend([0x88, 0xb5]);
    let payload = length(rng).saturating_sub(bytes.len() + 8);
    bytes.resize(bytes.len() + payload, id as u8);
    bytes.extend(id.to_be_bytes());
    Frame { bytes, owed: Offload::NONE }
}

/// Appends IP and transport, and owes a checksum or segmentation; one in five lies about it. Ports follow from nothing,
/// so all of a pair of hosts is one flow.
fn owing(rng: &mut Rng, mut bytes: Vec<u8>) -> Frame {
    let (v6, tcp) = (rng.chance(50), rng.chance(60));
    let payload = if rng.chance(5) { rng.between(10_000, 60_000) } else { rng.between(0, 4000) };
    let (src, dst) = (bytes[11], bytes[5]);
    let transport = if tcp { 20 } else { 8 };
    let proto = if tcp { 6 } else { 17 };
    if v6 {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        bytes.extend(((transport + payload) as u16).to_be_bytes());
        bytes.extend([proto, 64]);
        bytes.extend([[0xfd; 15].as_slice(), &[src], &[0xfd; 15], &[dst]].concat());
    } else {
        bytes.extend([8, 0, 0x45, 0]);
        bytes.extend(((20 + transport + payload) as u16).to_be_bytes());
        bytes.extend([0xff, 0xfe, 0x40, 0, 64, proto, 0, 0, 10, 0, 0, src, 10, 0, 0, dst]);
    }
    let l4 = bytes.len();
    bytes.extend([0x12, 0x34, 0, 80]);
    if tcp {
        bytes.extend([0xff, 0xff, 0xf0, 0, 0, 0, 0, 1, 0x50, rng.pick(&[0x10, 0x19, 0x99]), 1, 0, 0, 0, 0, 0]);
    } else {
        bytes.extend(((8 + payload) as u16).to_be_bytes());
        bytes.extend([0, 0]);
    }
    // The partial checksum: any number will do, as long as both sides sum it up alike.
    let offset = if tcp { 16 } else { 6 };
    bytes[l4 + offset] = rng.next() as u8;
    bytes.extend((0..payload).map(|n| (n * 7) as u8));
    let gso = match (tcp, v6) {
        (true, false) => Gso::TcpV4,
        (true, true) => Gso::TcpV6,
        (false, _) => Gso::UdpL4,
    };
    let mut owed = Offload {
        needs_csum: true,
        gso: if rng.chance(70) { gso } else { Gso::None },
        gso_size: rng.pick(&[64, 500, 536, 1400, 1448]),
        csum_start: l4 as u16,
        csum_offset: offset as u16,
        ..Offload::NONE
    };
    if rng.chance(20) {
        match rng.below(5) {
            0 => owed.csum_start = 60_000,
            1 => owed.csum_start = 8,
            2 => owed.gso_size = 63,
            3 => owed.needs_csum = false,
            _ => owed.gso = rng.pick(&[Gso::TcpV4, Gso::TcpV6, Gso::UdpL4, Gso::Ufo]),
        }
    }
    Frame { bytes, owed }
}
