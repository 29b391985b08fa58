//! `vswitch domain`.

use anyhow::bail;
use switch_core::control::wire::{Add, DomainView, Done, PortChange};

use super::{print_json, print_table, report};
use crate::{args::Domain, client::Client};

const BASE: &str = "/v1/domains";

/// Carries out the command.
pub fn domain(client: &Client, command: Domain) -> anyhow::Result<()> {
    let done: Done = match command {
        Domain::Add { name, settings } => {
            let spec = std::iter::once(name).chain(settings).collect::<Vec<_>>().join(",");
            client.post(BASE, &Add { spec })?
        }
        Domain::Del { name } => client.delete(BASE, &name)?,
        Domain::Set { name, settings } => {
            client.patch(BASE, &name, &PortChange { set: settings, ..PortChange::default() })?
        }
        Domain::Show { name, json } => return show(client, name.as_deref(), json),
    };
    report(&done);
    Ok(())
}

fn show(client: &Client, name: Option<&str>, json: bool) -> anyhow::Result<()> {
    let mut domains: Vec<DomainView> = client.get(BASE)?;
    if let Some(name) = name {
        domains.retain(|d| d.spec.name == name);
        if domains.is_empty() {
            bail!("there is no domain \"{name}\"; see: vswitch domain show");
        }
    }
    if json {
        return print_json(&domains);
    }
    let rows: Vec<Vec<String>> = domains
        .iter()
        .map(|d| {
            vec![
                d.spec.name.clone(),
                d.spec.mtu.to_string(),
                if d.spec.ageing == 0 { "never".to_owned() } else { format!("{} s", d.spec.ageing) },
                if d.spec.host { "on" } else { "off" }.to_owned(),
                d.members.join(" "),
            ]
        })
        .collect();
    print_table(&["DOMAIN", "MTU", "AGEING", "HOST", "MEMBERS"], &rows);
    Ok(())
}
