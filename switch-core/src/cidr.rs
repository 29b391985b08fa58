//! An address with the length of its network's prefix: `192.168.122.1/24`, `fd00:1::1/64`.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// An address and its prefix length. Host bits are kept: `10.0.0.1/24` is an address *in* 10.0.0.0/24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network part.
    pub prefix: u8,
}

/// The text, or the pair, is no address with a prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CidrError(String);

/// An address as one of IPv6's: one of IPv4 is mapped (RFC 4291 §2.5.5.2).
#[inline]
#[must_use]
pub const fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

const fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Cidr {
    /// An address in a network.
    ///
    /// # Errors
    /// The prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Cidr, CidrError> {
        if prefix > bits(address) {
            return Err(CidrError(format!("{address}/{prefix}: the prefix is longer than the address")));
        }
        Ok(Cidr { address, prefix })
    }

    /// As parsing does, but an address alone is a network of its own.
    ///
    /// # Errors
    /// The text is neither `ADDRESS` nor `ADDRESS/PREFIX`.
    pub fn or_address(text: &str) -> Result<Cidr, CidrError> {
        let wrong = || CidrError(format!("\"{text}\" is no address or prefix; use for example 10.0.0.5 or fd00::/64"));
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix = prefix.map_or(Ok(bits(address)), |prefix| prefix.parse().map_err(|_| wrong()))?;
        Cidr::new(address, prefix)
    }

    /// Whether it is an IPv4 address.
    #[inline]
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether its network has no other address.
    #[inline]
    #[must_use]
    pub const fn is_single(&self) -> bool {
        self.prefix == bits(self.address)
    }

    /// The bits of a [`mapped`] address that its network has in common; those that map it are among them.
    #[inline]
    #[must_use]
    pub const fn mask(&self) -> u128 {
        match u128::MAX.checked_shl((bits(self.address) - self.prefix) as u32) {
            Some(mask) => mask,
            None => 0,
        }
    }

    /// The address of the same family in the lower bits.
    fn like(&self, bits: u128) -> IpAddr {
        match self.address {
            IpAddr::V4(_) => IpAddr::V4((bits as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(bits.into()),
        }
    }

    /// The network: the same prefix with the host bits cleared.
    #[must_use]
    pub fn network(&self) -> Cidr {
        Cidr { address: self.like(mapped(self.address) & self.mask()), prefix: self.prefix }
    }

    /// The netmask, for what is written with one.
    #[must_use]
    pub fn netmask(&self) -> IpAddr {
        self.like(self.mask())
    }

    /// Whether an address is in the network.
    #[inline]
    #[must_use]
    pub const fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && (mapped(address) ^ mapped(self.address)) & self.mask() == 0
    }

    /// Whether any address is in both networks.
    #[must_use]
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.contains('/') {
            let what = "write ADDRESS/PREFIX, for example 192.168.122.1/24 or fd00:1::1/64";
            return Err(CidrError(format!("\"{text}\": {what}")));
        }
        Cidr::or_address(text)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_addresses_and_no_others() {
        let net: Cidr = "192.168.122.1/24".parse().expect("valid");
        assert_eq!(net.network().to_string(), "192.168.122.0/24");
        assert_eq!(net.netmask().to_string(), "255.255.255.0");
        assert!(net.contains("192.168.122.255".parse().expect("address")));
        assert!(!net.contains("192.168.123.0".parse().expect("address")));
        assert!(!net.contains("fd00::1".parse().expect("address")));
        let six: Cidr = "fd00:1::1/64".parse().expect("valid");
        assert_eq!(six.network().to_string(), "fd00:1::/64");
        assert!(six.overlaps(&"fd00:1::ffff/112".parse().expect("valid")));
        assert!(!six.overlaps(&"fd00:2::/64".parse().expect("valid")));
        for (whole, inside) in [("0.0.0.0/0", "10.0.0.1"), ("::/0", "fe80::1"), ("10.0.0.1/32", "10.0.0.1")] {
            assert!(whole.parse::<Cidr>().expect("valid").contains(inside.parse().expect("address")), "{whole}");
        }
        for bad in ["10.0.0.1", "10.0.0.1/33", "fd00::/129", "x/8"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
