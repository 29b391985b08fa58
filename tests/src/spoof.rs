//! What one station says honestly, and the lies that a clean port refuses, each with its reason.

use std::net::{Ipv4Addr, Ipv6Addr};

use switch_core::{
    clean::{Clean, Notice},
    mac::MacAddr,
    verdict::DropReason::{self, *},
};
use vswitch_benches::packets::*;

/// The station.
pub const OWN: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
/// Another one.
pub const OTHER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
/// Everybody's MAC address.
pub const ALL: MacAddr = MacAddr::BROADCAST;
/// The station's IPv4 address.
pub const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Another's.
pub const OTHER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Nobody's.
pub const NO_IP: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// Everybody's.
pub const EVERYBODY: Ipv4Addr = Ipv4Addr::BROADCAST;
/// The station's IPv6 address.
pub const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
/// Another's.
pub const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// Nobody's.
pub const NO_V6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
/// What EUI-64 makes of [`OWN`].
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1);

/// The rules of the station's port.
///
/// # Panics
/// The text is no rule.
#[must_use]
pub fn rules(ip: &str) -> Clean {
    Clean::new(OWN, ip.parse().expect("a rule"))
}

/// An IPv4 packet in a frame of the station.
#[must_use]
pub fn v4(packet: &[u8]) -> Vec<u8> {
    ether(OTHER, OWN, 0x0800, packet)
}

/// An IPv6 packet in a frame of the station.
#[must_use]
pub fn v6(packet: &[u8]) -> Vec<u8> {
    ether(OTHER, OWN, 0x86dd, packet)
}

/// An ARP packet in a frame of the station.
#[must_use]
pub fn arp_frame(operation: u8, sender: (MacAddr, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    ether(ALL, OWN, 0x0806, &arp(operation, sender, (MacAddr::ZERO, target)))
}

/// Neighbour discovery with 255 hops.
#[must_use]
pub fn nd(src: Ipv6Addr, kind: u8, target: Ipv6Addr, option: Option<(u8, MacAddr)>) -> Vec<u8> {
    let message = icmpv6(src, ALL_NODES.0, &neighbour(kind, target, option));
    v6(&ipv6(src, ALL_NODES.0, ICMPV6, 255, &message))
}

/// A DHCP request in a frame of the station.
#[must_use]
pub fn request(station: MacAddr, from: Ipv4Addr, client: Ipv4Addr) -> Vec<u8> {
    let message = dhcp(1, 3, station, client, NO_IP, 0);
    ether(ALL, OWN, 0x0800, &ipv4(from, EVERYBODY, UDP, 0, &udp(68, 67, &message)))
}

/// What a router says.
#[must_use]
pub fn router_advertisement() -> Vec<u8> {
    vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// Honest frames and lies, each with what becomes of it on a port that was given [`IP`] and [`V6`].
#[must_use]
#[expect(clippy::too_many_lines, reason = "a table")]
pub fn cases() -> Vec<(&'static str, Vec<u8>, Result<Notice, DropReason>)> {
    let passes = Ok(Notice::None);
    let tagged = |frame: &[u8], tags: &[u8]| [&frame[..12], tags, &frame[12..]].concat();
    let own = (OWN, IP);
    let plain = v4(&ipv4(IP, OTHER_IP, TCP, 0, &tcp()));
    let bad = v4(&ipv4(OTHER_IP, IP, TCP, 0, &tcp()));
    let mut optioned = ipv4(OTHER_IP, IP, TCP, 0, &tcp());
    optioned[0] = 0x4f;
    let ra = router_advertisement();
    let extended = |protocol: u8, rest: &[u8]| [&[protocol, 0, 1, 4, 0, 0, 0, 0][..], rest].concat();
    let fragment = |protocol: u8, offset: u16, rest: &[u8]| {
        [&[protocol, 0][..], &(offset | 1).to_be_bytes(), &[0, 0, 0, 1], rest].concat()
    };
    let ns = neighbour(135, OTHER_V6, None);
    let release = |kind, address| v4(&ipv4(IP, OTHER_IP, UDP, 0, &udp(68, 67, &dhcp(1, kind, OWN, address, NO_IP, 0))));
    vec![
        ("IPv4", plain.clone(), passes),
        ("another's MAC address", ether(ALL, OTHER, 0x0800, &ipv4(IP, OTHER_IP, TCP, 0, &tcp())), Err(SpoofedMac)),
        ("another's IPv4 address", bad.clone(), Err(SpoofedIpv4)),
        ("the same behind a tag", tagged(&bad, &[0x81, 0, 0, 5]), Err(SpoofedIpv4)),
        ("the same behind two tags", tagged(&bad, &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 0]), Err(SpoofedIpv4)),
        ("the own one behind two tags", tagged(&plain, &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 0]), passes),
        ("three tags", tagged(&plain, &[0x81, 0, 0, 1, 0x81, 0, 0, 1, 0x81, 0, 0, 1]), Err(OtherProtocol)),
        ("no IPv4 address at all", v4(&ipv4(NO_IP, OTHER_IP, TCP, 0, &tcp())), Err(SpoofedIpv4)),
        ("options that are not there", v4(&optioned), Err(UnreadableHeaders)),
        ("half an IPv4 header", v4(&plain[14..20])[..24].to_vec(), Err(UnreadableHeaders)),
        ("an IPv4 fragment", v4(&ipv4(IP, OTHER_IP, UDP, 0x2000, &udp(5, 6, &[0; 8]))), passes),
        ("a first fragment without ports", v4(&ipv4(IP, OTHER_IP, UDP, 0x2000, &[])), Err(UnreadableHeaders)),
        ("a later fragment", v4(&ipv4(IP, OTHER_IP, UDP, 0x0005, &[0; 8])), passes),
        ("a later fragment of another's", v4(&ipv4(OTHER_IP, IP, UDP, 0x0005, &[0; 8])), Err(SpoofedIpv4)),
        ("ARP request", arp_frame(1, own, OTHER_IP), passes),
        ("ARP answer", arp_frame(2, own, OTHER_IP), passes),
        ("ARP announcement", arp_frame(1, own, IP), passes),
        ("ARP probe", arp_frame(1, (OWN, NO_IP), IP), passes),
        ("ARP probe for another's address", arp_frame(1, (OWN, NO_IP), OTHER_IP), Err(SpoofedArp)),
        ("ARP answer with no address", arp_frame(2, (OWN, NO_IP), IP), Err(SpoofedArp)),
        ("ARP for another's protocol address", arp_frame(2, (OWN, OTHER_IP), IP), Err(SpoofedArp)),
        ("ARP for another's hardware address", arp_frame(2, (OTHER, IP), OTHER_IP), Err(SpoofedArp)),
        ("ARP of an unknown operation", arp_frame(8, own, OTHER_IP), Err(SpoofedArp)),
        ("half an ARP packet", ether(ALL, OWN, 0x0806, &[])[..40].to_vec(), Err(UnreadableHeaders)),
        ("RARP announcement", ether(ALL, OWN, 0x8035, &arp(3, (OWN, NO_IP), (OWN, NO_IP))), passes),
        ("RARP for another", ether(ALL, OWN, 0x8035, &arp(3, (OWN, NO_IP), (OTHER, NO_IP))), Err(SpoofedArp)),
        ("RARP answer", ether(ALL, OWN, 0x8035, &arp(4, (OWN, NO_IP), (OWN, IP))), Err(SpoofedArp)),
        ("a DHCP request", request(OWN, NO_IP, NO_IP), passes),
        ("a DHCP renewal", request(OWN, IP, IP), passes),
        ("the renewal of a lease that was not seen", request(OWN, OTHER_IP, OTHER_IP), passes),
        ("a release of another's address", release(7, OTHER_IP), Err(SpoofedDhcp)),
        ("a refusal of another's address", release(4, OTHER_IP), Err(SpoofedDhcp)),
        ("a release", release(7, IP), Ok(Notice::Release(IP.to_ipv6_mapped().to_bits()))),
        ("a DHCP request for another", request(OTHER, NO_IP, NO_IP), Err(SpoofedDhcp)),
        ("a DHCP request from another's address", request(OWN, OTHER_IP, NO_IP), Err(SpoofedIpv4)),
        (
            "a DHCP request from nowhere to one server",
            v4(&ipv4(NO_IP, OTHER_IP, UDP, 0, &udp(68, 67, &dhcp(1, 3, OWN, NO_IP, NO_IP, 0)))),
            Err(SpoofedIpv4),
        ),
        (
            "a DHCP request in fragments",
            v4(&ipv4(IP, EVERYBODY, UDP, 0x2000, &udp(68, 67, &dhcp(1, 3, OWN, NO_IP, NO_IP, 0)))),
            Err(UnreadableHeaders),
        ),
        ("half a DHCP request", v4(&ipv4(IP, EVERYBODY, UDP, 0, &udp(68, 67, &[1, 1, 6, 0]))), Err(UnreadableHeaders)),
        ("a DHCP server", v4(&ipv4(IP, EVERYBODY, UDP, 0, &udp(67, 68, &[2, 1, 6, 0]))), Err(DhcpServer)),
        ("a DHCP server on another port", v4(&ipv4(IP, EVERYBODY, UDP, 0, &udp(9, 68, &[]))), Err(DhcpServer)),
        ("a DHCP answer to a server", v4(&ipv4(IP, IP, UDP, 0, &udp(9, 67, &[2; 60]))), Err(DhcpServer)),
        ("IPv6", v6(&ipv6(V6, OTHER_V6, TCP, 64, &tcp())), passes),
        ("IPv6 from the link-local address", v6(&ipv6(LINK_LOCAL, OTHER_V6, TCP, 64, &tcp())), passes),
        ("another's IPv6 address", v6(&ipv6(OTHER_V6, V6, TCP, 64, &tcp())), Err(SpoofedIpv6)),
        ("no IPv6 address", v6(&ipv6(NO_V6, V6, TCP, 64, &tcp())), Err(SpoofedIpv6)),
        ("a mapped address", v6(&ipv6(IP.to_ipv6_mapped(), V6, TCP, 64, &tcp())), Err(SpoofedIpv6)),
        (
            "a listener report without an address",
            v6(&ipv6(NO_V6, V6, 0, 1, &extended(ICMPV6, &[143, 0, 0, 0]))),
            passes,
        ),
        ("extension headers", v6(&ipv6(V6, V6, 0, 1, &extended(60, &extended(TCP, &tcp())))), passes),
        (
            "more extension headers than anybody needs",
            v6(&ipv6(V6, V6, 60, 1, &(0..12).fold(tcp(), |rest, n| extended(if n == 0 { TCP } else { 60 }, &rest)))),
            Err(UnreadableHeaders),
        ),
        ("an extension header that is cut off", v6(&ipv6(V6, V6, 60, 1, &[58, 9, 1, 4])), Err(UnreadableHeaders)),
        ("an IPv6 fragment", v6(&ipv6(V6, V6, 44, 64, &fragment(UDP, 0, &udp(5, 6, &[])))), passes),
        (
            "a first fragment that tells nothing",
            v6(&ipv6(V6, V6, 44, 64, &fragment(60, 0, &[]))),
            Err(UnreadableHeaders),
        ),
        ("a later IPv6 fragment", v6(&ipv6(V6, V6, 44, 64, &fragment(60, 64, &[]))), passes),
        (
            "a later IPv6 fragment of another's",
            v6(&ipv6(OTHER_V6, V6, 44, 64, &fragment(60, 64, &[]))),
            Err(SpoofedIpv6),
        ),
        ("a DHCPv6 request", v6(&ipv6(LINK_LOCAL, V6, UDP, 1, &udp(546, 547, &[1, 0, 0, 1]))), passes),
        ("a DHCPv6 server", v6(&ipv6(V6, V6, UDP, 1, &udp(547, 546, &[7, 0, 0, 1]))), Err(DhcpServer)),
        ("a router", v6(&ipv6(LINK_LOCAL, V6, ICMPV6, 255, &ra)), Err(RouterAdvertisement)),
        ("a router behind an extension", v6(&ipv6(V6, V6, 60, 255, &extended(58, &ra))), Err(RouterAdvertisement)),
        ("a router in a fragment", v6(&ipv6(V6, V6, 44, 255, &fragment(58, 0, &ra))), Err(RouterAdvertisement)),
        ("a redirect", v6(&ipv6(V6, V6, ICMPV6, 255, &[137, 0, 0, 0])), Err(RouterAdvertisement)),
        ("a router solicitation", v6(&ipv6(NO_V6, V6, ICMPV6, 255, &[133, 0, 0, 0, 0, 0, 0, 0])), passes),
        ("a solicitation", nd(V6, 135, OTHER_V6, Some((1, OWN))), Ok(Notice::Alive(V6.to_bits()))),
        ("an advertisement", nd(V6, 136, V6, Some((2, OWN))), Ok(Notice::Alive(V6.to_bits()))),
        ("an advertisement of another's address", nd(V6, 136, OTHER_V6, Some((2, OWN))), Err(SpoofedNd)),
        ("an advertisement with another's MAC", nd(V6, 136, V6, Some((2, OTHER))), Err(SpoofedNd)),
        ("an advertisement with a source option", nd(V6, 136, V6, Some((1, OTHER))), Err(SpoofedNd)),
        ("an advertisement from nowhere", nd(NO_V6, 136, V6, None), Err(SpoofedNd)),
        ("a solicitation with another's MAC", nd(V6, 135, OTHER_V6, Some((1, OTHER))), Err(SpoofedNd)),
        ("a solicitation from another's address", nd(OTHER_V6, 135, V6, Some((1, OWN))), Err(SpoofedIpv6)),
        ("duplicate address detection", nd(NO_V6, 135, V6, None), passes),
        ("the same with a MAC address", nd(NO_V6, 135, V6, Some((1, OWN))), Err(SpoofedNd)),
        ("the same for another's address", nd(NO_V6, 135, OTHER_V6, None), Err(SpoofedNd)),
        ("a solicitation that passed a router", v6(&ipv6(V6, V6, ICMPV6, 254, &ns)), Err(SpoofedNd)),
        ("a solicitation in a fragment", v6(&ipv6(V6, V6, 44, 255, &fragment(58, 0, &ns))), Err(SpoofedNd)),
        ("a solicitation that is cut off", v6(&ipv6(V6, V6, ICMPV6, 255, &ns[..20])), Err(UnreadableHeaders)),
        (
            "an option without length",
            v6(&ipv6(V6, V6, ICMPV6, 255, &[&ns[..], &[1, 0, 0, 0]].concat())),
            Err(UnreadableHeaders),
        ),
        ("inverse discovery", v6(&ipv6(V6, V6, ICMPV6, 255, &[141; 32])), Err(SpoofedNd)),
        ("a bridge", ether(MacAddr([1, 0x80, 0xc2, 0, 0, 0]), OWN, 38, &[0x42, 0x42, 3]), Err(Bpdu)),
        ("a bridge of Cisco's", ether(MacAddr([1, 0, 12, 0xcc, 0xcc, 0xcd]), OWN, 50, &[0xaa, 0xaa, 3]), Err(Bpdu)),
        ("LLDP", ether(MacAddr([1, 0x80, 0xc2, 0, 0, 14]), OWN, 0x88cc, &[]), Err(OtherProtocol)),
        ("IPv4 in an 802.2 frame", ether(OTHER, OWN, 60, &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]), Err(OtherProtocol)),
    ]
}
