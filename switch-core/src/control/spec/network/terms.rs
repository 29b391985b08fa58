//! What a network gives to a port that joins it by name: what its portgroup says, over what the network says of every port.
//!
//! The port's own words go before both; that is [`Desired::effective_ports`](crate::control::desired::Desired::effective_ports)' to see to.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bandwidth, ForwardMode, MacTableManager, NativeMode, NetworkSpec, PortGroup, Rate, VirtualPort, VlanSpec};
use crate::{
    control::spec::{DressSpec, SpecError, wrong},
    rate,
};

/// The portgroup of a port that wants none, not even the default one.
pub const NO_GROUP: &str = "none";

/// The settings of a port that joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms<'a> {
    /// The portgroup that they are from.
    pub group: Option<&'a str>,
    /// VLANs of its attachment; the network's own domain unless given.
    pub vlan: Option<&'a VlanSpec>,
    /// It reaches promiscuous members only.
    pub isolated: bool,
    /// Its station's address is not learned.
    pub pinned: bool,
    /// To its station.
    pub rate_to: Option<rate::Rate>,
    /// From its station.
    pub rate_from: Option<rate::Rate>,
    /// Of `<virtualport>`.
    pub parameters: BTreeMap<&'a str, &'a str>,
}

impl Rate {
    /// As this switch has it; `None`: no average, so nothing is limited.
    #[must_use]
    pub fn limit(&self) -> Option<rate::Rate> {
        // Checked by `check_bandwidth`.
        let kib = |value: u64| u32::try_from(value).ok();
        Some(rate::Rate {
            average: kib(self.average?)?,
            peak: self.peak.and_then(kib),
            burst: self.burst.and_then(kib),
        })
    }
}

impl Bandwidth {
    /// To the guests.
    #[must_use]
    pub fn to_guests(&self) -> Option<rate::Rate> {
        self.inbound.and_then(|rate| rate.limit())
    }

    /// From the guests.
    #[must_use]
    pub fn from_guests(&self) -> Option<rate::Rate> {
        self.outbound.and_then(|rate| rate.limit())
    }
}

impl VlanSpec {
    /// Whether tags are on the wire.
    #[must_use]
    pub fn is_trunk(&self) -> bool {
        self.trunk || self.tags.len() > 1 || self.tags.iter().any(|tag| tag.native_mode.is_some())
    }

    /// Each VLAN as it looks on the port's wire.
    pub fn dresses(&self) -> impl Iterator<Item = (u16, DressSpec)> + '_ {
        let trunk = self.is_trunk();
        self.tags.iter().map(move |tag| {
            let (vid, tpid) = (tag.id, 0x8100);
            let dress = match tag.native_mode {
                Some(NativeMode::Tagged) => DressSpec::Native { vid, tpid },
                None if trunk => DressSpec::Tag { vid, tpid },
                Some(NativeMode::Untagged) | None => DressSpec::Untagged,
            };
            (vid, dress)
        })
    }
}

impl NetworkSpec {
    /// The portgroup of that name, or the default one if none is named.
    ///
    /// # Errors
    /// There is no such portgroup.
    pub fn group(&self, named: Option<&str>) -> Result<Option<&PortGroup>, SpecError> {
        match named {
            None => Ok(self.portgroup.iter().find(|group| group.default)),
            Some(NO_GROUP) => Ok(None),
            Some(name) => match self.portgroup.iter().find(|group| group.name == name) {
                Some(group) => Ok(Some(group)),
                None => {
                    let known: Vec<&str> = self.portgroup.iter().map(|group| group.name.as_str()).collect();
                    let known = if known.is_empty() { "it has none".to_owned() } else { known.join(", ") };
                    wrong(format!("network \"{}\" has no portgroup \"{name}\"; known: {known}", self.name))
                }
            },
        }
    }

    /// What a port that joins with this portgroup is given.
    ///
    /// # Errors
    /// There is no such portgroup.
    pub fn terms(&self, named: Option<&str>) -> Result<Terms<'_>, SpecError> {
        let group = self.group(named)?;
        let bandwidth = group.and_then(|group| group.bandwidth);
        let ports = [self.virtual_port.as_ref(), group.and_then(|group| group.virtual_port.as_ref())];
        let parameters = ports.into_iter().flatten().flat_map(|port: &VirtualPort| &port.parameters);
        Ok(Terms {
            group: group.map(|group| group.name.as_str()),
            vlan: group.and_then(|group| group.vlan.as_ref()).or(self.vlan.as_ref()),
            isolated: self.port_isolated || group.is_some_and(|group| group.port_isolated),
            pinned: group.and_then(|group| group.mac_table_manager).or(self.bridge.mac_table_manager)
                == Some(MacTableManager::Libvirt),
            rate_to: bandwidth.and_then(|b| b.to_guests()),
            rate_from: bandwidth.and_then(|b| b.from_guests()),
            parameters: parameters.map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        })
    }

    /// The domain that ports join: its own, or one that exists. Networks whose guests have devices have none.
    #[must_use]
    pub fn base(&self) -> Option<&str> {
        match self.forward.mode {
            ForwardMode::Macvtap | ForwardMode::Hostdev => None,
            ForwardMode::Openvswitch => self.bridge.name.as_deref(),
            ForwardMode::Bridge => Some(self.forward.domain.as_deref().unwrap_or(&self.name)),
            _ => Some(&self.name),
        }
    }

    /// The VLANs that it names, of all portgroups.
    #[must_use]
    pub fn vids(&self) -> BTreeSet<u16> {
        let all = self.portgroup.iter().filter_map(|group| group.vlan.as_ref()).chain(&self.vlan);
        all.flat_map(|vlan| vlan.tags.iter().map(|tag| tag.id)).collect()
    }

    /// The devices to choose from, by name (`macvtap`).
    pub fn pool(&self) -> impl Iterator<Item = &String> {
        self.forward.dev.iter().chain(&self.forward.interfaces)
    }
}

/// The domain of a VLAN of another domain, as `vswitch ovs-vsctl` calls it.
#[must_use]
pub fn vlan_domain(base: &str, vid: u16) -> String {
    format!("{base}.{vid}")
}
