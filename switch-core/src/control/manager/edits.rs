//! Single changes of the desired state, each refused as a whole or carried out as a whole.

use super::{Manager, ManagerError};
use crate::{
    control::{
        desired::{Origin, Owned},
        spec::{DEFAULT_DOMAIN, DomainSpec, PortSpec, SpecError},
        wire::{Done, Edit},
    },
    fdb::Flush,
    mac::MacAddr,
};

impl Manager {
    /// Forgets learned addresses.
    ///
    /// # Errors
    /// There is no such port or domain.
    pub fn flush(&self, port: Option<&str>, domain: Option<&str>) -> Result<usize, ManagerError> {
        let mut what = Flush::default();
        if let Some(name) = port {
            let open = self.open.get(name);
            what.port =
                Some(open.ok_or_else(|| ManagerError::NotFound(format!("there is no open port \"{name}\"")))?.id);
        }
        if let Some(name) = domain {
            let id = self.domain_ids.get(name);
            what.domain = Some(*id.ok_or_else(|| ManagerError::NotFound(format!("there is no domain \"{name}\"")))?);
        }
        Ok(self.switch.fdb().flush(what))
    }

    /// Forgets one address of any kind; false if it was not known.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn forget(&self, domain: &str, mac: MacAddr) -> Result<bool, ManagerError> {
        let id = self.domain_ids.get(domain);
        let id = *id.ok_or_else(|| ManagerError::NotFound(format!("there is no domain \"{domain}\"")))?;
        self.switch.fdb().remove(id, mac).map_err(|e| SpecError(e.to_string()).into())
    }

    /// Carries out several changes as one. Removals come first, so that a name can be used anew.
    ///
    /// # Errors
    /// [`ManagerError::Conflict`] if the state is another one than it was made for; see also [`change`](Self::change).
    pub fn edit(&mut self, edit: Edit) -> Result<Done, ManagerError> {
        if edit.revision.is_some_and(|revision| revision != self.revision) {
            return Err(ManagerError::Conflict);
        }
        let mut desired = self.desired.clone();
        for name in &edit.remove_ports {
            desired.remove_port(name);
        }
        for name in &edit.remove_domains {
            desired.domains.remove(name);
        }
        for spec in edit.domains {
            let origin = desired.domains.get(&spec.name).map_or(edit.origin, |there| there.origin);
            desired.domains.insert(spec.name.clone(), Owned { spec, origin });
        }
        for spec in edit.ports {
            let origin = desired.ports.get(&spec.name).map_or(edit.origin, |there| there.origin);
            desired.ports.insert(spec.name.clone(), Owned { spec, origin });
        }
        // Entries go with the membership that they need.
        let ports = desired.effective_ports();
        desired.fdb.retain(|e| ports.get(&e.port).is_some_and(|p| p.domains.iter().any(|a| a.domain == e.domain)));
        self.change(desired)
    }

    /// Adds one port; refused if there is one of that name.
    ///
    /// # Errors
    /// See [`change`](Self::change).
    pub fn add_port(&mut self, spec: PortSpec, origin: Origin) -> Result<Done, ManagerError> {
        let name = spec.name.clone();
        if self.desired.effective_ports().contains_key(&name) {
            return Err(SpecError(format!("there is a port \"{name}\" already; see: vswitch port show {name}")).into());
        }
        let mut desired = self.desired.clone();
        desired.ports.insert(name, Owned { spec, origin });
        self.change(desired)
    }

    /// Adds one domain; refused if there is one of that name.
    ///
    /// # Errors
    /// See [`change`](Self::change).
    pub fn add_domain(&mut self, spec: DomainSpec, origin: Origin) -> Result<Done, ManagerError> {
        let name = spec.name.clone();
        if self.desired.networks.contains_key(&name) {
            return Err(
                SpecError(format!("\"{name}\" is the domain of a network; see: vswitch network show {name}")).into()
            );
        }
        if self.desired.domains.contains_key(&name) {
            return Err(
                SpecError(format!("there is a domain \"{name}\" already; see: vswitch domain show {name}")).into()
            );
        }
        let mut desired = self.desired.clone();
        desired.domains.insert(name, Owned { spec, origin });
        self.change(desired)
    }

    /// Removes a domain. `ports`: with the ports that are in no other domain; else it must have no members.
    ///
    /// # Errors
    /// It does not exist or has members; see also [`change`](Self::change).
    pub fn del_domain(&mut self, name: &str, ports: bool) -> Result<Done, ManagerError> {
        let mut desired = self.desired.clone();
        if desired.networks.contains_key(name) {
            return Err(SpecError(format!(
                "\"{name}\" is the domain of a network; use: vswitch network undefine {name}"
            ))
            .into());
        }
        if desired.domains.remove(name).is_none() {
            return Err(ManagerError::NotFound(format!("there is no domain \"{name}\"; see: vswitch domain show")));
        }
        let is_member = |p: &PortSpec| p.domains.iter().any(|a| a.domain == name);
        if ports {
            desired.ports.retain(|_, p| !is_member(&p.spec) || p.spec.domains.len() > 1);
            for port in desired.ports.values_mut() {
                port.spec.domains.retain(|a| a.domain != name);
            }
        }
        // Ports may stay in `default`: it exists also when nobody asked for it.
        let members: Vec<_> = desired
            .ports
            .values()
            .filter(|p| name != DEFAULT_DOMAIN && is_member(&p.spec))
            .map(|p| p.spec.name.clone())
            .collect();
        if !members.is_empty() {
            return Err(SpecError(format!(
                "domain \"{name}\" has members ({}); detach them first, for example: vswitch port detach {} {name}",
                members.join(", "),
                members[0]
            ))
            .into());
        }
        let left = desired.effective_ports();
        desired.fdb.retain(|e| e.domain != name && left.contains_key(&e.port));
        self.change(desired)
    }
}
