//! `vswitch libvirt-xml`: the element that plugs a libvirt domain's network device into a port.
//!
//! libvirt has an `<interface>` for vhost-user, for TAPs that exist already, and for frames over TCP and UDP with IPv4. Unix
//! sockets and IPv6 it does not know for the latter: there the arguments are QEMU's own, in `<qemu:commandline>`. What goes beside
//! `<devices>` and not into it is printed as a comment, so that the whole can be given to `virsh attach-device`.

use anyhow::{Context, bail};
use switch_core::control::spec::PortSpec;

use super::{
    qemu_args::{self, Version},
    vm::{self, Place, Wire},
};
use crate::{args::LibvirtXml, client::Client};

const NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// A PCI slot that libvirt comes to last: it fills up from the lowest, and has its own devices at the highest.
const SLOT: &str = "0x10";

const SHARED_MEMORY: &str = "\
<!-- The memory of the machine must be shared with the switch: once in <domain>, beside <devices>:
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
-->
";

/// An element, and what it cannot say.
#[derive(Debug, Default)]
struct Rendered {
    xml: String,
    notes: Vec<String>,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

/// `<interface>` of a type with these lines inside.
fn interface(kind: &str, mac: &str, lines: &[String], queues: u16) -> String {
    let mut xml = format!("<interface type='{kind}'>\n  <mac address='{mac}'/>\n");
    for line in lines {
        xml.push_str(&format!("  {line}\n"));
    }
    xml.push_str("  <model type='virtio'/>\n");
    if queues > 1 {
        xml.push_str(&format!("  <driver queues='{queues}'/>\n"));
    }
    xml.push_str("</interface>\n");
    xml
}

/// QEMU's own arguments, where libvirt has no words for the wire.
fn commandline(spec: &PortSpec, wire: &Wire, mac: &str, qemu: Version) -> anyhow::Result<Rendered> {
    let mut rendered = qemu_args::render(&spec.name, wire, mac, qemu)?;
    // libvirt knows nothing of this device, and QEMU would give it the first slot, which libvirt has given to another.
    if let Some(device) = rendered.words.last_mut() {
        device.push_str(&format!(",addr={SLOT}"));
    }
    let mut xml = format!(
        "<!-- In <domain>, beside <devices>: libvirt has no <interface> for this wire. -->\n<qemu:commandline xmlns:qemu='{NAMESPACE}'>\n"
    );
    for word in &rendered.words {
        xml.push_str(&format!("  <qemu:arg value='{}'/>\n", escaped(word)));
    }
    xml.push_str("</qemu:commandline>\n");
    let mut notes = rendered.notes;
    notes.push(format!(
        "the device takes PCI slot {SLOT}, which a second one like it must not: give each its own addr="
    ));
    if matches!(wire, Wire::Stream { place: Place::Unix(_), .. } | Wire::Datagrams { vm: Place::Unix(_), .. }) {
        notes.push("where AppArmor or SELinux confines QEMU, it may not use this socket until a rule says so; see docs/libvirt.md".to_owned());
    }
    Ok(Rendered { xml, notes })
}

fn render(spec: &PortSpec, wire: &Wire, mac: &str, qemu: Version) -> anyhow::Result<Rendered> {
    let mut out = Rendered::default();
    match wire {
        Wire::VhostUser { path, vm_listens, queues } => {
            let at = format!("<source type='unix' path='{}'", escaped(path));
            let lines = if *vm_listens {
                out.notes.push(format!(
                    "QEMU makes {path}: its directory must be writable for the user that libvirt runs QEMU as"
                ));
                vec![format!("{at} mode='server'/>")]
            } else {
                if spec.owner.is_none() && spec.group.is_none() && spec.perm.is_none() {
                    out.notes.push(format!(
                        "QEMU must be allowed to open {path}; on Debian it runs as libvirt-qemu: vswitch port set {} owner=libvirt-qemu",
                        spec.name
                    ));
                }
                vec![
                    format!("{at} mode='client'>"),
                    "  <reconnect enabled='yes' timeout='1'/>".to_owned(),
                    "</source>".to_owned(),
                ]
            };
            out.xml = SHARED_MEMORY.to_owned() + &interface("vhostuser", mac, &lines, *queues);
        }
        Wire::Stream { place: Place::Inet(at), vm_listens } if at.is_ipv4() => {
            if !vm_listens {
                out.notes.push(
                    "this device does not connect again after the switch was restarted; with mode=client the VM listens, and the switch connects for ever"
                        .to_owned(),
                );
            }
            let line = format!("<source address='{}' port='{}'/>", at.ip(), at.port());
            out.xml = interface(if *vm_listens { "server" } else { "client" }, mac, &[line], 1);
        }
        Wire::Datagrams { vm: Place::Inet(vm), switch: Place::Inet(switch) } if vm.is_ipv4() && switch.is_ipv4() => {
            let lines = [
                format!("<source address='{}' port='{}'>", switch.ip(), switch.port()),
                format!("  <local address='{}' port='{}'/>", vm.ip(), vm.port()),
                "</source>".to_owned(),
            ];
            out.xml = interface("udp", mac, &lines, 1);
        }
        Wire::Stream { .. } | Wire::Datagrams { .. } => out = commandline(spec, wire, mac, qemu)?,
        Wire::Tap { device, queues, netns, present } => {
            if let Some(netns) = netns {
                bail!(
                    "TAP \"{device}\" is in network namespace {netns}, where libvirt does not look; make it in libvirt's own, or use a vhost-user port"
                );
            }
            if !present {
                out.notes.push(format!(
                    "there is no device \"{device}\" yet, and libvirt does not make it; do so: ip tuntap add {device} mode tap && ip link set {device} up"
                ));
            }
            let line = format!("<target dev='{}' managed='no'/>", escaped(device));
            out.xml = interface("ethernet", mac, &[line], *queues);
        }
    }
    Ok(out)
}

/// Carries out the command.
pub fn libvirt_xml(client: &Client, wish: &LibvirtXml) -> anyhow::Result<()> {
    let view = vm::find(client, &wish.port)?;
    let mac = vm::checked_mac(wish.mac.or(view.spec.station), &wish.port)?;
    let qemu = wish.qemu.unwrap_or_else(Version::installed);
    let wire = Wire::of(&view)?;
    let rendered = render(&view.spec, &wire, &mac.to_string(), qemu)
        .with_context(|| format!("no XML for port \"{}\"", wish.port))?;
    vm::say(&rendered.notes);
    print!("{}", rendered.xml);
    Ok(())
}

#[cfg(test)]
mod tests;
