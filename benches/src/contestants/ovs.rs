//! Open vSwitch with its userspace datapath: one bridge (`datapath_type=netdev`, standalone, so a learning switch), two
//! ports of `type=tap`, which Open vSwitch makes in a namespace of its own and which are moved to the hosts from there.
//!
//! `userspace-tso-enable` is read at the start of ovs-vswitchd only, hence written before. With it the TAPs have checksum
//! and TCP segmentation offload; without it none. Database, sockets and pid files are in a private directory: an Open
//! vSwitch of the host's is neither used nor disturbed.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};

use super::{DEVICE, PATIENCE, private_directory, remove};
use crate::netns::{Namespace, wait_for};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A database server and a switch, stopped (by their ids) and removed on drop.
pub struct Ovs {
    switch: Option<Child>,
    database: Option<Child>,
    directory: PathBuf,
    /// Where Open vSwitch makes its devices.
    home: Namespace,
}

impl Ovs {
    /// Starts it with one TAP in each host's namespace.
    ///
    /// # Errors
    /// Open vSwitch is not installed, or does not come up.
    pub fn start(hosts: [&Namespace; 2], tso: bool) -> anyhow::Result<Ovs> {
        let home = Namespace::new("ov")?;
        let directory = private_directory("ovs-e2e-")?;
        let file = |name: &str| directory.join(name).display().to_string();
        let mut ovs = Ovs { switch: None, database: None, directory: directory.clone(), home };
        ovs.run(&["ovsdb-tool", "create", &file("conf.db"), SCHEMA])?;
        let server = ["ovsdb-server", &file("conf.db"), &format!("--remote=punix:{}", file("db.sock"))];
        ovs.database = Some(ovs.spawn(&server, "database")?);
        let socket = file("db.sock");
        wait_for("the database of Open vSwitch", PATIENCE, || Path::new(&socket).exists())?;
        ovs.vsctl(&["--no-wait", "init"])?;
        ovs.vsctl(&[
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            &format!("other_config:userspace-tso-enable={tso}"),
            "other_config:n-handler-threads=1",
            "other_config:n-revalidator-threads=1",
        ])?;
        let switch = ovs.spawn(&["ovs-vswitchd", &format!("unix:{socket}")], "switch")?;
        ovs.switch = Some(switch);
        let bridge = ["--", "set", "bridge", "br0", "datapath_type=netdev", "fail_mode=standalone"];
        ovs.vsctl(&[&["add-br", "br0"][..], &bridge].concat())?;
        for (i, host) in hosts.iter().enumerate() {
            let tap = format!("t{i}");
            ovs.vsctl(&["add-port", "br0", &tap, "--", "set", "interface", &tap, "type=tap"])?;
            ovs.home.exec(&["ip", "link", "set", &tap, "netns", host.name(), "name", DEVICE])?;
        }
        Ok(ovs)
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

    fn run(&self, words: &[&str]) -> anyhow::Result<()> {
        let output = self.command(words).output().with_context(|| format!("cannot run {}", words[0]))?;
        if !output.status.success() {
            let log = std::fs::read_to_string(self.directory.join("switch.log")).unwrap_or_default();
            bail!("{}: {}{log}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn vsctl(&self, words: &[&str]) -> anyhow::Result<()> {
        let database = format!("--db=unix:{}", self.directory.join("db.sock").display());
        self.run(&[&["ovs-vsctl", "--timeout=10", &database][..], words].concat())
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
    }
}
