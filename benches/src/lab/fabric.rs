//! Stations and whatever forwards between them: hosts in namespaces and virtual machines, in any mixture.
//!
//! | station | vswitch | the kernel's bridge | `ovs-dpdk` |
//! |---|---|---|---|
//! | [`Place::Netns`] | a TAP in the namespace | a veth | - |
//! | [`Place::Vm`] | `vhost-user`, our own driver | a TAP whose character device we hold, as QEMU without vhost | `dpdkvhostuserclient` |
//!
//! All is removed on drop, whatever forwards first.

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::net::UnixListener},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use switch_core::{
    frame::offload::VNET_HDR_BYTES,
    mac::MacAddr,
    sys::{raw::Way, tap},
};

use crate::{
    contestants::{Api, DEVICE, Directory, Forwarder, JUMBO_MTU, Ovs, PATIENCE, Setup, Wires},
    dpdk::HugePages,
    ends::{PacketRx, PacketTx, Receive, TapRx, TapTx, Transmit},
    frames,
    frontend::{FrontEnd, Options},
    measure::{SHORT_BYTES, go_on},
    netns::{KernelBridge, Namespace, exec, wait_for},
};

/// Where a station is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a network namespace.
    Netns,
    /// In a virtual machine, of which there is the driver only.
    Vm,
}

/// Where Open vSwitch polls; the generator and the sink are wherever they like.
const PMD_CPU: usize = 1;
/// Hugepages of Open vSwitch.
const OVS_MIB: u64 = 1024;

enum Station {
    Host(Namespace),
    Vm(Mutex<FrontEnd>),
    Held { queue: File, home: Arc<Namespace>, device: String },
}

/// See the module page.
pub struct Fabric {
    forwarder: Forwarder,
    stations: Vec<Station>,
    /// The VLAN in which stations must speak, where their ports are trunks.
    vids: Vec<Option<u16>>,
    _directory: Option<Directory>,
}

/// The address of a station; those of several flows of it follow.
#[must_use]
pub fn mac(station: usize) -> MacAddr {
    MacAddr([2, 0, 0, 1, station as u8, 0])
}

/// A namespace in which devices say nothing by themselves.
pub(crate) fn quiet_namespace() -> anyhow::Result<Namespace> {
    let home = Namespace::new("vl")?;
    home.exec(&["sh", "-c", "for k in all default; do echo 1 >/proc/sys/net/ipv6/conf/$k/disable_ipv6; done"])?;
    Ok(home)
}

impl Fabric {
    /// Starts a contestant between these stations and waits until all have heard each other; `jumbo`: their devices
    /// carry 9000 bytes.
    ///
    /// # Errors
    /// A program is missing or refuses, or frames do not come through.
    pub fn new(setup: &Setup, name: &str, places: &[Place], jumbo: bool) -> anyhow::Result<Fabric> {
        Fabric::with_trunks(setup, name, places, jumbo, vec![None; places.len()])
    }

    /// The same, where some stations' ports are trunks: these must speak in a VLAN.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_trunks(
        setup: &Setup,
        name: &str,
        places: &[Place],
        jumbo: bool,
        vids: Vec<Option<u16>>,
    ) -> anyhow::Result<Fabric> {
        go_on()?;
        let setup = &Setup { jumbo, ..setup.clone() };
        let mut fabric = if !places.contains(&Place::Vm) {
            Fabric::of_hosts(setup, name, places.len())?
        } else {
            match name {
                "bridge" => Fabric::bridge(places, jumbo)?,
                "ovs-dpdk" => Fabric::ovs_dpdk(places)?,
                _ => Fabric::vswitch(setup, name, places)?,
            }
        };
        for host in fabric.stations.iter().filter_map(Station::host) {
            if jumbo {
                host.exec(&["ip", "link", "set", DEVICE, "mtu", JUMBO_MTU])?;
            }
            host.exec(&["ip", "link", "set", DEVICE, "up"])?;
        }
        if jumbo && let Some(home) = fabric.forwarder.bridge() {
            // A bridge takes the least MTU of its ports.
            let words = format!("for d in $(ls /sys/class/net/br0/brif); do ip link set $d mtu {JUMBO_MTU}; done");
            exec(&["ip", "netns", "exec", home, "sh", "-c", &words])?;
        }
        fabric.vids = vids;
        fabric.introduce()?;
        Ok(fabric)
    }

    fn of_hosts(setup: &Setup, name: &str, count: usize) -> anyhow::Result<Fabric> {
        let hosts = (0..count).map(|_| quiet_namespace()).collect::<anyhow::Result<Vec<_>>>()?;
        let forwarder = setup.start(name, Wires::Taps, &hosts.iter().collect::<Vec<_>>())?;
        Ok(Fabric {
            forwarder,
            stations: hosts.into_iter().map(Station::Host).collect(),
            vids: Vec::new(),
            _directory: None,
        })
    }

    fn vswitch(setup: &Setup, name: &str, places: &[Place]) -> anyhow::Result<Fabric> {
        let directory = Directory::new("vswitch-lab-")?;
        let path = |i: usize| directory.path().join(i.to_string());
        let mut hosts = Vec::new();
        let mut specs = Vec::new();
        for (i, place) in places.iter().enumerate() {
            if *place == Place::Netns {
                let host = quiet_namespace()?;
                specs.push(format!("h{i}=tap,device={DEVICE},netns={}", host.name()));
                hosts.push(host);
            } else {
                specs.push(format!("vm{i}=vhost-user,path={}", path(i).display()));
            }
        }
        let switch = setup.vswitch_waiting(name, &specs)?;
        let mut stations = Vec::new();
        let mut hosts = hosts.into_iter();
        for (i, place) in places.iter().enumerate() {
            stations.push(if *place == Place::Netns {
                Station::Host(hosts.next().context("one for each place")?)
            } else {
                wait_for("the switch listens", PATIENCE, || path(i).exists() || go_on().is_err())?;
                Station::Vm(Mutex::new(FrontEnd::connect(&path(i), driver())?))
            });
        }
        switch.wait_up(places.len())?;
        let forwarder = Forwarder::ours(switch);
        Ok(Fabric { forwarder, stations, vids: Vec::new(), _directory: Some(directory) })
    }

    fn bridge(places: &[Place], jumbo: bool) -> anyhow::Result<Fabric> {
        let home = Arc::new(quiet_namespace()?);
        KernelBridge::quiet_rules(&home);
        home.exec(&["ip", "link", "add", "br0", "type", "bridge"])?;
        home.exec(&["ip", "link", "set", "br0", "up"])?;
        let mut stations = Vec::new();
        for (i, place) in places.iter().enumerate() {
            let device = format!("p{i}");
            if *place == Place::Netns {
                let host = quiet_namespace()?;
                let peer = ["type", "veth", "peer", "name", DEVICE, "netns", host.name()];
                home.exec(&[&["ip", "link", "add", &device][..], &peer].concat())?;
                stations.push(Station::Host(host));
            } else {
                let queue = home.run(|| tap::attach_vnet(&device, false))??;
                tap::set_offloads(queue.as_raw_fd(), true)?;
                stations.push(Station::Held { queue, home: Arc::clone(&home), device: device.clone() });
            }
            let mtu = if jumbo { JUMBO_MTU } else { "1500" };
            home.exec(&["ip", "link", "set", &device, "mtu", mtu, "master", "br0", "up"])?;
        }
        Ok(Fabric { forwarder: Forwarder::new(None, home), stations, vids: Vec::new(), _directory: None })
    }

    /// Two VMs on Open vSwitch with DPDK, which connects to sockets of ours.
    fn ovs_dpdk(places: &[Place]) -> anyhow::Result<Fabric> {
        let pages = HugePages::reserve(OVS_MIB)?;
        let directory = Directory::new("vswitch-lab-")?;
        let sockets: [PathBuf; 2] = [0, 1].map(|i: usize| directory.path().join(i.to_string()));
        if places.len() != sockets.len() {
            bail!("ovs-dpdk is set up for two machines, not {}", places.len());
        }
        let listen = |path: &PathBuf| -> anyhow::Result<UnixListener> {
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listeners = sockets.iter().map(listen).collect::<anyhow::Result<Vec<_>>>()?;
        let ovs = Ovs::start_dpdk(&sockets, PMD_CPU)?;
        let mut stations = Vec::new();
        for listener in &listeners {
            let mut stream = None;
            wait_for("Open vSwitch connects", PATIENCE, || {
                stream = listener.accept().ok().map(|(stream, _)| stream);
                stream.is_some() || go_on().is_err()
            })?;
            let stream = stream.context("interrupted")?;
            stream.set_nonblocking(false)?;
            stations.push(Station::Vm(Mutex::new(FrontEnd::over(stream, driver())?)));
        }
        let forwarder = Forwarder::new(Some(ovs.pid()), (ovs, pages));
        Ok(Fabric { forwarder, stations, vids: Vec::new(), _directory: Some(directory) })
    }

    /// The process that forwards; `None`: the kernel does.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.forwarder.pid()
    }

    /// How to ask the switch under test something, if it is that which forwards.
    #[must_use]
    pub fn api(&self) -> Option<&Api> {
        self.forwarder.api()
    }

    /// How many stations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stations.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stations.is_empty()
    }

    /// Where a station sends; `large`: frames that owe their segmentation, too.
    ///
    /// # Errors
    /// Its device is gone.
    pub fn tx(&self, station: usize, large: bool) -> anyhow::Result<Box<dyn Transmit + '_>> {
        Ok(match &self.stations[station] {
            Station::Host(host) => Box::new(PacketTx::open(host, DEVICE, Way { direct: false, headers: large })?),
            Station::Vm(front) => Box::new(VmEnd(front)),
            Station::Held { queue, .. } => Box::new(TapTx::new(queue.try_clone()?)),
        })
    }

    /// Where a station receives.
    ///
    /// # Errors
    /// Its device is gone.
    pub fn rx(&self, station: usize) -> anyhow::Result<Box<dyn Receive + '_>> {
        Ok(match &self.stations[station] {
            Station::Host(host) => Box::new(PacketRx::open(host, DEVICE)?),
            Station::Vm(front) => Box::new(VmEnd(front)),
            Station::Held { queue, home, device } => Box::new(TapRx::new(queue.try_clone()?, home, device)?),
        })
    }

    /// Has every station say its address to all, until the next one has heard it.
    ///
    /// # Errors
    /// It does not, in time.
    pub fn introduce(&self) -> anyhow::Result<()> {
        for from in 0..self.len() {
            let to = (from + 1) % self.len();
            let (mut tx, mut rx) = (self.tx(from, false)?, self.rx(to)?);
            let mut hello = frames::build(MacAddr::BROADCAST, mac(from), SHORT_BYTES, 0);
            if let Some(vid) = self.vids[from] {
                hello.splice(12..12, [[0x81, 0x00], vid.to_be_bytes()].concat());
            }
            let hello = [&[0; VNET_HDR_BYTES][..], &hello].concat();
            let mut failed = None;
            wait_for("stations hear each other", PATIENCE, || {
                let mut turn = || -> anyhow::Result<bool> {
                    go_on()?;
                    tx.send(std::slice::from_ref(&hello))?;
                    let (mut heard, until) = (false, Instant::now() + Duration::from_millis(50));
                    while !heard && Instant::now() < until {
                        rx.receive(Duration::from_millis(10), &mut |frame| heard |= frame[6..12] == mac(from).0)?;
                    }
                    Ok(heard)
                };
                turn().unwrap_or_else(|error| {
                    failed = Some(error);
                    true
                })
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Station {
    fn host(&self) -> Option<&Namespace> {
        if let Station::Host(host) = self { Some(host) } else { None }
    }
}

fn driver() -> Options {
    Options { size: 1024, ..Options::default() }
}

/// A driver, from either side. The lock is taken for a batch, and by nobody else in one-way traffic.
struct VmEnd<'a>(&'a Mutex<FrontEnd>);

impl Transmit for VmEnd<'_> {
    fn send(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send_behind(0, frames)
    }
}

impl Receive for VmEnd<'_> {
    fn receive(&mut self, patience: Duration, look: &mut dyn FnMut(&[u8])) -> anyhow::Result<usize> {
        let mut front = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !front.ready(0)? && !patience.is_zero() {
            front.wait(0, patience)?;
        }
        front.receive_each(0, |_, frame| {
            look(frame);
            Ok(())
        })
    }
}
