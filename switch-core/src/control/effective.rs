//! Desired state with what it implies: domains of networks and their VLANs, host ports, uplinks, and what networks give to their members.
//!
//! Everything here is worked out anew from what was asked for, so that a changed network changes its members, and undefining it leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    desired::{Desired, FdbSpec},
    ovs,
    spec::{
        AttachmentSpec, DEFAULT_DOMAIN, DomainSpec, DressSpec, Kind, NetworkSpec, PortSpec, RoleSpec,
        network::{ForwardMode, vlan_domain},
    },
    uplinks::add_uplinks,
};

impl Desired {
    /// FDB entries with those of stations behind ports that do not learn.
    #[must_use]
    pub fn effective_fdb(&self) -> Vec<FdbSpec> {
        let mut all = self.fdb.clone();
        for (name, port) in self.effective_ports() {
            let Some(mac) = port.pinned() else { continue };
            for attachment in &port.domains {
                // What somebody asked for by name goes before.
                if !self.fdb.iter().any(|e| e.mac == mac && e.domain == attachment.domain) {
                    let domain = attachment.domain.clone();
                    all.push(FdbSpec { mac, port: name.clone(), domain, sticky: false });
                }
            }
        }
        all
    }

    /// Domains with the implied ones: `default`, and those of networks, their VLANs and their members' macvtaps.
    #[must_use]
    pub fn effective_domains(&self) -> BTreeMap<String, DomainSpec> {
        let mut all = BTreeMap::from([(DEFAULT_DOMAIN.to_owned(), DomainSpec::new(DEFAULT_DOMAIN))]);
        all.extend(self.domains.iter().map(|(name, owned)| (name.clone(), owned.spec.clone())));
        for (name, owned) in self.networks.iter().filter(|(_, owned)| owned.spec.has_domain()) {
            let mut domain = DomainSpec::new(name);
            domain.mtu = owned.spec.mtu.unwrap_or(domain.mtu);
            domain.rate = closed_rate(&owned.spec);
            all.insert(name.clone(), domain);
        }
        for network in self.networks.values().map(|owned| &owned.spec) {
            let Some(pattern) = network.base().and_then(|base| all.get(base)).cloned() else { continue };
            for vid in network.vids() {
                let name = vlan_domain(&pattern.name, vid);
                all.entry(name.clone()).or_insert_with(|| DomainSpec {
                    name,
                    host: false,
                    transparent: false,
                    labels: BTreeMap::new(),
                    ..pattern.clone()
                });
            }
        }
        for (network, port) in self.members(ForwardMode::Macvtap) {
            let name = wire_domain(&network.name, &port.name);
            let mut domain = DomainSpec::new(&name);
            domain.mtu = network.mtu.unwrap_or(domain.mtu);
            all.insert(name, domain);
        }
        all
    }

    /// Ports with those that domains and started networks imply: host ports, uplinks and macvtaps. Members of networks are as these say.
    #[must_use]
    pub fn effective_ports(&self) -> BTreeMap<String, PortSpec> {
        let mut all: BTreeMap<_, _> =
            self.ports.iter().map(|(name, owned)| (name.clone(), owned.spec.clone())).collect();
        all.values_mut().filter(|port| port.network.is_some()).for_each(|port| self.join(port));
        for (name, owned) in &self.domains {
            if owned.spec.host {
                let mut port = PortSpec::new(name, Kind::Tap);
                port.mtu = Some(owned.spec.mtu);
                port.domains = vec![AttachmentSpec::untagged(name)];
                if owned.spec.transparent {
                    port.domains[0].dress = DressSpec::Transparent;
                }
                all.insert(name.clone(), port);
            }
        }
        for (name, owned) in self.networks.iter().filter(|(name, _)| self.active.contains(*name)) {
            let network = &owned.spec;
            if network.port_isolated {
                isolate(&mut all, name);
            }
            if network.has_host() {
                let mut port = PortSpec::new(name, Kind::Tap);
                port.device = Some(network.device().to_owned());
                port.netns.clone_from(&network.netns);
                port.mac = network.mac;
                port.mtu = Some(network.mtu.unwrap_or_else(|| DomainSpec::new(name).mtu));
                port.domains = vec![AttachmentSpec::untagged(name)];
                bound(&mut port, network);
                all.insert(name.clone(), port);
            }
            if let Some(bridge) = network.base().filter(|_| !network.has_domain()) {
                let vids = network.vids();
                all.values_mut().for_each(|port| carry(port, bridge, &vids));
            }
        }
        let started = self.networks.iter().filter(|(name, _)| self.active.contains(*name));
        add_uplinks(&mut all, started.map(|(name, owned)| (name, &owned.spec)));
        for (network, port) in self.members(ForwardMode::Macvtap) {
            if let Some(wire) = self.wire(network, port) {
                all.insert(wire.name.clone(), wire);
            }
        }
        all
    }

    /// Whether frames may pass in a domain: in a network's, while it is started.
    #[must_use]
    pub fn passes(&self, domain: &str) -> bool {
        let of_network = |name: &str| self.networks.get(name).filter(|owned| owned.spec.has_domain());
        let network = match of_network(domain) {
            Some(_) => Some(domain),
            // A VLAN of one, unless somebody made a domain of that name.
            None if self.domains.contains_key(domain) => None,
            None => domain.rsplit_once('.').map(|(base, _)| base).filter(|base| of_network(base).is_some()),
        };
        network.is_none_or(|name| self.active.contains(name))
    }
}

/// The domain in which a member of a macvtap network is alone with its macvtap.
pub(super) fn wire_domain(network: &str, port: &str) -> String {
    format!("{network}.{port}")
}

/// Where a network has a side that leads out, its bandwidth is that port's: what guests send each other is not bounded, as it is not by libvirt,
/// which bounds the device of the bridge.
pub(super) fn bound(port: &mut PortSpec, network: &NetworkSpec) {
    let Some(bandwidth) = &network.bandwidth else { return };
    (port.rate_from, port.rate_to) = (bandwidth.to_guests(), bandwidth.from_guests());
}

/// A network without such a side: what guests send each other, which is the domain's rate.
fn closed_rate(network: &NetworkSpec) -> Option<crate::rate::Rate> {
    let bandwidth = network.bandwidth.filter(|_| !network.has_host() && network.forward.dev.is_none())?;
    bandwidth.from_guests().or(bandwidth.to_guests())
}

pub(super) fn tagged(base: &str, vid: u16) -> AttachmentSpec {
    let dress = DressSpec::Tag { vid, tpid: 0x8100 };
    AttachmentSpec { domain: vlan_domain(base, vid), dress, role: RoleSpec::Promiscuous }
}

/// A trunk of a bridge, as `vswitch ovs-vsctl` made it, carries VLANs that a network names as well.
fn carry(port: &mut PortSpec, bridge: &str, vids: &BTreeSet<u16>) {
    if port.labels.get(ovs::BRIDGE).is_none_or(|b| b != bridge) {
        return;
    }
    let vlans = ovs::Vlans::of(port);
    for attachment in vids.iter().filter(|vid| vlans.carries(**vid)).map(|vid| tagged(bridge, *vid)) {
        let there = |a: &AttachmentSpec| a.domain == attachment.domain || a.dress.clashes(attachment.dress);
        if !port.domains.iter().any(there) {
            port.domains.push(attachment);
        }
    }
}

/// All members of a network's domain are isolated from each other.
fn isolate(ports: &mut BTreeMap<String, PortSpec>, domain: &str) {
    let members = ports.values_mut().flat_map(|port| &mut port.domains).filter(|a| a.domain == domain);
    members.for_each(|attachment| attachment.role = RoleSpec::Isolated);
}
