//! LACPDUs: what bonds say to each other (IEEE 802.1AX-2020 §6.4.2.3), as whole Ethernet frames.
//!
//! ```text
//!  0  destination 01-80-C2-00-00-02   6  source   12  0x8809
//! 14  subtype 1, version 1
//! 16  TLV 1, 20 bytes: actor    system priority 2, system 6, key 2, port priority 2, port 2, state 1, reserved 3
//! 36  TLV 2, 20 bytes: partner  the same
//! 56  TLV 3, 16 bytes: collector  greatest delay 2, reserved 12
//! 72  TLV 0: the end, then 50 bytes reserved: 124 in all
//! ```
//!
//! [`Lacpdu::parse`] checks once; what it returns cannot fail. A later version is read as the first, as the standard says. Pure.

use crate::{
    mac::MacAddr,
    sys::{packet::SLOW_PROTOCOLS, slow::SLOW_GROUP},
};

/// Bytes of a frame with an LACPDU, without FCS.
pub const LACPDU_BYTES: usize = 14 + 110;
const SUBTYPE_LACP: u8 = 1;
const VERSION: u8 = 1;
const SUBTYPE_AT: usize = 14;
const ACTOR_AT: usize = 16;
const PARTNER_AT: usize = 36;
const COLLECTOR_AT: usize = 56;
const INFO_BYTES: usize = 20;
const COLLECTOR_BYTES: usize = 16;

/// The state of a port in the protocol.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct State(pub u8);

impl State {
    /// It speaks without being spoken to.
    pub const ACTIVE: State = State(1);
    /// It wants to hear every second, and gives up after three.
    pub const SHORT_TIMEOUT: State = State(2);
    /// It may be one of several.
    pub const AGGREGATION: State = State(4);
    /// It belongs to the right aggregate.
    pub const SYNCHRONIZED: State = State(8);
    /// Frames are taken from it.
    pub const COLLECTING: State = State(16);
    /// Frames are sent by it.
    pub const DISTRIBUTING: State = State(32);
    /// Its partner is an assumption: none was heard.
    pub const DEFAULTED: State = State(64);
    /// It has not heard its partner in time.
    pub const EXPIRED: State = State(128);

    const NAMES: [&'static str; 8] = [
        "active",
        "short-timeout",
        "aggregation",
        "synchronized",
        "collecting",
        "distributing",
        "defaulted",
        "expired",
    ];

    /// Whether all of `other` is set.
    #[must_use]
    pub const fn has(self, other: State) -> bool {
        self.0 & other.0 == other.0
    }

    /// With `other` set, or not.
    #[must_use]
    pub const fn with(self, other: State, on: bool) -> State {
        State(if on { self.0 | other.0 } else { self.0 & !other.0 })
    }

    /// The names of what is set.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        (0..8).filter(|bit| self.0 & (1 << bit) != 0).map(|bit| State::NAMES[bit]).collect()
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.names().join("+"))
    }
}

/// One end of a link, as the protocol describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Info {
    /// Part of the system's identity; less goes first.
    pub system_priority: u16,
    /// The system.
    pub system: MacAddr,
    /// Ports of a system with the same key may be aggregated.
    pub key: u16,
    /// Part of the port's identity; less goes first.
    pub port_priority: u16,
    /// The port.
    pub port: u16,
    /// Its state.
    pub state: State,
}

impl Info {
    /// Whether both are the same port, with the same key.
    #[must_use]
    pub fn is_same_port(&self, other: &Info) -> bool {
        Info { state: State::default(), ..*self } == Info { state: State::default(), ..*other }
    }

    fn read(bytes: &[u8; INFO_BYTES]) -> Info {
        let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let [_, _, _, _, a, b, c, d, e, f, ..] = *bytes;
        Info {
            system_priority: number(2),
            system: MacAddr([a, b, c, d, e, f]),
            key: number(10),
            port_priority: number(12),
            port: number(14),
            state: State(bytes[16]),
        }
    }

    fn write(&self, kind: u8, to: &mut [u8]) {
        to[0] = kind;
        to[1] = INFO_BYTES as u8;
        to[2..4].copy_from_slice(&self.system_priority.to_be_bytes());
        to[4..10].copy_from_slice(&self.system.0);
        to[10..12].copy_from_slice(&self.key.to_be_bytes());
        to[12..14].copy_from_slice(&self.port_priority.to_be_bytes());
        to[14..16].copy_from_slice(&self.port.to_be_bytes());
        to[16] = self.state.0;
    }
}

/// What one end says of itself, and of the other as it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacpdu {
    /// The sender.
    pub actor: Info,
    /// Whom the sender speaks to.
    pub partner: Info,
}

impl Lacpdu {
    /// Reads a frame; `None` if it is no LACPDU, or a malformed one.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Lacpdu> {
        let frame: &[u8; LACPDU_BYTES] = frame.first_chunk()?;
        let info = |at: usize, kind: u8| {
            let bytes: &[u8; INFO_BYTES] = frame[at..].first_chunk()?;
            (bytes[..2] == [kind, INFO_BYTES as u8]).then(|| Info::read(bytes))
        };
        let ours = frame[12..14] == SLOW_PROTOCOLS.to_be_bytes()
            && frame[SUBTYPE_AT] == SUBTYPE_LACP
            && frame[SUBTYPE_AT + 1] >= VERSION;
        ours.then_some(Lacpdu { actor: info(ACTOR_AT, 1)?, partner: info(PARTNER_AT, 2)? })
    }

    /// The frame, sent from a device with this address.
    #[must_use]
    pub fn frame(&self, source: MacAddr) -> [u8; LACPDU_BYTES] {
        let mut frame = [0; LACPDU_BYTES];
        frame[..6].copy_from_slice(&SLOW_GROUP);
        frame[6..12].copy_from_slice(&source.0);
        frame[12..14].copy_from_slice(&SLOW_PROTOCOLS.to_be_bytes());
        frame[SUBTYPE_AT..ACTOR_AT].copy_from_slice(&[SUBTYPE_LACP, VERSION]);
        self.actor.write(1, &mut frame[ACTOR_AT..PARTNER_AT]);
        self.partner.write(2, &mut frame[PARTNER_AT..COLLECTOR_AT]);
        frame[COLLECTOR_AT..COLLECTOR_AT + 2].copy_from_slice(&[3, COLLECTOR_BYTES as u8]);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info() -> impl Strategy<Value = Info> {
        (any::<u16>(), any::<[u8; 6]>(), any::<u16>(), any::<u16>(), any::<u16>(), any::<u8>()).prop_map(
            |(system_priority, system, key, port_priority, port, state)| Info {
                system_priority,
                system: MacAddr(system),
                key,
                port_priority,
                port,
                state: State(state),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(actor in info(), partner in info(), source in any::<[u8; 6]>()) {
            let pdu = Lacpdu { actor, partner };
            prop_assert_eq!(Lacpdu::parse(&pdu.frame(MacAddr(source))), Some(pdu));
        }

        #[test]
        fn no_bytes_are_too_much(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            begin in 0usize..=LACPDU_BYTES,
        ) {
            let _ = Lacpdu::parse(&bytes);
            // Nearly right ones as well.
            let pdu = Lacpdu { actor: Info::default(), partner: Info::default() };
            let n = begin.min(bytes.len());
            bytes[..n].copy_from_slice(&pdu.frame(MacAddr::ZERO)[..n]);
            let _ = Lacpdu::parse(&bytes);
        }
    }

    /// The first one of an Open vSwitch 3.1, recorded.
    #[test]
    fn a_foreign_frame_is_read() {
        let text = "0180c2000002d6efbbc20b9f880901010114fffeb65eaf0aa44a0001ffff0002bf000000\
                    02140000000000000000000000000000020000000310000000000000000000000000";
        let digits: Vec<u8> = text.bytes().collect();
        let mut frame: Vec<u8> = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex"))
            .collect();
        assert_eq!(Lacpdu::parse(&frame), None, "cut off");
        frame.resize(LACPDU_BYTES, 0);
        let pdu = Lacpdu::parse(&frame).expect("an LACPDU");
        let Info { system_priority, system, key, port_priority, port, state } = pdu.actor;
        assert_eq!((system_priority, system.to_string().as_str()), (0xfffe, "b6:5e:af:0a:a4:4a"));
        assert_eq!((key, port_priority, port), (1, 0xffff, 2));
        assert_eq!(state, State(0xff).with(State::DEFAULTED, false));
        assert_eq!(pdu.partner, Info { state: State::SHORT_TIMEOUT, ..Info::default() });
        // It is what we would write.
        assert_eq!(pdu.frame(MacAddr([0xd6, 0xef, 0xbb, 0xc2, 0x0b, 0x9f]))[..], frame[..]);
        frame[SUBTYPE_AT] = 2;
        assert_eq!(Lacpdu::parse(&frame), None, "a marker");
        frame[SUBTYPE_AT..ACTOR_AT].copy_from_slice(&[1, 2]);
        assert_eq!(Lacpdu::parse(&frame), Some(pdu), "a later version");
        frame[ACTOR_AT + 1] = 19;
        assert_eq!(Lacpdu::parse(&frame), None, "another length");
    }
}
