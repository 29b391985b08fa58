//! Networks: their changes, what is told to the thread that looks after their gateways, and what it has found.

use std::collections::{BTreeMap, BTreeSet};

use super::{Manager, ManagerError, functions};
use crate::{
    control::{
        desired::{Desired, Origin, Owned},
        members::wire_name,
        spec::{NetworkSpec, PortSpec, SpecError, network::ForwardMode},
        uplinks::uplink_name,
        wire::{Done, MemberView, NetworkState, NetworkView, PoolView},
    },
    fdb::Flush,
    network::{self, Outcome},
};

fn no_network(name: &str) -> ManagerError {
    ManagerError::NotFound(format!("there is no network \"{name}\"; see: vswitch network list"))
}

impl Manager {
    /// Whether what networks need is here, for those that are new or changed.
    pub(super) fn check_equipment(&self, desired: &Desired) -> Result<(), SpecError> {
        if self.networks.is_none() && !desired.networks.is_empty() {
            return Err(SpecError("networks need a state directory".to_owned()));
        }
        for (name, network) in &desired.networks {
            // What was kept from an earlier run is only waiting if a program has gone since.
            let known =
                self.journal.is_none() || self.desired.networks.get(name).is_some_and(|n| n.spec == network.spec);
            if !known {
                network::equipped(&network.spec)?;
            }
        }
        Ok(())
    }

    /// Tells the thread of networks what is to be up: those that are started and whose host port is open.
    pub(super) fn tell_networks(&mut self) {
        let Some(networks) = &self.networks else { return };
        let mut wanted = BTreeMap::new();
        for name in &self.desired.active {
            if let Some(network) = self.desired.networks.get(name)
                && (!network.spec.has_host() || self.open.contains_key(name))
            {
                let mut spec = network.spec.clone();
                spec.forward.fix_forward |= self.desired.fixing.contains(name);
                wanted.insert(name.clone(), spec);
            }
        }
        for name in self.told.keys().filter(|name| !wanted.contains_key(*name)) {
            self.outcomes.insert(name.clone(), networks.down(name));
            if !self.desired.networks.contains_key(name) {
                networks.forget(name);
            }
        }
        for (name, spec) in wanted.iter().filter(|(name, spec)| self.told.get(*name) != Some(*spec)) {
            self.outcomes.insert(name.clone(), networks.up(spec.clone()));
        }
        self.told = wanted;
    }

    /// Forgets the addresses in domains of networks that have been stopped.
    pub(super) fn quiet_stopped_networks(&self, old: &Desired) {
        for name in old.active.difference(&self.desired.active) {
            if let Some(id) = self.domain_ids.get(name) {
                self.switch.fdb().flush(Flush { domain: Some(*id), ..Flush::default() });
            }
        }
    }

    /// Defines a network, or gives one that a command defined another definition.
    ///
    /// # Errors
    /// See [`change`](Self::change).
    pub fn define_network(&mut self, spec: NetworkSpec, origin: Origin) -> Result<Done, ManagerError> {
        let name = spec.name.clone();
        if self.desired.networks.get(&name).is_some_and(|n| n.origin == Origin::File && origin != Origin::File) {
            return Err(
                SpecError(format!("network \"{name}\" is defined by the configuration file; change it there")).into()
            );
        }
        let mut desired = self.desired.clone();
        desired.networks.insert(name, Owned { spec, origin });
        self.change(desired)
    }

    /// Removes a network that is stopped.
    ///
    /// # Errors
    /// It does not exist, is started, or ports are in its domain.
    pub fn undefine_network(&mut self, name: &str) -> Result<Done, ManagerError> {
        let mut desired = self.desired.clone();
        if desired.networks.remove(name).is_none() {
            return Err(no_network(name));
        }
        if desired.active.contains(name) {
            return Err(SpecError(format!(
                "network \"{name}\" is started; stop it first: vswitch network stop {name}"
            ))
            .into());
        }
        let members: Vec<&str> = desired.members_of(name).map(|port| port.name.as_str()).collect();
        if let Some(first) = members.first() {
            return Err(SpecError(format!(
                "network \"{name}\" has members ({}); take them out first, for example: vswitch port set {first} network=none",
                members.join(", ")
            ))
            .into());
        }
        let members: Vec<&str> = desired
            .ports
            .values()
            .filter(|p| p.spec.domains.iter().any(|a| a.domain == name))
            .map(|p| p.spec.name.as_str())
            .collect();
        if let Some(first) = members.first() {
            return Err(SpecError(format!(
                "network \"{name}\" has members ({}); detach them first, for example: vswitch port detach {first} {name}",
                members.join(", ")
            ))
            .into());
        }
        desired.fdb.retain(|e| e.domain != name);
        let done = self.change(desired)?;
        if let Some(networks) = &self.networks {
            networks.forget(name);
        }
        Ok(done)
    }

    /// Starts a network. What comes of it outside the switch is to be waited for without holding the manager.
    ///
    /// # Errors
    /// It does not exist or is started already, or its host port cannot be opened: nothing has changed.
    pub fn start_network(&mut self, name: &str, fix_forward: bool) -> Result<(Done, Option<Outcome>), ManagerError> {
        let before = self.desired.clone();
        let mut desired = before.clone();
        let network = desired.networks.get(name).ok_or_else(|| no_network(name))?;
        let has_host = network.spec.has_host();
        if !desired.active.insert(name.to_owned()) && (!fix_forward || desired.fixing.contains(name)) {
            return Err(
                SpecError(format!("network \"{name}\" is started already; see: vswitch network show {name}")).into()
            );
        }
        if fix_forward {
            desired.fixing.insert(name.to_owned());
        }
        let done = self.change(desired)?;
        if let Some(reason) = self.waiting.get(name).filter(|_| has_host).cloned() {
            self.change(before)?;
            return Err(SpecError(format!("network \"{name}\" cannot be started: its host port: {reason}")).into());
        }
        Ok((done, self.outcomes.remove(name)))
    }

    /// Stops a network; as [`start_network`](Self::start_network).
    ///
    /// # Errors
    /// It does not exist or is not started.
    pub fn stop_network(&mut self, name: &str) -> Result<(Done, Option<Outcome>), ManagerError> {
        let mut desired = self.desired.clone();
        if !desired.networks.contains_key(name) {
            return Err(no_network(name));
        }
        if !desired.active.remove(name) {
            return Err(SpecError(format!("network \"{name}\" is not started")).into());
        }
        desired.fixing.remove(name);
        let done = self.change(desired)?;
        Ok((done, self.outcomes.remove(name)))
    }

    /// The ports that join a network.
    fn member_views(&self, network: &NetworkSpec, ports: &BTreeMap<String, PortSpec>) -> Vec<MemberView> {
        let view = |asked: &PortSpec| {
            let port = ports.get(&asked.name).unwrap_or(asked);
            let terms = network.terms(asked.portgroup.as_deref()).unwrap_or_default();
            MemberView {
                port: port.name.clone(),
                portgroup: terms.group.map(str::to_owned),
                device: self.desired.places.get(&port.name).map(|place| place.device.clone()),
                domains: port.domains.clone(),
                rate_to: port.rate_to,
                rate_from: port.rate_from,
                pinned: port.pinned(),
            }
        };
        self.desired.members_of(&network.name).map(view).collect()
    }

    fn pool_view(&self, network: &NetworkSpec, members: &[MemberView]) -> Vec<PoolView> {
        let on = |device: &str| {
            let has = |member: &&MemberView| member.device.as_deref() == Some(device);
            members.iter().filter(has).map(|member| member.port.clone()).collect()
        };
        match network.forward.mode {
            ForwardMode::Hostdev => functions::given(&self.settings.sysfs, self.state.as_deref(), network),
            ForwardMode::Macvtap => {
                let pf = network.forward.pf.as_deref();
                let found = pf.and_then(|pf| functions::netdevs(&self.settings.sysfs, self.state.as_deref(), pf));
                let mut devices: Vec<String> = network.pool().cloned().chain(found.into_iter().flatten()).collect();
                // Who has one that is not there now still has it.
                devices.extend(members.iter().filter_map(|member| member.device.clone()));
                let mut seen = BTreeSet::new();
                devices.retain(|device| seen.insert(device.clone()));
                devices.into_iter().map(|device| PoolView { members: on(&device), device }).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Why a member's way out is not there.
    fn wire_reason(&self, members: &[MemberView]) -> Option<String> {
        members.iter().filter(|member| member.device.is_some()).find_map(|member| {
            let reason = self.reason(&wire_name(&member.port))?;
            Some(format!("the macvtap of port {}: {reason}", member.port))
        })
    }

    /// All networks, by name.
    #[must_use]
    pub fn networks(&self) -> Vec<NetworkView> {
        let ports = self.desired.effective_ports();
        let view = |(name, network): (&String, &Owned<NetworkSpec>)| {
            let spec = network.spec.clone();
            let observed = self.networks.as_ref().and_then(|n| n.observed(name)).unwrap_or_default();
            let port = self.reason(name).filter(|_| spec.has_host()).map(|reason| format!("its host port: {reason}"));
            let uplink = uplink_name(&spec).and_then(|port| self.reason(&port).map(|why| format!("its uplink: {why}")));
            let active = self.desired.active.contains(name);
            let members = self.member_views(&spec, &ports);
            let reason = port.or(uplink).or_else(|| self.wire_reason(&members)).or(observed.trouble).filter(|_| active);
            NetworkView {
                origin: network.origin,
                state: match (active, observed.up) {
                    (false, _) => NetworkState::Stopped,
                    (true, true) => NetworkState::Up,
                    (true, false) => NetworkState::Waiting,
                },
                reason,
                table: network::rules_table(&spec),
                blockers: observed.blockers,
                dnsmasq: observed.dnsmasq,
                pool: self.pool_view(&spec, &members),
                members,
                leases: self.networks.as_ref().map(|n| n.leases(name)).unwrap_or_default(),
                spec,
            }
        };
        self.desired.networks.iter().map(view).collect()
    }
}
