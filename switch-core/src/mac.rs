//! The 48-bit MAC address (IEEE 802-2014 §8.2).

use std::{fmt, str::FromStr};

/// An EUI-48 address in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The broadcast address.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
    /// The all-zero address, never a valid source.
    pub const ZERO: MacAddr = MacAddr([0; 6]);

    /// The address as the low 48 bits of an integer, first octet most significant.
    #[inline]
    pub const fn to_u64(self) -> u64 {
        let m = self.0;
        u64::from_be_bytes([0, 0, m[0], m[1], m[2], m[3], m[4], m[5]])
    }

    /// The inverse of [`to_u64`](Self::to_u64); the upper 16 bits are ignored.
    #[inline]
    pub const fn from_u64(bits: u64) -> MacAddr {
        let b = bits.to_be_bytes();
        MacAddr([b[2], b[3], b[4], b[5], b[6], b[7]])
    }

    /// The group bit: multicast and broadcast addresses.
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// ff:ff:ff:ff:ff:ff.
    #[inline]
    pub const fn is_broadcast(self) -> bool {
        self.to_u64() == 0xffff_ffff_ffff
    }

    /// 01-80-C2-00-00-00 to -0F: addresses that a bridge treats specially (IEEE 802.1Q-2022 §8.6.3).
    /// Returns the last nibble.
    #[inline]
    pub const fn reserved_group(self) -> Option<u8> {
        MacBits(self.to_u64()).reserved_group()
    }
}

/// An address for the station at a port: always the same for a port of a host, and another for every other one.
#[must_use]
pub fn mac_of(port: &str) -> MacAddr {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    // FNV-1a, because the address must outlive versions of any hash function.
    // Zeros at the end spread the last letters.
    let hash = machine
        .trim()
        .bytes()
        .chain([0])
        .chain(port.bytes())
        .chain([0; 4])
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

/// An address as an integer ([`MacAddr::to_u64`]): on the frame path one register instead of six bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacBits(pub u64);

impl MacBits {
    /// Destination and source of an Ethernet header.
    #[inline]
    #[must_use]
    pub const fn of_header(header: &[u8; 14]) -> (MacBits, MacBits) {
        // Each by one load of eight bytes.
        let (first, [_, _, _, _, _, _, last @ ..]) = (header.first_chunk(), header);
        let Some(first) = first else { unreachable!() };
        let dst = u64::from_be_bytes(*first) >> 16;
        let src = u64::from_be_bytes(*last) >> 16;
        (MacBits(dst), MacBits(src))
    }

    /// See [`MacAddr::is_multicast`].
    #[inline]
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0 & (1 << 40) != 0
    }

    /// See [`MacAddr::is_broadcast`].
    #[inline]
    #[must_use]
    pub const fn is_broadcast(self) -> bool {
        self.0 == 0xffff_ffff_ffff
    }

    /// See [`MacAddr::reserved_group`].
    #[inline]
    #[must_use]
    pub const fn reserved_group(self) -> Option<u8> {
        if self.0 & !0xf == 0x0180_c200_0000 { Some((self.0 & 0xf) as u8) } else { None }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", m[0], m[1], m[2], m[3], m[4], m[5])
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six two-digit hexadecimal octets separated by `:` or `-`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a MAC address; write it as 02:00:00:00:00:01")]
pub struct ParseMacError(pub String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseMacError(text.to_owned());
        let mut octets = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(wrong)?;
            if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(MacAddr(octets))
    }
}

impl serde::Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bits_round_trip() {
        let mac: MacAddr = "02:00:5e:10:00:ff".parse().expect("valid");
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        assert_eq!(MacAddr::from_u64(mac.to_u64()), mac);
        assert_eq!("2-0-5e-10-0-ff".parse(), Ok(mac));
    }

    #[test]
    fn wrong_text_is_named() {
        for text in ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "02:00:00:00:00:0g", "+2:00:00:00:00:01"] {
            let error = text.parse::<MacAddr>().expect_err(text);
            assert!(error.to_string().contains("02:00:00:00:00:01"));
        }
    }

    #[test]
    fn reserved_addresses_are_recognised() {
        assert_eq!(MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]).reserved_group(), Some(0xe));
        assert_eq!(MacAddr([1, 0x80, 0xc2, 0, 0, 0x10]).reserved_group(), None);
        assert!(MacAddr::BROADCAST.is_multicast() && MacAddr::BROADCAST.is_broadcast());
    }
}
