//! Addresses and prefixes as a SPEC writes them: `10.0.0.5`, `10.0.0.0/28`, `fd00::/64`.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::cidr::{Cidr, CidrError};

/// An address, or all addresses that begin alike: a network without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(Cidr);

/// A text that is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePrefixError {
    /// It is no address and no network.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// Neither the address nor the network can be meant for sure.
    #[error("\"{0}\" is an address inside a prefix; write {a} for the address alone, or {n} for all of them", a = .0.address, n = .0.network())]
    HostBits(Cidr),
}

impl Prefix {
    /// Whether an address begins like this.
    #[inline]
    #[must_use]
    pub const fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(address)
    }

    /// The address, if there is only one.
    #[must_use]
    pub fn single(&self) -> Option<IpAddr> {
        self.0.is_single().then_some(self.0.address)
    }

    /// The lowest address.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.0.address
    }
}

impl TryFrom<String> for Prefix {
    type Error = ParsePrefixError;

    fn try_from(text: String) -> Result<Prefix, ParsePrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.to_string()
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Prefix, ParsePrefixError> {
        let cidr = Cidr::or_address(text)?;
        if cidr.network() == cidr { Ok(Prefix(cidr)) } else { Err(ParsePrefixError::HostBits(cidr)) }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prefix: &str, inside: &[&str], outside: &[&str]) {
        let parsed: Prefix = prefix.parse().expect(prefix);
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
        for address in inside {
            assert!(parsed.contains(address.parse().expect(address)), "{address} in {prefix}");
        }
        for address in outside {
            assert!(!parsed.contains(address.parse().expect(address)), "{address} not in {prefix}");
        }
    }

    #[test]
    fn prefixes_hold_what_begins_like_them() {
        check("10.0.0.5", &["10.0.0.5"], &["10.0.0.4", "::10.0.0.5", "a00:5::"]);
        check("10.0.0.16/28", &["10.0.0.16", "10.0.0.31"], &["10.0.0.15", "10.0.0.32"]);
        check("0.0.0.0/0", &["1.2.3.4", "255.255.255.255"], &["::", "::1"]);
        check("fd00:1::/64", &["fd00:1::", "fd00:1::ffff"], &["fd00:1:0:1::", "fd00::", "10.0.0.1"]);
        check("::/0", &["fe80::1"], &["0.0.0.0"]);
        check("fd00::7/128", &["fd00::7"], &["fd00::6"]);
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in ["", "10.0.0", "10.0.0.0/33", "fd00::/129", "10.0.0.0/x", "blue"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        let error = "10.0.0.5/24".parse::<Prefix>().expect_err("host bits").to_string();
        assert!(error.contains("10.0.0.5 for the address alone") && error.contains("10.0.0.0/24"), "{error}");
        let error = "fd00::5/64".parse::<Prefix>().expect_err("host bits").to_string();
        assert!(error.contains("fd00::/64"), "{error}");
    }
}
