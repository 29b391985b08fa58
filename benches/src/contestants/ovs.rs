//! Open vSwitch with its userspace datapath: one bridge (`datapath_type=netdev`, standalone, so a learning switch), two
//! ports of `type=tap`, which Open vSwitch makes in a namespace of its own and which are moved to the hosts from there.
//!
//! `userspace-tso-enable` is read at the start of ovs-vswitchd only, hence written before. With it the TAPs have checksum
//! and TCP segmentation offload; without it none. Database, sockets and pid files are in a private directory: an Open
//! vSwitch of the host's is neither used nor disturbed.
//!
//! With DPDK it is another binary: the same database, two `dpdkvhostuserclient` ports, one polling thread that is pinned. Or it
//! is the driver (virtio-user) of `vhost-user` ports of others, beside its TAPs, without hugepages.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};

use super::{DEVICE, PATIENCE, private_directory, remove};
use crate::{
    dpdk::{self, RUNTIME},
    netns::{Namespace, unique, wait_for},
    tools::installed,
};

/// The switch with DPDK, whatever `ovs-vswitchd` is set to.
pub const WITH_DPDK: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
/// As many addresses as the other contestants have room for.
const ROOMY: &str = "other_config:mac-table-size=65536";
/// Memory of a switch that drives: its packet buffers.
const DRIVER_MIB: u64 = 256;
/// A switch with DPDK may take long to begin, on a busy machine.
const COMMAND_LIMIT: &str = "--timeout=60";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A database server and a switch, stopped (by their ids) and removed on drop.
pub struct Ovs {
    switch: Option<Child>,
    database: Option<Child>,
    directory: PathBuf,
    /// Where Open vSwitch makes its devices.
    home: Namespace,
    /// What DPDK makes, where it has a file of memory.
    runtime: Option<PathBuf>,
}

impl Ovs {
    /// Starts it with one TAP in each host's namespace.
    ///
    /// # Errors
    /// Open vSwitch is not installed, or does not come up.
    pub fn start(hosts: &[&Namespace], tso: bool) -> anyhow::Result<Ovs> {
        let tso = format!("other_config:userspace-tso-enable={tso}");
        let config = [&tso, "other_config:n-handler-threads=1", "other_config:n-revalidator-threads=1"];
        let ovs = Ovs::bridge("ovs-vswitchd", &config, None)?;
        ovs.add_taps(hosts)?;
        Ok(ovs)
    }

    fn add_taps(&self, hosts: &[&Namespace]) -> anyhow::Result<()> {
        for (i, host) in hosts.iter().enumerate() {
            let tap = format!("t{i}");
            self.vsctl(&["add-port", "br0", &tap, "--", "set", "interface", &tap, "type=tap"])?;
            self.home.exec(&["ip", "link", "set", &tap, "netns", host.name(), "name", DEVICE])?;
        }
        Ok(())
    }

    /// Why [`start_driver`](Self::start_driver) cannot be used, if it cannot.
    #[must_use]
    pub fn driver_missing() -> Option<String> {
        let complete = Path::new(WITH_DPDK).exists() && installed("ovsdb-server") && dpdk::has_driver("net_virtio");
        let why = "Open vSwitch with DPDK or DPDK's virtio driver is missing: \
                   apt-get install openvswitch-switch-dpdk librte-net-virtio23 librte-mempool-ring23";
        (!complete || !dpdk::has_driver("mempool_ring")).then(|| why.to_owned())
    }

    /// Starts it with DPDK and one TAP in each host's namespace, for [`add_driver`](Self::add_driver).
    ///
    /// # Errors
    /// Open vSwitch with DPDK is not installed, or does not come up.
    pub fn start_driver(hosts: &[&Namespace]) -> anyhow::Result<Ovs> {
        let prefix = unique("vswitch-");
        // The memory that a device of virtio-user shares is one file without a name, which DPDK thinks incompatible with `--in-memory`;
        // Open vSwitch adds that unless it reads `--legacy-mem`. A polling thread with nothing to do may sleep.
        let extra = format!(
            "other_config:dpdk-extra=--no-pci --no-telemetry --no-huge --legacy-mem -m {DRIVER_MIB} --single-file-segments \
             --iova-mode=va --file-prefix {prefix}"
        );
        let config = [
            "other_config:dpdk-init=true",
            "other_config:per-port-memory=true",
            "other_config:pmd-maxsleep=500",
            &extra,
        ];
        let ovs = Ovs::bridge(WITH_DPDK, &config, Some(Path::new(RUNTIME).join(prefix)))?;
        ovs.add_taps(hosts)?;
        Ok(ovs)
    }

    /// Adds a port that drives the `vhost-user` port behind this socket; `listens`: the socket is Open vSwitch's.
    ///
    /// # Errors
    /// It refuses.
    pub fn add_driver(&self, port: &str, socket: &Path, listens: bool) -> anyhow::Result<()> {
        let device = format!("options:dpdk-devargs=net_virtio_user_{port},path={}", socket.display());
        let device = if listens { format!("{device},server=1") } else { device };
        self.vsctl(&["add-port", "br0", port, "--", "set", "interface", port, "type=dpdk", &device])
    }

    /// Starts it with two vhost-user ports that connect to these sockets, forwarding on one processor.
    ///
    /// # Errors
    /// Open vSwitch with DPDK is not installed, or does not come up.
    pub fn start_dpdk(sockets: &[PathBuf; 2], cpu: usize) -> anyhow::Result<Ovs> {
        let config = [
            "other_config:dpdk-init=true",
            "other_config:dpdk-socket-mem=512",
            "other_config:dpdk-lcore-mask=0x1",
            "other_config:dpdk-extra=--no-pci --in-memory --no-telemetry",
            &format!("other_config:pmd-cpu-mask={:#x}", 1u64 << cpu),
        ];
        let ovs = Ovs::bridge(WITH_DPDK, &config, None)?;
        for (i, socket) in sockets.iter().enumerate() {
            let (port, path) = (format!("v{i}"), format!("options:vhost-server-path={}", socket.display()));
            let kind = ["--", "set", "interface", &port, "type=dpdkvhostuserclient", &path];
            ovs.vsctl(&[&["add-port", "br0", &port][..], &kind].concat())?;
        }
        Ok(ovs)
    }

    /// A switch with its own database and an empty bridge; `runtime` is what DPDK will make, if it makes something.
    fn bridge(binary: &str, config: &[&str], runtime: Option<PathBuf>) -> anyhow::Result<Ovs> {
        let home = Namespace::new("ov")?;
        let directory = private_directory("ovs-e2e-")?;
        let file = |name: &str| directory.join(name).display().to_string();
        let mut ovs = Ovs { switch: None, database: None, directory: directory.clone(), home, runtime };
        ovs.run(&["ovsdb-tool", "create", &file("conf.db"), SCHEMA])?;
        let server = ["ovsdb-server", &file("conf.db"), &format!("--remote=punix:{}", file("db.sock"))];
        ovs.database = Some(ovs.spawn(&server, "database")?);
        let socket = file("db.sock");
        wait_for("the database of Open vSwitch", PATIENCE, || Path::new(&socket).exists())?;
        ovs.vsctl(&["--no-wait", "init"])?;
        ovs.vsctl(&[&["--no-wait", "set", "Open_vSwitch", "."][..], config].concat())?;
        let switch = ovs.spawn(&[binary, &format!("unix:{socket}")], "switch")?;
        ovs.switch = Some(switch);
        let bridge = ["--", "set", "bridge", "br0", "datapath_type=netdev", "fail_mode=standalone", ROOMY];
        ovs.vsctl(&[&["add-br", "br0"][..], &bridge].concat())?;
        Ok(ovs)
    }

    /// The namespace that Open vSwitch looks for devices in.
    #[must_use]
    pub fn home(&self) -> &Namespace {
        &self.home
    }

    /// Makes a device of its namespace a port.
    ///
    /// # Errors
    /// It refuses.
    pub fn add_port(&self, device: &str) -> anyhow::Result<()> {
        self.vsctl(&["add-port", "br0", device])
    }

    /// Removes a port.
    ///
    /// # Errors
    /// It refuses.
    pub fn remove_port(&self, port: &str) -> anyhow::Result<()> {
        self.vsctl(&["del-port", "br0", port])
    }

    /// Makes several devices of its namespace one port of this name, with these settings.
    ///
    /// # Errors
    /// It refuses.
    pub fn add_bond(&self, name: &str, devices: &[&str], settings: &[&str]) -> anyhow::Result<()> {
        self.vsctl(&[&["add-bond", "br0", name][..], devices, settings].concat())
    }

    /// Changes settings of a port.
    ///
    /// # Errors
    /// It refuses.
    pub fn set_port(&self, name: &str, settings: &[&str]) -> anyhow::Result<()> {
        self.vsctl(&[&["set", "port", name][..], settings].concat())
    }

    /// What it says of LACP on a port.
    ///
    /// # Errors
    /// It does not answer.
    pub fn lacp(&self, port: &str) -> anyhow::Result<String> {
        self.appctl(&["lacp/show", port])
    }

    /// Whether so many of its vhost-user ports are connected.
    #[must_use]
    pub fn links_up(&self, ports: usize) -> bool {
        let database = self.database_option();
        let words = ["ovs-vsctl", COMMAND_LIMIT, &database, "--bare", "--columns=link_state", "find", "interface"];
        self.run(&[&words[..], &["type=dpdkvhostuserclient", "link_state=up"]].concat())
            .is_ok_and(|text| text.matches("up").count() >= ports)
    }

    fn appctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let target = self.directory.join("switch.unixctl").display().to_string();
        self.run(&[&["ovs-appctl", COMMAND_LIMIT, "-t", &target][..], words].concat())
    }

    /// Begins to count the polling threads' cycles anew.
    ///
    /// # Errors
    /// It does not answer.
    pub fn clear_cycles(&self) -> anyhow::Result<()> {
        self.appctl(&["dpif-netdev/pmd-stats-clear"]).map(drop)
    }

    /// Cycles per packet since then, empty polls not counted.
    ///
    /// # Errors
    /// It does not answer, or forwarded nothing.
    pub fn cycles_per_packet(&self) -> anyhow::Result<f64> {
        let text = self.appctl(&["dpif-netdev/pmd-stats-show"])?;
        parse_cycles(&text).with_context(|| format!("Open vSwitch printed no cycles:\n{text}"))
    }

    /// The process that forwards.
    ///
    /// # Panics
    /// Never: it was started.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.switch.as_ref().expect("started by start").id()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.home.name()]).args(words).stdin(Stdio::null()).process_group(0);
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, &self.directory);
        }
        command
    }

    fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.command(words).output().with_context(|| format!("cannot run {}", words[0]))?;
        if !output.status.success() {
            let log = std::fs::read_to_string(self.directory.join("switch.log")).unwrap_or_default();
            bail!("{}: {}{log}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn database_option(&self) -> String {
        format!("--db=unix:{}", self.directory.join("db.sock").display())
    }

    fn vsctl(&self, words: &[&str]) -> anyhow::Result<()> {
        self.run(&[&["ovs-vsctl", COMMAND_LIMIT, &self.database_option()][..], words].concat()).map(drop)
    }

    fn spawn(&self, words: &[&str], name: &str) -> anyhow::Result<Child> {
        let log = std::fs::File::create(self.directory.join(format!("{name}.log")))?;
        let own = |what: &str| format!("--{what}={}", self.directory.join(format!("{name}.{what}")).display());
        let more = [own("unixctl"), own("pidfile"), "-vconsole:err".to_owned(), "-vsyslog:off".to_owned()];
        let mut command = self.command(words);
        command.args(more).stdout(Stdio::null()).stderr(log);
        command.spawn().with_context(|| format!("cannot run {}", words[0]))
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for child in [&mut self.switch, &mut self.database].into_iter().flatten() {
            let _ = kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
            // It flushes its datapath, then ends; one that does not is killed.
            if wait_for("", Duration::from_secs(5), || !matches!(child.try_wait(), Ok(None))).is_err() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        remove(&self.directory);
        if let Some(runtime) = &self.runtime {
            remove(runtime);
        }
    }
}

fn parse_cycles(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|l| l.trim().strip_prefix("avg processing cycles per packet:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_read() {
        let text = "pmd thread numa_id 0 core_id 1:\n  avg cycles per packet: 700.01 (7/1)\n  \
            avg processing cycles per packet: 628.41 (1256/2)\nmain thread:\n";
        assert_eq!(parse_cycles(text), Some(628.41));
    }
}
