//! What outlives a topology of protection and shaping: the buckets of rates, and whose bindings a port has.

use std::{collections::HashMap, sync::Arc};

use super::Open;
use crate::{
    control::{
        spec::{DomainSpec, PortSpec},
        wire::BindingView,
    },
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
        let station = |clean: Option<&crate::clean::Clean>| clean.map(|clean| clean.station);
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
