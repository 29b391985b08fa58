use super::*;
use crate::mac::MacAddr;

const ME: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fn own() -> Own {
    let addresses = ["10.0.0.16/28", "fd00::5"].iter().map(|t| t.parse().expect("a prefix")).collect();
    Own { mac: ME, addresses, onlink: Vec::new(), gateways: Vec::new() }
}

fn speaker(ip: &str) -> messages::Speaker {
    messages::Speaker { mac: PEER, ip: ip.parse().expect("an address") }
}

/// The beginning of an IP packet to an address, in a frame to a station.
fn packet(station: MacAddr, to: &str) -> Vec<u8> {
    let mut frame = [&station.0[..], &PEER.0, &[0, 0]].concat();
    match to.parse().expect("an address") {
        IpAddr::V4(v4) => {
            frame[12..].copy_from_slice(&IPV4);
            frame.extend([0x45; 16]);
            frame.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            frame[12..].copy_from_slice(&IPV6);
            frame.extend([0x60; 24]);
            frame.extend(v6.octets());
        }
    }
    frame
}

#[test]
fn a_frame_is_a_packet_a_message_or_nothing() {
    let other = MacAddr([2, 0, 0, 0, 0, 9]);
    let cases = [
        (packet(ME, "10.0.0.17"), Kind::Packet),
        (packet(ME, "fd00::5"), Kind::Packet),
        (packet(ME, "10.0.0.32"), Kind::Other),
        (packet(ME, "fd00::6"), Kind::Other),
        (packet(other, "10.0.0.17"), Kind::Other),
        (packet(MacAddr::BROADCAST, "10.0.0.17"), Kind::Other),
        (messages::question(speaker("10.0.0.2"), own().addresses[0].first(), None).to_vec(), Kind::Message),
        (messages::question(speaker("fd00::2"), own().addresses[1].first(), None).to_vec(), Kind::Message),
        (messages::question(speaker("10.0.0.2"), speaker("10.0.0.3").ip, None).to_vec(), Kind::Other),
        (messages::question(speaker("fd00::2"), speaker("fd00::3").ip, None).to_vec(), Kind::Other),
        (messages::announcement(speaker("10.0.0.2")).to_vec(), Kind::Message),
        (messages::announcement(speaker("fd00::2")).to_vec(), Kind::Message),
        (vec![], Kind::Other),
    ];
    for (frame, expected) in cases {
        assert_eq!(kind_of(&own(), &frame), expected, "{frame:02x?}");
        // However short the frame is cut, it is nothing worse.
        (0..frame.len()).for_each(|len| {
            let _ = kind_of(&own(), &frame[..len]);
        });
    }
}

#[test]
fn addresses_are_read_from_whole_headers_only() {
    assert_eq!(addresses(&packet(ME, "10.0.0.17")[ETHERNET..]).map(|a| a.1), "10.0.0.17".parse().ok());
    assert_eq!(addresses(&packet(ME, "fd00::5")[ETHERNET..]).map(|a| a.1), "fd00::5".parse().ok());
    assert_eq!(addresses(&packet(ME, "fd00::5")[ETHERNET..ETHERNET + 39]), None);
    assert_eq!(addresses(&packet(ME, "10.0.0.17")[ETHERNET..ETHERNET + 19]), None);
    assert_eq!(addresses(&[0x50; 60]), None);
}
