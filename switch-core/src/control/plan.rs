//! The difference between two desired states, as steps that can be printed. Pure.

use super::{desired::Desired, spec::PortSpec};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Step {
    /// `add`, `change`, `reopen` or `remove`; for networks also `start` and `stop`.
    pub action: String,
    /// `domain`, `port`, `fdb` or `network`.
    pub what: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.action, self.what, self.name)
    }
}

/// Whether the device must be closed and opened again to get from one SPEC to the other.
#[must_use]
pub fn needs_reopen(old: &PortSpec, new: &PortSpec) -> bool {
    old.opening() != new.opening()
}

/// The steps from `old` to `new`, additions first, removals last.
#[must_use]
pub fn plan(old: &Desired, new: &Desired) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = |action: &str, what: &str, name: &str| {
        steps.push(Step { action: action.into(), what: what.into(), name: name.into() });
    };
    let (old_domains, new_domains) = (old.effective_domains(), new.effective_domains());
    let (old_ports, new_ports) = (old.effective_ports(), new.effective_ports());
    for (name, domain) in &new_domains {
        match old_domains.get(name) {
            None => step("add", "domain", name),
            Some(before) if before != domain => step("change", "domain", name),
            Some(_) => {}
        }
    }
    for (name, port) in &new_ports {
        match old_ports.get(name) {
            None => step("add", "port", name),
            Some(before) if needs_reopen(before, port) => step("reopen", "port", name),
            Some(before) if before != port => step("change", "port", name),
            Some(_) => {}
        }
    }
    for (name, network) in &new.networks {
        match old.networks.get(name) {
            None => step("add", "network", name),
            Some(before) if before.spec != network.spec => step("change", "network", name),
            Some(_) => {}
        }
    }
    for name in new.active.difference(&old.active) {
        step("start", "network", name);
    }
    for name in old.active.difference(&new.active) {
        step("stop", "network", name);
    }
    for name in old.networks.keys().filter(|n| !new.networks.contains_key(*n)) {
        step("remove", "network", name);
    }
    for entry in new.fdb.iter().filter(|e| !old.fdb.contains(e)) {
        step("add", "fdb", &entry.mac.to_string());
    }
    for entry in old.fdb.iter().filter(|e| !new.fdb.contains(e)) {
        step("remove", "fdb", &entry.mac.to_string());
    }
    for name in old_ports.keys().filter(|n| !new_ports.contains_key(*n)) {
        step("remove", "port", name);
    }
    for name in old_domains.keys().filter(|n| !new_domains.contains_key(*n)) {
        step("remove", "domain", name);
    }
    steps
}
