//! The switch under test.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use switch_core::control::wire::{StagesView, Status};

use super::{PATIENCE, private_directory, remove};
use crate::netns::wait_for;

/// The CLI of a running switch.
#[derive(Clone, Debug)]
pub struct Api {
    binary: PathBuf,
    socket: PathBuf,
}

impl Api {
    /// Runs a command; an error has what it printed.
    ///
    /// # Errors
    /// It exits with another status than 0.
    pub fn cli(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.binary).arg("--api").arg(&self.socket).args(words).output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What the stages have cost so far, of all workers together; they are zero unless the switch was built to count them.
    ///
    /// # Errors
    /// The switch does not answer.
    pub fn stages(&self) -> anyhow::Result<StagesView> {
        let status: Status = serde_json::from_str(&self.cli(&["status", "--json"])?)?;
        let mut all = StagesView::default();
        for worker in status.stages {
            all.frames += worker.frames;
            worker.cycles.into_iter().for_each(|(name, cycles)| *all.cycles.entry(name).or_default() += cycles);
        }
        Ok(all)
    }
}

/// A `vswitch run` with a socket and a state directory of its own; told to stop, waited for and removed on drop.
pub struct Vswitch {
    child: Child,
    binary: PathBuf,
    arguments: Vec<String>,
    directory: PathBuf,
}

impl Vswitch {
    /// Starts it with further arguments of `run`; it may not be up yet.
    ///
    /// # Errors
    /// The binary is missing.
    pub fn start(binary: &Path, arguments: &[&str]) -> anyhow::Result<Vswitch> {
        let directory = private_directory("vswitch-e2e-")?;
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let child = spawn(binary, &directory, &arguments).inspect_err(|_| remove(&directory))?;
        Ok(Vswitch { child, binary: binary.to_owned(), arguments, directory })
    }

    /// Ends it with a signal and starts it again at once, with the ports that it has in its state directory.
    ///
    /// # Errors
    /// The binary is gone.
    pub fn restart(&mut self, signal: Signal) -> anyhow::Result<()> {
        kill(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), signal)?;
        self.child.wait()?;
        if let Some(ports) = self.arguments.iter().position(|a| a == "--port") {
            self.arguments.truncate(ports);
        }
        self.child = spawn(&self.binary, &self.directory, &self.arguments)?;
        Ok(())
    }

    /// Waits until so many ports are up.
    ///
    /// # Errors
    /// They are not in time.
    pub fn wait_up(&self, ports: usize) -> anyhow::Result<()> {
        wait_for("all ports are up", PATIENCE, || self.ports_up().is_ok_and(|up| up >= ports))
    }

    /// How many ports `vswitch status` shows as up.
    ///
    /// # Errors
    /// The switch does not answer.
    pub fn ports_up(&self) -> anyhow::Result<usize> {
        let status: serde_json::Value = serde_json::from_str(&self.cli(&["status", "--json"])?)?;
        Ok(status["ports_up"].as_u64().context("no number of ports")? as usize)
    }

    /// How to ask it something.
    #[must_use]
    pub fn api(&self) -> Api {
        Api { binary: self.binary.clone(), socket: self.directory.join("api.sock") }
    }

    /// Runs a command of the CLI; an error has what it printed.
    ///
    /// # Errors
    /// It exits with another status than 0.
    pub fn cli(&self, words: &[&str]) -> anyhow::Result<String> {
        self.api().cli(words)
    }

    /// A file in its own directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Vswitch {
    fn drop(&mut self) {
        let _ = kill(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
        remove(&self.directory);
    }
}

fn spawn(binary: &Path, directory: &Path, arguments: &[String]) -> anyhow::Result<Child> {
    let mut command = Command::new(binary);
    command.arg("--api").arg(directory.join("api.sock")).arg("run");
    command.arg("--state").arg(directory.join("state")).args(arguments);
    command.env("VSWITCH_LOG", "warn").stdin(Stdio::null()).process_group(0);
    command.spawn().with_context(|| {
        format!("cannot run {}: build it (cargo build --release -p switch-cli) or use --vswitch", binary.display())
    })
}
