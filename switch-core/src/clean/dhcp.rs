//! As much of DHCP as tells who asks, and what a server has given to whom (RFC 2131, RFC 2132; RFC 8415).

use std::time::Duration;

use super::{Clean, field};
use crate::{frame::vlan::be16, mac::MacAddr, verdict::DropReason};

/// UDP ports.
pub(super) const SERVER: u16 = 67;
pub(super) const CLIENT: u16 = 68;
pub(super) const SERVER_V6: u16 = 547;
pub(super) const CLIENT_V6: u16 = 546;
/// All of them.
pub(super) const PORTS: [u16; 4] = [SERVER, CLIENT, SERVER_V6, CLIENT_V6];
const UDP_BYTES: usize = 8;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Options of one message that are looked through.
const MAX_OPTIONS: usize = 64;
const MESSAGE_TYPE: u8 = 53;
const REQUESTED: u8 = 50;
const LEASE_TIME: u8 = 51;
const ACK: u8 = 5;
const DECLINE: u8 = 4;
const RELEASE: u8 = 7;
const FOR_EVER: u32 = u32::MAX;

/// What a client says.
pub(super) struct Request {
    /// `ciaddr`: the address that it has.
    pub(super) client: [u8; 4],
    /// The address that it gives back, released or declined.
    pub(super) gives_back: Option<[u8; 4]>,
}

/// What a server has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease<A> {
    pub(super) to: MacAddr,
    pub(super) address: A,
    /// `None`: for ever.
    pub(super) time: Option<Duration>,
}

fn seconds(n: u32) -> Option<Duration> {
    (n != FOR_EVER).then(|| Duration::from_secs(n.into()))
}

/// A client's message in a whole UDP datagram: it must be the station's own.
pub(super) fn request(clean: &Clean, udp: &[u8]) -> Result<Request, DropReason> {
    let message = &udp.get(UDP_BYTES..).ok_or(DropReason::UnreadableHeaders)?;
    let [op, kind, len]: [u8; 3] = field(message, 0)?;
    if op != 1 {
        return Err(DropReason::DhcpServer);
    }
    let (relay, hardware): ([u8; 4], [u8; 6]) = (field(message, 24)?, field(message, 28)?);
    if (kind, len) != (1, 6) || relay != [0; 4] || hardware != clean.station.0 {
        return Err(DropReason::SpoofedDhcp);
    }
    let client = field(message, 12)?;
    let gives_back = match option(message, MESSAGE_TYPE) {
        Some([RELEASE]) => Some(client),
        Some([DECLINE]) => Some(option(message, REQUESTED).and_then(|a| a.try_into().ok()).unwrap_or_default()),
        _ => None,
    };
    Ok(Request { client, gives_back })
}

/// What a server's message in a UDP datagram gives, if it does.
pub(super) fn lease(udp: &[u8]) -> Option<Lease<[u8; 4]>> {
    let message = udp.get(UDP_BYTES..)?;
    let address: [u8; 4] = message.get(16..20)?.try_into().ok()?;
    if message.get(..3)? != [2, 1, 6] || address == [0; 4] || option(message, MESSAGE_TYPE)? != [ACK] {
        return None;
    }
    let time = u32::from_be_bytes(option(message, LEASE_TIME)?.try_into().ok()?);
    Some(Lease { to: MacAddr(message.get(28..34)?.try_into().ok()?), address, time: seconds(time) })
}

fn option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = message.get(236..)?.strip_prefix(&MAGIC)?;
    for _ in 0..MAX_OPTIONS {
        rest = match rest {
            [0, rest @ ..] => rest,
            [255, ..] | [] | [_] => return None,
            [code, len, rest @ ..] => {
                let (value, after) = rest.split_at_checked(usize::from(*len))?;
                if *code == wanted {
                    return Some(value);
                }
                after
            }
        };
    }
    None
}

/// The addresses that a DHCPv6 server's answer in a UDP datagram gives, which went to the station `to`.
pub(super) fn leases_v6(udp: &[u8], to: MacAddr, mut give: impl FnMut(Lease<u128>)) {
    const REPLY: u8 = 7;
    const IA_NA: u16 = 3;
    const IA_TA: u16 = 4;
    const ADDRESS: u16 = 5;
    let Some([REPLY, _, _, _, options @ ..]) = udp.get(UDP_BYTES..) else { return };
    options_v6(options, |code, value| {
        // An identity association: its id and two times, or its id alone; then its options.
        let inner = match code {
            IA_NA => value.get(12..),
            IA_TA => value.get(4..),
            _ => None,
        };
        options_v6(inner.unwrap_or_default(), |code, value| {
            if let (ADDRESS, Some((address, rest))) = (code, value.split_first_chunk::<16>())
                && let Some(valid) = rest.get(4..8).and_then(|bytes| bytes.try_into().ok())
                && u32::from_be_bytes(valid) > 0
            {
                let time = seconds(u32::from_be_bytes(valid));
                give(Lease { to, address: u128::from_be_bytes(*address), time });
            }
        });
    });
}

fn options_v6(mut rest: &[u8], mut see: impl FnMut(u16, &[u8])) {
    for _ in 0..MAX_OPTIONS {
        let (Some(code), Some(len)) = (be16(rest, 0), be16(rest, 2)) else { return };
        let Some((value, after)) = rest[4..].split_at_checked(usize::from(len)) else { return };
        see(code, value);
        rest = after;
    }
}
