//! `vswitch fdb`.

use switch_core::{
    control::{
        desired::FdbSpec,
        spec::DEFAULT_DOMAIN,
        wire::{Done, FdbView, FlushRequest, Flushed},
    },
    fdb::Kind,
};

use super::{print_json, print_table, report, words};
use crate::{args::Fdb, client::Client};

const BASE: &str = "/v1/fdb";

/// Carries out the command.
pub fn fdb(client: &Client, command: Fdb) -> anyhow::Result<()> {
    let done: Done = match command {
        Fdb::Show { json } => return show(client, json),
        Fdb::Add { mac, port, words: rest } => {
            let (values, flags) = words(&rest, &["domain"], &["sticky", "static"])?;
            let domain = values[0].clone().unwrap_or_else(|| DEFAULT_DOMAIN.to_owned());
            client.post(BASE, &FdbSpec { mac: mac.parse()?, port, domain, sticky: flags[0] })?
        }
        Fdb::Del { mac, words: rest } => {
            let (values, _) = words(&rest, &["domain"], &[])?;
            let domain = values[0].as_deref().unwrap_or(DEFAULT_DOMAIN);
            client.delete_where(BASE, &[("mac", &mac), ("domain", domain)])?
        }
        Fdb::Flush { words: rest } => {
            let (mut values, _) = words(&rest, &["port", "domain"], &[])?;
            let request = FlushRequest { port: values[0].take(), domain: values[1].take() };
            let flushed: Flushed = client.post("/v1/fdb/flush", &request)?;
            println!("{} entries removed", flushed.removed);
            return Ok(());
        }
    };
    report(&done);
    Ok(())
}

fn show(client: &Client, json: bool) -> anyhow::Result<()> {
    let entries: Vec<FdbView> = client.get(BASE)?;
    if json {
        return print_json(&entries);
    }
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|e| {
            let (kind, age) = match e.kind {
                Kind::Learned => ("learned", format!("{} s", e.age_s)),
                Kind::Sticky => ("sticky", format!("{} s", e.age_s)),
                Kind::Static => ("static", "-".to_owned()),
            };
            vec![e.domain.clone(), e.mac.to_string(), e.port.clone(), kind.to_owned(), age]
        })
        .collect();
    print_table(&["DOMAIN", "MAC", "PORT", "KIND", "AGE"], &rows);
    Ok(())
}
