//! `vswitch network`.

use std::{
    io::Read,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use switch_core::{
    control::{
        config::Config,
        network_xml,
        spec::{
            NetworkSpec,
            network::{Bandwidth, MacTableManager, PortGroup, VlanSpec},
        },
        uplinks::uplink_name,
        wire::{Done, MemberView, NetworkState, NetworkView, StartNetwork},
    },
    rate::Rate,
};

use super::{print_json, print_table, report};
use crate::{args::Network, client::Client};

const BASE: &str = "/v1/networks";

/// Carries out the command.
pub fn network(client: &Client, command: Network) -> anyhow::Result<()> {
    match command {
        Network::Define { file } => define(client, &file),
        Network::Start { name, fix_forward } => {
            report(&client.post_to::<Done>(BASE, &name, "start", &StartNetwork { fix_forward })?);
            let view = one(client, &name)?;
            for blocker in view.blockers.iter().filter(|b| !b.fixed) {
                eprintln!(
                    "vswitch: {} ({}) may drop what network {name} forwards; see: vswitch network show {name}",
                    blocker.chain, blocker.why
                );
            }
            Ok(())
        }
        Network::Stop { name } => {
            client.post_to::<Done>(BASE, &name, "stop", &serde_json::json!({})).map(|done| report(&done))
        }
        Network::Undefine { name } => client.delete::<Done>(BASE, &name).map(|done| report(&done)),
        Network::List { json } => {
            let networks: Vec<NetworkView> = client.get(BASE)?;
            if json { print_json(&networks) } else { list(&networks) }
        }
        Network::Show { name: Some(name), xml: true, .. } => {
            let network_xml::Written { xml, warnings } = network_xml::write(&one(client, &name)?.spec);
            warn(&warnings);
            print!("{xml}");
            Ok(())
        }
        Network::Show { name, json, .. } => {
            let networks: Vec<NetworkView> = match &name {
                Some(name) => vec![one(client, name)?],
                None => client.get(BASE)?,
            };
            if json {
                return print_json(&networks);
            }
            for (index, network) in networks.iter().enumerate() {
                if index > 0 {
                    println!();
                }
                show(network);
            }
            Ok(())
        }
    }
}

/// One network.
pub fn one(client: &Client, name: &str) -> anyhow::Result<NetworkView> {
    let networks: Vec<NetworkView> = client.get(BASE)?;
    let found = networks.into_iter().find(|n| n.spec.name == name);
    found.with_context(|| format!("there is no network \"{name}\"; see: vswitch network list"))
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("vswitch: warning: {warning}");
    }
}

/// One network in libvirt's XML, or in TOML, or several as a configuration file has them.
fn read(text: &str) -> anyhow::Result<Vec<NetworkSpec>> {
    if text.trim_start().starts_with('<') {
        let network_xml::Read { spec, warnings } = network_xml::read(text)?;
        warn(&warnings);
        return Ok(vec![spec]);
    }
    let table: toml::Table = toml::from_str(text)?;
    if !table.contains_key("network") {
        let spec: NetworkSpec = toml::from_str(text)?;
        return Ok(vec![spec]);
    }
    if let Some(other) = table.keys().find(|key| *key != "network") {
        bail!("{other}: only networks can be defined here; for everything else there is: vswitch apply FILE");
    }
    Ok(Config::parse(text)?.network)
}

fn define(client: &Client, file: &Path) -> anyhow::Result<()> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else {
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
    };
    let networks = read(&text).with_context(|| format!("{}", file.display()))?;
    if networks.is_empty() {
        bail!("{}: there is no network in it", file.display());
    }
    for spec in &networks {
        report(&client.post::<Done>(BASE, spec)?);
    }
    Ok(())
}

fn state(network: &NetworkView) -> &'static str {
    match network.state {
        NetworkState::Up => "up",
        NetworkState::Waiting => "waiting",
        NetworkState::Stopped => "stopped",
    }
}

fn mode(network: &NetworkView) -> String {
    format!("{:?}", network.spec.forward.mode).to_lowercase()
}

fn addresses(network: &NetworkView) -> String {
    network.spec.addresses().map(|a| a.to_string()).collect::<Vec<_>>().join(" ")
}

/// What a network goes out by.
fn uplink(spec: &NetworkSpec) -> String {
    let Some(uplink) = &spec.forward.uplink else {
        return format!("device {}", spec.forward.dev.as_deref().unwrap_or_default());
    };
    let what = if uplink.bond.is_some() { "bond of" } else { "device" };
    let vlan = uplink.vlan.map(|vlan| format!(", vlan {vlan}")).unwrap_or_default();
    format!("{what} {}{vlan}", uplink.devices().join(", "))
}

fn list(networks: &[NetworkView]) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = networks
        .iter()
        .map(|n| {
            let autostart = if n.spec.autostart == Some(true) { "yes" } else { "no" };
            vec![n.spec.name.clone(), state(n).to_owned(), mode(n), autostart.to_owned(), addresses(n)]
        })
        .collect();
    print_table(&["NETWORK", "STATE", "MODE", "AUTOSTART", "ADDRESSES"], &rows);
    Ok(())
}

/// What the network as a whole may carry.
fn bandwidths(spec: &NetworkSpec) -> impl Iterator<Item = (&'static str, String)> + use<> {
    rates(
        spec.bandwidth.as_ref().and_then(Bandwidth::to_guests),
        spec.bandwidth.as_ref().and_then(Bandwidth::from_guests),
    )
}

/// Rates, with the words of a port's keys.
fn rates(to: Option<Rate>, from: Option<Rate>) -> impl Iterator<Item = (&'static str, String)> {
    [("rate-to", to), ("rate-from", from)].into_iter().filter_map(|(what, rate)| Some((what, rate?.to_string())))
}

fn vlans(vlan: &VlanSpec) -> (&'static str, String) {
    let tags: Vec<String> = vlan.tags.iter().map(|tag| tag.id.to_string()).collect();
    (if vlan.is_trunk() { "trunk" } else { "vlan" }, tags.join(","))
}

fn portgroup(group: &PortGroup) -> String {
    let mut words = vec![group.name.clone()];
    if group.default {
        words.push("default".to_owned());
    }
    words.extend(group.vlan.as_ref().map(|vlan| {
        let (what, tags) = vlans(vlan);
        format!("{what} {tags}")
    }));
    if group.port_isolated {
        words.push("isolated".to_owned());
    }
    if group.mac_table_manager == Some(MacTableManager::Libvirt) {
        words.push("pinned".to_owned());
    }
    let bandwidth = group.bandwidth.unwrap_or_default();
    words.extend(rates(bandwidth.to_guests(), bandwidth.from_guests()).map(|(what, rate)| format!("{what} {rate}")));
    words.join(", ")
}

fn member_line(member: &MemberView) -> String {
    let mut words = vec![member.port.clone()];
    words.extend(member.portgroup.iter().map(|group| format!("portgroup {group}")));
    words.extend(member.device.iter().map(|device| format!("macvtap on {device}")));
    let domains: Vec<String> = member.domains.iter().map(ToString::to_string).collect();
    words.push(if domains.is_empty() { "not attached".to_owned() } else { domains.join(" ") });
    words.extend(member.pinned.iter().map(|mac| format!("pinned to {mac}")));
    words.extend(rates(member.rate_to, member.rate_from).map(|(what, rate)| format!("{what} {rate}")));
    words.join(", ")
}

fn show(network: &NetworkView) {
    let spec = &network.spec;
    println!("network {}: {}, {}", spec.name, state(network), mode(network));
    let line = |what: &str, text: &str| println!("  {what:<9} {text}");
    if let Some(reason) = &network.reason {
        line("reason", reason);
    }
    if spec.has_host() {
        let place = spec.netns.as_ref().map(|n| format!(" in namespace {n}")).unwrap_or_default();
        line("host port", &format!("{}{place}", spec.device()));
    }
    if let Some(port) = uplink_name(spec) {
        line("uplink", &format!("{port}: {}", uplink(spec)));
    }
    if !spec.ip.is_empty() {
        line("addresses", &addresses(network));
    }
    if let Some(table) = &network.table {
        line("rules", &format!("nft list table inet {table}"));
    }
    if let Some(pid) = network.dnsmasq {
        line("dnsmasq", &format!("pid {pid}"));
    }
    for (what, rate) in bandwidths(spec) {
        line("bandwidth", &format!("{what} {rate}"));
    }
    if let Some(vlan) = &spec.vlan {
        let (what, tags) = vlans(vlan);
        line(what, &tags);
    }
    for group in &spec.portgroup {
        line("portgroup", &portgroup(group));
    }
    for place in &network.pool {
        let members = if place.members.is_empty() { "free".to_owned() } else { place.members.join(" ") };
        line("pool", &format!("{} {members}", place.device));
    }
    for member in &network.members {
        line("member", &member_line(member));
    }
    for blocker in &network.blockers {
        let mend = if blocker.fixed {
            "has an exception for this network".to_owned()
        } else {
            format!("may drop what is forwarded; vswitch network start {} --fix-forward makes an exception", spec.name)
        };
        line("firewall", &format!("{} ({}) {mend}", blocker.chain, blocker.why));
    }
    if network.leases.is_empty() {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let rows: Vec<Vec<String>> = network
        .leases
        .iter()
        .map(|l| {
            let ends = l.expires.map_or("never".to_owned(), |at| format!("{} s", at.saturating_sub(now)));
            vec![l.ip.to_string(), l.client.clone(), l.hostname.clone().unwrap_or_default(), ends]
        })
        .collect();
    print_table(
        &["  LEASE", "CLIENT", "NAME", "ENDS IN"],
        &rows
            .into_iter()
            .map(|mut row| {
                row[0] = format!("  {}", row[0]);
                row
            })
            .collect::<Vec<_>>(),
    );
}
