//! Addresses and prefixes as a SPEC writes them: `10.0.0.5`, `10.0.0.0/28`, `fd00::/64`.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// An address, or all addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// A text that is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParsePrefixError(String);

const fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address in the highest bits of a number.
const fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => (v4.to_bits() as u128) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

const fn mask(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - len) }
}

impl Prefix {
    /// Whether an address begins like this.
    #[inline]
    #[must_use]
    pub const fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && (number(self.address) ^ number(address)) & mask(self.len) == 0
    }

    /// The address, if there is only one.
    #[must_use]
    pub fn single(&self) -> Option<IpAddr> {
        (self.len == bits(self.address)).then_some(self.address)
    }

    /// The lowest address.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.address
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Prefix, ParsePrefixError> {
        let wrong =
            || ParsePrefixError(format!("\"{text}\" is no address or prefix; use for example 10.0.0.5 or fd00::/64"));
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let len = len.unwrap_or(bits(address));
        if len > bits(address) {
            return Err(wrong());
        }
        if number(address) & !mask(len) != 0 {
            let low = number(address) & mask(len);
            let network = match address {
                IpAddr::V4(_) => IpAddr::V4(((low >> 96) as u32).into()),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(low)),
            };
            return Err(ParsePrefixError(format!(
                "\"{text}\" is an address inside a prefix; write {address} for the address alone, or {network}/{len} for all of them"
            )));
        }
        Ok(Prefix { address, len })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
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
