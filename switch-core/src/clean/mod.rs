//! Clean ports: whoever is behind one speaks for itself alone.
//!
//! A port with `clean=on` has one station, whose address is given. [`judge`] looks at every frame from it, in the private
//! copy that leaves: the source address, what ARP and neighbour discovery say of hardware and protocol addresses, the
//! source of IPv4 and IPv6 packets, and it lets no DHCP server, no router, no bridge and no other protocol speak. A
//! header that is not wholly in the frame's head, or that a fragment hides, is a drop and not a guess.
//!
//! Addresses are given, or learned ([`bindings`]): from leases that a DHCP server behind a port that is *not* clean gives
//! the station ([`snoop`]), and from duplicate address detection, first come, first served (RFC 6620). Every port that is
//! not clean is trusted. Such a port is looked at only in a domain that has clean ones.
//!
//! Called by the pipeline for ports that are [watched](crate::topology::PortEntry::watched), of which it knows one bit.

pub mod bindings;
mod dhcp;
mod ip4;
mod ip6;
mod rules;
mod snoop;

pub use rules::{IpRule, ParseRuleError};

use self::bindings::{Bindings, Writing};
use crate::{
    batch::{Batch, HEAD_BYTES},
    frame::{
        layout::{PROTO_TCP, PROTO_UDP, link},
        vlan::be16,
    },
    mac::MacAddr,
    pipeline::Context,
    topology::{DomainEntry, PortEntry},
    verdict::DropReason,
};

const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// Bytes of an ARP packet for Ethernet and IPv4 (RFC 826).
const ARP_BYTES: usize = 28;
/// Where bridges talk to one another: IEEE 802.1Q-2022 §8.6.3, the same for provider bridges, and Cisco's per-VLAN
/// spanning tree.
const BRIDGES: [MacAddr; 3] =
    [MacAddr([1, 0x80, 0xc2, 0, 0, 0]), MacAddr([1, 0x80, 0xc2, 0, 0, 8]), MacAddr([1, 0, 0x0c, 0xcc, 0xcc, 0xcd])];

/// What a port's one station may say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clean {
    /// Its address.
    pub station: MacAddr,
    /// Its protocol addresses.
    pub ip: IpRule,
    /// The link-local address that its own address makes (RFC 4291 §2.5.6, appendix A).
    link_local: u128,
}

impl Clean {
    /// The rules for a station.
    #[must_use]
    pub fn new(station: MacAddr, ip: IpRule) -> Clean {
        let m = station.0;
        let interface = [m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]];
        let link_local = (0xfe80 << 112) | u128::from(u64::from_be_bytes(interface));
        Clean { station, ip, link_local }
    }

    /// Whether the address is its own without any binding.
    fn given(&self, address: u128) -> bool {
        self.ip.gives(address) || address == self.link_local
    }

    /// Whether packets may come from the address now.
    fn permits(&self, bindings: &Bindings, address: u128, now: u64) -> bool {
        self.ip.any || self.given(address) || (self.may_claim(address) && bindings.holds(address, now))
    }

    /// Whether the station may make the address its own by claiming it first.
    fn may_claim(&self, address: u128) -> bool {
        !self.ip.any && (self.ip.learn || address >> 118 == 0xfe80 >> 6)
    }
}

/// What a frame that passes says about addresses beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Nothing.
    None,
    /// The station looks whether anybody has this address, to take it if not.
    Claim(u128),
    /// The station speaks of this address of its own.
    Alive(u128),
    /// The station gives this address back to the DHCP server.
    Release(u128),
}

/// An IPv4 address as it is kept: IPv4-mapped.
const fn mapped(address: [u8; 4]) -> u128 {
    0xffff_0000_0000 | u32::from_be_bytes(address) as u128
}

/// The bytes of a field, if the frame's head has them.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], DropReason> {
    bytes.get(at..at + N).and_then(|field| field.try_into().ok()).ok_or(DropReason::UnreadableHeaders)
}

/// Judges one frame of a clean port by its head; no more than that is looked at.
///
/// # Errors
/// Why it does not pass.
pub fn judge(clean: &Clean, bindings: &Bindings, head: &[u8], now: u64) -> Result<Notice, DropReason> {
    if field::<6>(head, 6)? != clean.station.0 {
        return Err(DropReason::SpoofedMac);
    }
    if BRIDGES.contains(&MacAddr(field(head, 0)?)) {
        return Err(DropReason::Bpdu);
    }
    let (at, ether_type) = link(head).ok_or(DropReason::UnreadableHeaders)?;
    let packet = &head[at..];
    match ether_type {
        IPV4 => ip4::judge(clean, bindings, packet, now),
        IPV6 => ip6::judge(clean, bindings, packet, now),
        ARP => arp(clean, bindings, packet, now).map(|()| Notice::None),
        RARP => rarp(clean, packet).map(|()| Notice::None),
        // More tags than are looked through are other protocols too.
        _ => Err(DropReason::OtherProtocol),
    }
}

/// RFC 826; probes and announcements of RFC 5227.
fn arp(clean: &Clean, bindings: &Bindings, packet: &[u8], now: u64) -> Result<(), DropReason> {
    let packet: [u8; ARP_BYTES] = field(packet, 0)?;
    let (request, answer) = ([0, 1, 8, 0, 6, 4, 0, 1], [0, 1, 8, 0, 6, 4, 0, 2]);
    let header: [u8; 8] = field(&packet, 0)?;
    let sender: [u8; 4] = field(&packet, 14)?;
    if (header != request && header != answer) || packet[8..14] != clean.station.0 {
        return Err(DropReason::SpoofedArp);
    }
    // A probe has no sender; it asks for the address that the station is about to use.
    let of = if sender == [0; 4] && header == request { field(&packet, 24)? } else { sender };
    if clean.permits(bindings, mapped(of), now) { Ok(()) } else { Err(DropReason::SpoofedArp) }
}

/// RFC 903: what a VM that has moved announces itself with.
fn rarp(clean: &Clean, packet: &[u8]) -> Result<(), DropReason> {
    let packet: [u8; ARP_BYTES] = field(packet, 0)?;
    let own = packet[8..14] == clean.station.0 && packet[18..24] == clean.station.0;
    let nobody = packet[14..18] == [0; 4] && packet[24..28] == [0; 4];
    if packet[..8] == [0, 1, 8, 0, 6, 4, 0, 3] && own && nobody { Ok(()) } else { Err(DropReason::SpoofedArp) }
}

/// Whether more of a frame is judged than where it comes from and goes to: DHCP, neighbour discovery, and what lies behind
/// extension headers. A driver may have copied no more than the first headers.
fn is_long(head: &[u8]) -> bool {
    let Some((at, ether_type)) = link(head) else { return false };
    let packet = &head[at..];
    let (protocol, udp) = match (ether_type, packet.first(), packet.get(9), packet.get(6)) {
        (IPV4, Some(first), Some(protocol), _) => (*protocol, usize::from(first & 15) * 4),
        (IPV6, _, _, Some(protocol)) => (*protocol, ip6::HEADER_BYTES),
        _ => return false,
    };
    match protocol {
        PROTO_TCP => false,
        PROTO_UDP => [udp, udp + 2].iter().any(|at| be16(packet, *at).is_none_or(|port| dhcp::PORTS.contains(&port))),
        _ => ether_type == IPV6,
    }
}

/// Looks at a frame from a watched port, in its private copy, of which it takes more if it needs more.
///
/// # Errors
/// Why a clean port's frame does not pass; frames of other ports always do.
#[inline(never)]
pub fn watch(context: &Context<'_>, domain: &DomainEntry, batch: &mut Batch, index: usize) -> Result<(), DropReason> {
    let (port, now) = (context.ingress, context.now.nanos);
    if usize::from(batch.slot(index).head_len) < HEAD_BYTES.min(batch.slot(index).len as usize)
        && is_long(batch.head(index))
    {
        batch.draw_in(index);
    }
    let head = batch.head(index);
    let Some(clean) = &port.clean else {
        snoop::look(context.topology, domain, head, now);
        return Ok(());
    };
    let bindings = &port.shared.bindings;
    match judge(clean, bindings, head, now)? {
        Notice::None => {}
        Notice::Alive(address) => {
            if bindings.fades(address, now) {
                bindings.claim(&Writing::begin(), address, now);
            }
        }
        Notice::Release(address) => bindings.release(&Writing::begin(), address),
        Notice::Claim(address) => claim(context, domain, port, address)?,
    }
    Ok(())
}

/// First come, first served: the address becomes the port's unless another clean port has it. If one has, the frame
/// passes all the same, so that the owner can object (RFC 6620 §3.2.3); unless that one has only just claimed it.
fn claim(context: &Context<'_>, domain: &DomainEntry, port: &PortEntry, address: u128) -> Result<(), DropReason> {
    let (bindings, now) = (&port.shared.bindings, context.now.nanos);
    if !bindings.may_claim(now) {
        return Err(DropReason::BindingsFull);
    }
    let writing = Writing::begin();
    let others = domain.guarded().iter().filter(|id| **id != port.id).filter_map(|id| context.topology.port(*id));
    for other in others {
        let given = other.clean.as_ref().is_some_and(|clean| clean.ip.names(address) || clean.link_local == address);
        match other.shared.bindings.owns(address, now) {
            Some(false) => return Err(DropReason::SpoofedNd),
            Some(true) => return Ok(()),
            None if given => return Ok(()),
            None => {}
        }
    }
    if bindings.claim(&writing, address, now) { Ok(()) } else { Err(DropReason::BindingsFull) }
}
