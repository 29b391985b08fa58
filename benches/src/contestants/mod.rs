//! Whatever forwards between two namespaces, as a guard: made by [`Setup::start`], removed when dropped.
//!
//! Every contestant is set up at its best for the job and no better than the others: all that can carry virtio-net
//! headers do, all devices keep the kernel's queue lengths, and each runs in a process (or in the kernel) of its own.

mod bare;
pub mod ovs;
mod pmd;
mod vde;
mod vswitch;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::{
    bare::{BareLoop, forward},
    ovs::{Ovs, WITH_DPDK},
    pmd::PmdLab,
    vde::Vde,
    vswitch::{Api, Vswitch},
};
use crate::netns::{KernelBridge, Namespace, exec, wait_for};

/// How long a device or a program may take to appear.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The MTU of devices that carry jumbo frames.
pub const JUMBO_MTU: &str = "9000";
/// The device of a host, in its namespace.
pub const DEVICE: &str = "eth0";

/// Where the frames come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wires {
    /// The switch holds the character device of a TAP whose netdev is the host's.
    Taps,
    /// The switch has the near end of a veth pair as a netdev.
    Veths,
    /// The first host is a guest behind a TAP, the second one is outside, behind a veth that stands for the NIC.
    Uplink,
}

/// What is common to all runs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The `vswitch` under test.
    pub binary: PathBuf,
    /// The poll mode of the contestant `vswitch`.
    pub poll: String,
    /// Further arguments of its `run`.
    pub arguments: Vec<String>,
    /// What is added to the description of each of its ports, in their order; the last holds for all others.
    pub ports: Vec<String>,
    /// Frames are up to [`JUMBO_MTU`] long, which vswitch has to be told.
    pub jumbo: bool,
}

/// Whatever forwards, until it is dropped.
pub struct Forwarder {
    pid: Option<u32>,
    bridge: Option<String>,
    api: Option<Api>,
    _guards: Vec<Box<dyn std::any::Any + Send + Sync>>,
}

impl Forwarder {
    pub(crate) fn new(pid: Option<u32>, guard: impl std::any::Any + Send + Sync) -> Forwarder {
        Forwarder { pid, bridge: None, api: None, _guards: vec![Box::new(guard)] }
    }

    /// The switch under test.
    pub(crate) fn ours(switch: Vswitch) -> Forwarder {
        Forwarder { api: Some(switch.api()), ..Forwarder::new(Some(switch.pid()), switch) }
    }

    /// How to ask it something, if it is the switch under test.
    #[must_use]
    pub fn api(&self) -> Option<&Api> {
        self.api.as_ref()
    }

    /// The namespace of the kernel's bridge, if that forwards between hosts.
    #[must_use]
    pub fn bridge(&self) -> Option<&str> {
        self.bridge.as_deref()
    }

    /// The process that forwards; `None`: the kernel does.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }
}

/// How a contestant of ours begins whose netdevs are AF_XDP's; the poll mode may follow.
const WITH_XDP: &str = "vswitch-xdp";

/// The poll mode that a contestant's name ends with; `None`: it sleeps when there is nothing to do, or is not ours.
fn poll_of<'a>(name: &'a str, default: &'a str) -> &'a str {
    let mode = name.strip_prefix(WITH_XDP).or_else(|| name.strip_prefix("vswitch")).and_then(|n| n.strip_prefix('-'));
    mode.unwrap_or(default)
}

/// The kind of its ports on netdevs.
fn packet_kind(name: &str) -> &'static str {
    if name.starts_with(WITH_XDP) { "packet,engine=xdp" } else { "packet" }
}

fn two<'a>(name: &str, hosts: &[&'a Namespace]) -> anyhow::Result<[&'a Namespace; 2]> {
    hosts.try_into().map_err(|_| anyhow::anyhow!("{name} connects two hosts, not {}", hosts.len()))
}

/// A namespace with the near ends of veths to the hosts, `p0` and so on. Both ends are up: without a carrier no port is.
///
/// # Errors
/// As `ip` says.
pub fn near_ends(hosts: &[&Namespace]) -> anyhow::Result<Namespace> {
    let home = Namespace::new("vh")?;
    for (i, host) in hosts.iter().enumerate() {
        let near = format!("p{i}");
        home.exec(&["ip", "link", "add", &near, "type", "veth", "peer", "name", DEVICE, "netns", host.name()])?;
        home.exec(&["ip", "link", "set", &near, "up"])?;
        host.exec(&["ip", "link", "set", DEVICE, "up"])?;
    }
    Ok(home)
}

impl Setup {
    /// Starts a contestant between hosts, whose devices are called [`DEVICE`] afterwards.
    ///
    /// # Errors
    /// A program is missing, or refuses, or connects two hosts only.
    pub fn start(&self, name: &str, wires: Wires, hosts: &[&Namespace]) -> anyhow::Result<Forwarder> {
        let mut guards: Vec<Box<dyn std::any::Any + Send + Sync>> = Vec::new();
        let mut api = None;
        let (mut pid, mut bridge) = (None, None);
        match (name, wires) {
            ("loop" | "loop-busy", _) => {
                let bare = BareLoop::start(two(name, hosts)?, DEVICE, name == "loop-busy")?;
                pid = Some(bare.pid());
                guards.push(Box::new(bare));
            }
            ("bridge" | "bridge-nf", _) => {
                let kernel = KernelBridge::new(hosts, DEVICE)?;
                if name == "bridge-nf" {
                    KernelBridge::call_rules(&kernel.home)?;
                }
                bridge = Some(kernel.home.name().to_owned());
                guards.push(Box::new(kernel));
            }
            ("vde", _) => guards.push(Box::new(Vde::start(hosts)?)),
            ("ovs" | "ovs-tso", _) => {
                let ovs = Ovs::start(hosts, name == "ovs-tso")?;
                pid = Some(ovs.pid());
                guards.push(Box::new(ovs));
            }
            ("veth", _) => {
                let [near, far] = two(name, hosts)?.map(Namespace::name);
                exec(&["ip", "-n", near, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", far])?;
            }
            (_, Wires::Taps) => {
                let spec = |(i, host): (usize, &&Namespace)| format!("h{i}=tap,device={DEVICE},netns={}", host.name());
                let specs: Vec<String> = hosts.iter().enumerate().map(spec).collect();
                let switch = self.vswitch(name, &specs)?;
                (pid, api) = (Some(switch.pid()), Some(switch.api()));
                guards.push(Box::new(switch));
            }
            (_, Wires::Veths) => {
                let home = near_ends(hosts)?;
                let kind = packet_kind(name);
                let spec = |i| format!("h{i}={kind},device=p{i},netns={}", home.name());
                let specs: Vec<String> = (0..hosts.len()).map(spec).collect();
                let switch = self.vswitch(name, &specs)?;
                (pid, api) = (Some(switch.pid()), Some(switch.api()));
                // The switch first: it lets go of the devices before they are gone.
                guards.extend([Box::new(switch) as Box<dyn std::any::Any + Send + Sync>, Box::new(home)]);
            }
            (_, Wires::Uplink) => {
                let home = near_ends(&hosts[1..])?;
                let specs = [
                    format!("h0=tap,device={DEVICE},netns={}", hosts[0].name()),
                    format!("h1={},device=p0,netns={}", packet_kind(name), home.name()),
                ];
                let switch = self.vswitch(name, &specs)?;
                (pid, api) = (Some(switch.pid()), Some(switch.api()));
                guards.extend([Box::new(switch) as Box<dyn std::any::Any + Send + Sync>, Box::new(home)]);
            }
        }
        for host in hosts {
            wait_for("the host's device", PATIENCE, || host.exec(&["ip", "link", "show", DEVICE]).is_ok())?;
        }
        Ok(Forwarder { pid, bridge, api, _guards: guards })
    }

    /// Starts a contestant on two existing netdevs `p0` and `p1` in `home`: the kernel bridge or vswitch.
    ///
    /// # Errors
    /// A program is missing, or refuses.
    pub fn start_on_netdevs(&self, name: &str, home: &Namespace) -> anyhow::Result<Forwarder> {
        if name == "bridge" {
            KernelBridge::quiet_rules(home);
            home.exec(&["ip", "link", "add", "br0", "type", "bridge"])?;
            home.exec(&["ip", "link", "set", "br0", "up"])?;
            for device in ["p0", "p1"] {
                home.exec(&["ip", "link", "set", device, "master", "br0"])?;
            }
            return Ok(Forwarder::new(None, ()));
        }
        let specs = [0, 1].map(|i| format!("h{i}=packet,device=p{i},netns={}", home.name()));
        let switch = self.vswitch(name, &specs)?;
        Ok(Forwarder::ours(switch))
    }

    /// Starts the switch under test with some ports.
    ///
    /// # Errors
    /// It was not built, or does not come up.
    pub fn vswitch(&self, name: &str, ports: &[String]) -> anyhow::Result<Vswitch> {
        let switch = self.vswitch_waiting(name, ports)?;
        switch.wait_up(ports.len())?;
        Ok(switch)
    }

    /// The same, without waiting for its ports.
    ///
    /// # Errors
    /// It was not built.
    pub fn vswitch_waiting(&self, name: &str, ports: &[String]) -> anyhow::Result<Vswitch> {
        let mut arguments = vec!["--poll", poll_of(name, &self.poll)];
        arguments.extend(self.arguments.iter().map(String::as_str));
        let long = format!("default,mtu={JUMBO_MTU}");
        if self.jumbo {
            arguments.extend(["--domain", &long]);
        }
        let more = |i: usize| self.ports.get(i).or(self.ports.last()).map_or("", String::as_str);
        let specs: Vec<String> = ports.iter().enumerate().map(|(i, port)| format!("{port}{}", more(i))).collect();
        specs.iter().for_each(|spec| arguments.extend(["--port", spec]));
        Vswitch::start(&self.binary, &arguments)
    }

    /// Starts the switch under test in a namespace, which is its host, without ports.
    ///
    /// # Errors
    /// It was not built, or does not come up.
    pub fn vswitch_in(&self, name: &str, home: &Namespace) -> anyhow::Result<Vswitch> {
        // The process has the namespace of the thread that starts it.
        let switch = home.run(|| Vswitch::start(&self.binary, &["--poll", poll_of(name, &self.poll)]))??;
        switch.wait_up(0)?;
        Ok(switch)
    }
}

/// Whether a ratio of two contestants says something: ours against another that waits for frames in the same way.
#[must_use]
pub fn comparable(ours: &str, other: &str) -> bool {
    let busy = |name: &str| name.ends_with("-busy");
    ours.starts_with("vswitch")
        && !other.starts_with("vswitch")
        && match other {
            "loop" => !busy(ours),
            "loop-busy" => busy(ours),
            _ => true,
        }
}

/// A directory for sockets and logs, removed on drop.
pub struct Directory(PathBuf);

impl Directory {
    /// Makes one.
    ///
    /// # Errors
    /// There is no room for temporary files.
    pub fn new(prefix: &str) -> anyhow::Result<Directory> {
        private_directory(prefix).map(Directory)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// A directory of a contestant's own, for sockets and databases.
fn private_directory(prefix: &str) -> anyhow::Result<PathBuf> {
    let directory = std::env::temp_dir().join(crate::netns::unique(prefix));
    std::fs::create_dir(&directory)?;
    Ok(directory)
}

fn remove(directory: &Path) {
    let _ = std::fs::remove_dir_all(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_equals_are_compared() {
        assert!(comparable("vswitch", "loop") && comparable("vswitch-busy", "loop-busy"));
        assert!(!comparable("vswitch-busy", "loop") && !comparable("vswitch", "loop-busy"));
        assert!(comparable("vswitch-busy", "bridge") && !comparable("ovs", "loop"));
    }

    #[test]
    fn a_name_says_its_poll_mode_and_engine() {
        assert_eq!(poll_of("vswitch", "interrupt"), "interrupt");
        assert_eq!(poll_of("vswitch-busy", "interrupt"), "busy");
        assert_eq!(poll_of("vswitch-xdp", "interrupt"), "interrupt");
        assert_eq!(poll_of("vswitch-xdp-busy", "interrupt"), "busy");
        assert_eq!((packet_kind("vswitch-xdp"), packet_kind("vswitch-busy")), ("packet,engine=xdp", "packet"));
    }
}
