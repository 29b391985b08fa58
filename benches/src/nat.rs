//! A guest behind a NAT network, and the world outside: TCP through the gateway, both ways.
//!
//! The same host twice: once the gateway is a network of the switch, with its rules; once a kernel bridge with the rules that libvirt makes for
//! a network with `<forward mode='nat'/>` (as nft has them), its guest behind a veth. The host forwards and translates in the kernel in both cases;
//! what differs is how frames come from the guest to the gateway.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use anyhow::Context;

use crate::{
    contestants::{DEVICE, PATIENCE, Setup, Vswitch, near_ends},
    measure::{CANCELLED, go_on},
    netns::{KernelBridge, Namespace, wait_for},
    tools::{ping, tcp, tcp_back},
};

const GUEST: &str = "10.78.0.5/24";
const GATEWAY: &str = "10.78.0.1";
const HOST: &str = "192.0.2.1/24";
const OUTSIDE: &str = "192.0.2.2";
/// The host's device towards the outside, as [`near_ends`] names it.
const WAN: &str = "p0";
/// Of the kernel's contestant.
const BRIDGE: &str = "virbr0";

const NETWORK: &str = r#"
name = "lab"
forward = { mode = "nat", dev = "p0" }
dns.enable = false
[[ip]]
address = "10.78.0.1/24"
"#;

/// libvirt's rules for such a network; those for DHCP and DNS among them, which nobody uses here but every packet is held against.
const RULES: &str = r#"
table ip libvirt {
    chain input {
        type filter hook input priority filter
        iifname "virbr0" udp dport { 53, 67 } accept
        iifname "virbr0" tcp dport { 53, 67 } accept
    }
    chain forward {
        type filter hook forward priority filter
        iifname "virbr0" oifname "virbr0" accept
        oifname "virbr0" ip daddr 10.78.0.0/24 ct state established,related accept
        oifname "virbr0" reject
        iifname "virbr0" ip saddr 10.78.0.0/24 accept
        iifname "virbr0" reject
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip saddr 10.78.0.0/24 ip daddr 224.0.0.0/24 return
        ip saddr 10.78.0.0/24 ip daddr 255.255.255.255 return
        meta l4proto tcp ip saddr 10.78.0.0/24 ip daddr != 10.78.0.0/24 masquerade to :1024-65535
        meta l4proto udp ip saddr 10.78.0.0/24 ip daddr != 10.78.0.0/24 masquerade to :1024-65535
        ip saddr 10.78.0.0/24 ip daddr != 10.78.0.0/24 masquerade
    }
}
"#;

/// TCP in Gbit/s from a guest to the outside and segments sent again, and both for the other direction.
///
/// # Errors
/// A program is missing or the outside is not reached.
pub fn through_nat(setup: &Setup, name: &str, time: Duration) -> anyhow::Result<Vec<f64>> {
    let [guest, outside] = [Namespace::new("ve")?, Namespace::new("ve")?];
    let home = near_ends(&[&outside])?;
    home.configure(WAN, &[HOST])?;
    outside.configure(DEVICE, &[&format!("{OUTSIDE}/24")])?;
    let switch = if name == "bridge" {
        kernel(&home, &guest)?;
        None
    } else {
        Some(switch(setup, name, &home, &guest)?)
    };
    guest.configure(DEVICE, &[GUEST])?;
    guest.exec(&["ip", "route", "add", "default", "via", GATEWAY])?;
    wait_for("the outside is reached", PATIENCE, || {
        CANCELLED.load(Relaxed) || ping(&guest, OUTSIDE, 2, false).is_ok_and(|p| p.received > 0)
    })?;
    go_on()?;
    let out = tcp(&guest, &outside, OUTSIDE, time)?;
    go_on()?;
    let back = tcp_back(&guest, &outside, OUTSIDE, time)?;
    go_on()?;
    // Before its host is removed.
    drop(switch);
    Ok([out, back].iter().flat_map(|t| [t.bits_per_second / 1e9, t.retransmits as f64]).collect())
}

fn switch(setup: &Setup, name: &str, home: &Namespace, guest: &Namespace) -> anyhow::Result<Vswitch> {
    let switch = setup.vswitch_in(name, home)?;
    let file = switch.file("network.toml");
    std::fs::write(&file, NETWORK)?;
    switch.cli(&["network", "define", file.to_str().context("a path of text")?])?;
    switch.cli(&["network", "start", "lab"])?;
    switch.cli(&["port", "add", &format!("guest=tap,device={DEVICE},netns={},domain=lab", guest.name())])?;
    // The network's own port, and the guest's.
    switch.wait_up(2)?;
    Ok(switch)
}

fn kernel(home: &Namespace, guest: &Namespace) -> anyhow::Result<()> {
    KernelBridge::quiet_rules(home);
    home.exec(&["ip", "link", "add", BRIDGE, "type", "bridge"])?;
    home.configure(BRIDGE, &[&format!("{GATEWAY}/24")])?;
    home.exec(&["ip", "link", "add", "guest", "type", "veth", "peer", "name", DEVICE, "netns", guest.name()])?;
    home.exec(&["ip", "link", "set", "guest", "master", BRIDGE, "up"])?;
    home.exec(&["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])?;
    home.exec(&["nft", RULES])?;
    Ok(())
}
