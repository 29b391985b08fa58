//! A port as the VM on its other side sees it: what `qemu-args` and `libvirt-xml` both put into words.
//!
//! The port's settings say what the switch does; here every side is turned round: the VM listens where the switch
//! connects, and a VM's own datagram socket is the port's `peer=`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context, bail};
use switch_core::{
    control::{
        spec::{Kind, Mode, PortSpec},
        wire::PortView,
    },
    mac::{MacAddr, mac_of},
};

use crate::client::Client;

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket's absolute path.
    Unix(String),
    /// An address that can be connected to.
    Inet(SocketAddr),
}

/// What a VM's network device is plugged into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    /// A vhost-user socket.
    VhostUser {
        /// The socket.
        path: String,
        /// The VM makes it, and the switch connects.
        vm_listens: bool,
        /// Queue pairs.
        queues: u16,
    },
    /// A connection.
    Stream {
        /// The listening side's socket.
        place: Place,
        /// That is the VM's side.
        vm_listens: bool,
    },
    /// Datagrams.
    Datagrams {
        /// The VM's socket.
        vm: Place,
        /// The switch's socket.
        switch: Place,
    },
    /// The character device of a TAP whose netdev is the port.
    Tap {
        /// Its name.
        device: String,
        /// Queue pairs; more than one if it was made for several.
        queues: u16,
        /// The namespace that it is in, if that is not the switch's.
        netns: Option<String>,
        /// It is there.
        present: bool,
    },
}

/// Asks the switch for a port.
pub fn find(client: &Client, name: &str) -> anyhow::Result<PortView> {
    let ports: Vec<PortView> = client.get("/v1/ports")?;
    ports
        .into_iter()
        .find(|p| p.spec.name == name)
        .with_context(|| format!("there is no port \"{name}\"; see: vswitch port show"))
}

impl Wire {
    /// The VM's side of a port.
    ///
    /// # Errors
    /// No VM can be the other side of this port; the error says what to do instead.
    pub fn of(view: &PortView) -> anyhow::Result<Wire> {
        let spec = &view.spec;
        let name = &spec.name;
        let vm_listens = spec.mode == Some(Mode::Client);
        Ok(match spec.kind {
            Kind::Tap => {
                let device = spec.device();
                bail!(
                    "port \"{name}\" is a tap port: the switch itself holds the character device of TAP \"{device}\", so that no VM can. \
                     Give the VM a port of its own: vswitch port add vm1=vhost-user,path=/run/vm1.sock (or a stream port); \
                     or let QEMU hold a TAP whose netdev is the port: ip tuntap add vm1 mode tap && ip link set vm1 up && vswitch port add vm1=packet"
                );
            }
            Kind::Macvtap => bail!(
                "port \"{name}\" is a macvtap, whose character device the switch itself holds: it is the way to the network of \"{}\". \
                 Give the VM a port of its own in the same domain: vswitch port add vm1=vhost-user,path=/run/vm1.sock",
                spec.device()
            ),
            Kind::Bond => bail!(
                "port \"{name}\" is a bond of {}: the way to their network. \
                 Give the VM a port of its own in the same domain: vswitch port add vm1=vhost-user,path=/run/vm1.sock",
                spec.devices.join(", ")
            ),
            Kind::Tun => bail!(
                "port \"{name}\" is a tun port, behind which are IP packets and no Ethernet device. \
                 Give the VM a port of its own: vswitch port add vm1=vhost-user,path=/run/vm1.sock"
            ),
            Kind::Packet => tap(view)?,
            Kind::VhostUser => {
                Wire::VhostUser { path: absolute(spec, "path", spec.path.as_deref())?, vm_listens, queues: spec.queues }
            }
            Kind::Stream => Wire::Stream { place: own_place(spec)?, vm_listens },
            Kind::Dgram => Wire::Datagrams {
                vm: match spec.address {
                    Some(_) => Place::Inet(spec.peer_address()?),
                    None => Place::Unix(absolute(spec, "peer", spec.peer.as_deref())?),
                },
                switch: own_place(spec)?,
            },
        })
    }
}

fn tap(view: &PortView) -> anyhow::Result<Wire> {
    let spec = &view.spec;
    let device = spec.device();
    let present = view.device_mac.is_some();
    let is_tap = view.device_kind.as_deref() == Some("tun");
    if present && !is_tap {
        let kind = view.device_kind.as_deref().unwrap_or("physical");
        bail!(
            "port \"{}\" is the netdev \"{device}\" ({kind}), which no VM can hold: only a TAP has a side for one. \
             Give the VM a port of its own, for example: vswitch port add vm1=vhost-user,path=/run/vm1.sock",
            spec.name
        );
    }
    let queues = if view.multi_queue { spec.queues.max(2) } else { 1 };
    Ok(Wire::Tap { device: device.to_owned(), queues, netns: spec.netns.clone(), present })
}

fn own_place(spec: &PortSpec) -> anyhow::Result<Place> {
    Ok(match spec.address {
        Some(address) => Place::Inet(reachable(address)),
        None => Place::Unix(absolute(spec, "path", spec.path.as_deref())?),
    })
}

/// All addresses of this host are reached by its loopback address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// A path that means the same to QEMU, whose working directory is another than the switch's.
fn absolute(spec: &PortSpec, key: &str, path: Option<&Path>) -> anyhow::Result<String> {
    let name = &spec.name;
    let path = path.with_context(|| format!("port \"{name}\" has no {key}="))?;
    if !path.is_absolute() {
        bail!(
            "port \"{name}\": {key}={} is relative to the directory in which the switch was started; set an absolute path: vswitch port set {name} {key}=/run/…",
            path.display()
        );
    }
    let text = path.to_str().with_context(|| format!("port \"{name}\": {} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}

/// The address of a VM's network device: as wished (the port's station, if it has one), or [`mac_of`].
///
/// # Errors
/// No device can have this address.
pub fn checked_mac(wished: Option<MacAddr>, port: &str) -> anyhow::Result<MacAddr> {
    let mac = wished.unwrap_or_else(|| mac_of(port));
    if mac.is_multicast() || mac == MacAddr::ZERO {
        bail!("--mac {mac}: a device has a unicast address, for example 02:00:00:00:00:01");
    }
    Ok(mac)
}

/// Says what the printed text cannot, on standard error.
pub fn say(notes: &[String]) {
    for note in notes {
        eprintln!("vswitch: note: {note}");
    }
}

#[cfg(test)]
pub mod tests {
    use switch_core::control::wire::PortState;

    use super::*;

    /// What the switch would say of a port; `device` is its netdev's kind.
    pub fn view(spec: &str, device: Option<&str>) -> PortView {
        PortView {
            spec: spec.parse().expect("a SPEC"),
            effective: None,
            origin: None,
            state: PortState::Up,
            reason: None,
            device_mac: device.map(|_| MacAddr([2, 0, 0, 0, 0, 9])),
            device_kind: device.map(str::to_owned),
            multi_queue: false,
            bond: None,
            fdb_entries: 0,
            bindings: Vec::new(),
            counters: std::collections::BTreeMap::default(),
            drops: std::collections::BTreeMap::default(),
        }
    }

    #[test]
    fn addresses_of_ports_differ_and_stay() {
        let (a, b) = (mac_of("vm1"), mac_of("vm2"));
        assert_ne!(a, b);
        assert_eq!(a, mac_of("vm1"));
        assert!(!a.is_multicast() && a.0[0] == 2);
        assert!(checked_mac(Some(MacAddr([1, 0, 0, 0, 0, 1])), "vm1").is_err());
    }

    #[test]
    fn ports_without_a_side_for_vms_say_what_to_do() {
        for (port, device, part) in [
            ("t0=tap", Some("tun"), "=packet"),
            ("v0=macvtap,device=eth0", Some("macvtap"), "the network of \"eth0\""),
            ("l3=tun,address=10.0.0.1", Some("tun"), "no Ethernet device"),
            ("eth0=packet", Some("veth"), "(veth), which no VM can hold"),
            ("v=vhost-user,path=v.sock", None, "absolute path"),
            ("d=dgram,path=/run/d,peer=e", None, "peer=e is relative"),
        ] {
            let error = Wire::of(&view(port, device)).expect_err(port).to_string();
            assert!(error.contains(part), "{port}: {error}");
        }
    }

    #[test]
    fn the_vm_connects_to_an_address_that_can_be_connected_to() {
        let wire = Wire::of(&view("s=stream,address=0.0.0.0:7001", None)).expect("a wire");
        assert_eq!(wire, Wire::Stream { place: Place::Inet(([127, 0, 0, 1], 7001).into()), vm_listens: false });
    }
}
