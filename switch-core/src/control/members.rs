//! Ports that join a network by its name (`network=`): what they must be, and what they are given.
//!
//! What the port itself says goes before its portgroup, and that before the network ([`Terms`]). A member of a network with a domain is attached to that, or
//! to its VLANs. A member of a macvtap network is alone in a domain with a macvtap of its own, on the device that it was given ([`super::pools`]).

use super::{
    desired::Desired,
    effective::wire_domain,
    spec::{
        AttachmentSpec, Kind, Mode, NetworkSpec, PortSpec, RoleSpec, SpecError,
        network::{ForwardMode, MacvtapMode, Terms, vlan_domain},
    },
};
use crate::port::tap::MAX_NAME as MAX_DEVICE_NAME;

/// What follows a port's name in that of its macvtap.
const SUFFIX: &str = ".mvt";
/// FNV-1a of 64 bits.
const FNV: (u64, u64) = (0xcbf2_9ce4_8422_2325, 0x0100_0000_01b3);

impl Desired {
    /// The network that a port joins.
    #[must_use]
    pub fn network_of(&self, port: &PortSpec) -> Option<&NetworkSpec> {
        Some(&self.networks.get(port.network.as_ref()?)?.spec)
    }

    /// The ports that join a network by its name, as they were asked for.
    pub(super) fn members_of<'a>(&'a self, network: &'a str) -> impl Iterator<Item = &'a PortSpec> {
        self.ports.values().map(|port| &port.spec).filter(move |port| port.network.as_deref() == Some(network))
    }

    /// The ports that join networks of a mode, as they were asked for.
    pub(super) fn members(&self, mode: ForwardMode) -> impl Iterator<Item = (&NetworkSpec, &PortSpec)> {
        let joined = self.ports.values().filter_map(|port| Some((self.network_of(&port.spec)?, &port.spec)));
        joined.filter(move |(network, _)| network.forward.mode == mode)
    }

    /// Checks that a port can join as it says.
    pub(super) fn check_member(&self, port: &PortSpec) -> Result<(), SpecError> {
        let Some(name) = &port.network else { return Ok(()) };
        let wrong = |what: String| Err(SpecError(format!("port \"{}\": {what}", port.name)));
        let Some(network) = self.network_of(port) else {
            return wrong(format!("there is no network \"{name}\"; see: vswitch network list"));
        };
        let terms = network.terms(port.portgroup.as_deref());
        let terms = terms.map_err(|e| SpecError(format!("port \"{}\": {e}", port.name)))?;
        if terms.pinned && port.station().is_none() {
            return wrong(format!(
                "network \"{name}\" learns no addresses (mac_table_manager = \"libvirt\"), so it must be known which one is behind the port: station=52:54:00:12:34:56"
            ));
        }
        match network.forward.mode {
            ForwardMode::Hostdev => wrong(format!(
                "network \"{name}\" gives guests PCI devices, no frame of which passes through a port; use: vswitch hostdev allocate {} --network {name}",
                port.name
            )),
            ForwardMode::Macvtap if port.kind == Kind::Macvtap => wrong(format!(
                "it is a macvtap already; network \"{name}\" makes one for each port that joins: use the guest's port, for example vm1=vhost-user,path=/run/vm1.sock,network={name}"
            )),
            ForwardMode::Macvtap if port.station().is_none() && !exclusive(network) => wrong(
                "a macvtap hears the address of one guest only (but with forward.macvtap = \"passthrough\"), so it must be known: station=52:54:00:12:34:56".to_owned()
            ),
            ForwardMode::Macvtap if self.has_port(&wire_name(&port.name)) => {
                let wire = wire_name(&port.name);
                wrong(format!(
                    "there is a port \"{wire}\", which would be its macvtap in network \"{name}\"; rename it"
                ))
            }
            ForwardMode::Macvtap if self.has_domain(&wire_domain(name, &port.name)) => {
                let domain = wire_domain(name, &port.name);
                wrong(format!(
                    "there is a domain \"{domain}\", which would be its own in network \"{name}\"; rename it"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Whether somebody may have a port of the name: a host port has its domain's.
    fn has_port(&self, name: &str) -> bool {
        self.ports.contains_key(name) || self.has_domain(name)
    }

    fn has_domain(&self, name: &str) -> bool {
        self.domains.contains_key(name) || self.networks.contains_key(name)
    }

    /// Gives a port what its network says and it does not.
    pub(super) fn join(&self, port: &mut PortSpec) {
        let Some(network) = self.network_of(port) else { return };
        let Ok(terms) = network.terms(port.portgroup.as_deref()) else { return };
        port.portgroup = terms.group.map(str::to_owned).or(port.portgroup.take());
        port.rate_to = port.rate_to.or(terms.rate_to);
        port.rate_from = port.rate_from.or(terms.rate_from);
        if terms.pinned {
            (port.learning, port.flood) = (false, false);
        }
        for (parameter, label) in [("interfaceid", "iface-id"), ("profileid", "port-profile")] {
            if let Some(value) = terms.parameters.get(parameter) {
                let label = format!("ovs.interface.external_ids:{label}");
                port.labels.entry(label).or_insert_with(|| (*value).to_owned());
            }
        }
        for attachment in self.attachments(network, port, &terms) {
            if !port.domains.iter().any(|a| a.domain == attachment.domain) {
                port.domains.push(attachment);
            }
        }
    }

    fn attachments(&self, network: &NetworkSpec, port: &PortSpec, terms: &Terms<'_>) -> Vec<AttachmentSpec> {
        if network.forward.mode == ForwardMode::Macvtap {
            return vec![AttachmentSpec::untagged(&wire_domain(&network.name, &port.name))];
        }
        // A domain that is not the network's passes frames whether that is started or not.
        let Some(base) = network.base().filter(|_| network.has_domain() || self.active.contains(&network.name)) else {
            return Vec::new();
        };
        let role = if terms.isolated { RoleSpec::Isolated } else { RoleSpec::Promiscuous };
        match terms.vlan {
            None => vec![AttachmentSpec { role, ..AttachmentSpec::untagged(base) }],
            Some(vlan) => vlan
                .dresses()
                .map(|(vid, dress)| AttachmentSpec { domain: vlan_domain(base, vid), dress, role: role.clone() })
                .collect(),
        }
    }

    /// The macvtap of a member of a started network.
    pub(super) fn wire(&self, network: &NetworkSpec, port: &PortSpec) -> Option<PortSpec> {
        let place = self.places.get(&port.name).filter(|_| self.active.contains(&network.name))?;
        let mut wire = PortSpec::new(&wire_name(&port.name), Kind::Macvtap);
        wire.device = Some(place.device.clone());
        wire.netns.clone_from(&network.netns);
        wire.mode = Some(match network.forward.macvtap.unwrap_or_default() {
            MacvtapMode::Bridge => Mode::Bridge,
            MacvtapMode::Private => Mode::Private,
            MacvtapMode::Vepa => Mode::Vepa,
            MacvtapMode::Passthrough => Mode::Passthrough,
        });
        wire.mac = port.station();
        wire.mtu = network.mtu;
        wire.domains = vec![AttachmentSpec::untagged(&wire_domain(&network.name, &port.name))];
        Some(wire)
    }
}

/// Whether a device of the network's pool has one guest at most.
pub(super) fn exclusive(network: &NetworkSpec) -> bool {
    network.forward.macvtap == Some(MacvtapMode::Passthrough)
}

/// The name of a member's macvtap, which is a device's as well.
#[must_use]
pub fn wire_name(port: &str) -> String {
    if port.len() + SUFFIX.len() <= MAX_DEVICE_NAME {
        return format!("{port}{SUFFIX}");
    }
    let hash = port.bytes().fold(FNV.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV.1));
    format!("mvt{:012x}", hash & 0xffff_ffff_ffff)
}
