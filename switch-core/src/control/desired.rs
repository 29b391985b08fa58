//! Desired state: everything that somebody asked for and has not taken back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::spec::{AttachmentSpec, DEFAULT_DOMAIN, DomainSpec, DressSpec, Kind, PortSpec, SpecError};
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
        for (name, port) in &self.ports {
            port.spec.check()?;
            for attachment in &port.spec.domains {
                if attachment.domain != DEFAULT_DOMAIN && !self.domains.contains_key(&attachment.domain) {
                    return Err(SpecError(format!(
                        "port \"{name}\": there is no domain \"{0}\"; make it with: vswitch domain add {0}",
                        attachment.domain
                    )));
                }
            }
        }
        let ports = self.effective_ports();
        self.check_stations(&ports)?;
        for entry in &self.fdb {
            if entry.mac.is_multicast() || entry.mac == MacAddr::ZERO {
                return Err(SpecError(format!("fdb entry {}: not a unicast address", entry.mac)));
            }
            if entry.domain != DEFAULT_DOMAIN && !self.domains.contains_key(&entry.domain) {
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

    /// Domains with the implied one.
    #[must_use]
    pub fn effective_domains(&self) -> BTreeMap<String, DomainSpec> {
        let mut all = BTreeMap::from([(DEFAULT_DOMAIN.to_owned(), DomainSpec::new(DEFAULT_DOMAIN))]);
        all.extend(self.domains.iter().map(|(name, owned)| (name.clone(), owned.spec.clone())));
        all
    }

    /// Ports with the host ports that domains imply.
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
        all
    }

    /// Removes a port and the entries that point to it; false if there is none.
    pub fn remove_port(&mut self, name: &str) -> bool {
        self.fdb.retain(|entry| entry.port != name);
        self.ports.remove(name).is_some()
    }
}
