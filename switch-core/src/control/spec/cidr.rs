//! An address with the length of its network's prefix: `192.168.122.1/24`, `fd00:1::1/64`.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{SpecError, wrong};

/// An address and its prefix length. Host bits are kept: `10.0.0.1/24` is an address *in* 10.0.0.0/24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network part.
    pub prefix: u8,
}

/// The address as a number of 128 bits and the bits that its family has.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

impl Cidr {
    /// An address in a network.
    ///
    /// # Errors
    /// The prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Cidr, SpecError> {
        if u32::from(prefix) > bits(address).1 {
            return wrong(format!("{address}/{prefix}: the prefix is longer than the address"));
        }
        Ok(Cidr { address, prefix })
    }

    /// Whether it is an IPv4 address.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    fn mask(&self) -> u128 {
        let size = bits(self.address).1;
        let all = u128::MAX >> (128 - size);
        let host = size - u32::from(self.prefix);
        all.checked_shr(host).unwrap_or(0).checked_shl(host).unwrap_or(0)
    }

    /// The network: the same prefix with the host bits cleared.
    #[must_use]
    pub fn network(&self) -> Cidr {
        let cleared = bits(self.address).0 & self.mask();
        let address = match self.address {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(cleared).unwrap_or_default().into()),
            IpAddr::V6(_) => IpAddr::V6(cleared.into()),
        };
        Cidr { address, prefix: self.prefix }
    }

    /// The netmask, for what is written with one.
    #[must_use]
    pub fn netmask(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(self.mask()).unwrap_or_default().into()),
            IpAddr::V6(_) => IpAddr::V6(self.mask().into()),
        }
    }

    /// Whether an address is in the network.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && bits(address).0 & self.mask() == bits(self.address).0 & self.mask()
    }

    /// Whether any address is in both networks.
    #[must_use]
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl FromStr for Cidr {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed =
            text.split_once('/').and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
        match parsed {
            Some((address, prefix)) => Cidr::new(address, prefix),
            None => wrong(format!("\"{text}\": write ADDRESS/PREFIX, for example 192.168.122.1/24 or fd00:1::1/64")),
        }
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
