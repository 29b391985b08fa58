//! VDE: `vde_switch` with a TAP for each host. It knows no offloads.

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use super::{DEVICE, PATIENCE, remove};
use crate::netns::{Namespace, Process, unique, wait_for};

/// A VDE switch; it lives as long as its standard input is open.
pub struct Vde {
    process: Process,
    directory: PathBuf,
}

impl Vde {
    /// Starts it in the first host's namespace and moves the other TAPs from there.
    ///
    /// # Errors
    /// `vde_switch` is missing, or makes no TAP.
    pub fn start(hosts: &[&Namespace]) -> anyhow::Result<Vde> {
        let directory = std::env::temp_dir().join(unique("vde-e2e-"));
        let others: Vec<String> = (1..hosts.len()).map(|i| format!("other{i}")).collect();
        let ports = (hosts.len() + 8).to_string();
        let child = Command::new("ip")
            .args(["netns", "exec", hosts[0].name(), "vde_switch", "-n", &ports, "-t", DEVICE])
            .args(others.iter().flat_map(|tap| ["-t", tap]))
            .arg("-s")
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let vde = Vde { process: Process(child), directory };
        for (tap, host) in others.iter().zip(&hosts[1..]) {
            wait_for("VDE's TAP", PATIENCE, || hosts[0].exec(&["ip", "link", "show", tap]).is_ok())?;
            hosts[0].exec(&["ip", "link", "set", tap, "netns", host.name(), "name", DEVICE])?;
        }
        Ok(vde)
    }
}

impl Drop for Vde {
    fn drop(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        remove(&self.directory);
    }
}
