//! IPv6 from a clean port: the source address through whatever extension headers, neighbour discovery (RFC 4861, RFC
//! 4862), and who may speak DHCPv6 or be a router (RFC 6105, RFC 7113).

use etherparse::Ipv6HeaderSlice;

use super::{Clean, Notice, bindings::Bindings, dhcp, field};
use crate::{
    frame::layout::{MAX_EXTENSIONS, PROTO_UDP},
    verdict::DropReason::{self, SpoofedIpv6, SpoofedNd, UnreadableHeaders},
};

pub(super) const HEADER_BYTES: usize = 40;
const ICMPV6: u8 = 58;
/// Types of ICMPv6.
const MLD: [u8; 3] = [131, 132, 143];
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// RFC 3122, which nobody speaks and which could say the same as neighbour discovery.
const INVERSE: [u8; 2] = [141, 142];
/// Options of one message that are looked through.
const MAX_OPTIONS: usize = 16;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

/// What lies behind the extension headers.
struct Upper<'a> {
    protocol: u8,
    bytes: &'a [u8],
    fragment: bool,
    /// A fragment that does not begin the packet: `bytes` are no header.
    later: bool,
}

fn upper<'a>(packet: &'a [u8], first: u8) -> Result<Upper<'a>, DropReason> {
    let (mut protocol, mut at, mut fragment) = (first, HEADER_BYTES, false);
    for _ in 0..=MAX_EXTENSIONS {
        let [next, len]: [u8; 2] = match protocol {
            0 | 43 | 44 | 51 | 60 | 135 | 139 | 140 => field(packet, at)?,
            _ => {
                let bytes = packet.get(at..).ok_or(UnreadableHeaders)?;
                return Ok(Upper { protocol, bytes, fragment, later: false });
            }
        };
        match protocol {
            44 => {
                fragment = true;
                let offset = u16::from_be_bytes(field(packet, at + 2)?) & !7;
                at += 8;
                if offset != 0 {
                    return Ok(Upper { protocol: next, bytes: &[], fragment, later: true });
                }
            }
            // An authentication header counts in words of four bytes, without two of them.
            51 => at += (usize::from(len) + 2) * 4,
            _ => at += 8 + usize::from(len) * 8,
        }
        protocol = next;
    }
    Err(UnreadableHeaders)
}

pub(super) fn judge(clean: &Clean, bindings: &Bindings, packet: &[u8], now: u64) -> Result<Notice, DropReason> {
    let header = Ipv6HeaderSlice::from_slice(packet).map_err(|_| UnreadableHeaders)?;
    let source = u128::from_be_bytes(header.source());
    // A packet of more than 64 KiB says no length here; it reaches to the frame's end.
    let end = match header.payload_length() {
        0 => packet.len(),
        len => packet.len().min(HEADER_BYTES + usize::from(len)),
    };
    let upper = upper(&packet[..end], header.next_header().0)?;
    let mut kind = 0;
    match upper.protocol {
        _ if upper.later => {}
        ICMPV6 => {
            [kind] = field(upper.bytes, 0)?;
            if matches!(kind, ROUTER_ADVERTISEMENT | REDIRECT) {
                return Err(DropReason::RouterAdvertisement);
            }
        }
        PROTO_UDP => {
            let (from, to): ([u8; 2], [u8; 2]) = (field(upper.bytes, 0)?, field(upper.bytes, 2)?);
            if u16::from_be_bytes(from) == dhcp::SERVER_V6 || u16::from_be_bytes(to) == dhcp::CLIENT_V6 {
                return Err(DropReason::DhcpServer);
            }
        }
        _ => {}
    }
    let discovery = (ROUTER_SOLICITATION..=REDIRECT).contains(&kind) || INVERSE.contains(&kind);
    let permitted = match source {
        // Whoever has no address yet looks for one, for routers, and says what groups it listens to (RFC 3590).
        0 => discovery || MLD.contains(&kind),
        _ => source >> 32 != 0xffff && clean.permits(bindings, source, now),
    };
    if !permitted {
        return Err(SpoofedIpv6);
    }
    if !discovery {
        return Ok(Notice::None);
    }
    // RFC 4861 §7.1 asks for 255, which proves that no router was passed; RFC 6980 forbids fragments.
    if header.hop_limit() != 255 || upper.fragment {
        return Err(SpoofedNd);
    }
    neighbour(clean, bindings, kind, source, upper.bytes, now)
}

/// Neighbour discovery other than what routers say.
fn neighbour(
    clean: &Clean,
    bindings: &Bindings,
    kind: u8,
    source: u128,
    message: &[u8],
    now: u64,
) -> Result<Notice, DropReason> {
    let (own_option, options_at) = match kind {
        ROUTER_SOLICITATION => (SOURCE_LINK_ADDRESS, 8),
        NEIGHBOUR_SOLICITATION => (SOURCE_LINK_ADDRESS, 24),
        NEIGHBOUR_ADVERTISEMENT => (TARGET_LINK_ADDRESS, 24),
        _ => return Err(SpoofedNd),
    };
    let mut rest = message.get(options_at..).ok_or(UnreadableHeaders)?;
    let mut seen = 0;
    while let [option, len, ..] = rest {
        let (value, after) = rest.split_at_checked(usize::from(*len) * 8).ok_or(UnreadableHeaders)?;
        seen += 1;
        if value.is_empty() || seen > MAX_OPTIONS {
            return Err(UnreadableHeaders);
        }
        let link_address = matches!(*option, SOURCE_LINK_ADDRESS | TARGET_LINK_ADDRESS);
        // Whoever has no address yet must not be remembered by one (RFC 4861 §4.3).
        if link_address && (*option != own_option || source == 0 || value[2..] != clean.station.0) {
            return Err(SpoofedNd);
        }
        rest = after;
    }
    if kind == ROUTER_SOLICITATION {
        return Ok(Notice::None);
    }
    let target = u128::from_be_bytes(field(message, 8)?);
    match (kind, source) {
        (NEIGHBOUR_SOLICITATION, 0) if clean.ip.any || clean.given(target) => Ok(Notice::None),
        (NEIGHBOUR_SOLICITATION, 0) if clean.may_claim(target) && target >> 120 != 0xff && target >> 32 != 0xffff => {
            Ok(Notice::Claim(target))
        }
        (NEIGHBOUR_SOLICITATION, 0) => Err(SpoofedNd),
        (NEIGHBOUR_SOLICITATION, _) => Ok(Notice::Alive(source)),
        (_, 0) => Err(SpoofedNd),
        _ if clean.permits(bindings, target, now) => Ok(Notice::Alive(target)),
        _ => Err(SpoofedNd),
    }
}
