//! Leases, as dnsmasq writes them down.

use std::{fs, net::IpAddr, path::Path};

use serde::{Deserialize, Serialize};

/// An address that a guest has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub ip: IpAddr,
    /// The guest's MAC address; with IPv6 its DHCP identifier.
    pub client: String,
    /// The name it gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// When it ends, in seconds since 1970; `None`: never.
    pub expires: Option<u64>,
}

/// The leases in a file; none if there is no file yet.
#[must_use]
pub fn read(path: &Path) -> Vec<Lease> {
    fs::read_to_string(path).map(|text| parse(&text)).unwrap_or_default()
}

/// `EXPIRES MAC IP NAME CLIENT-ID`, and with IPv6 `EXPIRES IAID IP NAME DUID`; `*` stands for nothing.
fn parse(text: &str) -> Vec<Lease> {
    let given = |word: &str| (word != "*").then(|| word.to_owned());
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [expires, client, ip, name, id] = words[..] else { return None };
            let ip: IpAddr = ip.parse().ok()?;
            let expires: u64 = expires.parse().ok()?;
            let client = if ip.is_ipv4() { client } else { id };
            Some(Lease {
                ip,
                client: client.to_owned(),
                hostname: given(name),
                expires: (expires != 0).then_some(expires),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn both_families_are_read_and_the_rest_is_skipped() {
        let leases = parse(
            "1700000000 52:54:00:00:00:05 10.1.0.5 www 01:52:54:00:00:00:05\n0 52:54:00:00:00:06 10.1.0.6 * *\n\
             duid 00:01:00:01:2b\n1700000000 123 fd00::5 six 00:02:00:ab\nrubbish\n",
        );
        let shown: Vec<_> =
            leases.iter().map(|l| (l.ip.to_string(), l.client.as_str(), l.hostname.as_deref(), l.expires)).collect();
        assert_eq!(
            shown,
            [
                ("10.1.0.5".to_owned(), "52:54:00:00:00:05", Some("www"), Some(1_700_000_000)),
                ("10.1.0.6".to_owned(), "52:54:00:00:00:06", None, None),
                ("fd00::5".to_owned(), "00:02:00:ab", Some("six"), Some(1_700_000_000)),
            ]
        );
    }
}
