//! VDE: `vde_switch` with two TAPs. It knows no offloads.

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
    /// Starts it in the first host's namespace and moves the second TAP from there.
    ///
    /// # Errors
    /// `vde_switch` is missing, or makes no TAP.
    pub fn start(hosts: [&Namespace; 2]) -> anyhow::Result<Vde> {
        let directory = std::env::temp_dir().join(unique("vde-e2e-"));
        let child = Command::new("ip")
            .args(["netns", "exec", hosts[0].name(), "vde_switch", "-t", DEVICE, "-t", "other", "-s"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let vde = Vde { process: Process(child), directory };
        wait_for("VDE's TAP", PATIENCE, || hosts[0].exec(&["ip", "link", "show", "other"]).is_ok())?;
        hosts[0].exec(&["ip", "link", "set", "other", "netns", hosts[1].name(), "name", DEVICE])?;
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
