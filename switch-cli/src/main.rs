//! The `vswitch` command: one file per group of commands under `commands`, the API client in `client`.

mod args;
mod client;
mod commands;
mod pipe;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::Parser;

use crate::{
    args::{Cli, Command},
    client::Client,
};

/// Names under which this program is called for one of its commands.
const LINKS: [&str; 2] = ["brctl", "ovs-vsctl"];

/// The command line; called as `brctl` or `ovs-vsctl`, it is that command's.
fn words() -> Vec<OsString> {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let name = words.first().and_then(|program| Path::new(program).file_name());
    if let Some(link) = LINKS.into_iter().find(|link| name == Some(link.as_ref())) {
        words.splice(..1, ["vswitch".into(), link.into()]);
    }
    words
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(words());
    pipe::until_closed(|| run(cli))
}

fn run(cli: Cli) -> ExitCode {
    let client = Client::new(&cli.api);
    let result = match cli.command {
        Command::Run(run) => commands::run::run(&cli.api, run),
        Command::Apply { file, dry_run, prune, json } => commands::apply(&client, &file, dry_run, prune, json),
        Command::Status { json } => commands::status(&client, json),
        Command::Port(command) => commands::port::port(&client, command),
        Command::Domain(command) => commands::domain::domain(&client, command),
        Command::Network(command) => commands::network::network(&client, command),
        Command::Fdb(command) => commands::fdb::fdb(&client, command),
        Command::QemuArgs(wish) => commands::qemu_args::qemu_args(&client, &wish),
        Command::LibvirtXml(wish) => commands::libvirt_xml::libvirt_xml(&client, &wish),
        Command::Hostdev(wish) => commands::hostdev::hostdev(&client, wish),
        Command::LibvirtHook(call) => commands::libvirt_hook::libvirt_hook(client, &cli.api, &call),
        Command::Monitor { json } => commands::monitor(&client, json),
        Command::Brctl { arguments } => commands::brctl::brctl(&client, &arguments),
        Command::OvsVsctl { arguments } => return commands::ovs::ovs_vsctl(client, &arguments),
        Command::Demo => commands::demo::demo(),
        Command::Loop { ends, busy } => commands::bench::forward(&ends, busy),
        Command::Bench(wish) => match commands::bench::bench(wish) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vswitch: {error:#}");
            ExitCode::FAILURE
        }
    }
}
