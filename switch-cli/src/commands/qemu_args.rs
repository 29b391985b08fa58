//! `vswitch qemu-args`: the arguments that plug a VM's network device into a port.

use std::{process::Command, str::FromStr};

use anyhow::{Context, bail};

use super::{
    print_json,
    vm::{self, Place, Wire},
};
use crate::{args::QemuArgs, client::Client};

/// The shared memory's id.
const MEMORY: &str = "vswitch-mem";
/// Taken for the version if no QEMU is installed here: the one since which its arguments have not changed.
const NEWEST: Version = Version(9, 2);

/// A QEMU version: arguments were renamed over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u16, u16);

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        match (parts.next().flatten(), parts.next().unwrap_or(Some(0))) {
            (Some(major), Some(minor)) if major >= 5 => Ok(Version(major, minor)),
            _ => Err(format!("\"{text}\" is not a version of QEMU from 5.0 on, for example 7.2")),
        }
    }
}

impl Version {
    /// That of the QEMU which is installed here.
    pub fn installed() -> Version {
        let program = format!("qemu-system-{}", std::env::consts::ARCH);
        let output = Command::new(program).arg("--version").output().ok();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        text.split_once("version ").and_then(|(_, rest)| rest.split([' ', '\n']).next()?.parse().ok()).unwrap_or(NEWEST)
    }
}

/// Arguments, and what they cannot say.
#[derive(Debug, Default)]
pub struct Rendered {
    /// One word each.
    pub words: Vec<String>,
    /// For a human.
    pub notes: Vec<String>,
    /// The VM's memory must be shared with the switch.
    pub shared_memory: bool,
}

/// A comma ends a value of QEMU's options unless it is doubled.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

fn address(prefix: &str, place: &Place) -> String {
    match place {
        Place::Unix(path) => format!("{prefix}.type=unix,{prefix}.path={}", escaped(path)),
        Place::Inet(at) => format!("{prefix}.type=inet,{prefix}.host={},{prefix}.port={}", at.ip(), at.port()),
    }
}

/// Names inside a command line: letters, digits, `-`, `.` and `_`, with a letter in front.
fn id(prefix: &str, port: &str) -> String {
    format!("{prefix}-{}", port.replace('@', "_"))
}

/// The back-end and the device for one wire.
///
/// # Errors
/// This version of QEMU cannot do it.
pub fn render(port: &str, wire: &Wire, mac: &str, qemu: Version) -> anyhow::Result<Rendered> {
    let mut out = Rendered::default();
    let net = id("net", port);
    let mut device = format!("virtio-net-pci,netdev={net},mac={mac}");
    let mut add = |option: &str, value: String| out.words.extend([option.to_owned(), value]);
    let queues = match wire {
        Wire::VhostUser { path, vm_listens, queues } => {
            let chardev = id("chr", port);
            let side = match vm_listens {
                true => "server=on,wait=off",
                false if qemu >= Version(9, 2) => "reconnect-ms=1000",
                false => "reconnect=1",
            };
            add("-chardev", format!("socket,id={chardev},path={},{side}", escaped(path)));
            let several = if *queues > 1 { format!(",queues={queues}") } else { String::new() };
            add("-netdev", format!("vhost-user,id={net},chardev={chardev}{several}"));
            out.shared_memory = true;
            *queues
        }
        Wire::Stream { place, vm_listens } => {
            add("-netdev", stream(&net, place, *vm_listens, qemu)?);
            if !vm_listens && qemu < Version(8, 0) {
                out.notes.push(format!(
                    "QEMU {}.{} does not connect again after the switch was restarted (8.0 does); with mode=client the VM listens, and the switch connects for ever",
                    qemu.0, qemu.1
                ));
            }
            1
        }
        Wire::Datagrams { vm, switch } => {
            let value = match (vm, switch) {
                (Place::Inet(vm), Place::Inet(switch)) if qemu < Version(7, 2) => {
                    old_address(vm)?;
                    format!("socket,id={net},udp={switch},localaddr={vm}")
                }
                _ if qemu < Version(7, 2) => bail!("{}", too_old("datagrams over Unix sockets", qemu)),
                _ => format!("dgram,id={net},{},{}", address("local", vm), address("remote", switch)),
            };
            add("-netdev", value);
            1
        }
        Wire::Tap { device, queues, netns, present } => {
            let several = if *queues > 1 { format!(",queues={queues}") } else { String::new() };
            add("-netdev", format!("tap,id={net},ifname={},script=no,downscript=no{several}", escaped(device)));
            if let Some(netns) = netns {
                out.notes
                    .push(format!("the TAP is in network namespace {netns}: start QEMU there, with {}", enter(netns)));
            }
            if !present {
                out.notes.push(format!("there is no device \"{device}\" yet; make it: ip tuntap add {device} mode tap && ip link set {device} up"));
            }
            *queues
        }
    };
    if queues > 1 {
        device.push_str(&format!(",mq=on,vectors={}", 2 * queues + 2));
    }
    out.words.extend(["-device".to_owned(), device]);
    Ok(out)
}

fn stream(net: &str, place: &Place, vm_listens: bool, qemu: Version) -> anyhow::Result<String> {
    if qemu < Version(7, 2) {
        let Place::Inet(at) = place else { bail!("{}", too_old("frames over Unix sockets", qemu)) };
        old_address(at)?;
        return Ok(format!("socket,id={net},{}={at}", if vm_listens { "listen" } else { "connect" }));
    }
    let side = if vm_listens { "on" } else { "off" };
    let again = match qemu {
        _ if vm_listens => "",
        v if v >= Version(9, 2) => ",reconnect-ms=1000",
        v if v >= Version(8, 0) => ",reconnect=1",
        _ => "",
    };
    Ok(format!("stream,id={net},server={side},{}{again}", address("addr", place)))
}

/// QEMU's older `-netdev socket` takes an address apart at its first colon.
fn old_address(at: &std::net::SocketAddr) -> anyhow::Result<()> {
    if at.is_ipv6() {
        bail!("{at}: QEMU before 7.2 speaks these wires over IPv4 only");
    }
    Ok(())
}

fn too_old(what: &str, qemu: Version) -> String {
    format!(
        "QEMU {}.{} cannot do {what} (7.2 can); use a vhost-user port, or address= instead of path=",
        qemu.0, qemu.1
    )
}

fn enter(netns: &str) -> String {
    match (netns.strip_prefix("pid:"), netns.contains('/')) {
        (Some(pid), _) => format!("nsenter --target {pid} --net"),
        (None, true) => format!("nsenter --net={netns}"),
        (None, false) => format!("ip netns exec {netns}"),
    }
}

/// The memory that a VM shares with the switch, once per VM.
fn memory(size: &str) -> [String; 4] {
    [
        "-object".to_owned(),
        format!("memory-backend-memfd,id={MEMORY},size={size},share=on"),
        "-machine".to_owned(),
        format!("memory-backend={MEMORY}"),
    ]
}

/// A word of a shell's command line.
fn quoted(word: &str) -> String {
    if word.chars().all(|c| c.is_ascii_alphanumeric() || "_-=,./:@+".contains(c)) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A size as QEMU reads it: `512M`, `4G`.
pub fn memory_size(text: &str) -> Result<String, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    if text.len() - digits.len() == 1 && digits.parse::<u32>().is_ok_and(|n| n > 0) {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" is not a size, for example 512M or 4G"))
    }
}

/// Carries out the command.
pub fn qemu_args(client: &Client, wish: &QemuArgs) -> anyhow::Result<()> {
    if wish.mac.is_some() && wish.ports.len() > 1 {
        bail!("--mac is for one port, and {} are named", wish.ports.len());
    }
    let qemu = wish.qemu.unwrap_or_else(Version::installed);
    let mut words = Vec::new();
    let mut shared_memory = false;
    for name in &wish.ports {
        let view = vm::find(client, name)?;
        let mac = vm::checked_mac(wish.mac.or(view.spec.station), name)?;
        let wire = Wire::of(&view)?;
        let rendered =
            render(name, &wire, &mac.to_string(), qemu).with_context(|| format!("no arguments for port \"{name}\""))?;
        vm::say(&rendered.notes);
        shared_memory |= rendered.shared_memory;
        words.extend(rendered.words);
    }
    if shared_memory {
        words.splice(..0, memory(&wish.memory));
    }
    if wish.json {
        return print_json(&words);
    }
    println!("{}", words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" "));
    Ok(())
}

#[cfg(test)]
mod tests;
