//! The switch as Open vSwitch would see it, and what of it an `ovs-vsctl` command line changes.
//!
//! A bridge is a domain. What the tables of Open vSwitch say of a port is kept in labels at the port, `ovs.bridge` first. From these
//! follow its attachments ([`Model::settle`]): a domain `BRIDGE.VID` per VLAN that some port names, made when it is first named and removed
//! with the last name; see docs/decisions/005-vlans-of-an-ovs-bridge.md. Ports that others put into a domain are listed and can be removed, but not dressed.

use std::collections::{BTreeMap, BTreeSet};

pub use switch_core::control::ovs::{BRIDGE, Vlans};
use switch_core::control::{
    spec::{AttachmentSpec, DomainSpec, DressSpec, Kind, PortSpec, RoleSpec},
    wire::{DomainView, Edit, PortView, Status},
};

use super::{Failure, fail};
use crate::client::Client;

/// At a domain: the bridge whose VLAN it is, made by [`Model::settle`].
const VLAN_OF: &str = "ovs.vlan-of";

/// What is there, and what shall be.
#[derive(Clone, Debug, Default)]
pub struct Model {
    revision: u64,
    before: (BTreeMap<String, DomainSpec>, BTreeMap<String, PortSpec>),
    /// Domains that somebody asked for.
    pub domains: BTreeMap<String, DomainSpec>,
    /// Ports that somebody asked for.
    pub ports: BTreeMap<String, PortSpec>,
    /// What is seen of them.
    pub views: BTreeMap<String, PortView>,
}

impl Model {
    /// Asks the switch.
    pub fn ask(client: &Client) -> anyhow::Result<Model> {
        // The number first: what changes after it makes the edit a conflict.
        let revision = client.get::<Status>("/v1/status")?.revision;
        let domains = client.get::<Vec<DomainView>>("/v1/domains")?;
        let views = client.get::<Vec<PortView>>("/v1/ports")?;
        let mut model = Model::new(
            domains.into_iter().filter(|d| d.origin.is_some()).map(|d| d.spec).collect(),
            views.iter().filter(|p| p.origin.is_some()).map(|p| p.spec.clone()).collect(),
        );
        model.revision = revision;
        model.views = views.into_iter().map(|view| (view.spec.name.clone(), view)).collect();
        Ok(model)
    }

    /// One of these objects.
    pub fn new(domains: Vec<DomainSpec>, ports: Vec<PortSpec>) -> Model {
        let domains: BTreeMap<_, _> = domains.into_iter().map(|d| (d.name.clone(), d)).collect();
        let ports: BTreeMap<_, _> = ports.into_iter().map(|p| (p.name.clone(), p)).collect();
        Model { before: (domains.clone(), ports.clone()), domains, ports, ..Model::default() }
    }

    /// Whether anything is not as it was found.
    pub fn is_changed(&self) -> bool {
        (&self.domains, &self.ports) != (&self.before.0, &self.before.1)
    }

    /// What has to be done, if anything.
    pub fn edit(self) -> Option<Edit> {
        let (old_domains, old_ports) = self.before;
        let edit = Edit {
            revision: Some(self.revision),
            remove_ports: old_ports.keys().filter(|name| !self.ports.contains_key(*name)).cloned().collect(),
            remove_domains: old_domains.keys().filter(|name| !self.domains.contains_key(*name)).cloned().collect(),
            domains: self.domains.into_values().filter(|d| old_domains.get(&d.name) != Some(d)).collect(),
            ports: self.ports.into_values().filter(|p| old_ports.get(&p.name) != Some(p)).collect(),
            ..Edit::default()
        };
        let nothing = edit.remove_ports.is_empty() && edit.remove_domains.is_empty();
        (!nothing || !edit.domains.is_empty() || !edit.ports.is_empty()).then_some(edit)
    }

    /// The bridge that a domain is a VLAN of: by its label, or by its name if others made it.
    fn vlan_of<'a>(&'a self, domain: &'a str) -> Option<&'a str> {
        let label = self.domains.get(domain).and_then(|d| d.labels.get(VLAN_OF));
        let by_name = || domain.rsplit_once('.').map(|(bridge, _)| bridge);
        let bridge = label.map(String::as_str).or_else(by_name)?;
        (vid_in(bridge, domain).is_some() && self.domains.contains_key(bridge)).then_some(bridge)
    }

    /// The bridges' names.
    pub fn bridges(&self) -> impl Iterator<Item = &String> {
        self.domains.keys().filter(|name| self.vlan_of(name).is_none())
    }

    /// Fails as ovs-vsctl does if there is no such bridge.
    pub fn bridge(&self, name: &str) -> Result<(), Failure> {
        if self.bridges().any(|bridge| bridge == name) { Ok(()) } else { fail(format!("no bridge named {name}")) }
    }

    /// The bridge of a port: where it was added, or the first domain that others put it into.
    pub fn bridge_of(&self, port: &PortSpec) -> Option<String> {
        if let Some(bridge) = port.labels.get(BRIDGE) {
            return Some(bridge.clone());
        }
        // One that joins a network by its name is where that puts it.
        let given = || self.views.get(&port.name)?.effective().domains.first();
        let domain = &port.domains.first().or_else(given)?.domain;
        Some(self.vlan_of(domain).unwrap_or(domain).to_owned())
    }

    /// Members of a bridge by name, without its local port.
    pub fn members(&self, bridge: &str) -> Vec<&PortSpec> {
        self.ports.values().filter(|p| p.name != bridge && self.bridge_of(p).as_deref() == Some(bridge)).collect()
    }

    /// Adds a bridge with its local port, which is a TAP of the same name.
    pub fn add_bridge(&mut self, name: &str) {
        self.domains.insert(name.to_owned(), DomainSpec::new(name));
        let mut port = PortSpec::new(name, Kind::Tap);
        port.domains = vec![AttachmentSpec::untagged(name)];
        port.labels.insert(BRIDGE.to_owned(), name.to_owned());
        self.ports.insert(name.to_owned(), port);
    }

    /// Removes a bridge, its VLANs and the ports that are nowhere else.
    pub fn remove_bridge(&mut self, name: &str) {
        let gone: BTreeSet<String> =
            self.domains.values().filter(|d| d.name == name || is_vlan_of(d, name)).map(|d| d.name.clone()).collect();
        self.domains.retain(|domain, _| !gone.contains(domain));
        self.ports.retain(|_, port| {
            let had = port.domains.len();
            port.domains.retain(|a| !gone.contains(&a.domain));
            let ours = port.labels.get(BRIDGE).is_some_and(|bridge| bridge == name);
            !ours && (!port.domains.is_empty() || had == 0)
        });
    }

    /// Makes attachments and VLANs of every bridge what the labels say.
    ///
    /// # Errors
    /// A port's columns contradict each other.
    pub fn settle(&mut self) -> Result<(), Failure> {
        let bridges: Vec<String> = self.bridges().cloned().collect();
        bridges.iter().try_for_each(|bridge| self.settle_bridge(bridge))
    }

    fn settle_bridge(&mut self, bridge: &str) -> Result<(), Failure> {
        let ours = |port: &PortSpec| port.labels.get(BRIDGE).is_some_and(|b| b == bridge);
        let mut vids: BTreeSet<u16> =
            self.ports.values().filter(|p| ours(p)).flat_map(|p| Vlans::of(p).named().collect::<Vec<_>>()).collect();
        // Domains of such names that others made are VLANs of the bridge as well, and stay.
        let of_others = self.domains.values().filter(|d| !is_vlan_of(d, bridge));
        vids.extend(of_others.filter_map(|d| vid_in(bridge, &d.name)));
        for port in self.ports.values_mut().filter(|p| ours(p)) {
            let vlans = Vlans::of(port);
            let (untagged, trunk) = vlans.wire().or_else(|e| fail(format!("port {}: {e}", port.name)))?;
            let mut wanted: Vec<(String, DressSpec)> =
                untagged.map(|vid| (domain_of(bridge, vid), vlans.native_dress(vid))).into_iter().collect();
            if trunk {
                let on_wire =
                    |vid: &u16| Some(*vid) != untagged && (vlans.trunks.is_empty() || vlans.trunks.contains(vid));
                wanted.extend(
                    vids.iter()
                        .copied()
                        .filter(on_wire)
                        .map(|vid| (domain_of(bridge, vid), DressSpec::Tag { vid, tpid: 0x8100 })),
                );
            }
            // What others said of its reach in a domain is not ours to take back.
            let role = |domain: &str| {
                port.domains.iter().find(|a| a.domain == domain).map_or(RoleSpec::default(), |a| a.role.clone())
            };
            port.domains = wanted
                .into_iter()
                .map(|(domain, dress)| AttachmentSpec { role: role(&domain), domain, dress })
                .collect();
        }
        let pattern = self.domains[bridge].clone();
        for vid in &vids {
            let name = domain_of(bridge, *vid);
            self.domains.entry(name.clone()).or_insert_with(|| DomainSpec {
                name,
                host: false,
                transparent: false,
                labels: BTreeMap::from([(VLAN_OF.to_owned(), bridge.to_owned())]),
                ..pattern.clone()
            });
        }
        let used: BTreeSet<String> =
            self.ports.values().flat_map(|p| p.domains.iter().map(|a| a.domain.clone())).collect();
        let named = |name: &str| vid_in(bridge, name).is_some_and(|vid| vids.contains(&vid));
        self.domains.retain(|name, d| !is_vlan_of(d, bridge) || named(name) || used.contains(name));
        Ok(())
    }
}

fn is_vlan_of(domain: &DomainSpec, bridge: &str) -> bool {
    domain.labels.get(VLAN_OF).is_some_and(|b| b == bridge)
}

/// The domain of a VLAN of a bridge; 0 is the bridge's own.
fn domain_of(bridge: &str, vid: u16) -> String {
    if vid == 0 { bridge.to_owned() } else { format!("{bridge}.{vid}") }
}

/// The other way round.
fn vid_in(bridge: &str, domain: &str) -> Option<u16> {
    let digits = domain.strip_prefix(bridge)?.strip_prefix('.')?;
    let vid = digits.parse().ok().filter(|vid| (1..=4094).contains(vid))?;
    (digits == format!("{vid}")).then_some(vid)
}
