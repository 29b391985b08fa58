//! Desired state: everything that somebody asked for and has not taken back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    spec::{AttachmentSpec, DEFAULT_DOMAIN, DomainSpec, DressSpec, Kind, NetworkSpec, PortSpec, RoleSpec, SpecError},
    uplinks::{add_uplinks, check_devices, check_uplinks},
};
use crate::mac::MacAddr;

/// Who asked for an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// `apply FILE` or `run -c FILE`.
    File,
    /// A command.
    Cli,
    /// A network.
    Network,
    /// A hook of another program.
    Hook,
}

/// An object and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned<T> {
    /// The object.
    pub spec: T,
    /// Who asked for it.
    pub origin: Origin,
}

/// A FDB entry that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbSpec {
    /// The address.
    pub mac: MacAddr,
    /// The port.
    pub port: String,
    /// The domain.
    #[serde(default = "default_domain")]
    pub domain: String,
    /// Ages, but never moves.
    #[serde(default)]
    pub sticky: bool,
}

fn default_domain() -> String {
    DEFAULT_DOMAIN.to_owned()
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Domains by name.
    pub domains: BTreeMap<String, Owned<DomainSpec>>,
    /// Ports by name.
    pub ports: BTreeMap<String, Owned<PortSpec>>,
    /// Static and sticky entries.
    pub fdb: Vec<FdbSpec>,
    /// Networks by name.
    #[serde(default)]
    pub networks: BTreeMap<String, Owned<NetworkSpec>>,
    /// Those that are started.
    #[serde(default)]
    pub active: BTreeSet<String>,
    /// Those of them that were started with an exception in others' chains, whatever their definition says.
    #[serde(default)]
    pub fixing: BTreeSet<String>,
}

impl Desired {
    /// Checks everything that objects say of each other.
    ///
    /// # Errors
    /// Names the object and what it lacks.
    pub fn check(&self) -> Result<(), SpecError> {
        for (name, domain) in &self.domains {
            domain.spec.check()?;
            if domain.spec.host && self.ports.contains_key(name) {
                return Err(SpecError(format!(
                    "domain \"{name}\" has a host port, and there is a port of the same name; rename one of them"
                )));
            }
        }
        self.check_networks()?;
        let domains = self.effective_domains();
        for (name, port) in &self.ports {
            port.spec.check()?;
            for attachment in &port.spec.domains {
                if !domains.contains_key(&attachment.domain) {
                    return Err(SpecError(format!(
                        "port \"{name}\": there is no domain \"{0}\"; make it with: vswitch domain add {0}",
                        attachment.domain
                    )));
                }
            }
        }
        let ports = self.effective_ports();
        check_devices(self, &ports)?;
        self.check_stations(&ports)?;
        for entry in &self.fdb {
            if entry.mac.is_multicast() || entry.mac == MacAddr::ZERO {
                return Err(SpecError(format!("fdb entry {}: not a unicast address", entry.mac)));
            }
            if !domains.contains_key(&entry.domain) {
                return Err(SpecError(format!("fdb entry {}: there is no domain \"{}\"", entry.mac, entry.domain)));
            }
            let Some(port) = ports.get(&entry.port) else {
                return Err(SpecError(format!("fdb entry {}: there is no port \"{}\"", entry.mac, entry.port)));
            };
            if !port.domains.iter().any(|a| a.domain == entry.domain) {
                return Err(SpecError(format!(
                    "fdb entry {}: port \"{1}\" is not a member of domain \"{2}\"; attach it first: vswitch port attach {1} {2}",
                    entry.mac, entry.port, entry.domain
                )));
            }
        }
        Ok(())
    }

    /// Checks what networks say of domains, ports and each other.
    fn check_networks(&self) -> Result<(), SpecError> {
        let wrong = |name: &str, what: String| Err(SpecError(format!("network \"{name}\": {what}")));
        let mut uuids = BTreeMap::new();
        for (index, (name, network)) in self.networks.iter().enumerate() {
            let spec = &network.spec;
            spec.check()?;
            spec.supported()?;
            if self.domains.contains_key(name) {
                return wrong(
                    name,
                    "there is a domain of the same name, which would be its own; remove that, or rename one of them"
                        .into(),
                );
            }
            if self.ports.contains_key(name) {
                return wrong(name, format!("there is a port \"{name}\", which would be its own; rename one of them"));
            }
            if let Some(domain) = &spec.forward.domain
                && domain != DEFAULT_DOMAIN
                && !self.domains.contains_key(domain)
            {
                return wrong(
                    name,
                    format!("there is no domain \"{domain}\"; make it with: vswitch domain add {domain}"),
                );
            }
            if let Some(other) = spec.uuid.as_ref().and_then(|uuid| uuids.insert(uuid.to_lowercase(), name)) {
                return wrong(name, format!("network \"{other}\" has the same uuid"));
            }
            for (other, there) in self.networks.iter().take(index) {
                let there = &there.spec;
                if there.netns != spec.netns || !there.has_host() || !spec.has_host() {
                    continue;
                }
                if there.device() == spec.device() {
                    return wrong(name, format!("network \"{other}\" has the host port \"{}\", too", spec.device()));
                }
                if let Some(net) = spec.addresses().find(|a| there.addresses().any(|b| b.overlaps(a))) {
                    return wrong(name, format!("{} overlaps with network \"{other}\"", net.network()));
                }
            }
        }
        check_uplinks(self)?;
        match self.active.iter().find(|name| !self.networks.contains_key(*name)) {
            Some(name) => wrong(name, "there is no such network; see: vswitch network list".into()),
            None => Ok(()),
        }
    }

    /// Whether frames may pass in a domain: in a network's, while it is started.
    #[must_use]
    pub fn passes(&self, domain: &str) -> bool {
        !self.networks.contains_key(domain) || self.active.contains(domain)
    }

    /// A station that is pinned or that alone may speak is in one place.
    fn check_stations(&self, ports: &BTreeMap<String, PortSpec>) -> Result<(), SpecError> {
        let mut places: BTreeMap<(&str, MacAddr), &str> = BTreeMap::new();
        for (name, port) in ports.iter().filter(|(_, port)| port.clean || !port.learning) {
            let Some(station) = port.station() else { continue };
            for attachment in &port.domains {
                if let Some(other) = places.insert((&attachment.domain, station), name) {
                    return Err(SpecError(format!(
                        "port \"{name}\": {station} is the station of port \"{other}\" in domain \"{}\" already",
                        attachment.domain
                    )));
                }
            }
        }
        Ok(())
    }

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

    /// Domains with the implied ones: `default`, and those of networks.
    #[must_use]
    pub fn effective_domains(&self) -> BTreeMap<String, DomainSpec> {
        let mut all = BTreeMap::from([(DEFAULT_DOMAIN.to_owned(), DomainSpec::new(DEFAULT_DOMAIN))]);
        all.extend(self.domains.iter().map(|(name, owned)| (name.clone(), owned.spec.clone())));
        for (name, owned) in self.networks.iter().filter(|(_, owned)| owned.spec.has_domain()) {
            let mut domain = DomainSpec::new(name);
            domain.mtu = owned.spec.mtu.unwrap_or(domain.mtu);
            all.insert(name.clone(), domain);
        }
        all
    }

    /// Ports with those that domains and started networks imply: host ports and uplinks.
    #[must_use]
    pub fn effective_ports(&self) -> BTreeMap<String, PortSpec> {
        let mut all: BTreeMap<_, _> =
            self.ports.iter().map(|(name, owned)| (name.clone(), owned.spec.clone())).collect();
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
                all.insert(name.clone(), port);
            }
        }
        let started = self.networks.iter().filter(|(name, _)| self.active.contains(*name));
        add_uplinks(&mut all, started.map(|(name, owned)| (name, &owned.spec)));
        all
    }

    /// Removes a port and the entries that point to it; false if there is none.
    pub fn remove_port(&mut self, name: &str) -> bool {
        self.fdb.retain(|entry| entry.port != name);
        self.ports.remove(name).is_some()
    }
}

/// All members of a network's domain are isolated from each other.
fn isolate(ports: &mut BTreeMap<String, PortSpec>, domain: &str) {
    let members = ports.values_mut().flat_map(|port| &mut port.domains).filter(|a| a.domain == domain);
    members.for_each(|attachment| attachment.role = RoleSpec::Isolated);
}
