//! The model's own idea of owed work: judged and done on whole frames, byte by byte (virtio 1.3 §5.1.6.2).

use switch_core::frame::offload::{Gso, Offload};

use super::model::Frame;

/// Where the headers are: end of layer 2, layer 4, payload; and whether it is IPv6 and TCP.
struct Shape {
    l2: usize,
    l4: usize,
    payload: usize,
    v6: bool,
    tcp: bool,
}

pub fn owes(owed: &Offload) -> bool {
    owed.needs_csum || owed.gso != Gso::None
}

/// Layer 2 ends after at most two tags.
fn layer_2(bytes: &[u8]) -> usize {
    let is_tag = |at: usize| matches!(bytes.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8]));
    match (is_tag(12), is_tag(12) && is_tag(16)) {
        (_, true) => 22,
        (true, _) => 18,
        _ => 14,
    }
}

fn shape(bytes: &[u8]) -> Option<Shape> {
    let l2 = layer_2(bytes);
    let (v6, l4, proto) = match bytes.get(l2 - 2..l2)? {
        [0x08, 0x00] => (false, l2 + 20, *bytes.get(l2 + 9)?),
        [0x86, 0xdd] => (true, l2 + 40, *bytes.get(l2 + 6)?),
        _ => return None,
    };
    let tcp = proto == 6;
    let payload = l4 + if tcp { 20 } else { 8 };
    ((tcp || proto == 17) && bytes.len() >= payload).then_some(Shape { l2, l4, payload, v6, tcp })
}

/// What the switch carries on of what a sender claims, or nothing if the claim does not fit.
pub fn judge(bytes: &[u8], owed: Offload) -> Option<Offload> {
    if !owes(&owed) {
        return Some(Offload::NONE);
    }
    let end = usize::from(owed.csum_start) + usize::from(owed.csum_offset) + 2;
    if !owed.needs_csum || usize::from(owed.csum_start) < layer_2(bytes) || end > bytes.len() {
        return None;
    }
    let checksum_only = Offload { gso: Gso::None, hdr_len: 0, gso_size: 0, ..owed };
    if owed.gso == Gso::None {
        return Some(checksum_only);
    }
    let shape = shape(bytes)?;
    let right = match owed.gso {
        Gso::TcpV4 => shape.tcp && !shape.v6,
        Gso::TcpV6 => shape.tcp && shape.v6,
        Gso::UdpL4 => !shape.tcp,
        _ => false,
    };
    let offset = if shape.tcp { 16 } else { 6 };
    if !right || owed.gso_size < 64 || usize::from(owed.csum_start) != shape.l4 || owed.csum_offset != offset {
        return None;
    }
    if bytes.len() - shape.payload <= usize::from(owed.gso_size) {
        return Some(checksum_only);
    }
    Some(Offload { hdr_len: shape.payload as u16, ..owed })
}

/// The Internet checksum, as RFC 1071 explains it.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn get(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The frame with nothing owed: itself or its segments. Empty: it cannot be done.
pub fn complete(frame: &Frame) -> Vec<Frame> {
    let done = |bytes| Frame { bytes, owed: Offload::NONE };
    let owed = frame.owed;
    if owed.gso == Gso::None {
        let (start, offset) = (usize::from(owed.csum_start), usize::from(owed.csum_offset));
        let mut bytes = frame.bytes.clone();
        let sum = checksum(&bytes[start..]);
        put(&mut bytes, start + offset, if sum == 0 && offset == 6 { 0xffff } else { sum });
        return vec![done(bytes)];
    }
    let Some(shape) = shape(&frame.bytes) else { return Vec::new() };
    let size = usize::from(owed.gso_size);
    let payload = &frame.bytes[shape.payload..];
    let last = payload.len().div_ceil(size) - 1;
    let segment = |(nth, part): (usize, &[u8])| {
        let mut bytes = [&frame.bytes[..shape.payload], part].concat();
        let (l2, l4) = (shape.l2, shape.l4);
        let transport_len = (bytes.len() - l4) as u16;
        let addresses = if shape.v6 {
            put(&mut bytes, l2 + 4, transport_len);
            bytes[l2 + 8..l2 + 40].to_vec()
        } else {
            put(&mut bytes, l2 + 2, transport_len + 20);
            let id = get(&bytes, l2 + 4).wrapping_add(nth as u16);
            put(&mut bytes, l2 + 4, id);
            put(&mut bytes, l2 + 10, 0);
            let sum = checksum(&bytes[l2..l2 + 20]);
            put(&mut bytes, l2 + 10, sum);
            bytes[l2 + 12..l2 + 20].to_vec()
        };
        let field = l4 + if shape.tcp { 16 } else { 6 };
        if shape.tcp {
            let sequence = u32::from_be_bytes(bytes[l4 + 4..l4 + 8].try_into().expect("four"));
            bytes[l4 + 4..l4 + 8].copy_from_slice(&sequence.wrapping_add((nth * size) as u32).to_be_bytes());
            if nth < last {
                bytes[l4 + 13] &= !0x09;
            }
            if nth > 0 {
                bytes[l4 + 13] &= !0x80;
            }
        } else {
            put(&mut bytes, l4 + 4, transport_len);
        }
        put(&mut bytes, field, 0);
        let protocol = [0, if shape.tcp { 6 } else { 17 }];
        let sum = checksum(&[&addresses, &protocol[..], &transport_len.to_be_bytes(), &bytes[l4..]].concat());
        put(&mut bytes, field, if sum == 0 && !shape.tcp { 0xffff } else { sum });
        done(bytes)
    };
    payload.chunks(size).enumerate().map(segment).collect()
}
