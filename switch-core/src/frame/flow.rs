//! A hash of the flow that a frame belongs to, for the choice of an egress queue.
//!
//! Symmetric: both directions of a flow hash alike. Fragments hash by addresses only, so that all of a packet go one
//! way; what is not IP hashes by its pair of MAC addresses. Not keyed: a collision costs balance, nothing else.

use super::layout::{L3, Network, PROTO_TCP, PROTO_UDP};

#[inline]
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (value ^ (value >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[inline]
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[inline]
fn address(bytes: &[u8]) -> u64 {
    if bytes.len() > 8 { mix(number(&bytes[..8])) ^ number(&bytes[8..]) } else { number(bytes) }
}

/// The hash of a frame's flow. `network` is the frame's parse, if the caller has one already.
#[must_use]
pub fn flow_hash(head: &[u8], network: Option<&Network>) -> u32 {
    let parsed = network.copied().or_else(|| Network::parse(head));
    let sum = match parsed {
        Some(network) => {
            let (at, len) = match network.l3 {
                L3::V4 => (usize::from(network.l3_offset) + 12, 4),
                L3::V6 => (usize::from(network.l3_offset) + 8, 16),
            };
            let l4 = usize::from(network.l4_offset);
            let ports = match network.proto {
                PROTO_TCP | PROTO_UDP if !network.fragment => head.get(l4..l4 + 4).unwrap_or(&[0; 4]),
                _ => &[0; 4],
            };
            let Some(addresses) = head.get(at..at + 2 * len) else { return 0 };
            let source = mix(address(&addresses[..len])) ^ number(&ports[..2]);
            let destination = mix(address(&addresses[len..])) ^ number(&ports[2..]);
            // No protocol number: the fragments of a packet say different ones in IPv6.
            mix(source).wrapping_add(mix(destination))
        }
        None => match head.get(..12) {
            Some(pair) => mix(number(&pair[..6])).wrapping_add(mix(number(&pair[6..]))),
            None => 0,
        },
    };
    (mix(sum) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn frame(from: u8, to: u8, ports: (u16, u16)) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ethernet2([from; 6], [to; 6])
            .ipv4([10, 0, 0, from], [10, 0, 0, to], 9)
            .udp(ports.0, ports.1)
            .write(&mut out, b"x")
            .expect("fits");
        out
    }

    #[test]
    fn both_directions_hash_alike_and_flows_differ() {
        let there = flow_hash(&frame(2, 4, (1000, 53)), None);
        assert_eq!(there, flow_hash(&frame(4, 2, (53, 1000)), None));
        assert_ne!(there, flow_hash(&frame(2, 4, (1001, 53)), None));
        let mut arp = frame(2, 4, (1, 2));
        arp[12..14].copy_from_slice(&[8, 6]);
        let mut back = frame(4, 2, (1, 2));
        back[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(flow_hash(&arp, None), flow_hash(&back, None));
        let mut fragment = frame(2, 4, (1000, 53));
        fragment[20] |= 0x20;
        let mut later = frame(2, 4, (7, 8));
        later[21] = 9;
        assert_eq!(flow_hash(&fragment, None), flow_hash(&later, None));
    }
}
