//! Neighbour messages as whole Ethernet frames: ARP (RFC 826) and Neighbor Solicitation and Advertisement (RFC 4861).
//!
//! Pure functions. What is read is checked as RFC 4861 §7.1 says, and told in words that both protocols share; what does
//! not hold is no message.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arrayvec::ArrayVec;

use crate::{frame::checksum::Sum, mac::MacAddr};

/// The longest message that is looked at or made.
pub const MAX_MESSAGE: usize = 128;
/// A message.
pub type Message = ArrayVec<u8, MAX_MESSAGE>;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
pub(super) const ARP: [u8; 2] = [0x08, 0x06];
pub(super) const IPV4: [u8; 2] = [0x08, 0x00];
pub(super) const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ICMP_AT: usize = ETHERNET + 40;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Somebody asks for the address of `target`.
    Asks {
        /// The address asked for.
        target: IpAddr,
        /// Who asks; `None`: somebody who has no address yet, and wants to know whether this one is free.
        from: Option<(IpAddr, MacAddr)>,
    },
    /// Somebody says what the address of `of` is.
    Tells {
        /// The IP address.
        of: IpAddr,
        /// Its MAC address, if it is said.
        mac: Option<MacAddr>,
        /// It is the answer to a question.
        solicited: bool,
        /// It replaces another one that is known.
        replaces: bool,
    },
}

/// Whether a frame of these first bytes could be a message; cheap, and without looking at anything twice.
pub fn could_be(head: &[u8]) -> bool {
    match head.get(12..ETHERNET) {
        Some(kind) if kind == ARP => true,
        Some(kind) if kind == IPV6 => {
            head.get(ETHERNET + 6) == Some(&ICMPV6) && matches!(head.get(ICMP_AT), Some(&SOLICITATION | &ADVERTISEMENT))
        }
        _ => false,
    }
}

/// The address that somebody asks for; `None`: everybody may want to hear this.
pub fn spoken_of(head: &[u8]) -> Option<IpAddr> {
    if head.get(12..ETHERNET)? == ARP {
        let (sender, target) = (v4_at(head, 28)?, v4_at(head, 38)?);
        return (sender != target).then_some(target.into());
    }
    (head.get(ICMP_AT) == Some(&SOLICITATION)).then(|| v6_at(head, ICMP_AT + 8)).flatten().map(IpAddr::from)
}

/// Reads a message. `complete`: its checksum is not left to the device.
pub fn read(frame: &[u8], complete: bool) -> Option<Heard> {
    let kind = frame.get(12..ETHERNET)?;
    if kind == ARP { read_arp(frame) } else { read_nd(frame, complete) }
}

fn mac_at(frame: &[u8], at: usize) -> Option<MacAddr> {
    let mac = MacAddr(frame.get(at..at + 6)?.try_into().ok()?);
    (!mac.is_multicast() && mac != MacAddr::ZERO).then_some(mac)
}

fn v4_at(frame: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?))
}

fn v6_at(frame: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?))
}

fn read_arp(frame: &[u8]) -> Option<Heard> {
    // Ethernet, IPv4, lengths 6 and 4.
    if frame.get(ETHERNET..ETHERNET + 6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let (mac, sender, target) = (mac_at(frame, 22)?, v4_at(frame, 28)?, v4_at(frame, 38)?);
    match frame.get(20..22)? {
        // An announcement is a question for one's own address.
        [0, 1] if sender == target => {
            Some(Heard::Tells { of: sender.into(), mac: Some(mac), solicited: false, replaces: true })
        }
        [0, 1] if sender.is_unspecified() => Some(Heard::Asks { target: target.into(), from: None }),
        [0, 1] => Some(Heard::Asks { target: target.into(), from: Some((sender.into(), mac)) }),
        [0, 2] => Some(Heard::Tells { of: sender.into(), mac: Some(mac), solicited: true, replaces: true }),
        _ => None,
    }
}

fn read_nd(frame: &[u8], complete: bool) -> Option<Heard> {
    let length = usize::from(u16::from_be_bytes(frame.get(18..20)?.try_into().ok()?));
    let (next, hops) = (*frame.get(20)?, *frame.get(21)?);
    let (from, to) = (v6_at(frame, 22)?, v6_at(frame, 38)?);
    let message = frame.get(ICMP_AT..ICMP_AT + length)?;
    if next != ICMPV6 || hops != 255 || message.len() < 24 || message[1] != 0 {
        return None;
    }
    if complete && checksum(from, to, message) != 0 {
        return None;
    }
    let target = v6_at(message, 8)?;
    if target.is_multicast() {
        return None;
    }
    match message[0] {
        SOLICITATION => {
            let mac = option(&message[24..], SOURCE_LINK_ADDRESS)?;
            let from = match (from.is_unspecified(), mac) {
                (true, Some(_)) => return None,
                (true, None) => None,
                // A question by unicast may come without: the frame's source has to do.
                (false, mac) => Some((IpAddr::from(from), mac.or_else(|| mac_at(frame, 6))?)),
            };
            Some(Heard::Asks { target: target.into(), from })
        }
        ADVERTISEMENT => {
            let solicited = message[4] & SOLICITED != 0;
            if solicited && to.is_multicast() {
                return None;
            }
            let mac = option(&message[24..], TARGET_LINK_ADDRESS)?;
            Some(Heard::Tells { of: target.into(), mac, solicited, replaces: message[4] & OVERRIDE != 0 })
        }
        _ => None,
    }
}

/// The MAC address in the option of this type. The outer `None`: the options are malformed.
#[expect(clippy::option_option, reason = "malformed, absent and present are three things")]
fn option(mut options: &[u8], wanted: u8) -> Option<Option<MacAddr>> {
    let mut found = None;
    while let [kind, units, ..] = options {
        let len = usize::from(*units) * 8;
        if len == 0 || len > options.len() {
            return None;
        }
        if *kind == wanted {
            found = Some(mac_at(options, 2)?);
        }
        options = &options[len..];
    }
    options.is_empty().then_some(found)
}

fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add(&from.octets());
    sum.add(&to.octets());
    sum.add_u16(message.len() as u16);
    sum.add_u16(u16::from(ICMPV6));
    sum.add(message);
    sum.finish()
}

/// Who sends a message.
#[derive(Clone, Copy, Debug)]
pub struct Speaker {
    /// The MAC address.
    pub mac: MacAddr,
    /// The IP address, of the same family as what is spoken of.
    pub ip: IpAddr,
}

/// Asks for the address of `target`: everybody, or the station that had it last.
pub fn question(by: Speaker, target: IpAddr, last: Option<MacAddr>) -> Message {
    match (by.ip, target) {
        (IpAddr::V4(ip), IpAddr::V4(target)) => {
            arp(1, by.mac, ip, last.unwrap_or(MacAddr::BROADCAST), MacAddr::ZERO, target)
        }
        (IpAddr::V6(ip), IpAddr::V6(target)) => {
            let low = target.octets();
            let group = Ipv6Addr::new(
                0xff02,
                0,
                0,
                0,
                0,
                1,
                0xff00 | u16::from(low[13]),
                u16::from_be_bytes([low[14], low[15]]),
            );
            let (mac, to) = last.map_or_else(|| (group_mac(group), group), |mac| (mac, target));
            nd(SOLICITATION, 0, by.mac, mac, (ip, to), target, SOURCE_LINK_ADDRESS)
        }
        _ => Message::new(),
    }
}

/// Says that `by` has its address, to whoever asked; `None`: to somebody without an address.
pub fn answer(by: Speaker, to: Option<(IpAddr, MacAddr)>) -> Message {
    match (by.ip, to) {
        (IpAddr::V4(ip), Some((IpAddr::V4(asker), mac))) => arp(2, by.mac, ip, mac, mac, asker),
        (IpAddr::V4(ip), _) => arp(2, by.mac, ip, MacAddr::BROADCAST, MacAddr::ZERO, Ipv4Addr::UNSPECIFIED),
        (IpAddr::V6(ip), Some((IpAddr::V6(asker), mac))) => {
            nd(ADVERTISEMENT, SOLICITED | OVERRIDE, by.mac, mac, (ip, asker), ip, TARGET_LINK_ADDRESS)
        }
        (IpAddr::V6(_), _) => announcement(by),
    }
}

/// Says to everybody that `by` has its address.
pub fn announcement(by: Speaker) -> Message {
    match by.ip {
        IpAddr::V4(ip) => arp(1, by.mac, ip, MacAddr::BROADCAST, MacAddr::ZERO, ip),
        IpAddr::V6(ip) => {
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            nd(ADVERTISEMENT, OVERRIDE, by.mac, group_mac(all), (ip, all), ip, TARGET_LINK_ADDRESS)
        }
    }
}

/// The MAC address of a group (RFC 1112 §6.4, RFC 2464 §7).
pub fn group_mac_of(group: IpAddr) -> MacAddr {
    match group {
        IpAddr::V4(v4) => {
            let [_, b, c, d] = v4.octets();
            MacAddr([1, 0, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(v6) => group_mac(v6),
    }
}

fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

fn arp(operation: u8, mac: MacAddr, ip: Ipv4Addr, to: MacAddr, target_mac: MacAddr, target: Ipv4Addr) -> Message {
    let mut message = Message::new();
    for part in [
        &to.0[..],
        &mac.0,
        &ARP,
        &[0, 1, 8, 0, 6, 4, 0, operation],
        &mac.0,
        &ip.octets(),
        &target_mac.0,
        &target.octets(),
    ] {
        message.extend(part.iter().copied());
    }
    message
}

fn nd(
    kind: u8,
    flags: u8,
    mac: MacAddr,
    to_mac: MacAddr,
    (from, to): (Ipv6Addr, Ipv6Addr),
    target: Ipv6Addr,
    option: u8,
) -> Message {
    let mut message = Message::new();
    let mut icmp = [0; 32];
    icmp[0] = kind;
    icmp[4] = flags;
    icmp[8..24].copy_from_slice(&target.octets());
    icmp[24] = option;
    icmp[25] = 1;
    icmp[26..].copy_from_slice(&mac.0);
    let sum = checksum(from, to, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    for part in [
        &to_mac.0[..],
        &mac.0,
        &IPV6,
        &[0x60, 0, 0, 0, 0, icmp.len() as u8, ICMPV6, 255],
        &from.octets(),
        &to.octets(),
        &icmp,
    ] {
        message.extend(part.iter().copied());
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const YOU: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        for (mine, yours) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::1:2")] {
            let (me, you) = (Speaker { mac: ME, ip: ip(mine) }, Speaker { mac: YOU, ip: ip(yours) });
            let asked = Heard::Asks { target: you.ip, from: Some((me.ip, ME)) };
            let all = question(me, you.ip, None);
            assert!(could_be(&all) && all[0] & 1 == 1);
            assert_eq!(read(&all, true), Some(asked));
            let one = question(me, you.ip, Some(YOU));
            assert_eq!((read(&one, true), &one[..6]), (Some(asked), &YOU.0[..]));
            let told = answer(you, Some((me.ip, ME)));
            assert!(could_be(&told));
            assert_eq!(&told[..6], &ME.0);
            let tells = Heard::Tells { of: you.ip, mac: Some(YOU), solicited: true, replaces: true };
            assert_eq!(read(&told, true), Some(tells));
            let announced = Heard::Tells { of: me.ip, mac: Some(ME), solicited: false, replaces: true };
            assert_eq!(read(&announcement(me), true), Some(announced));
        }
        let probe = arp(1, YOU, Ipv4Addr::UNSPECIFIED, MacAddr::BROADCAST, MacAddr::ZERO, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(read(&probe, true), Some(Heard::Asks { target: ip("10.0.0.1"), from: None }));
    }

    #[test]
    fn a_solicitation_goes_to_the_group_of_its_target() {
        let asked = question(Speaker { mac: ME, ip: ip("fd00::1") }, ip("fd00::aabb:ccdd"), None);
        assert_eq!(&asked[..6], &[0x33, 0x33, 0xff, 0xbb, 0xcc, 0xdd]);
        assert_eq!(&asked[38..54], &"ff02::1:ffbb:ccdd".parse::<Ipv6Addr>().expect("an address").octets());
        assert_eq!(group_mac_of(ip("224.129.2.3")), MacAddr([1, 0, 0x5e, 1, 2, 3]));
    }

    #[test]
    fn what_breaks_a_rule_of_neighbour_discovery_is_not_heard() {
        let good = answer(Speaker { mac: YOU, ip: ip("fd00::2") }, Some((ip("fd00::1"), ME)));
        let options = ICMP_AT + 24;
        for (what, at, value) in [
            ("hop limit", 21, 254),
            ("code", ICMP_AT + 1, 1),
            ("checksum", ICMP_AT + 2, good[ICMP_AT + 2] ^ 1),
            ("no such type", ICMP_AT, 137),
            ("group as target", ICMP_AT + 8, 0xff),
            ("an option of no length", options + 1, 0),
            ("an option beyond the end", options + 1, 2),
            ("length", 19, 33),
            ("short", 19, 16),
            ("group as address", options + 2, 3),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            // All but the checksum itself are refused with a checksum left to the device as well.
            assert_eq!(read(&bad, what == "checksum"), None, "{what}");
        }
        for cut in 0..good.len() {
            assert_eq!(read(&good[..cut], true), None, "cut at {cut}");
        }
        let arp = answer(Speaker { mac: YOU, ip: ip("10.0.0.2") }, Some((ip("10.0.0.1"), ME)));
        for cut in 0..arp.len() {
            assert_eq!(read(&arp[..cut], true), None, "cut at {cut}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_strange_to_be_read(mut bytes in proptest::collection::vec(0u8.., 0..MAX_MESSAGE), kind in 0..3) {
            if bytes.len() > ICMP_AT {
                let ether_type = [ARP, IPV6, IPV4][kind as usize];
                bytes[12..14].copy_from_slice(&ether_type);
                bytes[20..22].copy_from_slice(&[ICMPV6, 255]);
                bytes[ICMP_AT] = SOLICITATION + bytes[ICMP_AT] % 2;
                let length = (bytes.len() - ICMP_AT) as u8;
                bytes[18..20].copy_from_slice(&[0, length]);
            }
            could_be(&bytes);
            read(&bytes, false);
        }
    }
}
