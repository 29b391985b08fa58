//! `vswitch brctl`, also as a link named `brctl`: the words, the output and the exit status of bridge-utils.
//!
//! A bridge is a transparent domain with a host port; its interfaces are `packet` ports. What concerns the spanning tree
//! has nothing to act on, because the switch runs none: turning it on is refused, tuning it is accepted with a word on standard error.

use std::path::Path;

use anyhow::bail;
use switch_core::{
    control::wire::{Add, DomainView, Done, FdbView, PortChange, PortState, PortView},
    fdb::Kind,
    mac::MacAddr,
};

use super::report;
use crate::client::Client;

/// Every command: its name, its arguments and what it does.
const COMMANDS: [(&str, &str, &str); 16] = [
    ("addbr", "<bridge>", "add bridge"),
    ("delbr", "<bridge>", "delete bridge"),
    ("addif", "<bridge> <device>", "add interface to bridge"),
    ("delif", "<bridge> <device>", "delete interface from bridge"),
    ("hairpin", "<bridge> <port> {on|off}", "turn hairpin on/off"),
    ("setageing", "<bridge> <time>", "set ageing time"),
    ("setbridgeprio", "<bridge> <prio>", "no effect: there is no spanning tree"),
    ("setfd", "<bridge> <time>", "no effect: there is no spanning tree"),
    ("sethello", "<bridge> <time>", "no effect: there is no spanning tree"),
    ("setmaxage", "<bridge> <time>", "no effect: there is no spanning tree"),
    ("setpathcost", "<bridge> <port> <cost>", "no effect: there is no spanning tree"),
    ("setportprio", "<bridge> <port> <prio>", "no effect: there is no spanning tree"),
    ("show", "[ <bridge> ]", "show a list of bridges"),
    ("showmacs", "<bridge>", "show a list of mac addrs"),
    ("showstp", "<bridge>", "show bridge stp info"),
    ("stp", "<bridge> {on|off}", "turn stp on/off"),
];

/// The list of commands, as `--help` shows it.
pub fn usage() -> String {
    let mut text = "Usage: brctl [commands]\ncommands:\n".to_owned();
    for (name, arguments, purpose) in COMMANDS {
        text.push_str(&format!("\t{name:<10}\t{arguments}\t{purpose}\n"));
    }
    text
}

/// Carries out one command.
pub fn brctl(client: &Client, arguments: &[String]) -> anyhow::Result<()> {
    let Some((name, rest)) = arguments.split_first() else { bail!("{}", usage().trim_end()) };
    let Some((_, expected, purpose)) = COMMANDS.iter().find(|(known, ..)| known == name) else {
        bail!("never heard of command [{name}]\n{}", usage().trim_end());
    };
    let wanted = expected.split_whitespace().filter(|word| word.starts_with(['<', '{'])).count();
    if rest.len() != wanted && name != "show" {
        bail!("Incorrect number of arguments for command\nUsage: brctl {name} {expected}\t\t{purpose}");
    }
    let argument = |index: usize| rest[index].as_str();
    match name.as_str() {
        "addbr" => add_bridge(client, argument(0)),
        "delbr" => delete_bridge(client, argument(0)),
        "addif" => add_interface(client, argument(0), argument(1)),
        "delif" => delete_interface(client, argument(0), argument(1)),
        "show" => show(&Bridges::ask(client)?, rest),
        "showmacs" => show_macs(client, argument(0)),
        "showstp" => show_stp(&Bridges::ask(client)?, argument(0)),
        "setageing" => {
            Bridges::ask(client)?.bridge(argument(0))?;
            let Ok(seconds) = argument(1).parse::<f64>() else { bail!("bad ageing time value") };
            let set = vec![format!("ageing={}", seconds.round() as i64)];
            done(client.patch("/v1/domains", argument(0), &PortChange { set, ..PortChange::default() })?)
        }
        "hairpin" => {
            Bridges::ask(client)?.interface(argument(0), argument(1))?;
            let on = on_off(argument(2))?;
            let set = vec![format!("hairpin={}", if on { "on" } else { "off" })];
            done(client.patch("/v1/ports", argument(1), &PortChange { set, ..PortChange::default() })?)
        }
        "stp" => {
            Bridges::ask(client)?.bridge(argument(0))?;
            if on_off(argument(1))? {
                bail!("vswitch runs no spanning tree; storm control and flap hold-down bound a loop instead");
            }
            Ok(())
        }
        _ => {
            Bridges::ask(client)?.bridge(argument(0))?;
            eprintln!("vswitch: {name} has no effect: there is no spanning tree here");
            Ok(())
        }
    }
}

fn done(done: Done) -> anyhow::Result<()> {
    report(&done);
    Ok(())
}

fn on_off(text: &str) -> anyhow::Result<bool> {
    match text {
        "on" | "yes" | "1" => Ok(true),
        "off" | "no" | "0" => Ok(false),
        _ => bail!("expect on/off for argument"),
    }
}

/// What the switch says, as bridges and interfaces.
struct Bridges {
    domains: Vec<DomainView>,
    ports: Vec<PortView>,
}

impl Bridges {
    fn ask(client: &Client) -> anyhow::Result<Bridges> {
        let mut domains: Vec<DomainView> = client.get("/v1/domains")?;
        domains.retain(|d| d.spec.host);
        Ok(Bridges { domains, ports: client.get("/v1/ports")? })
    }

    fn bridge(&self, name: &str) -> anyhow::Result<&DomainView> {
        match self.domains.iter().find(|d| d.spec.name == name) {
            Some(bridge) => Ok(bridge),
            None => bail!("bridge {name} does not exist!"),
        }
    }

    /// The members of a bridge without its host port, in the order of their numbers, which begin with 1.
    fn interfaces<'a>(&'a self, bridge: &'a str) -> impl Iterator<Item = &'a PortView> {
        self.ports
            .iter()
            .filter(move |p| p.spec.name != bridge && p.effective().domains.iter().any(|a| a.domain == bridge))
    }

    fn interface<'a>(&'a self, bridge: &'a str, name: &str) -> anyhow::Result<&'a PortView> {
        self.bridge(bridge)?;
        match self.interfaces(bridge).find(|p| p.spec.name == name) {
            Some(port) => Ok(port),
            None => bail!("device {name} is not a port of {bridge}"),
        }
    }

    /// The bridge's identifier: default priority and the address of its host port.
    fn id(&self, bridge: &str) -> String {
        let mac = self.ports.iter().find(|p| p.spec.name == bridge).and_then(|p| p.device_mac).unwrap_or(MacAddr::ZERO);
        format!("8000.{:012x}", mac.to_u64())
    }
}

fn exists(device: &str) -> bool {
    !device.contains('/') && Path::new("/sys/class/net").join(device).exists()
}

fn add_bridge(client: &Client, name: &str) -> anyhow::Result<()> {
    if exists(name) || client.get::<Vec<DomainView>>("/v1/domains")?.iter().any(|d| d.spec.name == name) {
        bail!("device {name} already exists; can't create bridge with the same name");
    }
    done(client.post("/v1/domains", &Add { spec: format!("{name},host=on,transparent=on") })?)
}

fn delete_bridge(client: &Client, name: &str) -> anyhow::Result<()> {
    if Bridges::ask(client)?.bridge(name).is_err() {
        bail!("bridge {name} doesn't exist; can't delete it");
    }
    done(client.delete_where(&format!("/v1/domains/{name}"), &[("ports", "true")])?)
}

fn add_interface(client: &Client, bridge: &str, device: &str) -> anyhow::Result<()> {
    let bridges = Bridges::ask(client)?;
    bridges.bridge(bridge)?;
    if bridges.ports.iter().any(|p| p.spec.kind.is_device() && p.spec.netns.is_none() && p.spec.netdev() == device) {
        bail!("device {device} is already a member of a bridge; can't add it to bridge {bridge}.");
    }
    if !exists(device) {
        bail!("interface {device} does not exist!");
    }
    done(client.post("/v1/ports", &Add { spec: format!("{device}=packet,domain={bridge}:transparent") })?)
}

fn delete_interface(client: &Client, bridge: &str, device: &str) -> anyhow::Result<()> {
    let bridges = Bridges::ask(client)?;
    let port = bridges.interface(bridge, device)?;
    if port.spec.domains.len() == 1 {
        return done(client.delete("/v1/ports", device)?);
    }
    let change = PortChange { detach: Some(bridge.to_owned()), ..PortChange::default() };
    done(client.patch("/v1/ports", device, &change)?)
}

fn show(bridges: &Bridges, names: &[String]) -> anyhow::Result<()> {
    let mut header = Some("bridge name\tbridge id\t\tSTP enabled\tinterfaces");
    let all: Vec<String> = bridges.domains.iter().map(|d| d.spec.name.clone()).collect();
    let mut missing = Vec::new();
    for name in if names.is_empty() { &all } else { names } {
        if bridges.bridge(name).is_err() {
            missing.push(format!("bridge {name} does not exist!"));
            continue;
        }
        header.take().iter().for_each(|header| println!("{header}"));
        let mut interfaces: Vec<_> = bridges.interfaces(name).map(|p| p.spec.name.as_str()).collect();
        interfaces.sort_unstable();
        let first = interfaces.first().copied().unwrap_or_default();
        println!("{name}\t\t{}\tno\t\t{first}", bridges.id(name));
        interfaces.iter().skip(1).for_each(|interface| println!("\t\t\t\t\t\t\t{interface}"));
    }
    if !missing.is_empty() {
        bail!("{}", missing.join("\n"));
    }
    Ok(())
}

fn show_macs(client: &Client, bridge: &str) -> anyhow::Result<()> {
    let bridges = Bridges::ask(client)?;
    if bridges.bridge(bridge).is_err() {
        bail!("read of forward table failed: No such device");
    }
    let numbers: Vec<(&str, usize)> = std::iter::once(bridge)
        .chain(bridges.interfaces(bridge).map(|p| p.spec.name.as_str()))
        .enumerate()
        .map(|(number, name)| (name, number))
        .collect();
    let number = |port: &str| numbers.iter().find(|(name, _)| *name == port).map(|(_, number)| *number);
    let locals = bridges.ports.iter().filter_map(|p| Some((p.device_mac?, number(&p.spec.name)?)));
    let mut rows: Vec<(MacAddr, usize, bool, u32)> = locals.map(|(mac, number)| (mac, number, true, 0)).collect();
    let entries: Vec<FdbView> = client.get("/v1/fdb")?;
    for entry in entries.iter().filter(|e| e.domain == bridge) {
        let Some(number) = number(&entry.port) else { continue };
        if !rows.iter().any(|(mac, ..)| *mac == entry.mac) {
            rows.push((entry.mac, number, false, if entry.kind == Kind::Static { 0 } else { entry.age_s }));
        }
    }
    rows.sort_by_key(|(mac, ..)| *mac);
    println!("port no\tmac addr\t\tis local?\tageing timer");
    for (mac, number, local, age_s) in rows {
        println!("{number:>3}\t{mac}\t{}\t\t{age_s:>4}.00", if local { "yes" } else { "no" });
    }
    Ok(())
}

fn show_stp(bridges: &Bridges, name: &str) -> anyhow::Result<()> {
    let Ok(bridge) = bridges.bridge(name) else { bail!("{name}: can't get info No such device") };
    let id = bridges.id(name);
    println!("{name}\n bridge id\t\t{id}\n designated root\t{id}");
    println!(" root port\t\t   0\t\t\tpath cost\t\t   0");
    println!(" max age\t\t  20.00\t\t\tbridge max age\t\t  20.00");
    println!(" hello time\t\t   2.00\t\t\tbridge hello time\t   2.00");
    println!(" forward delay\t\t  15.00\t\t\tbridge forward delay\t  15.00");
    println!(" ageing time\t\t{:>4}.00", bridge.spec.ageing);
    println!(" hello timer\t\t   0.00\t\t\ttcn timer\t\t   0.00");
    println!(" topology change timer\t   0.00\t\t\tgc timer\t\t   0.00\n flags\t\t\t\n\n");
    for (port, number) in bridges.interfaces(name).zip(1..) {
        let state = if port.state == PortState::Up { "forwarding" } else { "disabled" };
        println!("{} ({number})\n port id\t\t8{number:03x}\t\t\tstate\t\t{state:>15}", port.spec.name);
        println!(" designated root\t{id}\tpath cost\t\t   2");
        println!(" designated bridge\t{id}\tmessage age timer\t   0.00");
        println!(" designated port\t8{number:03x}\t\t\tforward delay timer\t   0.00");
        println!(" designated cost\t   0\t\t\thold timer\t\t   0.00");
        println!(" flags\t\t\t\n{}", if port.spec.hairpin { " hairpin mode\t\t   1\n" } else { "" });
    }
    Ok(())
}
