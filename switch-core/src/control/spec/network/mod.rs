//! A virtual network as it is wanted: a domain of the same name, and what libvirt calls a network: how its traffic is
//! forwarded, the gateway's addresses, DHCP and DNS.
//!
//! It says all that libvirt's network XML says for these modes, under the same names where they are good ones, so that one can be written
//! as the other. What the switch cannot do is kept, too, and refused by [`NetworkSpec::supported`] when the network is defined. [`Terms`] are what
//! it gives to a port that joins.

mod check;
mod services;
mod support;
mod terms;
#[cfg(test)]
mod tests;
mod uplink;

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

pub use services::{
    DhcpHost, DhcpRange, DhcpSpec, DnsForwarder, DnsHost, DnsSpec, DnsSrv, DnsTxt, IpSpec, NameSpec, RaMode, RouteSpec,
};

pub use terms::{NO_GROUP, Terms, vlan_domain};
pub use uplink::{BondSpec, UplinkSpec};

use crate::cidr::Cidr;
use crate::mac::MacAddr;

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn is_no(value: &bool) -> bool {
    !*value
}

/// How traffic gets out of the network and in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardMode {
    /// Not at all (libvirt: no `<forward>`, or `none`).
    #[default]
    Isolated,
    /// By the host, behind its address.
    Nat,
    /// By the host, with rules that keep others out of the network's addresses (libvirt: `route`).
    Routed,
    /// By the host, without any rule.
    Open,
    /// By a device that is a port of the domain, or by a domain that exists already.
    Bridge,
    /// Each guest has a macvtap on a NIC (libvirt: `bridge`, `private`, `vepa`, `passthrough` with `<interface>`).
    Macvtap,
    /// Guests have PCI devices.
    Hostdev,
    /// By a bridge that `vswitch ovs-vsctl` made, with VLANs (libvirt: `bridge` with `<virtualport type='openvswitch'>`).
    Openvswitch,
}

/// How macvtap devices on one NIC see each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacvtapMode {
    /// Directly.
    #[default]
    Bridge,
    /// Not.
    Private,
    /// By way of the switch outside.
    Vepa,
    /// There is only one.
    Passthrough,
}

/// A range of addresses; one address is a range of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressRange {
    /// The first.
    pub start: IpAddr,
    /// The last.
    pub end: IpAddr,
}

/// A range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// The first.
    pub start: u16,
    /// The last.
    pub end: u16,
}

/// What address translation uses (libvirt: `<nat>`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatSpec {
    /// IPv6 is translated, too; it is routed otherwise.
    #[serde(default, skip_serializing_if = "is_no")]
    pub ipv6: bool,
    /// Source addresses, instead of the address of the device that traffic leaves by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressRange>,
    /// Source ports of TCP and UDP; 1024 to 65535 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortRange>,
}

/// The protocol of a forwarded port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// Connections to a port of the host are connections to a guest's. Ours; libvirt has hooks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortForward {
    /// TCP unless given.
    #[serde(default)]
    pub protocol: Protocol,
    /// The host's address; all of its own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The host's port.
    pub port: u16,
    /// The last of several ports that go to as many of the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<u16>,
    /// The guest's address.
    pub to: IpAddr,
    /// The guest's (first) port; the same as the host's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_port: Option<u16>,
}

/// How traffic gets out of the network and in (libvirt: `<forward>`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardSpec {
    /// The mode.
    #[serde(default)]
    pub mode: ForwardMode,
    /// The device that traffic leaves by: the only one (`nat`, `routed`), or the port (`bridge`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
    /// Several of them: NICs to choose from (`macvtap`, `hostdev`: `<interface dev>`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// `bridge`: the device or bond, and the VLAN on it, that is the port; other networks may have other VLANs on it. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<UplinkSpec>,
    /// `bridge`: the domain that exists already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// `macvtap`: how guests see each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macvtap: Option<MacvtapMode>,
    /// `macvtap`, `hostdev`: the NIC whose virtual functions are the pool (`<pf dev>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pf: Option<String>,
    /// `hostdev`: the pool, as PCI addresses `0000:03:00.1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// `hostdev`: devices are taken from their driver and given back (`managed='yes'`).
    #[serde(default, skip_serializing_if = "is_no")]
    pub managed: bool,
    /// `hostdev`: `vfio` or a driver's model (`<driver name>` or `<driver model>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// `nat`: addresses and ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatSpec>,
    /// `nat`, `routed`, `open`: ports of the host that are a guest's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_forwards: Vec<PortForward>,
    /// Chains of others that drop what is forwarded are given an exception for this network while it is up.
    #[serde(default, skip_serializing_if = "is_no")]
    pub fix_forward: bool,
}

/// Who keeps the MAC table (libvirt: `macTableManager`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacTableManager {
    /// Addresses are learned (libvirt: `kernel`).
    Kernel,
    /// Addresses are those of the guests' definitions, and nothing is flooded to them that is not theirs.
    Libvirt,
}

/// The host's end (libvirt: `<bridge>`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeSpec {
    /// The device of the host port; the network's name unless given. With mode `openvswitch`: the bridge that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether there is a host port; there is one if the network has addresses or forwards by the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<bool>,
    /// Spanning tree: kept for libvirt, without effect (there is none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stp: Option<bool>,
    /// Forward delay in milliseconds: kept for libvirt, without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u32>,
    /// Who keeps the MAC table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_table_manager: Option<MacTableManager>,
    /// The zone of firewalld that the device is put into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// One direction of a bandwidth. Rates in KiB/s, sizes in KiB, as libvirt has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// The rate that is kept on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average: Option<u64>,
    /// The rate of a burst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    /// What may be sent at the peak rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// What is guaranteed (inbound only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<u64>,
}

/// Bandwidth, seen from the guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// To the guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Rate>,
    /// From the guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Rate>,
}

/// How a tag is the native one of a trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NativeMode {
    /// Frames of it leave with the tag.
    Tagged,
    /// Frames of it leave without.
    Untagged,
}

/// One VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlanTag {
    /// Its id, 1 to 4094.
    pub id: u16,
    /// Whether untagged frames are its.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native_mode: Option<NativeMode>,
}

/// VLANs of a guest's port (libvirt: `<vlan>`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlanSpec {
    /// The port is a trunk: all of the tags are on its wire. It is one as well if there are several.
    #[serde(default, skip_serializing_if = "is_no")]
    pub trunk: bool,
    /// The tags.
    pub tags: Vec<VlanTag>,
}

/// Parameters for another switch (libvirt: `<virtualport>`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtualPort {
    /// `openvswitch`, `802.1Qbg`, `802.1Qbh`, `midonet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `interfaceid`, `profileid`, `managerid` ….
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
}

/// Settings that a guest's interface asks for by name (libvirt: `<portgroup>`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortGroup {
    /// The name.
    pub name: String,
    /// For interfaces that ask for none.
    #[serde(default, skip_serializing_if = "is_no")]
    pub default: bool,
    /// The guest may choose which addresses it receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_guest_rx_filters: Option<bool>,
    /// `<port isolated='yes'/>`.
    #[serde(default, skip_serializing_if = "is_no")]
    pub port_isolated: bool,
    /// Bandwidth of each interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Who keeps the MAC table for them, if it is not as the network says. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_table_manager: Option<MacTableManager>,
    /// VLANs of each interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanSpec>,
    /// Parameters of each interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_port: Option<VirtualPort>,
}

/// A network as it is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its unique name, and that of its domain.
    pub name: String,
    /// `3e3fce45-4f53-4fa7-bb32-11f34168b82b`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// A line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// More lines for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What other programs keep here (libvirt: the inner XML of `<metadata>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    /// Started with the switch. In a configuration file it is, unless this says no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// The namespace that the gateway is in: a name under /run/netns, a path, or `pid:N`; the switch's own unless given. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// Address of the host port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// MTU of the domain and the host port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Guests may speak IPv6 to each other though the network has no IPv6 address (`<network ipv6='yes'>`). They always may: a switch does not look.
    #[serde(default, skip_serializing_if = "is_no")]
    pub ipv6: bool,
    /// Guests may choose which addresses they receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_guest_rx_filters: Option<bool>,
    /// Every guest's port is isolated from the others (`<port isolated='yes'/>`).
    #[serde(default, skip_serializing_if = "is_no")]
    pub port_isolated: bool,
    /// How traffic gets out and in.
    #[serde(default)]
    pub forward: ForwardSpec,
    /// The host's end.
    #[serde(default)]
    pub bridge: BridgeSpec,
    /// The DNS domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<NameSpec>,
    /// DNS.
    #[serde(default)]
    pub dns: DnsSpec,
    /// Addresses of the gateway, with DHCP (libvirt: `<ip>`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip: Vec<IpSpec>,
    /// Networks behind guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<RouteSpec>,
    /// Bandwidth of the whole network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// VLANs of guests' ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanSpec>,
    /// Parameters of guests' ports for another switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_port: Option<VirtualPort>,
    /// Settings by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub portgroup: Vec<PortGroup>,
    /// Lines for dnsmasq's configuration (libvirt: `<dnsmasq:option value>`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dnsmasq_options: Vec<String>,
}

impl NetworkSpec {
    /// A closed network of that name.
    #[must_use]
    pub fn new(name: &str) -> NetworkSpec {
        NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() }
    }

    /// The device of the host port.
    #[must_use]
    pub fn device(&self) -> &str {
        self.bridge.name.as_deref().unwrap_or(&self.name)
    }

    /// Whether the network has a domain of its own.
    #[must_use]
    pub fn has_domain(&self) -> bool {
        !(self.foreign() || self.forward.mode == ForwardMode::Bridge && self.forward.domain.is_some())
    }

    /// Whether it is devices of guests, or a bridge that exists.
    #[must_use]
    pub fn foreign(&self) -> bool {
        matches!(self.forward.mode, ForwardMode::Macvtap | ForwardMode::Hostdev | ForwardMode::Openvswitch)
    }

    /// Whether the host forwards packets.
    #[must_use]
    pub fn by_host(&self) -> bool {
        matches!(self.forward.mode, ForwardMode::Nat | ForwardMode::Routed | ForwardMode::Open)
    }

    /// Whether there is a host port.
    #[must_use]
    pub fn has_host(&self) -> bool {
        self.has_domain() && (self.by_host() || !self.ip.is_empty() || self.bridge.host == Some(true))
    }

    /// Whether dnsmasq answers DHCP for one of the addresses.
    #[must_use]
    pub fn has_dhcp(&self) -> bool {
        self.ip.iter().any(|ip| ip.dhcp.as_ref().is_some_and(|dhcp| dhcp.enable))
    }

    /// The addresses.
    pub fn addresses(&self) -> impl Iterator<Item = Cidr> + '_ {
        self.ip.iter().map(|ip| ip.address)
    }
}
