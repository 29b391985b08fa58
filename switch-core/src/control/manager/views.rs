//! What the manager tells: the switch, its ports, domains and table as others see them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Manager, policy};
use crate::{
    control::{
        desired::Origin,
        spec::{AttachmentSpec, Kind, PortSpec},
        wire::{DomainView, FdbView, PortState, PortView, Status},
    },
    id::{DomainId, PortId},
    link::Link,
    stats::Counter,
    verdict::DropReason,
};

impl Manager {
    /// The switch as a whole.
    #[must_use]
    pub fn status(&self) -> Status {
        let ports = self.desired.effective_ports();
        let waiting = ports.keys().filter(|name| self.reason(name).is_some()).count();
        let down = ports.values().filter(|p| !p.link && self.reason(&p.name).is_none()).count();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            workers: self.switch.workers(),
            busy_ns: self.switch.busy(),
            stages: self.switch.stages().into_iter().map(Into::into).collect(),
            epoch: self.switch.epoch().0,
            revision: self.revision,
            ports_up: ports.len() - down - waiting,
            ports_down: down,
            ports_waiting: waiting,
            domains: self.desired.effective_domains().len(),
            fdb_entries: self.switch.fdb().len(),
            fdb_capacity: self.switch.fdb().capacity(),
        }
    }

    /// All ports, by name.
    #[must_use]
    pub fn ports(&self) -> Vec<PortView> {
        if let Err(e) = self.switch.collect_lost() {
            tracing::error!("{e}");
        }
        let ports = self.desired.effective_ports();
        let namespaces: BTreeSet<Option<String>> = ports.values().map(|p| p.netns.clone()).collect();
        let mut devices = HashMap::new();
        for netns in namespaces {
            // A namespace that is gone has no devices to ask; its ports are waiting.
            let links = self.drivers.links.space(netns.as_deref()).and_then(|space| space.list()).unwrap_or_default();
            for link in links {
                devices.insert((netns.clone(), link.name.clone()), link);
            }
        }
        ports
            .into_values()
            .map(|spec| {
                let key = (spec.netns.clone(), spec.netdev().to_owned());
                let link = devices.get(&key).filter(|_| spec.kind.is_device());
                self.port_view(spec, link)
            })
            .collect()
    }

    fn port_view(&self, effective: PortSpec, link: Option<&Link>) -> PortView {
        let spec =
            self.desired.ports.get(&effective.name).map_or_else(|| effective.clone(), |owned| owned.spec.clone());
        let open = self.open.get(&spec.name);
        let totals = open.map(|o| o.shared.counters.total()).unwrap_or_default();
        let lost = open.zip(link).map_or(0, |(o, link)| not_taken(spec.kind, link).saturating_sub(o.not_taken));
        let mut counters: BTreeMap<String, u64> =
            Counter::ALL.iter().map(|c| (c.name().to_owned(), totals.get(*c))).collect();
        *counters.entry(Counter::RxLost.name().to_owned()).or_default() += lost;
        let reason = self.reason(&spec.name).map(str::to_owned);
        PortView {
            origin: self.desired.ports.get(&spec.name).map(|o| o.origin),
            state: match (&reason, spec.link) {
                (Some(_), _) => PortState::Waiting,
                (None, true) => PortState::Up,
                (None, false) => PortState::Down,
            },
            reason,
            device_mac: link.and_then(|l| l.mac),
            device_kind: link.and_then(|l| l.kind.clone()),
            multi_queue: link.is_some_and(|l| l.multi_queue),
            bond: open.and_then(|o| o.control.bond()),
            fdb_entries: open.map_or(0, |o| self.switch.fdb().port_len(o.id)),
            bindings: open.map_or_else(Vec::new, |o| policy::bindings(&o.shared, self.switch.clock().now().nanos)),
            counters,
            drops: DropReason::ALL
                .iter()
                .map(|r| (r.name().to_owned(), totals.dropped(*r)))
                .filter(|(_, n)| *n > 0)
                .collect(),
            effective: (effective != spec).then(|| Box::new(effective)),
            spec,
        }
    }

    /// All domains, by name.
    #[must_use]
    pub fn domains(&self) -> Vec<DomainView> {
        let ports = self.desired.effective_ports();
        self.desired
            .effective_domains()
            .into_values()
            .map(|spec| DomainView {
                origin: match self.desired.domains.get(&spec.name) {
                    Some(owned) => Some(owned.origin),
                    None => self.desired.networks.contains_key(&spec.name).then_some(Origin::Network),
                },
                members: ports
                    .values()
                    .flat_map(|p| p.domains.iter().filter(|a| a.domain == spec.name).map(|a| member_text(&p.name, a)))
                    .collect(),
                spec,
            })
            .collect()
    }

    /// All FDB entries.
    #[must_use]
    pub fn fdb(&self) -> Vec<FdbView> {
        let domains: HashMap<DomainId, &String> = self.domain_ids.iter().map(|(n, id)| (*id, n)).collect();
        let ports: HashMap<PortId, &String> = self.open.iter().map(|(n, o)| (o.id, n)).collect();
        self.switch
            .fdb()
            .entries(self.switch.clock().now().tick)
            .into_iter()
            .filter_map(|e| {
                Some(FdbView {
                    domain: (*domains.get(&e.domain)?).clone(),
                    mac: e.mac,
                    port: (*ports.get(&e.port)?).clone(),
                    kind: e.kind,
                    age_s: e.age_s,
                })
            })
            .collect()
    }
}

/// The frames that a device has dropped because the switch did not take them in time.
pub(super) fn not_taken(kind: Kind, link: &Link) -> u64 {
    match kind {
        Kind::Tap | Kind::Tun => link.tx_dropped,
        Kind::Macvtap => link.rx_dropped,
        // A packet port's device drops what the switch sends, not what it receives.
        _ => 0,
    }
}

fn member_text(port: &str, attachment: &AttachmentSpec) -> String {
    let text = attachment.to_string();
    format!("{port}{}", &text[attachment.domain.len()..])
}
