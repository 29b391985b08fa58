//! The commands, and what they share.

pub mod bench;
pub mod brctl;
pub mod demo;
pub mod domain;
pub mod fdb;
pub mod hostdev;
pub mod libvirt_hook;
pub mod libvirt_xml;
pub mod network;
pub mod ovs;
pub mod port;
pub mod qemu_args;
pub mod run;
pub mod vm;

use std::{path::Path, time::Duration};

use anyhow::Context;
use serde::Serialize;
use switch_core::control::{
    manager::Notice,
    wire::{Apply, Done, Status},
};

use crate::client::Client;

/// How often `monitor` asks for news.
const MONITOR_EVERY: Duration = Duration::from_millis(500);

/// Prints JSON for programs.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints rows under a header, columns as wide as they need to be.
pub fn print_table(header: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = header.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let line = |cells: &[String]| {
        let text: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        println!("{}", text.join("  ").trim_end());
    };
    line(&header.iter().map(ToString::to_string).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
}

/// Says on standard error which ports wait and why.
pub fn report(done: &Done) {
    for (port, reason) in &done.waiting {
        eprintln!("vswitch: port {port} is waiting: {reason}");
    }
}

/// `vswitch apply`.
pub fn apply(client: &Client, file: &Path, dry_run: bool, prune: bool, json: bool) -> anyhow::Result<()> {
    let toml = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let done: Done = client
        .post("/v1/apply", &Apply { toml, dry_run, prune })
        .with_context(|| format!("{} was not applied", file.display()))?;
    if json {
        return print_json(&done);
    }
    for step in &done.steps {
        println!("{}{step}", if dry_run { "would " } else { "" });
    }
    if done.steps.is_empty() {
        println!("nothing to do");
    }
    report(&done);
    Ok(())
}

/// `vswitch status`.
pub fn status(client: &Client, json: bool) -> anyhow::Result<()> {
    let status: Status = client.get("/v1/status")?;
    if json {
        return print_json(&status);
    }
    println!("vswitch {} (pid {}), up {} s, {} worker(s)", status.version, status.pid, status.uptime_s, status.workers);
    println!("ports    {} up, {} down, {} waiting", status.ports_up, status.ports_down, status.ports_waiting);
    println!("domains  {}", status.domains);
    println!("fdb      {} of {} entries", status.fdb_entries, status.fdb_capacity);
    Ok(())
}

/// `vswitch monitor`.
pub fn monitor(client: &Client, json: bool) -> anyhow::Result<()> {
    let mut after = 0;
    loop {
        let news: Vec<Notice> = client.get(&format!("/v1/events?after={after}"))?;
        for notice in &news {
            after = notice.number;
            if json {
                println!("{}", serde_json::to_string(notice)?);
            } else {
                println!("{:>6} s  {}", notice.at_s, notice.text);
            }
        }
        std::thread::sleep(MONITOR_EVERY);
    }
}

/// Reads `key value` pairs and single words, as `bridge fdb` does.
pub fn words(words: &[String], keys: &[&str], flags: &[&str]) -> anyhow::Result<(Vec<Option<String>>, Vec<bool>)> {
    let mut values = vec![None; keys.len()];
    let mut set = vec![false; flags.len()];
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if let Some(at) = keys.iter().position(|k| k == word) {
            values[at] = Some(rest.next().with_context(|| format!("\"{word}\" needs a value"))?.clone());
        } else if let Some(at) = flags.iter().position(|f| f == word) {
            set[at] = true;
        } else {
            anyhow::bail!("\"{word}\" is not understood here; known words: {}", [keys, flags].concat().join(" "));
        }
    }
    Ok((values, set))
}
