//! What the tests share: a running `vswitch` with everything it makes, and a switch on in-memory ports.

pub mod firmware;
pub mod fuzz;
pub mod fuzz_vhost;
pub mod guest;
pub mod libvirt;
pub mod rng;
pub mod spoof;
pub mod vhost;
pub mod wired;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use switch_core::{
    frame::offload::Capabilities,
    id::PortId,
    port::mem::{self, MemPeer},
    stats::{Counter, Totals},
    switch::{Settings, Switch},
    topology::{Attachment, DomainDef, Policy, PortDef, PortShared, StormLimits},
    verdict::Side,
};
use vswitch_benches::netns::{Namespace, unique, wait_for};

/// How long anything may take that is not measured: far longer than it does, for machines that are busy otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Says that a test, or a part of it, cannot be done here: on standard error whatever the test harness captures, and
/// into the file named by `VSWITCH_SKIPPED`, where `tests/run.sh` counts.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or("a test"));
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("VSWITCH_SKIPPED") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// The built binary: beside this test's own executable.
///
/// # Errors
/// It was not built.
pub fn binary() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let directory = test.parent().and_then(Path::parent).context("a test lies in target/PROFILE/deps")?;
    let path = directory.join("vswitch");
    if !path.exists() {
        bail!("{} is missing; build it first: cargo build -p switch-cli", path.display());
    }
    Ok(path)
}

/// A `vswitch run` with a socket and a state directory of its own; stopped and removed on drop.
pub struct Daemon {
    child: Child,
    directory: PathBuf,
    binary: PathBuf,
    netns: Option<String>,
}

impl Daemon {
    /// Starts one with further arguments of `run`.
    ///
    /// # Errors
    /// It does not come up; the error has its log.
    pub fn start(arguments: &[&str]) -> anyhow::Result<Daemon> {
        Daemon::start_in(None, arguments)
    }

    /// Starts one in a namespace, which is its host.
    ///
    /// # Errors
    /// It does not come up; the error has its log.
    pub fn start_in(netns: Option<&str>, arguments: &[&str]) -> anyhow::Result<Daemon> {
        let directory = std::env::temp_dir().join(unique("vswitch-test-"));
        std::fs::create_dir(&directory)?;
        let binary = binary()?;
        let child = spawn(&binary, &directory, netns, arguments)?;
        let daemon = Daemon { child, directory, binary, netns: netns.map(str::to_owned) };
        daemon.wait_up()?;
        Ok(daemon)
    }

    fn wait_up(&self) -> anyhow::Result<()> {
        wait_for("the switch answers", PATIENCE, || self.cli(&["status"]).is_ok())
            .with_context(|| std::fs::read_to_string(self.directory.join("log")).unwrap_or_default())
    }

    /// The API socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("api.sock")
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A file in the daemon's directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Runs a command of the CLI; an error has what it printed.
    ///
    /// # Errors
    /// It exits with another status than 0.
    pub fn cli(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.binary).arg("--api").arg(self.socket()).args(words).output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a show command with `--json`.
    ///
    /// # Errors
    /// It fails or prints no JSON.
    pub fn json(&self, words: &[&str]) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.cli(&[words, &["--json"]].concat())?)?)
    }

    /// What `port show` says of one port.
    #[must_use]
    pub fn port(&self, name: &str) -> serde_json::Value {
        self.json(&["port", "show", name]).map_or(serde_json::Value::Null, |all| all[0].clone())
    }

    /// Waits until a port is `up`, or `waiting`.
    ///
    /// # Errors
    /// It does not become so; the error has what it is.
    pub fn wait_state(&self, port: &str, state: &str) -> anyhow::Result<()> {
        wait_for(&format!("{port} is {state}"), PATIENCE, || self.port(port)["state"] == state)
            .with_context(|| self.port(port).to_string())
    }

    /// `kill -9`, then the same state again.
    ///
    /// # Errors
    /// It does not come up again.
    pub fn crash_and_restart(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.restart()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts again what was killed.
    ///
    /// # Errors
    /// It does not come up again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.binary, &self.directory, self.netns.as_deref(), &[])?;
        self.wait_up()
    }

    /// SIGTERM; the exit status.
    ///
    /// # Errors
    /// It was not to be waited for.
    pub fn stop(&mut self) -> anyhow::Result<Option<i32>> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        Ok(self.child.wait()?.code())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.stop();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn spawn(binary: &Path, directory: &Path, netns: Option<&str>, arguments: &[&str]) -> anyhow::Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.join("log"))?;
    let mut command = Command::new(binary);
    command
        .arg("--api")
        .arg(directory.join("api.sock"))
        .arg("run")
        .arg("--state")
        .arg(directory.join("state"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    // The child has the namespace of the thread that starts it.
    Ok(switch_core::netns::run_in(netns, || command.spawn())??)
}

/// One in-memory port of a [`Bench`].
pub struct MemPort {
    /// Its id.
    pub id: PortId,
    /// The far end.
    pub peer: MemPeer,
    /// Counters.
    pub shared: Arc<PortShared>,
}

/// Whether an address answers in the end. A machine that is busy with something else may keep the first answers waiting; that an address does
/// *not* answer is for others to ask.
#[must_use]
pub fn reaches(from: &Namespace, address: &str) -> bool {
    wait_for("an answer", PATIENCE, || from.exec(&["ping", "-n", "-q", "-c", "1", "-W", "1", address]).is_ok()).is_ok()
}

/// Whether so many echo requests are all answered. Each has its time: `ping` with several of them gives the last one none.
#[must_use]
pub fn answers_all(from: &Namespace, address: &str, count: u32) -> bool {
    let limit = PATIENCE.as_secs().to_string();
    (0..count).all(|_| from.exec(&["ping", "-n", "-q", "-c", "1", "-W", &limit, address]).is_ok())
}

/// A real switch, with real workers, on in-memory ports.
pub struct Bench {
    /// The switch.
    pub switch: Switch,
    /// Its ports, in the order of [`Bench::new`].
    pub ports: Vec<MemPort>,
}

/// How a port of a [`Bench`] is set up.
pub struct Setup {
    /// Memberships.
    pub attachments: Vec<Attachment>,
    /// What the port may be given unfinished.
    pub capabilities: Capabilities,
    /// See [`PortDef`].
    pub hairpin: bool,
    /// See [`PortDef`].
    pub policy: Policy,
}

impl Bench {
    /// Starts a switch with these ports and domains.
    ///
    /// # Errors
    /// Descriptors cannot be had, or the description contradicts itself.
    pub fn new(workers: usize, setups: Vec<Setup>, domains: &[DomainDef]) -> anyhow::Result<Bench> {
        let mut switch = Switch::start(&Settings { workers, ..Settings::default() })?;
        let mut ports = Vec::new();
        let mut defs = Vec::new();
        let mut receivers = Vec::new();
        for (index, setup) in setups.into_iter().enumerate() {
            let (queue, peer) = mem::pair(setup.capabilities)?;
            let id = PortId(index as u16);
            let shared = Arc::new(PortShared::new(vec![queue.tx], workers));
            defs.push(PortDef {
                id,
                attachments: setup.attachments,
                hairpin: setup.hairpin,
                up: true,
                carrier: true,
                learning: true,
                storm: StormLimits::default(),
                policy: setup.policy,
                shared: Arc::clone(&shared),
            });
            receivers.push((id, queue.rx));
            ports.push(MemPort { id, peer, shared });
        }
        switch.publish(defs, domains)?;
        for (id, rx) in receivers {
            switch.grant(id, vec![rx])?;
        }
        Ok(Bench { switch, ports })
    }

    /// A port's counters.
    #[must_use]
    pub fn totals(&self, port: usize) -> Totals {
        self.ports[port].shared.counters.total()
    }

    /// Waits until so many frames have been received by the switch and judged.
    ///
    /// # Errors
    /// They were not.
    pub fn settle(&self, frames: u64) -> anyhow::Result<()> {
        wait_for("all frames are judged", PATIENCE, || {
            let all: Vec<Totals> = (0..self.ports.len()).map(|p| self.totals(p)).collect();
            let sum = |f: &dyn Fn(&Totals) -> u64| all.iter().map(f).sum::<u64>();
            sum(&|t| t.get(Counter::RxFrames)) == frames
                && sum(&|t| t.get(Counter::RxDecided) + t.dropped_on(Side::Ingress)) == frames
                && sum(&|t| t.get(Counter::CopiesDecided))
                    == sum(&|t| t.get(Counter::TxFrames) + t.dropped_on(Side::Egress))
        })
    }
}

/// Sends so many bytes by TCP from one namespace to an address of another; they must arrive as they were sent.
///
/// # Panics
/// They do not, or there is no connection.
pub fn transfer(from: &Namespace, to: &Namespace, address: &str, bytes: usize) {
    let listener = to.run(|| TcpListener::bind((address, 0))).expect("namespace").expect("bind");
    let bound = listener.local_addr().expect("bound");
    let receiver = std::thread::spawn(move || {
        let mut all = Vec::new();
        listener.accept().expect("connection").0.read_to_end(&mut all).expect("data");
        all
    });
    let mut stream = from.run(|| TcpStream::connect(bound)).expect("namespace").expect("connect");
    let mut rng = rng::Rng::new(1);
    let data: Vec<u8> = (0..bytes).map(|_| rng.next() as u8).collect();
    stream.write_all(&data).expect("send");
    drop(stream);
    assert!(receiver.join().expect("receiver") == data, "the data arrived changed");
}
