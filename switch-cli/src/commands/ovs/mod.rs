//! `vswitch ovs-vsctl`, also as a link named `ovs-vsctl`: what libvirt says to Open vSwitch, and what people say most.
//!
//! A command line is one transaction: it is carried out on what the switch says of itself, and what it changes is sent as one edit, which the switch refuses
//! if somebody was faster; then all of it is done again. Messages and exit status are those of Open vSwitch 3.1, and `tests/ovs_vsctl.rs`
//! holds both beside each other. What is not understood is refused by name: a network that is almost what was asked for is worse than none.

mod datum;
mod model;
mod table;
#[cfg(test)]
mod tests;
mod words;

use std::{process::ExitCode, time::Duration};

use switch_core::control::{
    spec::{AttachmentSpec, Kind, PortSpec},
    wire::Done,
};

use self::{
    model::{BRIDGE, Model, Vlans},
    table::Table,
    words::{Command, parse},
};
use crate::client::{Client, Conflict};

/// The exit status of `br-exists` for no.
const NO_SUCH_BRIDGE: u8 = 2;
/// How often a transaction is done again because somebody was faster.
const ATTEMPTS: usize = 20;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a command line failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    message: String,
    status: u8,
}

/// Fails with exit status 1.
fn fail<T>(message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure { message: message.into(), status: 1 })
}

/// Every command: its name, the least and the greatest number of its arguments, and what they are.
const COMMANDS: [(&str, usize, usize, &str); 25] = [
    ("init", 0, 0, ""),
    ("show", 0, 0, ""),
    ("add-br", 1, 1, "BRIDGE"),
    ("del-br", 1, 1, "BRIDGE"),
    ("list-br", 0, 0, ""),
    ("br-exists", 1, 1, "BRIDGE"),
    ("br-to-vlan", 1, 1, "BRIDGE"),
    ("br-to-parent", 1, 1, "BRIDGE"),
    ("br-set-external-id", 2, 3, "BRIDGE KEY [VALUE]"),
    ("br-get-external-id", 1, 2, "BRIDGE [KEY]"),
    ("list-ports", 1, 1, "BRIDGE"),
    ("add-port", 2, usize::MAX, "BRIDGE PORT [COLUMN=VALUE]..."),
    ("del-port", 1, 2, "[BRIDGE] PORT"),
    ("port-to-br", 1, 1, "PORT"),
    ("list-ifaces", 1, 1, "BRIDGE"),
    ("iface-to-br", 1, 1, "INTERFACE"),
    ("get", 2, usize::MAX, "TABLE RECORD COLUMN[:KEY]..."),
    ("set", 3, usize::MAX, "TABLE RECORD COLUMN[:KEY]=VALUE..."),
    ("clear", 3, usize::MAX, "TABLE RECORD COLUMN..."),
    ("remove", 4, usize::MAX, "TABLE RECORD COLUMN KEY..."),
    ("list", 1, usize::MAX, "TABLE [RECORD]..."),
    ("find", 1, usize::MAX, "TABLE [COLUMN[:KEY]=VALUE]..."),
    ("create", 1, usize::MAX, "(refused: there are no rows to create)"),
    ("destroy", 1, usize::MAX, "(refused: there are no rows to destroy)"),
    ("emer-reset", 0, 0, ""),
];

fn usage() -> String {
    let mut text =
        "vswitch as ovs-vsctl; usage: ovs-vsctl [OPTIONS] [--] COMMAND [ARG...] [-- COMMAND [ARG...]]...\n".to_owned();
    for (name, _, _, arguments) in COMMANDS {
        text.push_str(format!("  {name} {arguments}").trim_end());
        text.push('\n');
    }
    text.push_str("Tables: Bridge Port Interface (QoS and Queue are empty)\n");
    text
}

/// Carries out a command line and prints as ovs-vsctl does.
pub fn ovs_vsctl(client: Client, arguments: &[String]) -> ExitCode {
    match run(client, arguments) {
        Ok((out, done)) => {
            print!("{out}");
            for (port, reason) in &done.waiting {
                eprintln!("ovs-vsctl: port {port} is waiting: {reason}");
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("ovs-vsctl: {}", failure.message);
            }
            ExitCode::from(failure.status)
        }
    }
}

fn run(client: Client, arguments: &[String]) -> Result<(String, Done), Failure> {
    let (globals, commands) = parse(arguments)?;
    if globals.help {
        return Ok((usage(), Done::default()));
    }
    if globals.version {
        return Ok((format!("ovs-vsctl (vswitch) {}\n", env!("CARGO_PKG_VERSION")), Done::default()));
    }
    if commands.is_empty() {
        return fail("missing command name (use --help for help)");
    }
    commands.iter().try_for_each(check)?;
    let client = client.with_timeout(globals.timeout.unwrap_or(DEFAULT_TIMEOUT));
    let failed = |e: anyhow::Error| Failure { message: format!("{e:#}"), status: 1 };
    for _ in 0..ATTEMPTS {
        let (out, model) = transact(Model::ask(&client).map_err(failed)?, &commands)?;
        let Some(edit) = model.edit() else { return Ok((out, Done::default())) };
        match client.post("/v1/edit", &edit) {
            Ok(done) => return Ok((out, done)),
            Err(e) if e.is::<Conflict>() => {}
            Err(e) => return Err(failed(e)),
        }
    }
    fail("the switch is being changed all the time; try again")
}

/// Carries out all commands, or none.
fn transact(mut model: Model, commands: &[Command]) -> Result<(String, Model), Failure> {
    let mut out = String::new();
    for command in commands {
        execute(&mut model, command, &mut out)?;
    }
    if model.is_changed() {
        model.settle()?;
    }
    Ok((out, model))
}

fn check(command: &Command) -> Result<(), Failure> {
    let (name, arguments) = (command.words[0].as_str(), command.words.len() - 1);
    let Some((_, least, most, _)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        let known: Vec<&str> = COMMANDS.iter().map(|(name, ..)| *name).collect();
        return fail(format!("unknown command '{name}'; vswitch knows: {}", known.join(" ")));
    };
    if arguments < *least {
        return fail(format!("'{name}' command requires at least {least} arguments"));
    }
    if name == "add-br" && arguments == 3 {
        return fail("add-br: there are no fake bridges here; use add-port BRIDGE PORT tag=VLAN");
    }
    if arguments > *most {
        return fail(format!("'{name}' command takes at most {most} arguments"));
    }
    Ok(())
}

fn execute(model: &mut Model, command: &Command, out: &mut String) -> Result<(), Failure> {
    let arguments = &command.words[1..];
    let argument = |index: usize| arguments[index].as_str();
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    match command.words[0].as_str() {
        "init" => {}
        "add-br" => {
            let name = argument(0);
            if model.bridge(name).is_ok() {
                return match command.may_exist {
                    true => Ok(()),
                    false => fail(format!(
                        "cannot create a bridge named {name} because a bridge named {name} already exists"
                    )),
                };
            }
            if let Some(port) = model.ports.get(name) {
                let bridge = model.bridge_of(port).unwrap_or_default();
                return fail(format!(
                    "cannot create a bridge named {name} because a port named {name} already exists on bridge {bridge}"
                ));
            }
            model.add_bridge(name);
        }
        "del-br" => match model.bridge(argument(0)) {
            Err(_) if command.if_exists => {}
            found => {
                found?;
                model.remove_bridge(argument(0));
            }
        },
        "list-br" => model.bridges().for_each(|name| line(name)),
        "br-exists" if model.bridge(argument(0)).is_err() => {
            return Err(Failure { message: String::new(), status: NO_SUCH_BRIDGE });
        }
        "br-exists" => {}
        "br-to-vlan" | "br-to-parent" => {
            model.bridge(argument(0))?;
            line(if command.words[0] == "br-to-vlan" { "0" } else { argument(0) });
        }
        "br-set-external-id" => {
            model.bridge(argument(0))?;
            let place = format!("external_ids:{}", argument(1));
            match arguments.get(2) {
                Some(value) => {
                    table::assign(model, Table::Bridge, argument(0), &[format!("{place}={}", quoted(value))])?
                }
                None => table::remove(
                    model,
                    command,
                    &["Bridge".to_owned(), argument(0).to_owned(), "external_ids".to_owned(), quoted(argument(1))],
                )?,
            }
        }
        "br-get-external-id" => {
            model.bridge(argument(0))?;
            let prefix = "ovs.bridge.external_ids:";
            let labels = model.domains[argument(0)].labels.iter();
            let ids: Vec<_> = labels.filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value))).collect();
            match arguments.get(1) {
                Some(key) => ids.iter().filter(|(k, _)| k == key).for_each(|(_, value)| line(value)),
                None => ids.iter().for_each(|(key, value)| line(&format!("{key}={value}"))),
            }
        }
        "list-ports" | "list-ifaces" => {
            model.bridge(argument(0))?;
            model.members(argument(0)).iter().for_each(|port| line(&port.name));
        }
        "port-to-br" | "iface-to-br" => {
            let kind = if command.words[0] == "port-to-br" { "port" } else { "interface" };
            match model.ports.get(argument(0)).and_then(|port| model.bridge_of(port)) {
                Some(bridge) if bridge != argument(0) => line(&bridge),
                _ => return fail(format!("no {kind} named {}", argument(0))),
            }
        }
        "add-port" => add_port(model, command.may_exist, argument(0), argument(1), &arguments[2..])?,
        "del-port" => del_port(model, command.if_exists, arguments)?,
        "get" => table::get(model, command, arguments, out)?,
        "list" | "find" => table::list(model, command, arguments, out)?,
        "set" => table::set(model, command, arguments)?,
        "clear" => table::clear_all(model, command, arguments)?,
        "remove" => table::remove(model, command, arguments)?,
        "show" => show(model, out),
        "create" if !matches!(Table::find(argument(0)), Ok(Table::Qos | Table::Queue)) => {
            return fail("create: rows of this table are made with add-br and add-port");
        }
        "create" => return fail(table::NO_RATES),
        name => return fail(format!("{name}: there is nothing here that it could be done to")),
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn add_port(model: &mut Model, may_exist: bool, bridge: &str, name: &str, columns: &[String]) -> Result<(), Failure> {
    model.bridge(bridge)?;
    if model.bridge(name).is_ok() {
        return fail(format!("cannot create a port named {name} because a bridge named {name} already exists"));
    }
    match model.ports.get_mut(name) {
        Some(port) => {
            let there = port.labels.get(BRIDGE).cloned();
            if !may_exist || there.as_deref() != Some(bridge) {
                let there = model.bridge_of(&model.ports[name]).unwrap_or_default();
                return fail(format!(
                    "cannot create a port named {name} because a port named {name} already exists on bridge {there}"
                ));
            }
            // Open vSwitch leaves the columns of such a port as they are. A machine whose host broke down would come up in the VLAN that it
            // was in then, so here they become what is said now.
            Vlans::default().keep(port);
        }
        None => {
            let mut port = PortSpec::new(name, Kind::Packet);
            port.domains = vec![AttachmentSpec::untagged(bridge)];
            port.labels.insert(BRIDGE.to_owned(), bridge.to_owned());
            model.ports.insert(name.to_owned(), port);
        }
    }
    table::assign(model, Table::Port, name, columns)
}

fn del_port(model: &mut Model, if_exists: bool, arguments: &[String]) -> Result<(), Failure> {
    let (bridge, name) = match arguments {
        [bridge, name] => (Some(bridge), name),
        [name, ..] => (None, name),
        [] => return Ok(()),
    };
    if let Some(bridge) = bridge {
        model.bridge(bridge)?;
    }
    if model.bridge(name).is_ok() {
        return fail(format!(
            "cannot delete port {name} because it is the local port for bridge {name} (deleting this port requires deleting the entire bridge)"
        ));
    }
    let there = model.ports.get(name).and_then(|port| model.bridge_of(port));
    match (there, bridge) {
        (None, _) if if_exists => {}
        (None, _) => return fail(format!("no port named {name}")),
        (Some(there), Some(bridge)) if there != *bridge => {
            return fail(format!("bridge {bridge} does not have a port {name} (although its bridge {there} does)"));
        }
        _ => drop(model.ports.remove(name)),
    }
    Ok(())
}

fn show(model: &Model, out: &mut String) {
    out.push_str(&format!("vswitch {}\n", env!("CARGO_PKG_VERSION")));
    for bridge in model.bridges() {
        out.push_str(&format!("    Bridge {bridge}\n"));
        for port in model.ports.values().filter(|p| model.bridge_of(p).as_ref() == Some(bridge)) {
            out.push_str(&format!("        Port {}\n", port.name));
            let vlans = Vlans::of(port);
            if let Some(tag) = vlans.tag {
                out.push_str(&format!("            tag: {tag}\n"));
            }
            if !vlans.trunks.is_empty() {
                let trunks: Vec<String> = vlans.trunks.iter().map(u16::to_string).collect();
                out.push_str(&format!("            trunks: [{}]\n", trunks.join(", ")));
            }
            out.push_str(&format!("            Interface {}\n", port.name));
            let kind = table::interface_type(port);
            if !kind.is_empty() {
                out.push_str(&format!("                type: {kind}\n"));
            }
            if let Some(reason) = model.views.get(&port.name).and_then(|view| view.reason.as_ref()) {
                out.push_str(&format!("                error: {}\n", quoted(reason)));
            }
        }
    }
}
