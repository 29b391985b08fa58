//! The contestants: what each is, how it is set up, and what it needs of the machine.

use std::path::Path;

use crate::{
    contestants::WITH_DPDK,
    dpdk,
    results::{Contestant, Role, Skipped},
    tools::installed,
};

/// Everybody there is, with the settings in words.
pub const ALL: [(&str, &str); 12] = [
    (
        "vswitch",
        "vswitch run --poll adaptive (the default), one worker, TAPs with offloads or vhost-user, storm control off",
    ),
    ("vswitch-interrupt", "the same with --poll interrupt: a worker sleeps when there is nothing to do"),
    ("vswitch-busy", "the same with --poll busy: a worker never sleeps"),
    ("bridge", "the kernel's bridge on veths (for VMs on TAPs, as QEMU without vhost), bridge-nf-call off"),
    ("bridge-nf", "the same with bridge-nf-call on: the IP packet filter sees the frames of the bridge"),
    ("vde", "vde_switch with a TAP per host; it has no offloads"),
    ("ovs", "Open vSwitch, datapath_type=netdev, type=tap, userspace-tso-enable=false, one handler and revalidator"),
    ("ovs-tso", "the same with userspace-tso-enable=true"),
    (
        "ovs-dpdk",
        "Open vSwitch with DPDK: dpdkvhostuserclient ports, one polling thread on processor 1, 512 MiB of hugepages",
    ),
    ("veth", "a veth pair from host to host: nothing forwards"),
    ("loop", "read one TAP, write the other, sleep when there is nothing: the least that a switch on TAPs can do"),
    ("loop-busy", "the same without sleeping"),
];

/// Whose it is.
#[must_use]
pub fn role(name: &str) -> Role {
    match name {
        _ if name.starts_with("vswitch") => Role::Ours,
        "veth" | "loop" | "loop-busy" => Role::Null,
        _ => Role::Reference,
    }
}

fn settings(name: &str) -> &'static str {
    ALL.iter().find(|(n, _)| *n == name).map_or("", |(_, settings)| settings)
}

/// Why a contestant cannot take part on this machine, if so.
#[must_use]
pub fn missing(name: &str) -> Option<Skipped> {
    let need = |there: bool, reason: &str, install: &str| {
        (!there).then(|| Skipped { reason: reason.to_owned(), install: Some(install.to_owned()) })
    };
    match name {
        "vde" => need(installed("vde_switch"), "vde_switch is not installed", "apt-get install vde2"),
        "ovs" | "ovs-tso" => {
            need(installed("ovs-vswitchd"), "Open vSwitch is not installed", "apt-get install openvswitch-switch")
        }
        "ovs-dpdk" => need(
            Path::new(WITH_DPDK).exists() && installed("ovsdb-server"),
            "Open vSwitch with DPDK is not installed",
            "apt-get install openvswitch-switch-dpdk",
        )
        .or_else(|| {
            (super::load::processors() < 2)
                .then(|| Skipped { reason: "it needs a processor of its own, the second".to_owned(), install: None })
        })
        .or_else(|| {
            let why = dpdk::HugePages::missing()?;
            Some(Skipped { reason: why, install: None })
        }),
        "bridge-nf" => need(
            Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists(),
            "br_netfilter is not in the kernel",
            "modprobe br_netfilter",
        ),
        _ => None,
    }
}

/// A contestant of a results file, skipped where it must be.
#[must_use]
pub fn contestant(name: &str) -> Contestant {
    Contestant {
        name: name.to_owned(),
        role: role(name),
        settings: settings(name).to_owned(),
        skipped: missing(name),
        rounds: Vec::new(),
    }
}
