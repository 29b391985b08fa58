//! The configuration file: TOML, unknown keys refused, errors with line and column.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    desired::{Desired, FdbSpec, Origin, Owned},
    spec::{DomainSpec, NetworkSpec, PortSpec, SpecError},
};

/// The file as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[[domain]]`.
    #[serde(default)]
    pub domain: Vec<DomainSpec>,
    /// `[[port]]`.
    #[serde(default)]
    pub port: Vec<PortSpec>,
    /// `[[fdb]]`.
    #[serde(default)]
    pub fdb: Vec<FdbSpec>,
    /// `[[network]]`.
    #[serde(default)]
    pub network: Vec<NetworkSpec>,
}

impl Config {
    /// Reads a file's text.
    ///
    /// # Errors
    /// Not TOML, an unknown key, a wrong value (with its line), or a name that is used twice.
    pub fn parse(text: &str) -> Result<Config, SpecError> {
        let config: Config = toml::from_str(text).map_err(|e| SpecError(e.to_string().trim_end().to_owned()))?;
        let mut seen = std::collections::BTreeSet::new();
        for domain in &config.domain {
            domain.check()?;
            if !seen.insert(("domain", domain.name.clone())) {
                return Err(SpecError(format!("domain \"{}\" is defined twice", domain.name)));
            }
        }
        for port in &config.port {
            port.check()?;
            if !seen.insert(("port", port.name.clone())) {
                return Err(SpecError(format!("port \"{}\" is defined twice", port.name)));
            }
        }
        for network in &config.network {
            network.check()?;
            if !seen.insert(("network", network.name.clone())) {
                return Err(SpecError(format!("network \"{}\" is defined twice", network.name)));
            }
        }
        Ok(config)
    }

    /// The desired state after this file is applied to `current`: objects of origin `file` become what the file says,
    /// others stay (`prune`: go).
    ///
    /// # Errors
    /// The file and what stays contradict each other.
    pub fn merge(&self, current: &Desired, prune: bool) -> Result<Desired, SpecError> {
        let keep = |origin: Origin| !prune && origin != Origin::File;
        let mut desired = Desired {
            domains: current
                .domains
                .iter()
                .filter(|(_, o)| keep(o.origin))
                .map(|(n, o)| (n.clone(), o.clone()))
                .collect(),
            ports: current.ports.iter().filter(|(_, o)| keep(o.origin)).map(|(n, o)| (n.clone(), o.clone())).collect(),
            fdb: Vec::new(),
            networks: current
                .networks
                .iter()
                .filter(|(_, o)| keep(o.origin))
                .map(|(n, o)| (n.clone(), o.clone()))
                .collect(),
            active: current.active.clone(),
            fixing: current.fixing.clone(),
            places: current.places.clone(),
        };
        take(&mut desired.domains, self.domain.iter().map(|d| (d.name.clone(), d.clone())), "domain")?;
        take(&mut desired.ports, self.port.iter().map(|p| (p.name.clone(), p.clone())), "port")?;
        take(&mut desired.networks, self.network.iter().map(|n| (n.name.clone(), n.clone())), "network")?;
        desired.active.retain(|name| desired.networks.contains_key(name));
        desired.fixing.retain(|name| desired.active.contains(name));
        let started = self.network.iter().filter(|n| n.autostart != Some(false));
        desired.active.extend(started.map(|n| n.name.clone()));
        desired.fdb.clone_from(&self.fdb);
        if !prune {
            let ports = desired.effective_ports();
            let member =
                |e: &FdbSpec| ports.get(&e.port).is_some_and(|p| p.domains.iter().any(|a| a.domain == e.domain));
            desired.fdb.extend(current.fdb.iter().filter(|e| member(e) && !self.fdb.contains(e)).cloned());
        }
        desired.check()?;
        Ok(desired)
    }
}

fn take<T>(
    into: &mut BTreeMap<String, Owned<T>>,
    from: impl Iterator<Item = (String, T)>,
    what: &str,
) -> Result<(), SpecError> {
    for (name, spec) in from {
        if let Some(there) = into.get(&name) {
            return Err(SpecError(format!(
                "{what} \"{name}\" was made by a command (origin {:?}); delete it first, or use --prune",
                there.origin
            )));
        }
        into.insert(name, Owned { spec, origin: Origin::File });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let error = Config::parse("[[port]]\nname = \"a\"\nkind = \"tap\"\ncolour = 1\n").expect_err("unknown key");
        assert!(error.to_string().contains("line 4") && error.to_string().contains("colour"), "{error}");
    }

    #[test]
    fn a_file_owns_its_objects_and_no_others() {
        let mut current =
            Config::parse("[[domain]]\nname = \"red\"\n[[port]]\nname = \"a\"\nkind = \"tap\"\ndomains = [\"red\"]\n")
                .expect("valid")
                .merge(&Desired::default(), false)
                .expect("consistent");
        let cli = Owned { spec: PortSpec::new("b", super::super::spec::Kind::Tap), origin: Origin::Cli };
        current.ports.insert("b".into(), cli);
        let next = Config::parse("[[port]]\nname = \"c\"\nkind = \"tap\"\n").expect("valid");
        let merged = next.merge(&current, false).expect("consistent");
        assert_eq!(merged.ports.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert!(merged.domains.is_empty());
        let pruned = next.merge(&current, true).expect("consistent");
        assert_eq!(pruned.ports.keys().collect::<Vec<_>>(), ["c"]);
        let clash = Config::parse("[[port]]\nname = \"b\"\nkind = \"tap\"\n").expect("valid");
        assert!(clash.merge(&current, false).expect_err("not ours").to_string().contains("--prune"));
    }
}
