//! What trusted ports say of the addresses of clean ones: leases, and objections to claims.
//!
//! Only what is unfragmented and has no extension headers is looked at: a server that hides its answers gives nobody an
//! address.

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

use super::{
    IPV4, IPV6,
    bindings::Writing,
    dhcp::{self, Lease},
    mapped,
};
use crate::{
    frame::{
        layout::{PROTO_UDP, link},
        vlan::be16,
    },
    mac::MacAddr,
    topology::{DomainEntry, PortEntry, Topology},
};

const IPV6_HEADER: usize = 40;
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Looks at a frame of a trusted port in a domain with clean ones. Anything else than what is looked for is left at the
/// first field that differs.
pub(super) fn look(topology: &Topology, domain: &DomainEntry, head: &[u8], now: u64) {
    let Some((at, ether_type)) = link(head) else { return };
    match ether_type {
        IPV4 => look_ip4(topology, domain, &head[at..], now),
        IPV6 => look_ip6(topology, domain, head, &head[at..], now),
        _ => {}
    }
}

fn look_ip4(topology: &Topology, domain: &DomainEntry, packet: &[u8], now: u64) {
    if packet.get(9) != Some(&PROTO_UDP) {
        return;
    }
    let Ok(header) = Ipv4HeaderSlice::from_slice(packet) else { return };
    let udp = packet.get(header.slice().len()..usize::from(header.total_len()).min(packet.len()));
    let Some(udp) = udp.filter(|_| !header.is_fragmenting_payload()) else { return };
    if be16(udp, 0) == Some(dhcp::SERVER)
        && be16(udp, 2) == Some(dhcp::CLIENT)
        && let Some(Lease { to, address, time }) = dhcp::lease(udp)
    {
        bind(topology, domain, Lease { to, address: mapped(address), time }, now);
    }
}

fn look_ip6(topology: &Topology, domain: &DomainEntry, head: &[u8], packet: &[u8], now: u64) {
    let Ok(header) = Ipv6HeaderSlice::from_slice(packet) else { return };
    let end = packet.len().min(IPV6_HEADER + usize::from(header.payload_length()));
    let payload = &packet[IPV6_HEADER..end];
    match header.next_header().0 {
        PROTO_UDP if be16(payload, 0) == Some(dhcp::SERVER_V6) && be16(payload, 2) == Some(dhcp::CLIENT_V6) => {
            if let Some(to) = head.first_chunk::<6>() {
                dhcp::leases_v6(payload, MacAddr(*to), |lease| bind(topology, domain, lease, now));
            }
        }
        ICMPV6 => {
            let speaks_of_own = match payload.first() {
                Some(&NEIGHBOUR_ADVERTISEMENT) => true,
                Some(&NEIGHBOUR_SOLICITATION) => header.source() == [0; 16],
                _ => false,
            };
            if let (true, Some(target)) = (speaks_of_own, payload.get(8..24).and_then(|t| t.try_into().ok())) {
                let target = u128::from_be_bytes(target);
                for port in guarded(topology, domain).filter(|p| p.shared.bindings.owns(target, now) == Some(false)) {
                    port.shared.bindings.object(&Writing::begin(), target, now);
                }
            }
        }
        _ => {}
    }
}

fn guarded<'a>(topology: &'a Topology, domain: &'a DomainEntry) -> impl Iterator<Item = &'a PortEntry> {
    domain.guarded().iter().filter_map(|id| topology.port(*id))
}

/// The lease goes to the port whose station it is for; an address that another port holds stays there.
fn bind(topology: &Topology, domain: &DomainEntry, lease: Lease<u128>, now: u64) {
    let station = |port: &&PortEntry| {
        port.clean.as_ref().is_some_and(|clean| clean.station == lease.to && clean.ip.learn && !clean.ip.any)
    };
    let Some(port) = guarded(topology, domain).find(station) else { return };
    let writing = Writing::begin();
    let taken = |other: &PortEntry| other.id != port.id && other.shared.bindings.holds(lease.address, now);
    if guarded(topology, domain).any(taken) {
        return;
    }
    let until = lease.time.map_or(u64::MAX, |time| now.saturating_add(time.as_nanos() as u64));
    port.shared.bindings.lease(&writing, lease.address, until, now);
}
