//! `vswitch libvirt-hook`: called by libvirt's hook script around a machine's life, with its XML on standard input.
//!
//! Before a machine starts, the ports that its interfaces are to be plugged into are made (origin `hook`); after it has ended they are removed. Which
//! interfaces these are, the machine says: vhost-user sockets in the directory of the API socket, and every interface that an element in the
//! metadata speaks of. What fails is an error that `virsh start` shows. Nothing may be printed: libvirt takes it for another machine.

use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::unistd::User;
use roxmltree::{Document, Node};
use switch_core::{
    control::{
        desired::Origin,
        spec::{Kind, Mode, PortSpec},
        wire::{Done, Edit, PortView, Status},
    },
    mac::MacAddr,
};

use crate::{
    args::LibvirtHook,
    client::{Client, Conflict},
};

/// The namespace of `<ports>` in a machine's `<metadata>`.
const NAMESPACE: &str = "https://github.com/vswitch/vswitch/libvirt/1";
/// At a port: the machine that it was made for.
const MACHINE: &str = "libvirt.uuid";
const MACHINE_NAME: &str = "libvirt.name";
/// For each answer of the switch: libvirt waits for the hook, and others wait for libvirt.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 5;
/// Whom Debian's libvirt runs QEMU as.
const QEMU_USER: &str = "libvirt-qemu";
/// The largest machine that is read.
const MAX_BYTES: u64 = 8 << 20;

/// A machine, as far as the switch is concerned.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    uuid: String,
    name: String,
    ports: Vec<PortSpec>,
}

/// Carries out the hook.
pub fn libvirt_hook(client: Client, api: &Path, call: &LibvirtHook) -> anyhow::Result<()> {
    match hook(client, api, call) {
        // libvirtd has found a running machine, and would kill it for an error.
        Err(e) if call.operation == "reconnect" => {
            eprintln!("vswitch: {e:#}");
            Ok(())
        }
        result => result,
    }
}

fn hook(client: Client, api: &Path, call: &LibvirtHook) -> anyhow::Result<()> {
    let begin = match call.operation.as_str() {
        "prepare" | "start" | "reconnect" => true,
        "stopped" | "release" => false,
        _ => return Ok(()),
    };
    let mut text = String::new();
    std::io::stdin().take(MAX_BYTES).read_to_string(&mut text).context("the machine's XML cannot be read")?;
    let directory = api.parent().unwrap_or(Path::new("/"));
    let machine = read(&text, directory).with_context(|| format!("machine \"{}\"", call.machine))?;
    let client = client.with_timeout(PATIENCE);
    for _ in 0..ATTEMPTS {
        // A machine without ports of ours needs no switch: not even one that runs.
        if begin && machine.ports.is_empty() {
            return Ok(());
        }
        match carry_out(&client, &machine, begin) {
            Err(e) if e.is::<Conflict>() => {}
            Err(e) if !begin && machine.ports.is_empty() => {
                tracing::debug!("{e:#}");
                return Ok(());
            }
            result => return result.with_context(|| format!("ports of machine \"{}\"", call.machine)),
        }
    }
    bail!("the switch is being changed all the time; try again")
}

fn carry_out(client: &Client, machine: &Machine, begin: bool) -> anyhow::Result<()> {
    let revision = Some(client.get::<Status>("/v1/status")?.revision);
    let there: Vec<PortView> = client.get("/v1/ports")?;
    let mut edit = if begin { arrive(machine, &there)? } else { leave(machine, &there) };
    if edit.ports.is_empty() && edit.remove_ports.is_empty() {
        return Ok(());
    }
    edit.revision = revision;
    edit.origin = Origin::Hook;
    let done: Done = client.post("/v1/edit", &edit)?;
    for port in edit.ports.iter().filter(|p| p.kind == Kind::VhostUser && p.mode != Some(Mode::Client)) {
        // It waits for the machine in any case; without its socket the machine would wait for it.
        if let (Some(path), Some(reason)) = (&port.path, done.waiting.get(&port.name))
            && !path.exists()
        {
            bail!("port {}: {reason}", port.name);
        }
    }
    Ok(())
}

fn arrive(machine: &Machine, there: &[PortView]) -> anyhow::Result<Edit> {
    let mut edit = Edit::default();
    for port in &machine.ports {
        let Some(view) = there.iter().find(|view| view.spec.name == port.name) else {
            edit.ports.push(port.clone());
            continue;
        };
        let spec = &view.spec;
        if view.origin != Some(Origin::Hook) {
            // Somebody else's, and already what the machine needs: it stays theirs.
            if (spec.kind, &spec.path, spec.mode) == (port.kind, &port.path, port.mode)
                && spec.device() == port.device()
            {
                continue;
            }
            bail!(
                "there is another port \"{0}\", which was not made by this hook; rename one of them, or remove it: vswitch port del {0}",
                port.name
            );
        }
        let owner = spec.labels.get(MACHINE);
        if owner.is_some_and(|uuid| *uuid != machine.uuid) {
            let other = spec.labels.get(MACHINE_NAME).map_or("?", String::as_str);
            bail!("port \"{}\" belongs to machine \"{other}\"; give one of them another name", port.name);
        }
        if spec != port {
            edit.ports.push(port.clone());
        }
    }
    Ok(edit)
}

fn leave(machine: &Machine, there: &[PortView]) -> Edit {
    let ours =
        |view: &&PortView| view.origin == Some(Origin::Hook) && view.spec.labels.get(MACHINE) == Some(&machine.uuid);
    Edit { remove_ports: there.iter().filter(ours).map(|view| view.spec.name.clone()).collect(), ..Edit::default() }
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|n| n.is_element() && n.tag_name().name() == name)
}

fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    child(node, name).and_then(|n| n.text()).map(|text| text.trim().to_owned())
}

fn mac_of(node: Node<'_, '_>) -> Option<MacAddr> {
    node.attribute("mac").or_else(|| child(node, "mac")?.attribute("address"))?.parse().ok()
}

/// Reads a machine and what its interfaces want.
fn read(xml: &str, directory: &Path) -> anyhow::Result<Machine> {
    let document = Document::parse(xml).context("the machine's XML cannot be understood")?;
    let root = document.root_element();
    let (Some(name), Some(uuid)) = (text(root, "name"), text(root, "uuid")) else {
        bail!("it has no name and no uuid")
    };
    let wishes: Vec<Node<'_, '_>> = child(root, "metadata")
        .into_iter()
        .flat_map(|metadata| metadata.children().filter(|n| n.has_tag_name((NAMESPACE, "ports"))))
        .flat_map(|ports| ports.children().filter(|n| n.is_element()))
        .collect();
    let interfaces: Vec<Node<'_, '_>> =
        child(root, "devices").into_iter().flat_map(|d| d.children().filter(|n| n.has_tag_name("interface"))).collect();
    for wish in &wishes {
        if wish.tag_name().name() != "port" {
            bail!("metadata: <{}> is not known; write <port mac='…'/>", wish.tag_name().name());
        }
        let mac = mac_of(*wish).context("metadata: <port> needs mac='…', the address of the interface")?;
        if !interfaces.iter().any(|i| mac_of(*i) == Some(mac)) {
            bail!("metadata: <port mac='{mac}'>: the machine has no interface of this address");
        }
    }
    let user = qemu_user(root);
    let mut ports = Vec::new();
    for interface in interfaces {
        let mac = mac_of(interface);
        let wish = wishes.iter().copied().find(|w| mac_of(*w) == mac && mac.is_some());
        if let Some(mut port) = port(interface, wish, directory, user)? {
            port.labels.insert(MACHINE.to_owned(), uuid.clone());
            port.labels.insert(MACHINE_NAME.to_owned(), name.clone());
            port.check()?;
            ports.push(port);
        }
    }
    Ok(Machine { uuid, name, ports })
}

/// The user that QEMU will run as: libvirt writes it into the machine's XML before it calls.
fn qemu_user(root: Node<'_, '_>) -> Option<u32> {
    let label = root.children().find(|n| n.has_tag_name("seclabel") && n.attribute("model") == Some("dac"));
    let label = label.and_then(|n| text(n, "label"));
    let user =
        label.as_deref().and_then(|label| label.split(':').next()).map(|user| user.trim_start_matches('+').to_owned());
    let named = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    match user {
        Some(user) => user.parse().ok().or_else(|| named(&user)),
        None => named(QEMU_USER),
    }
}

/// The port of an interface, if it is to have one.
fn port(
    interface: Node<'_, '_>,
    wish: Option<Node<'_, '_>>,
    directory: &Path,
    user: Option<u32>,
) -> anyhow::Result<Option<PortSpec>> {
    let kind = interface.attribute("type").unwrap_or("");
    let source = child(interface, "source");
    let target = child(interface, "target").and_then(|t| t.attribute("dev"));
    let mut spec = match kind {
        "vhostuser" => {
            let source = source.context("<interface type='vhostuser'> without a source")?;
            let path = PathBuf::from(source.attribute("path").unwrap_or(""));
            if wish.is_none() && path.parent() != Some(directory) {
                return Ok(None);
            }
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            let mut spec = PortSpec::new(&name, Kind::VhostUser);
            // libvirt's mode is the machine's side.
            if source.attribute("mode") == Some("server") {
                spec.mode = Some(Mode::Client);
            } else {
                spec.owner = user;
            }
            spec.path = Some(path);
            spec
        }
        "ethernet" if wish.is_some() => {
            let device =
                target.context("<interface type='ethernet'> needs <target dev='…' managed='no'/> to be a port")?;
            let mut spec = PortSpec::new(device, Kind::Packet);
            spec.device = Some(device.to_owned());
            spec
        }
        _ if wish.is_some() => {
            bail!(
                "metadata: an interface of type '{kind}' cannot be a port; use vhostuser, or ethernet with <target dev='…' managed='no'/>"
            )
        }
        _ => return Ok(None),
    };
    if let Some(queues) = child(interface, "driver").and_then(|d| d.attribute("queues"))
        && spec.kind == Kind::VhostUser
    {
        spec.queues = queues.parse().with_context(|| format!("queues='{queues}' is not a number"))?;
    }
    for attribute in wish.into_iter().flat_map(|wish| wish.attributes()) {
        let value = attribute.value();
        match attribute.name() {
            "mac" => {}
            "name" => spec.name = value.to_owned(),
            "domains" => spec.domains = value.split_whitespace().map(str::parse).collect::<Result<_, _>>()?,
            key => spec.set(key, value)?,
        }
    }
    if spec.network.is_some() {
        // Whether the network needs to know the guest's address, it says; here it is known.
        spec.station = spec.station.or(mac_of(interface));
    }
    Ok(Some(spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: &str = "/run/vswitch";

    fn machine(metadata: &str, interfaces: &str) -> String {
        format!(
            "<domain type='qemu'><name>d1</name><uuid>12570195-368f-4d90-972d-88a505d2e7e8</uuid><metadata>{metadata}</metadata>\
             <devices>{interfaces}</devices>\
             <seclabel type='dynamic' model='dac' relabel='yes'><label>+123:+124</label></seclabel></domain>"
        )
    }

    const SOCKET: &str = "<interface type='vhostuser'><mac address='52:54:00:00:00:01'/>\
        <source type='unix' path='/run/vswitch/vm1.sock' mode='client'/><driver queues='2'/></interface>";
    const ELSEWHERE: &str = "<interface type='vhostuser'><mac address='52:54:00:00:00:02'/>\
        <source type='unix' path='/run/other.sock' mode='server'/></interface>";
    const TAP: &str =
        "<interface type='ethernet'><mac address='52:54:00:00:00:03'/><target dev='tap3' managed='no'/></interface>";
    const BRIDGE: &str =
        "<interface type='bridge'><mac address='52:54:00:00:00:04'/><source bridge='br0'/></interface>";

    fn wishes(inner: &str) -> String {
        format!("<v:ports xmlns:v='{NAMESPACE}'>{inner}</v:ports>")
    }

    fn ports(metadata: &str) -> anyhow::Result<Vec<PortSpec>> {
        Ok(read(&machine(metadata, &[SOCKET, ELSEWHERE, TAP, BRIDGE].concat()), Path::new(DIRECTORY))?.ports)
    }

    #[test]
    fn sockets_in_our_directory_are_ports() {
        let all = ports("").expect("understood");
        let [port] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((port.name.as_str(), port.kind, port.queues, port.owner), ("vm1", Kind::VhostUser, 2, Some(123)));
        assert_eq!(port.labels[MACHINE], "12570195-368f-4d90-972d-88a505d2e7e8");
        assert_eq!(port.domains[0].to_string(), "default");
    }

    #[test]
    fn the_metadata_says_what_a_port_is() {
        let wished = "<v:port mac='52:54:00:00:00:02' name='other' domains='blue:isolated'/>\
            <v:port mac='52:54:00:00:00:03' guard='off' domains='red:tag=7 green:tag=8'/>";
        let all = ports(&wishes(wished)).expect("understood");
        let names: Vec<&str> = all.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["vm1", "other", "tap3"]);
        assert_eq!((all[1].mode, all[1].domains[0].to_string()), (Some(Mode::Client), "blue:isolated".to_owned()));
        assert_eq!((all[2].kind, all[2].guard, all[2].domains.len()), (Kind::Packet, Some(false), 2));
    }

    #[test]
    fn a_port_that_joins_a_network_says_whose_it_is() {
        let wished = "<v:port mac='52:54:00:00:00:01' network='lab' portgroup='slow'/>";
        let port = ports(&wishes(wished)).expect("understood").remove(0);
        assert_eq!((port.network.as_deref(), port.portgroup.as_deref()), (Some("lab"), Some("slow")));
        assert_eq!((port.station, port.domains.len()), (Some(MacAddr([0x52, 0x54, 0, 0, 0, 1])), 0));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (wish, part) in [
            ("<v:port mac='52:54:00:00:00:09'/>", "no interface of this address"),
            ("<v:port mac='52:54:00:00:00:04'/>", "type 'bridge' cannot be a port"),
            ("<v:port mac='52:54:00:00:00:03' colour='red'/>", "unknown key \"colour\""),
            ("<v:port/>", "needs mac="),
            ("<v:thing/>", "<thing> is not known"),
        ] {
            let error = format!("{:#}", ports(&wishes(wish)).expect_err(wish));
            assert!(error.contains(part), "{wish}: {error}");
        }
    }

    fn view(spec: PortSpec, origin: Origin) -> PortView {
        PortView {
            spec,
            effective: None,
            origin: Some(origin),
            state: switch_core::control::wire::PortState::Up,
            reason: None,
            device_mac: None,
            device_kind: None,
            multi_queue: false,
            bond: None,
            fdb_entries: 0,
            bindings: Vec::new(),
            counters: Default::default(),
            drops: Default::default(),
        }
    }

    #[test]
    fn ports_come_once_and_only_ours_go() {
        let machine = read(&machine("", SOCKET), Path::new(DIRECTORY)).expect("understood");
        let port = machine.ports[0].clone();
        assert_eq!(arrive(&machine, &[]).expect("new").ports, machine.ports);
        assert!(arrive(&machine, &[view(port.clone(), Origin::Hook)]).expect("there").ports.is_empty());
        // One that somebody made by hand for the same socket stays theirs.
        let mut by_hand = port.clone();
        by_hand.labels.clear();
        assert!(arrive(&machine, &[view(by_hand.clone(), Origin::Cli)]).expect("theirs").ports.is_empty());
        assert!(leave(&machine, &[view(by_hand.clone(), Origin::Cli)]).remove_ports.is_empty());
        by_hand.path = Some("/run/else.sock".into());
        assert!(
            arrive(&machine, &[view(by_hand, Origin::Cli)])
                .expect_err("another")
                .to_string()
                .contains("not made by this hook")
        );
        let mut of_another = port.clone();
        of_another.labels.insert(MACHINE.into(), "x".into());
        assert!(
            arrive(&machine, &[view(of_another, Origin::Hook)])
                .expect_err("another's")
                .to_string()
                .contains("belongs to machine")
        );
        assert_eq!(leave(&machine, &[view(port, Origin::Hook)]).remove_ports, ["vm1"]);
    }
}
