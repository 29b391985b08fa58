//! Which device of a macvtap network's pool each of its members has.
//!
//! That is part of the desired state and kept with it, because what a port has been given must stay its own, whoever comes and goes beside it. A device is
//! given when the port joins, whether or not the network is started. `passthrough` gives each to one port; the other modes give that with the fewest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    desired::Desired,
    members::exclusive,
    spec::{NetworkSpec, SpecError, network::ForwardMode},
};

/// What a member was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// By this network.
    pub network: String,
    /// This device.
    pub device: String,
}

/// Who has a device, in a namespace.
type Takers<'a> = BTreeMap<(Option<&'a str>, String), Vec<(String, bool)>>;

impl Desired {
    /// Gives every member of a macvtap network a device, and takes back what is not a member's any more. `functions` says which devices are the virtual
    /// functions of a NIC.
    ///
    /// # Errors
    /// A pool is exhausted, or its NIC has no functions. Nothing has changed.
    pub fn settle(
        &mut self,
        functions: impl Fn(&NetworkSpec, &str) -> Result<Vec<String>, SpecError>,
    ) -> Result<(), SpecError> {
        let mut places = BTreeMap::new();
        let mut takers = Takers::new();
        let mut without = Vec::new();
        for (network, port) in self.members(ForwardMode::Macvtap) {
            let kept = self.places.get(&port.name).filter(|place| {
                // Functions come and go with their driver; that a port waits for one is better than that it changes place.
                let there = network.forward.pf.is_some() || network.pool().any(|device| *device == place.device);
                place.network == network.name && there && free(&takers, network, &place.device)
            });
            match kept {
                Some(place) => {
                    take(&mut takers, network, &place.device, &port.name);
                    places.insert(port.name.clone(), place.clone());
                }
                None => without.push((network, port)),
            }
        }
        for (network, port) in without {
            let pool: Vec<String> = match &network.forward.pf {
                Some(pf) => functions(network, pf)?,
                None => network.pool().cloned().collect(),
            };
            let users = |device: &String| takers.get(&key(network, device)).map_or(0, Vec::len);
            let best = pool.iter().filter(|device| free(&takers, network, device)).min_by_key(|device| users(device));
            let Some(device) = best else {
                return Err(exhausted(network, &port.name, &pool, &takers));
            };
            take(&mut takers, network, device, &port.name);
            places.insert(port.name.clone(), Place { network: network.name.clone(), device: device.clone() });
        }
        self.places = places;
        Ok(())
    }
}

fn key<'a>(network: &'a NetworkSpec, device: &str) -> (Option<&'a str>, String) {
    (network.netns.as_deref(), device.to_owned())
}

/// Whether a member of the network can have a device beside those who have it.
fn free(takers: &Takers<'_>, network: &NetworkSpec, device: &str) -> bool {
    let others = takers.get(&key(network, device)).map_or(&[][..], Vec::as_slice);
    others.is_empty() || !exclusive(network) && others.iter().all(|(_, alone)| !alone)
}

fn take<'a>(takers: &mut Takers<'a>, network: &'a NetworkSpec, device: &str, port: &str) {
    takers.entry(key(network, device)).or_default().push((port.to_owned(), exclusive(network)));
}

fn exhausted(network: &NetworkSpec, port: &str, pool: &[String], takers: &Takers<'_>) -> SpecError {
    let taken = |device: &String| {
        let ports = takers.get(&key(network, device)).into_iter().flatten().map(|(port, _)| port.as_str());
        format!("{device} by {}", ports.collect::<Vec<_>>().join(", "))
    };
    let taken: Vec<String> = pool.iter().map(taken).collect();
    let mend = match &network.forward.pf {
        Some(pf) => format!("enable more virtual functions of {pf}"),
        None => "add devices to forward.interfaces".to_owned(),
    };
    let taken = if taken.is_empty() { "there is none".to_owned() } else { format!("taken: {}", taken.join("; ")) };
    SpecError(format!(
        "port \"{port}\": network \"{}\" has no device left ({taken}); {mend}, or take a port out: vswitch port set NAME network=none",
        network.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{desired::Origin, desired::Owned, spec::PortSpec};

    fn define(desired: &mut Desired, mode: &str, pool: &str) {
        let text = format!("name = \"n\"\nforward = {{ mode = \"macvtap\", macvtap = \"{mode}\", {pool} }}");
        let spec: NetworkSpec = toml::from_str(&text).expect("understood");
        desired.networks.insert("n".into(), Owned { spec, origin: Origin::Cli });
    }

    fn join(desired: &mut Desired, name: &str) {
        let spec: PortSpec = format!("{name}=tap,network=n").parse().expect("valid");
        desired.ports.insert(name.into(), Owned { spec, origin: Origin::Cli });
    }

    /// Settles with two virtual functions, and says who has what.
    fn settled(desired: &mut Desired) -> Result<String, String> {
        let functions = |_: &NetworkSpec, _: &str| Ok(vec!["v0".to_owned(), "v1".to_owned()]);
        desired.settle(functions).map_err(|e| e.to_string())?;
        let places: Vec<String> =
            desired.places.iter().map(|(port, place)| format!("{port}:{}", place.device)).collect();
        Ok(places.join(" "))
    }

    #[test]
    fn who_has_a_device_keeps_it_while_the_network_has_it_and_nobody_else_may() {
        let mut desired = Desired::default();
        define(&mut desired, "bridge", "interfaces = [\"d0\"]");
        for port in ["m", "x"] {
            join(&mut desired, port);
        }
        assert_eq!(settled(&mut desired).as_deref(), Ok("m:d0 x:d0"));
        // A new device goes to new members, whose names come first; those who have one stay.
        define(&mut desired, "bridge", "interfaces = [\"d0\", \"d1\"]");
        join(&mut desired, "a");
        assert_eq!(settled(&mut desired).as_deref(), Ok("a:d1 m:d0 x:d0"));
        // Alone on a device: the first of two keeps it.
        define(&mut desired, "passthrough", "interfaces = [\"d0\", \"d1\", \"d2\"]");
        assert_eq!(settled(&mut desired).as_deref(), Ok("a:d1 m:d0 x:d2"));
        let before = desired.places.clone();
        define(&mut desired, "passthrough", "interfaces = [\"d0\", \"d1\"]");
        let error = settled(&mut desired).expect_err("too few");
        assert!(error.contains("port \"x\": network \"n\" has no device left (taken: d0 by m; d1 by a)"), "{error}");
        assert_eq!(desired.places, before);
        // Virtual functions are kept though they are not there just now.
        desired.ports.remove("x");
        define(&mut desired, "passthrough", "pf = \"p\"");
        assert_eq!(settled(&mut desired).as_deref(), Ok("a:d1 m:d0"));
        join(&mut desired, "z");
        assert_eq!(settled(&mut desired).as_deref(), Ok("a:d1 m:d0 z:v0"));
        desired.ports.clear();
        assert_eq!(settled(&mut desired).as_deref(), Ok(""));
    }
}
