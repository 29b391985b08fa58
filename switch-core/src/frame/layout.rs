//! Where the headers of a frame lie, by our own parse of its private head.
//!
//! A header that is not wholly in the head is "not known", which is `None`: nothing here looks at the tail or trusts the
//! sender's offsets. [`Network`] stops at layer 3 (fragments included), [`Layout`] goes through TCP or UDP. Every loop is
//! bounded. Pure functions, any thread.

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice};

use super::vlan::{TAG_BYTES, TAG_OFFSET, be16, is_tpid};

/// VLAN tags that are looked through.
pub const MAX_TAGS: usize = 2;
/// IPv6 extension headers that are looked through.
pub const MAX_EXTENSIONS: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IP protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = 17;

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L3 {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Layers 2 and 3 of an IP frame. Offsets count from the destination address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Which IP.
    pub l3: L3,
    /// Where the IP header begins: the length of addresses, tags and EtherType.
    pub l3_offset: u16,
    /// Where the IP payload begins, after options or extension headers.
    pub l4_offset: u16,
    /// The IP protocol number at `l4_offset`.
    pub proto: u8,
    /// The frame is a fragment, the first one or a later one.
    pub fragment: bool,
}

/// Addresses, tags and EtherType: their length and the EtherType after at most [`MAX_TAGS`] tags.
#[inline]
#[must_use]
pub fn link(head: &[u8]) -> Option<(usize, u16)> {
    let mut at = TAG_OFFSET;
    let mut ether_type = be16(head, at)?;
    for _ in 0..MAX_TAGS {
        if !is_tpid(ether_type) {
            break;
        }
        at += TAG_BYTES;
        ether_type = be16(head, at)?;
    }
    Some((at + 2, ether_type))
}

impl Network {
    /// Parses up to the end of the IP headers. `None`: not IP, malformed, or not all in the head.
    #[must_use]
    pub fn parse(head: &[u8]) -> Option<Network> {
        let (l3_offset, ether_type) = link(head)?;
        let ip = &head[l3_offset..];
        match ether_type {
            ETHERTYPE_IPV4 => {
                let header = Ipv4HeaderSlice::from_slice(ip).ok()?;
                Some(Network {
                    l3: L3::V4,
                    l3_offset: l3_offset as u16,
                    l4_offset: u16::try_from(l3_offset + header.slice().len()).ok()?,
                    proto: header.protocol().0,
                    fragment: header.is_fragmenting_payload(),
                })
            }
            ETHERTYPE_IPV6 => {
                let header = Ipv6HeaderSlice::from_slice(ip).ok()?;
                let (mut proto, mut at, mut fragment) = (header.next_header().0, header.slice().len(), false);
                for _ in 0..MAX_EXTENSIONS {
                    let len = match proto {
                        // Hop-by-hop, destination options: length in units of 8 bytes without the first (RFC 8200 §4.2).
                        0 | 60 => 8 + usize::from(*ip.get(at + 1)?) * 8,
                        // A routing header with segments left changes the pseudo-header's destination: not known.
                        43 if *ip.get(at + 3)? == 0 => 8 + usize::from(*ip.get(at + 1)?) * 8,
                        44 => {
                            fragment = true;
                            8
                        }
                        _ => break,
                    };
                    proto = *ip.get(at)?;
                    at += len;
                    if ip.len() < at {
                        return None;
                    }
                    if fragment {
                        break;
                    }
                }
                Some(Network {
                    l3: L3::V6,
                    l3_offset: l3_offset as u16,
                    l4_offset: u16::try_from(l3_offset + at).ok()?,
                    proto,
                    fragment,
                })
            }
            _ => None,
        }
    }
}

/// All headers of an unfragmented TCP or UDP frame. Offsets count from the destination address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of addresses, tags and EtherType.
    pub l2_len: u16,
    /// Which IP.
    pub l3: L3,
    /// Which transport.
    pub l4: L4,
    /// Where the IP header begins.
    pub l3_offset: u16,
    /// Where the TCP or UDP header begins.
    pub l4_offset: u16,
    /// Length of the TCP or UDP header.
    pub l4_header_len: u16,
    /// Where the payload begins.
    pub payload_offset: u16,
}

impl Layout {
    /// Parses a frame of `frame_len` bytes of which `head` is the beginning. `None`: not TCP or UDP, a fragment,
    /// malformed, or not all in the head.
    #[must_use]
    pub fn parse(head: &[u8], frame_len: usize) -> Option<Layout> {
        let head = &head[..head.len().min(frame_len)];
        let network = Network::parse(head)?;
        if network.fragment {
            return None;
        }
        let l4_offset = usize::from(network.l4_offset);
        let (l4, l4_header_len) = match network.proto {
            PROTO_TCP => (L4::Tcp, TcpHeaderSlice::from_slice(head.get(l4_offset..)?).ok()?.slice().len()),
            PROTO_UDP => (L4::Udp, 8),
            _ => return None,
        };
        let payload_offset = l4_offset + l4_header_len;
        if payload_offset > head.len() {
            return None;
        }
        Some(Layout {
            l2_len: network.l3_offset,
            l3: network.l3,
            l4,
            l3_offset: network.l3_offset,
            l4_offset: network.l4_offset,
            l4_header_len: l4_header_len as u16,
            payload_offset: u16::try_from(payload_offset).ok()?,
        })
    }

    /// Where the checksum lies in the transport header.
    #[inline]
    #[must_use]
    pub const fn csum_offset(&self) -> u16 {
        match self.l4 {
            L4::Tcp => 16,
            L4::Udp => 6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_extensions_and_fragments_are_seen() {
        let mut v4 = vec![0u8; 12];
        v4.extend([0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 8, 0]);
        v4.extend([0x46, 0, 0, 0, 0, 0, 0x40, 0, 64, PROTO_UDP]);
        v4.resize(22 + 24 + 8, 0);
        let layout = Layout::parse(&v4, 100).expect("two tags, options, DF");
        assert_eq!((layout.l2_len, layout.l4_offset, layout.payload_offset), (22, 46, 54));
        assert_eq!(Layout::parse(&v4[..53], 100), None);
        assert_eq!(Layout::parse(&v4, 53), None);
        v4[22 + 6] = 0x20;
        assert_eq!(Layout::parse(&v4, 100), None);
        assert!(Network::parse(&v4).expect("IPv4").fragment);

        let mut v6 = vec![0u8; 12];
        v6.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 0, 64]);
        v6.resize(54, 0);
        v6.extend([43, 0, 0, 0, 0, 0, 0, 0]);
        v6.extend([PROTO_TCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        v6.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        v6[54 - 40 + 6] = 0;
        let layout = Layout::parse(&v6, 200).expect("two extensions and TCP options");
        assert_eq!((layout.l4_offset, layout.l4_header_len, layout.payload_offset), (78, 24, 102));
        v6[62 + 3] = 1;
        assert_eq!(Layout::parse(&v6, 200), None, "a routing header with segments left");
    }
}
