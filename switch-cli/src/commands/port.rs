//! `vswitch port`.

use anyhow::bail;
use switch_core::{
    control::{
        spec::{Mode, PortSpec},
        wire::{Add, Done, PortChange, PortState, PortView},
    },
    port::bond::{BondStatus, LacpEnd, MemberStatus},
};

use super::{print_json, print_table, report};
use crate::{args::Port, client::Client};

const BASE: &str = "/v1/ports";

/// Carries out the command.
pub fn port(client: &Client, command: Port) -> anyhow::Result<()> {
    let done: Done = match command {
        Port::Add { spec } => client.post(BASE, &Add { spec })?,
        Port::Del { name } => client.delete(BASE, &name)?,
        Port::Set { name, settings } => {
            client.patch(BASE, &name, &PortChange { set: settings, ..PortChange::default() })?
        }
        Port::Attach { name, attachment } => {
            client.patch(BASE, &name, &PortChange { attach: Some(attachment), ..PortChange::default() })?
        }
        Port::Detach { name, domain } => {
            client.patch(BASE, &name, &PortChange { detach: Some(domain), ..PortChange::default() })?
        }
        Port::Show { name, json } => return show(client, name.as_deref(), json),
    };
    report(&done);
    Ok(())
}

/// What a member of a network has by it, and rates, which any port may have.
fn settings(port: &PortView) -> Vec<(&'static str, String)> {
    let spec = port.effective();
    let mut all = Vec::new();
    all.extend(spec.network.iter().map(|network| ("network", network.clone())));
    all.extend(spec.portgroup.iter().map(|group| ("portgroup", group.clone())));
    all.extend(spec.pinned().map(|mac| ("pinned", mac.to_string())));
    all.extend(spec.rate_to.map(|rate| ("rate-to", rate.to_string())));
    all.extend(spec.rate_from.map(|rate| ("rate-from", rate.to_string())));
    all
}

fn show(client: &Client, name: Option<&str>, json: bool) -> anyhow::Result<()> {
    let mut ports: Vec<PortView> = client.get(BASE)?;
    if let Some(name) = name {
        ports.retain(|p| p.spec.name == name);
        if ports.is_empty() {
            bail!("there is no port \"{name}\"; see: vswitch port show");
        }
    }
    if json {
        return print_json(&ports);
    }
    let count = |p: &PortView, key: &str| p.counters.get(key).copied().unwrap_or(0).to_string();
    let rows: Vec<Vec<String>> = ports
        .iter()
        .map(|p| {
            vec![
                p.spec.name.clone(),
                p.spec.kind.name().to_owned(),
                match p.state {
                    PortState::Up => "up",
                    PortState::Down => "down",
                    PortState::Waiting => "waiting",
                }
                .to_owned(),
                p.effective().domains.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                count(p, "rx_frames"),
                count(p, "tx_frames"),
                p.drops.values().sum::<u64>().to_string(),
            ]
        })
        .collect();
    print_table(&["PORT", "KIND", "STATE", "DOMAINS", "RX", "TX", "DROPS"], &rows);
    if name.is_some() {
        for p in &ports {
            println!();
            p.reason.iter().for_each(|reason| println!("waiting: {reason}"));
            if let Some(bond) = &p.bond {
                show_bond(&p.spec, bond);
            }
            settings(p).iter().for_each(|(what, value)| println!("{what:<24}{value}"));
            p.counters.iter().filter(|(_, n)| **n > 0).for_each(|(key, n)| println!("{key:<24}{n}"));
            p.drops.iter().for_each(|(key, n)| println!("dropped {key:<16}{n}"));
            for b in &p.bindings {
                let state = if b.tentative { "tentative" } else { "" };
                println!("address {:<40}{:<5}{:>8} s {state}", b.address.to_string(), b.source, b.left_s);
            }
        }
    }
    Ok(())
}

fn show_bond(spec: &PortSpec, bond: &BondStatus) {
    let partner = bond.partner.map(|partner| format!(", partner {partner}")).unwrap_or_default();
    println!("bond {}{partner}", spec.mode.unwrap_or(Mode::ActiveBackup).name());
    for member in &bond.members {
        println!("{}", member_line(member).trim_end());
        for (what, end) in [("actor", &member.actor), ("partner", &member.partner)] {
            if let Some(end) = end {
                println!("    {what:<8}{}", end_line(end));
            }
        }
    }
}

fn member_line(member: &MemberStatus) -> String {
    format!("  {:<16}{:<8}{}", member.device, member.state.name(), member.reason.as_deref().unwrap_or_default())
}

fn end_line(end: &LacpEnd) -> String {
    format!("system {} key {} port {}: {}", end.system, end.key, end.port, end.state.join(" "))
}
