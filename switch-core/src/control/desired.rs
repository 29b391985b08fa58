//! Desired state: everything that somebody asked for and has not taken back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    pools::Place,
    spec::{
        DEFAULT_DOMAIN, DomainSpec, NetworkSpec, PortSpec, SpecError,
        network::{ForwardMode, vlan_domain},
    },
    uplinks::{check_devices, check_uplinks},
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
    /// The devices that members of networks have been given, by port; [`settle`](Self::settle) keeps it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub places: BTreeMap<String, Place>,
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
            self.check_member(&port.spec)?;
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
        for port in ports.values().filter(|port| port.network.is_some()) {
            // What the port says and what it is given may exclude each other.
            port.check()?;
        }
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
            if let Some(base) = spec.base().filter(|base| !spec.has_domain() && *base != DEFAULT_DOMAIN)
                && !self.domains.contains_key(base)
            {
                return wrong(
                    name,
                    if spec.forward.mode == ForwardMode::Openvswitch {
                        format!("there is no bridge \"{base}\"; make it with: vswitch ovs-vsctl add-br {base}")
                    } else {
                        format!("there is no domain \"{base}\"; make it with: vswitch domain add {base}")
                    },
                );
            }
            if let Some(base) = spec.base()
                && let Some(vid) =
                    spec.vids().into_iter().find(|vid| self.networks.contains_key(&vlan_domain(base, *vid)))
            {
                let other = vlan_domain(base, vid);
                return wrong(name, format!("network \"{other}\" has the name of its VLAN {vid}; rename one of them"));
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

    /// Removes a port and the entries that point to it; false if there is none.
    pub fn remove_port(&mut self, name: &str) -> bool {
        self.fdb.retain(|entry| entry.port != name);
        self.ports.remove(name).is_some()
    }
}
