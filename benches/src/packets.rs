//! Frames that hosts really send, and that liars would: ARP, IPv4 and IPv6, neighbour discovery, DHCP.

use std::net::{Ipv4Addr, Ipv6Addr};

use switch_core::{frame::checksum::checksum, mac::MacAddr};

/// The all-nodes address and its MAC address.
pub const ALL_NODES: (Ipv6Addr, MacAddr) =
    (Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), MacAddr([0x33, 0x33, 0, 0, 0, 1]));
/// UDP.
pub const UDP: u8 = 17;
/// TCP.
pub const TCP: u8 = 6;
/// ICMPv6.
pub const ICMPV6: u8 = 58;

/// A frame, filled up to the least that Ethernet carries.
#[must_use]
pub fn ether(dst: MacAddr, src: MacAddr, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&dst.0[..], &src.0, &ether_type.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An ARP packet of an operation: who says it, and whom it is about.
#[must_use]
pub fn arp(operation: u8, sender: (MacAddr, Ipv4Addr), target: (MacAddr, Ipv4Addr)) -> Vec<u8> {
    let header = [0, 1, 8, 0, 6, 4, 0, operation];
    [&header[..], &sender.0.0, &sender.1.octets(), &target.0.0, &target.1.octets()].concat()
}

/// An IPv4 packet. `fragment` is the field with flags and offset.
#[must_use]
pub fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut header =
        [&[0x45, 0][..], &len.to_be_bytes(), &[0, 1], &fragment.to_be_bytes(), &[64, protocol, 0, 0]].concat();
    header.extend(src.octets());
    header.extend(dst.octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header.extend(payload);
    header
}

/// An IPv6 packet.
#[must_use]
pub fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0][..], &len, &[next, hops], &src.octets(), &dst.octets(), payload].concat()
}

/// A UDP datagram without a checksum.
#[must_use]
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len() as u16).to_be_bytes();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &len, &[0, 0], payload].concat()
}

/// A TCP header of no connection.
#[must_use]
pub fn tcp() -> Vec<u8> {
    [&[0x80, 0, 0x81, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0][..]].concat()
}

/// An ICMPv6 message with its checksum.
#[must_use]
pub fn icmpv6(src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let len = (message.len() as u32).to_be_bytes();
    let pseudo = [&src.octets()[..], &dst.octets(), &len, &[0, 0, 0, ICMPV6], &message].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

/// A neighbour solicitation (135) or advertisement (136) with a link-layer address option or without.
#[must_use]
pub fn neighbour(kind: u8, target: Ipv6Addr, option: Option<(u8, MacAddr)>) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets()].concat();
    if let Some((kind, mac)) = option {
        message.extend([&[kind, 1][..], &mac.0].concat());
    }
    message
}

/// A message of DHCP: `op` 1 asks, 2 answers; the lease time is in seconds.
#[must_use]
pub fn dhcp(op: u8, kind: u8, station: MacAddr, client: Ipv4Addr, yours: Ipv4Addr, lease: u32) -> Vec<u8> {
    let mut message = [&[op, 1, 6, 0, 0, 0, 0, 1, 0, 0, 0, 0][..], &client.octets(), &yours.octets(), &[0; 8]].concat();
    message.extend(station.0);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, kind, 51, 4]);
    message.extend(lease.to_be_bytes());
    message.push(255);
    message
}

/// A DHCPv6 reply that gives one address for so many seconds.
#[must_use]
pub fn dhcpv6_reply(address: Ipv6Addr, valid: u32) -> Vec<u8> {
    let inner = [&[0, 5, 0, 24][..], &address.octets(), &valid.to_be_bytes(), &valid.to_be_bytes()].concat();
    let association = [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0][..], &inner].concat();
    let head = [7, 0, 0, 1, 0, 1, 0, 2, 9, 9, 0, 3];
    [&head[..], &(association.len() as u16).to_be_bytes(), &association].concat()
}
