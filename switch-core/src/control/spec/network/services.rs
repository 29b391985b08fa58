//! What a network's gateway does for guests: addresses, DHCP, DNS, routes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{AddressRange, Cidr, is_no, is_yes, yes};
use crate::mac::MacAddr;

/// What router advertisements tell guests. Ours: libvirt takes it from whether there are ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RaMode {
    /// None are sent.
    Off,
    /// The prefix: guests make their own addresses.
    RaOnly,
    /// The prefix, and addresses by DHCPv6 for those who ask.
    Slaac,
    /// The prefix, and everything but addresses by DHCPv6.
    Stateless,
    /// Addresses by DHCPv6 only.
    Dhcpv6,
}

/// Addresses to lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DhcpRange {
    /// The first.
    pub start: IpAddr,
    /// The last.
    pub end: IpAddr,
    /// Seconds; 0 = for ever. An hour unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u32>,
}

impl DhcpRange {
    /// The range as such.
    #[must_use]
    pub fn addresses(&self) -> AddressRange {
        AddressRange { start: self.start, end: self.end }
    }
}

/// A guest that is known (libvirt: `<host>`): by its address, its DHCPv6 id or its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DhcpHost {
    /// Its MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Its DHCPv6 identifier (DUID), as hex octets with colons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Seconds; 0 = for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u32>,
}

/// DHCP for one address of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DhcpSpec {
    /// Whether it is answered.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub enable: bool,
    /// What to lease.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub range: Vec<DhcpRange>,
    /// Who is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host: Vec<DhcpHost>,
    /// The file to boot from the network (`<bootp file>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootp_file: Option<String>,
    /// The server that has it (`<bootp server>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootp_server: Option<String>,
}

impl Default for DhcpSpec {
    fn default() -> Self {
        DhcpSpec { enable: true, range: Vec::new(), host: Vec::new(), bootp_file: None, bootp_server: None }
    }
}

/// An address of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpSpec {
    /// With the network's prefix.
    pub address: Cidr,
    /// Reverse look-ups of the network's addresses are never asked of others (`localPtr`).
    #[serde(default, skip_serializing_if = "is_no")]
    pub local_ptr: bool,
    /// The directory that TFTP serves (`<tftp root>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tftp_root: Option<String>,
    /// IPv6: what router advertisements tell; `dhcpv6` if there is a range, else `ra-only`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ra: Option<RaMode>,
    /// DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<DhcpSpec>,
}

impl IpSpec {
    /// What router advertisements tell.
    #[must_use]
    pub fn ra(&self) -> RaMode {
        let leases = self.dhcp.as_ref().is_some_and(|d| d.enable && !(d.range.is_empty() && d.host.is_empty()));
        match self.ra {
            _ if self.address.is_ipv4() => RaMode::Off,
            Some(mode) => mode,
            None if leases => RaMode::Dhcpv6,
            None => RaMode::RaOnly,
        }
    }
}

/// The DNS domain (libvirt: `<domain>`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameSpec {
    /// Its name.
    pub name: String,
    /// Names in it are never asked of others.
    #[serde(default, skip_serializing_if = "is_no")]
    pub local_only: bool,
    /// It is told to systemd-resolved.
    #[serde(default, skip_serializing_if = "is_no")]
    pub register: bool,
}

/// Whom to ask (libvirt: `<forwarder>`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsForwarder {
    /// The server; with a domain alone: whoever the host asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its port, if it is not 53.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Only for names in this domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// Names of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsHost {
    /// The address.
    pub ip: IpAddr,
    /// The names.
    pub hostnames: Vec<String>,
}

/// A TXT record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsTxt {
    /// Its name.
    pub name: String,
    /// Its text.
    #[serde(default)]
    pub value: String,
}

/// A SRV record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsSrv {
    /// The service, without its underscore.
    pub service: String,
    /// The protocol, without its underscore.
    pub protocol: String,
    /// The domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The host that has the service; nobody has it unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Lower ones first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// Among those of one priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
}

/// DNS (libvirt: `<dns>`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsSpec {
    /// Whether it is answered.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub enable: bool,
    /// Names without a dot are asked of others, too (`forwardPlainNames`).
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub forward_plain_names: bool,
    /// Whom to ask; whoever the host asks unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwarder: Vec<DnsForwarder>,
    /// Names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host: Vec<DnsHost>,
    /// TXT records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub txt: Vec<DnsTxt>,
    /// SRV records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub srv: Vec<DnsSrv>,
    /// Seconds for which names of guests may be remembered. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
}

impl Default for DnsSpec {
    fn default() -> Self {
        DnsSpec {
            enable: true,
            forward_plain_names: true,
            forwarder: Vec::new(),
            host: Vec::new(),
            txt: Vec::new(),
            srv: Vec::new(),
            ttl_s: None,
        }
    }
}

/// A network behind a guest (libvirt: `<route>`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// Where to.
    pub to: Cidr,
    /// By which guest.
    pub gateway: IpAddr,
    /// Lower ones first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
}
