//! IPv4 from a clean port: the source address, and who may speak DHCP.

use etherparse::Ipv4HeaderSlice;

use super::{Clean, Notice, bindings::Bindings, dhcp, field, mapped};
use crate::{
    frame::layout::PROTO_UDP,
    verdict::DropReason::{self, SpoofedIpv4, UnreadableHeaders},
};

pub(super) fn judge(clean: &Clean, bindings: &Bindings, packet: &[u8], now: u64) -> Result<Notice, DropReason> {
    let header = Ipv4HeaderSlice::from_slice(packet).map_err(|_| UnreadableHeaders)?;
    let (start, end) = (header.slice().len(), usize::from(header.total_len()));
    let payload = packet.get(start..end.min(packet.len())).ok_or(UnreadableHeaders)?;
    let source = header.source();
    // The ports lie in the first fragment; without them it says nothing (RFC 1858).
    if header.protocol().0 == PROTO_UDP && header.fragments_offset().value() == 0 {
        let (from, to): ([u8; 2], [u8; 2]) = (field(payload, 0)?, field(payload, 2)?);
        let (from, to) = (u16::from_be_bytes(from), u16::from_be_bytes(to));
        if from == dhcp::SERVER || to == dhcp::CLIENT {
            return Err(DropReason::DhcpServer);
        }
        if to == dhcp::SERVER {
            if header.is_fragmenting_payload() {
                return Err(UnreadableHeaders);
            }
            let request = dhcp::request(clean, payload)?;
            // Before it has an address, and when it renews one that the switch has not seen it get.
            let nobody = source == [0; 4] && from == dhcp::CLIENT && header.destination() == [255; 4];
            let renewing = source != [0; 4] && source == request.client;
            if !(nobody || renewing || clean.permits(bindings, mapped(source), now)) {
                return Err(SpoofedIpv4);
            }
            return match request.gives_back.map(mapped) {
                None => Ok(Notice::None),
                Some(address) if clean.permits(bindings, address, now) => Ok(Notice::Release(address)),
                // A server that goes by the client identifier would take another's address away from it.
                Some(_) => Err(DropReason::SpoofedDhcp),
            };
        }
    }
    if source == [0; 4] || !clean.permits(bindings, mapped(source), now) {
        return Err(SpoofedIpv4);
    }
    Ok(Notice::None)
}
