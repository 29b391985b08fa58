//! Uplinks of bridged networks: the ports that they make, and share.
//!
//! A network with `dev` has that device for itself, as the port `NAME.uplink`. Those with `uplink` share: each device or bond is
//! one port, named by its devices, with an attachment for each network that is started. The port comes with the first of them
//! and goes with the last.

use std::collections::BTreeMap;

use super::{
    desired::Desired,
    effective::{bound, tagged},
    spec::{
        AttachmentSpec, Kind, NetworkSpec, PortSpec, SpecError,
        network::{ForwardMode, UplinkSpec},
    },
};

/// The name of the port that a network with a device of its own has outside.
#[must_use]
pub fn own_uplink_name(network: &str) -> String {
    format!("{network}.uplink")
}

/// The name of the port that a network goes out by, if it makes one.
#[must_use]
pub fn uplink_name(network: &NetworkSpec) -> Option<String> {
    match (own_device(network), shared(network)) {
        (Some(_), _) => Some(own_uplink_name(&network.name)),
        (None, Some(uplink)) => Some(uplink.port_name(network.netns.as_deref())),
        (None, None) => None,
    }
}

/// The device that is a network's uplink alone.
fn own_device(network: &NetworkSpec) -> Option<&String> {
    network.forward.dev.as_ref().filter(|_| network.has_domain() && !network.by_host())
}

fn shared(network: &NetworkSpec) -> Option<&UplinkSpec> {
    network.forward.uplink.as_ref().filter(|_| network.forward.mode == ForwardMode::Bridge)
}

/// Adds the ports that started networks go out by.
pub(super) fn add_uplinks<'a>(
    ports: &mut BTreeMap<String, PortSpec>,
    started: impl Iterator<Item = (&'a String, &'a NetworkSpec)>,
) {
    for (name, network) in started {
        let Some(port_name) = uplink_name(network) else { continue };
        if let Some(device) = own_device(network) {
            let mut port = PortSpec::new(&port_name, Kind::Packet);
            port.device = Some(device.clone());
            port.netns.clone_from(&network.netns);
            port.domains = vec![AttachmentSpec::untagged(name)];
            port.domains.extend(network.vids().into_iter().map(|vid| tagged(name, vid)));
            bound(&mut port, network);
            ports.insert(port_name, port);
        } else if let Some(uplink) = shared(network) {
            let fresh = || uplink.port(&port_name, network.netns.as_deref());
            ports.entry(port_name.clone()).or_insert_with(fresh).domains.push(uplink.attachment(name));
        }
    }
}

/// Checks what networks say of their uplinks, and of each other's.
pub(super) fn check_uplinks(desired: &Desired) -> Result<(), SpecError> {
    let networks: Vec<(&String, &NetworkSpec)> =
        desired.networks.iter().map(|(name, network)| (name, &network.spec)).collect();
    for (index, (name, network)) in networks.iter().enumerate() {
        let wrong = |what: String| Err(SpecError(format!("network \"{name}\": {what}")));
        let Some(port) = uplink_name(network) else { continue };
        if shared(network).is_some() && !network.vids().is_empty() {
            return wrong(
                "forward.uplink has one VLAN for each network; for members with VLANs of their own write dev, or a network for each VLAN".to_owned(),
            );
        }
        if desired.ports.contains_key(&port) || desired.domains.get(&port).is_some_and(|d| d.spec.host) {
            return wrong(format!("there is a port \"{port}\", which would be its own; rename one of them"));
        }
        for (other, there) in networks[..index].iter().filter(|(_, there)| there.netns == network.netns) {
            let (Some(uplink), Some(theirs)) = (shared(network), shared(there)) else {
                check_alone(network, there).or_else(&wrong)?;
                continue;
            };
            let Some(device) = uplink.devices().iter().find(|device| theirs.devices().contains(device)) else {
                continue;
            };
            let (plain, their_plain) = (uplink.port("", None), theirs.port("", None));
            if plain != their_plain {
                return wrong(format!(
                    "device \"{device}\" is in the uplink of network \"{other}\" as well, which is another one; networks share an uplink that all of them describe alike, but for its vlan"
                ));
            }
            if uplink.vlan == theirs.vlan {
                let taken = uplink.vlan.map_or_else(|| "untagged frames".to_owned(), |vlan| format!("vlan {vlan}"));
                return wrong(format!(
                    "network \"{other}\" has {taken} of uplink \"{port}\" already; give one of them another vlan"
                ));
            }
        }
        let elsewhere = |(_, there): &&(&String, &NetworkSpec)| {
            uplink_name(there).as_ref() == Some(&port) && there.netns != network.netns
                || uplink_name(there).as_ref() == Some(&port)
                    && shared(there).map(UplinkSpec::devices) != shared(network).map(UplinkSpec::devices)
        };
        if let Some((other, _)) = networks[..index].iter().find(elsewhere) {
            return wrong(format!("its uplink would be called \"{port}\", as that of network \"{other}\" is"));
        }
    }
    Ok(())
}

/// The members of a bond, and a device that networks share, are nobody else's: frames would come in twice.
pub(super) fn check_devices(desired: &Desired, ports: &BTreeMap<String, PortSpec>) -> Result<(), SpecError> {
    let networks = desired.networks.values().map(|network| &network.spec);
    let uplinks: Vec<String> = networks.filter(|n| shared(n).is_some()).filter_map(uplink_name).collect();
    for (name, one) in ports.iter().filter(|(name, port)| port.kind == Kind::Bond || uplinks.contains(name)) {
        for (other, port) in ports.iter().filter(|(other, port)| *other != name && port.netns == one.netns) {
            let own = one.taken_devices();
            if let Some(device) = port.taken_devices().into_iter().find(|device| own.contains(device)) {
                let what = if one.kind == Kind::Bond { "a member of the bond" } else { "the uplink" };
                return Err(SpecError(format!(
                    "port \"{other}\": device \"{device}\" is {what} \"{name}\", which has it for itself; remove one of them, or take the device out of one"
                )));
            }
        }
    }
    Ok(())
}

/// A device that one of two networks has for itself is not the other's.
fn check_alone(network: &NetworkSpec, there: &NetworkSpec) -> Result<(), String> {
    let (alone, sharing, uplink) = match (own_device(network), own_device(there)) {
        (Some(device), None) => (device, network, shared(there)),
        (None, Some(device)) => (device, there, shared(network)),
        _ => return Ok(()),
    };
    match uplink.filter(|uplink| uplink.devices().contains(alone)) {
        Some(_) => Err(format!(
            "device \"{alone}\" is the uplink of network \"{}\" alone (forward.dev); to share it, write there uplink = {{ device = \"{alone}\" }}",
            sharing.name
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::desired::{Origin, Owned};

    fn desired(networks: &[&str]) -> Desired {
        let mut desired = Desired::default();
        for text in networks {
            let spec: NetworkSpec =
                toml::from_str(&text.replace("bridge:", "mode = \"bridge\", ")).expect("understood");
            desired.active.insert(spec.name.clone());
            desired.networks.insert(spec.name.clone(), Owned { spec, origin: Origin::Cli });
        }
        desired
    }

    fn shown(desired: &Desired) -> Vec<String> {
        let text = |port: PortSpec| {
            let domains: Vec<String> = port.domains.iter().map(ToString::to_string).collect();
            format!("{}={} {} {}", port.name, port.kind.name(), port.taken_devices().join("+"), domains.join(","))
        };
        desired.effective_ports().into_values().map(text).collect()
    }

    #[test]
    fn networks_share_a_device_or_a_bond_and_leave_one_by_one() {
        let bond = "bond = { devices = [\"eth1\", \"eth2\"], mode = \"802.3ad\" }";
        let mut all = desired(&[
            "name = \"blue\"\nforward = { bridge: uplink = { device = \"eth0\", vlan = 10 } }",
            "name = \"lan\"\nforward = { bridge: dev = \"eth9\" }",
            "name = \"plain\"\nforward = { bridge: uplink = { device = \"eth0\" } }",
            &format!("name = \"one\"\nforward = {{ bridge: uplink = {{ vlan = 1, {bond} }} }}"),
            &format!("name = \"two\"\nforward = {{ bridge: uplink = {{ vlan = 2, {bond} }} }}"),
        ]);
        all.check().expect("no conflict");
        assert_eq!(
            shown(&all),
            [
                "eth0.uplink=packet eth0 blue:tag=10,plain",
                "eth1-eth2.uplink=bond eth1+eth2 one:tag=1,two:tag=2",
                "lan.uplink=packet eth9 lan"
            ]
        );
        for name in ["blue", "one", "two"] {
            all.active.remove(name);
        }
        assert_eq!(shown(&all), ["eth0.uplink=packet eth0 plain", "lan.uplink=packet eth9 lan"]);
    }

    #[test]
    fn conflicts_are_named_with_the_mend() {
        let first = "name = \"a\"\nforward = { bridge: uplink = { device = \"eth0\", vlan = 10 } }";
        let bonded = "name = \"a\"\nforward = { bridge: uplink = { bond = { devices = [\"eth0\", \"eth1\"] } } }";
        for (before, forward, part) in [
            (first, "uplink = { device = \"eth0\", vlan = 10 }", "network \"a\" has vlan 10"),
            (first, "dev = \"eth0\"", "write there uplink = { device = \"eth0\" }"),
            (first, "uplink = { bond = { devices = [\"eth0\", \"eth1\"] } }", "another one"),
            (bonded, "uplink = { bond = { devices = [\"eth0\", \"eth1\"] } }", "has untagged frames"),
            (bonded, "uplink = { vlan = 3, bond = { devices = [\"eth0\"] } }", "another one"),
            (bonded, "dev = \"eth1\"", "(forward.dev)"),
            (first, "uplink = { device = \"eth1\", vlan = 4095 }", "1 to 4094"),
            (first, "uplink = { vlan = 5 }", "either a device or a bond"),
            (first, "uplink = { device = \"eth1\", bond = { devices = [\"eth2\"] } }", "either a device or a bond"),
            (first, "uplink = { bond = { devices = [\"eth2\"], mode = \"vepa\" } }", "802.3ad"),
            (first, "uplink = { device = \"eth1\" }, dev = \"eth1\"", "one of dev"),
        ] {
            let other = format!("name = \"b\"\nforward = {{ bridge: {forward} }}");
            let error = desired(&[before, &other]).check().expect_err(forward).to_string();
            assert!(error.contains(part), "{forward}: {error}");
        }
        let mut with_port = desired(&[bonded]);
        let port: PortSpec = "x=packet,device=eth1,domain=none".parse().expect("valid");
        with_port.ports.insert("x".to_owned(), Owned { spec: port, origin: Origin::Cli });
        let error = with_port.check().expect_err("a member").to_string();
        assert!(error.contains("member of the bond \"eth0-eth1.uplink\""), "{error}");
        let mut with_port = desired(&[&first.replace("eth0", "eth1")]);
        let port: PortSpec = "x=packet,device=eth1,domain=none".parse().expect("valid");
        with_port.ports.insert("x".to_owned(), Owned { spec: port, origin: Origin::Cli });
        let error = with_port.check().expect_err("the uplink").to_string();
        assert!(error.contains("the uplink \"eth1.uplink\""), "{error}");
    }
}
