//! Guests of QEMU: Debian's cloud kernel with busybox, driven over a virtio console by an agent that runs shell lines.
//!
//! A guest is started by [`Setup::start`] and boots while the caller does other things; [`Guest::ready`] waits for it.
//! Everything it has goes away with its guard, and QEMU dies with the thread that started it, even by SIGKILL.

mod booted;
mod console;
mod image;
mod peer;

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use console::Console;
use serde_json::{Value, json};
use switch_core::mac::MacAddr;
use vswitch_benches::netns::{Process, unique};

pub use self::{
    booted::Booted,
    image::image,
    peer::{Machine, NetnsPeer, check_transfer, checksum},
};

/// How long a guest may take for a command; the host may be busy, and there is no hardware to help.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(120);

/// What every guest's kernel is told.
pub const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=unstable";

/// Tests with guests that run at the same time.
const TESTS: usize = 3;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// The right to run guests now; the next test gets it on drop.
#[derive(Debug)]
pub struct Turn(());

/// Waits until not too many other tests have guests. `None`, and a counted line, where no guest can be booted.
#[must_use]
pub fn turn() -> Option<Turn> {
    image()?;
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut running = ENDED.wait_while(running, |n| *n >= TESTS).unwrap_or_else(PoisonError::into_inner);
    *running += 1;
    Some(Turn(()))
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// The address of a guest's network device, which are counted from 0: `eth0`, `eth1`, …
#[must_use]
pub fn mac(guest: u8, nic: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0x67, guest, nic as u8])
}

/// A guest that is not yet started.
#[derive(Clone, Debug)]
pub struct Setup {
    id: u8,
    memory_mib: u32,
    cpus: u32,
    netns: Option<String>,
    nics: usize,
    arguments: Vec<String>,
}

impl Setup {
    /// A guest with an id of its own among those that meet.
    #[must_use]
    pub fn new(id: u8) -> Setup {
        Setup { id, memory_mib: 128, cpus: 1, netns: None, nics: 0, arguments: Vec::new() }
    }

    /// With so many CPUs.
    #[must_use]
    pub fn cpus(self, cpus: u32) -> Setup {
        Setup { cpus, ..self }
    }

    /// QEMU runs in this network namespace.
    #[must_use]
    pub fn netns(self, name: &str) -> Setup {
        Setup { netns: Some(name.to_owned()), ..self }
    }

    /// Further arguments of QEMU.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Setup {
        self.arguments.extend(arguments.iter().map(|a| (*a).to_owned()));
        self
    }

    /// One more network device, with properties (`,csum=off…`) on what a `-netdev` says without its id.
    #[must_use]
    pub fn nic(mut self, netdev: &str, properties: &str) -> Setup {
        let n = self.nics;
        self.nics += 1;
        let mac = mac(self.id, n);
        // Without vectors, because QEMU 7.2 without KVM cannot wire a vhost-user device's interrupts to MSI-X.
        let device = format!("virtio-net-pci,netdev=n{n},mac={mac},romfile=,vectors=0{properties}");
        self.with(&["-netdev", &format!("{netdev},id=n{n}"), "-device", &device])
    }

    /// One more network device on a vhost-user socket; `server`: the socket is QEMU's.
    #[must_use]
    pub fn vhost_user(self, path: &Path, server: bool, queues: usize, properties: &str) -> Setup {
        let n = self.nics;
        let side = if server { "server=on,wait=off" } else { "reconnect=1" };
        let chardev = format!("socket,id=c{n},path={},{side}", path.display());
        let (pairs, mq) = if queues > 1 { (format!(",queues={queues}"), ",mq=on") } else { (String::new(), "") };
        self.with(&["-chardev", &chardev]).nic(&format!("vhost-user,chardev=c{n}{pairs}"), &format!("{mq}{properties}"))
    }

    /// Starts QEMU. The guest boots meanwhile: see [`Guest::ready`].
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn start(&self) -> anyhow::Result<Guest> {
        let image = image().context("there is an image, as `turn` said")?;
        let directory = std::env::temp_dir().join(unique("vswitch-guest-"));
        std::fs::create_dir(&directory)?;
        let mut command = match &self.netns {
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, "setpriv"]);
                command
            }
            None => Command::new("setpriv"),
        };
        let memory = format!("memory-backend-memfd,id=mem,size={}M,share=on", self.memory_mib);
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-object", &memory])
            .args(["-machine", "q35,memory-backend=mem", "-m", &self.memory_mib.to_string()])
            // With one processor at most, QEMU leaves out the guest's memory barriers, and the switch shares that memory.
            .args(["-smp", &format!("{},maxcpus={}", self.cpus, self.cpus.max(2))])
            .arg("-kernel")
            .arg(image.join("vmlinuz"))
            .arg("-initrd")
            .arg(image.join("initrd"))
            .args(["-append", KERNEL_ARGUMENTS])
            .args(["-serial", &format!("file:{}", directory.join("console").display())])
            // Not a second serial port: their emulation has been seen to lose interrupts, and then a command or an answer.
            .args(["-chardev", "stdio,id=agent,signal=off", "-device", "virtio-serial-pci"])
            .args(["-device", "virtconsole,chardev=agent"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", directory.join("qmp").display())])
            .args(&self.arguments);
        let errors = std::fs::File::create(directory.join("errors"))?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn()?;
        let mut process = Process(child);
        let pipes = process.0.stdin.take().zip(process.0.stdout.take());
        let (input, output) = pipes.context("both are pipes")?;
        Ok(Guest { process, console: Mutex::new(Console::new(input, output)), directory })
    }
}

/// A QEMU with what runs in it; killed, by its id, on drop.
pub struct Guest {
    process: Process,
    console: Mutex<Console>,
    directory: PathBuf,
}

impl Guest {
    fn console(&self) -> MutexGuard<'_, Console> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What QEMU and the guest's kernel have said.
    #[must_use]
    pub fn logs(&self) -> String {
        let read = |name: &str| std::fs::read(self.directory.join(name)).unwrap_or_default();
        // Whether it is busy, and with what, if it does not answer.
        let monitor = |line: &str| self.qmp("human-monitor-command", json!({"command-line": line})).unwrap_or_default();
        let state = ["info status", "info registers", "info pic"].map(monitor);
        let (errors, kernel) = (text(&read("errors")), text(&read("console")));
        format!("QEMU: {errors}\nthe kernel: {kernel}\nthe machine: {state:?}")
    }

    /// Waits for the end of a boot.
    ///
    /// # Errors
    /// It does not come; the error has what QEMU and the kernel said.
    pub fn ready(&self) -> anyhow::Result<()> {
        self.console().ready(GUEST_PATIENCE).with_context(|| self.logs())
    }

    /// Runs a shell line in the guest, whatever it answers.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn output(&self, command: &str) -> anyhow::Result<(i32, String)> {
        self.console().run(command, GUEST_PATIENCE).with_context(|| format!("{command}: {}", self.logs()))
    }

    /// Gives a network device an address and sets it up.
    ///
    /// # Errors
    /// There is no such device.
    pub fn configure(&self, device: &str, addresses: &[&str]) -> anyhow::Result<()> {
        self.sh(&format!("ip link set {device} up"))?;
        for address in addresses {
            self.sh(&format!("ip addr add {address} dev {device}"))?;
        }
        Ok(())
    }

    /// Starts a shell line in the background. [`Guest::finish`] waits for it.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn spawn(&self, name: &str, command: &str) -> anyhow::Result<()> {
        self.sh(&format!("rm -f /tmp/{name}.status; (({command}) >/tmp/{name} 2>&1; echo $? >/tmp/{name}.status) &"))?;
        Ok(())
    }

    /// Waits for the end of what [`Guest::spawn`] started: its status and what it printed.
    ///
    /// # Errors
    /// It does not end.
    pub fn finish(&self, name: &str) -> anyhow::Result<(i32, String)> {
        let turns = GUEST_PATIENCE.as_secs() * 5;
        let wait = format!(
            "i=0; while [ $i -lt {turns} ]; do [ -s /tmp/{name}.status ] && break; usleep 200000; i=$((i+1)); done"
        );
        self.sh(&format!("{wait}; cat /tmp/{name}.status")).with_context(|| {
            format!("{name} goes on: {:?}", self.output(&format!("tail -n 20 /tmp/{name}; ps; ip -s link")))
        })?;
        let status = self.sh(&format!("cat /tmp/{name}.status"))?;
        Ok((status.trim().parse()?, self.sh(&format!("cat /tmp/{name}"))?))
    }

    /// Restarts the guest from within, without a word to anybody, and waits for its end.
    ///
    /// # Errors
    /// It does not boot again.
    pub fn reboot(&self) -> anyhow::Result<()> {
        self.console().send("reboot -f")?;
        self.ready()
    }

    /// Asks QEMU.
    ///
    /// # Errors
    /// It refuses; the error has its words.
    pub fn qmp(&self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let mut stream = UnixStream::connect(self.directory.join("qmp"))?;
        stream.set_read_timeout(Some(GUEST_PATIENCE))?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let mut answer = Value::Null;
        for (execute, arguments) in [("qmp_capabilities", json!({})), (command, arguments)] {
            writeln!(stream, "{}", json!({"execute": execute, "arguments": arguments}))?;
            answer = loop {
                let line: Value = serde_json::from_str(&lines.next().context("QEMU is there")??)?;
                if let Some(error) = line.get("error") {
                    bail!("{command}: {}", error["desc"]);
                }
                // Greeting and events have no such member.
                if let Some(answer) = line.get("return") {
                    break answer.clone();
                }
            };
        }
        Ok(answer)
    }

    /// A path on which another QEMU may be told to listen, and this one to connect.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Goes on with a guest that has migrated here.
    pub fn adopt(&self, source: &Guest) {
        let source = source.console();
        self.console().adopt(&source);
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// It has ended already.
    pub fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.process.0.kill()?)
    }
}

impl Machine for Guest {
    fn sh(&self, command: &str) -> anyhow::Result<String> {
        let (status, output) = self.output(command)?;
        if status != 0 {
            bail!("in the guest, {command}: status {status}: {output}");
        }
        Ok(output)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
