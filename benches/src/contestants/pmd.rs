//! What forwards between two vhost-user sockets that drivers listen on, pinned to one processor.

use anyhow::Context;

use super::{Directory, Ovs, PATIENCE, Setup, Vswitch, poll_of};
use crate::{
    dpdk::{HugePages, Launch, Testpmd},
    netns::wait_for,
};

/// Where every contestant forwards; the drivers have processor 0.
const CPU: usize = 1;
/// Hugepages of the drivers, and of the contestant that needs most.
const DRIVERS_MIB: u64 = 512;
const BARE_MIB: u64 = 768;
const OVS_MIB: u64 = 2048;

enum Device {
    Vswitch(Vswitch),
    Ovs(Box<Ovs>),
    Bare(Testpmd),
}

/// Two DPDK drivers and what forwards between them.
pub struct PmdLab {
    /// The drivers. First dropped, so that nobody is left waiting for an answer.
    pub drivers: Testpmd,
    device: Device,
    /// What the switch under test had spent when counting began.
    begun_nanos: f64,
    _directory: Directory,
    _pages: HugePages,
}

impl PmdLab {
    /// Starts both sides and waits until they are connected.
    ///
    /// # Errors
    /// A program or the memory is missing; the error says how to get it.
    pub fn new(setup: &Setup, name: &str) -> anyhow::Result<PmdLab> {
        let needs = match name {
            "ovs-dpdk" => OVS_MIB,
            "bare-vhost" => BARE_MIB,
            _ => 0,
        };
        let pages = HugePages::reserve(DRIVERS_MIB + needs)?;
        let guard = Directory::new("pmd-e2e-")?;
        let directory = guard.path();
        let sockets = [directory.join("0"), directory.join("1")];
        // The device side first: it connects as soon as there is somebody, one driver after the other.
        let mut device = match name {
            "ovs-dpdk" => Device::Ovs(Box::new(Ovs::start_dpdk(&sockets, CPU)?)),
            "bare-vhost" => Device::Bare(Testpmd::start(&Launch::cross_connect(&sockets, CPU), directory, "device")?),
            _ => {
                let specs = [0, 1].map(|i| format!("vm{i}=vhost-user,path={},mode=client", sockets[i].display()));
                let cpu = CPU.to_string();
                let poll = poll_of(name, &setup.poll);
                let words = ["--poll", poll, "--cpus", &cpu, "--port", &specs[0], "--port", &specs[1]];
                Device::Vswitch(Vswitch::start(&setup.binary, &words)?)
            }
        };
        let launch = Launch { huge: true, ..Launch::drivers(&sockets, 1, 1024) };
        let mut drivers = Testpmd::start(&launch, directory, "drivers")?;
        drivers.ready()?;
        match &mut device {
            Device::Vswitch(switch) => switch.wait_up(2)?,
            Device::Ovs(ovs) => wait_for("Open vSwitch has connected", PATIENCE, || ovs.links_up(2))?,
            Device::Bare(bare) => {
                bare.ready()?;
                bare.forward()?;
            }
        }
        Ok(PmdLab { drivers, device, begun_nanos: 0.0, _directory: guard, _pages: pages })
    }

    /// Begins to count anew what the device side spends.
    ///
    /// # Errors
    /// It does not answer.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        match &mut self.device {
            Device::Vswitch(switch) => self.begun_nanos = switch.busy_nanos()?,
            Device::Ovs(ovs) => ovs.clear_cycles()?,
            Device::Bare(bare) => bare.clear_cycles()?,
        }
        Ok(())
    }

    /// Cycles of the time stamp counter (of so many MHz) that the device side spent on each of so many packets since
    /// [`reset`](Self::reset), as it says itself; empty polls are not counted.
    ///
    /// # Errors
    /// It does not answer.
    pub fn cycles_per_packet(&mut self, packets: f64, mhz: f64) -> anyhow::Result<f64> {
        Ok(match &mut self.device {
            Device::Vswitch(switch) => (switch.busy_nanos()? - self.begun_nanos) * mhz / 1000.0 / packets,
            Device::Ovs(ovs) => ovs.cycles_per_packet()?,
            Device::Bare(bare) => {
                let cycles = bare.cycles()?;
                cycles.total / cycles.packets
            }
        })
    }
}

impl Vswitch {
    /// Nanoseconds that its workers have spent moving frames.
    ///
    /// # Errors
    /// The switch does not answer.
    pub fn busy_nanos(&self) -> anyhow::Result<f64> {
        let status: serde_json::Value = serde_json::from_str(&self.cli(&["status", "--json"])?)?;
        let workers = status["busy_ns"].as_array().context("the switch does not say how busy it is")?;
        Ok(workers.iter().filter_map(serde_json::Value::as_f64).sum())
    }
}
