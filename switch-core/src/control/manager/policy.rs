//! What outlives a topology of protection and shaping: the buckets of rates, and whose bindings a port has.

use std::{collections::HashMap, sync::Arc};

use super::{Manager, Open};
use crate::{
    clean::Clean,
    control::{
        learned::{Station, wall_s},
        spec::{DomainSpec, PortSpec},
        wire::BindingView,
    },
    id::PortId,
    rate::{Limiter, Rate},
    topology::{Policy, PortShared},
};

/// The limiter of a rate: the one that there is, with what it holds, if the rate has not changed.
fn limiter(kept: Option<&Arc<Limiter>>, wanted: Option<Rate>) -> Option<Arc<Limiter>> {
    let wanted = wanted?;
    Some(kept.filter(|l| l.rate() == wanted).map_or_else(|| Arc::new(Limiter::new(wanted)), Arc::clone))
}

impl Open {
    /// Takes up what a SPEC says.
    pub(super) fn take_policy(&mut self, spec: &PortSpec) -> Policy {
        let clean = spec.clean_rules();
        let station = |clean: Option<&Clean>| clean.map(|clean| clean.station);
        if station(self.policy.clean.as_deref()) != station(clean.as_ref()) {
            // They are another station's.
            self.shared.bindings.clear();
        }
        self.policy = Policy {
            clean: clean.map(Arc::new),
            no_flood: !spec.flood,
            rate_to: limiter(self.policy.rate_to.as_ref(), spec.rate_to),
            rate_from: limiter(self.policy.rate_from.as_ref(), spec.rate_from),
        };
        self.policy.clone()
    }
}

impl Manager {
    /// Gives a port that was just opened the addresses back that its station had; what another has obtained meanwhile is its own.
    pub(super) fn restore_bindings(&self, id: PortId) {
        let Some((name, open)) = self.open.iter().find(|(_, open)| open.id == id) else { return };
        let Some(clean) = learning(open) else { return };
        let Some(station) = self.learned.station(name, clean.station) else { return };
        let now = self.switch.clock().now().nanos;
        let specs = self.desired.effective_ports();
        let domains = |name: &String| specs.get(name).into_iter().flat_map(|spec| &spec.domains).map(|a| &a.domain);
        let taken = |address| {
            let mut others = self.open.iter().filter(|(_, other)| other.id != id);
            others.any(|(other, open)| {
                open.shared.bindings.holds(address, now) && domains(other).any(|d| domains(name).any(|own| own == d))
            })
        };
        station.restore(&open.shared.bindings, now, wall_s(), taken);
    }

    /// Writes down what clean ports have learned, if it has changed.
    pub(super) fn remember_bindings(&mut self) {
        let (now, wall) = (self.switch.clock().now().nanos, wall_s());
        let of = |(name, open): (&String, &Open)| {
            let station = Station::of(learning(open)?.station, &open.shared.bindings, now, wall);
            Some((name.clone(), station))
        };
        let open = self.open.iter().filter_map(of).collect();
        self.learned.update(open, |name| self.waiting.contains_key(name));
    }
}

/// The rules of a port that learns addresses.
fn learning(open: &Open) -> Option<&Clean> {
    open.policy.clean.as_deref().filter(|clean| clean.ip.learn && !clean.ip.any)
}

/// Takes up the rates of the domains that there are.
pub(super) fn take_rates<'a>(
    kept: &HashMap<String, Arc<Limiter>>,
    domains: impl Iterator<Item = &'a DomainSpec>,
) -> HashMap<String, Arc<Limiter>> {
    domains.filter_map(|d| Some((d.name.clone(), limiter(kept.get(&d.name), d.rate)?))).collect()
}

/// The bindings of a port as they are shown.
pub(super) fn bindings(shared: &PortShared, now_nanos: u64) -> Vec<BindingView> {
    shared
        .bindings
        .list(now_nanos)
        .into_iter()
        .map(|bound| BindingView {
            address: bound.address,
            source: if bound.leased { "dhcp" } else { "nd" }.to_owned(),
            tentative: bound.tentative,
            left_s: bound.left_s,
        })
        .collect()
}
