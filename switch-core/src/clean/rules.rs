//! Which protocol addresses a station may use: `any`, or `learn` and addresses or networks, joined by `+`.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::cidr::{Cidr, mapped};

/// Addresses and networks that one port may be given.
const MAX_NETS: usize = 64;

/// An address, or a network behind the station, and what is compared for every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Net {
    cidr: Cidr,
    base: u128,
    mask: u128,
}

impl Net {
    fn new(cidr: Cidr) -> Net {
        let mask = cidr.mask();
        Net { cidr, base: mapped(cidr.address) & mask, mask }
    }
}

/// See the module page. The default is `learn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpRule {
    /// No address is checked.
    pub any: bool,
    /// Addresses from DHCP servers and from duplicate address detection are the station's too.
    pub learn: bool,
    nets: Vec<Net>,
}

impl Default for IpRule {
    fn default() -> IpRule {
        IpRule { any: false, learn: true, nets: Vec::new() }
    }
}

impl IpRule {
    /// Whether the address is given.
    #[must_use]
    pub fn gives(&self, address: u128) -> bool {
        self.nets.iter().any(|net| address & net.mask == net.base)
    }

    /// Whether the address itself is given, and not only a network with it.
    #[must_use]
    pub fn names(&self, address: u128) -> bool {
        self.nets.iter().any(|net| net.cidr.is_single() && address == net.base)
    }
}

/// The text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" names no addresses; write ip=learn, ip=any, or addresses and networks like ip=10.0.0.5+fd00::/64")]
pub struct ParseRuleError(String);

impl FromStr for IpRule {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseRuleError(text.to_owned());
        let mut rule = IpRule { any: text == "any", learn: false, nets: Vec::new() };
        if rule.any {
            return Ok(rule);
        }
        for part in text.split('+') {
            if part == "learn" {
                rule.learn = true;
                continue;
            }
            let cidr = Cidr::or_address(part).map_err(|_| wrong())?;
            let address = cidr.address;
            // What is no source of a packet cannot be anybody's address.
            let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
            if address.is_unspecified() && cidr.prefix != 0
                || address.is_multicast()
                || mapped
                || rule.nets.len() == MAX_NETS
            {
                return Err(wrong());
            }
            rule.nets.push(Net::new(cidr));
        }
        Ok(rule)
    }
}

impl fmt::Display for IpRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.any {
            return f.write_str("any");
        }
        let mut parts: Vec<String> = if self.learn { vec!["learn".to_owned()] } else { Vec::new() };
        parts.extend(self.nets.iter().map(
            |Net { cidr, .. }| {
                if cidr.is_single() { cidr.address.to_string() } else { cidr.to_string() }
            },
        ));
        f.write_str(&parts.join("+"))
    }
}

impl serde::Serialize for IpRule {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for IpRule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        for text in ["any", "learn", "10.0.0.5", "learn+10.0.0.5+fd00::5", "10.1.0.0/16+fd00::/64", "0.0.0.0/0"] {
            assert_eq!(text.parse::<IpRule>().expect(text).to_string(), text);
        }
        for text in ["", "none", "10.0.0", "10.0.0.0/33", "::/129", "224.0.0.1", "0.0.0.0", "ff02::1", "::ffff:1.2.3.4"]
        {
            assert!(text.parse::<IpRule>().is_err(), "{text}");
        }
    }

    #[test]
    fn networks_give_their_own_addresses_only() {
        let rule: IpRule = "10.1.0.0/16+0.0.0.0/0".parse().expect("valid");
        let v4 = |a: [u8; 4]| Ipv4Addr::from(a).to_ipv6_mapped().to_bits();
        assert!(rule.gives(v4([1, 2, 3, 4])), "all of IPv4");
        assert!(!rule.gives(1), "and nothing of IPv6");
        let rule: IpRule = "10.1.0.0/16+10.9.0.1".parse().expect("valid");
        assert!(rule.gives(v4([10, 1, 255, 1])) && rule.gives(v4([10, 9, 0, 1])) && !rule.gives(v4([10, 2, 0, 0])));
        assert!(rule.names(v4([10, 9, 0, 1])) && !rule.names(v4([10, 1, 255, 1])));
    }
}
