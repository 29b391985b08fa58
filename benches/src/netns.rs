//! Network namespaces that go away with their guard.

use std::{
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A name that no other process and no other call uses: at most 15 characters, so that devices can have it too.
#[must_use]
pub fn unique(prefix: &str) -> String {
    format!("{prefix}{:x}-{:x}", std::process::id() & 0xfffff, NEXT.fetch_add(1, Relaxed))
}

/// Runs a program to its end; an error has its output.
///
/// # Errors
/// It cannot be started or fails.
pub fn exec(words: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", words[0]))?;
    if !output.status.success() {
        bail!("{} failed: {}{}", words.join(" "), text(&output.stdout), text(&output.stderr));
    }
    Ok(text(&output.stdout))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A namespace, deleted on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with its loopback up and IPv6 quiet (no duplicate address detection, no router solicitations).
    ///
    /// # Errors
    /// Not permitted, or `ip` is missing.
    pub fn new(prefix: &str) -> anyhow::Result<Namespace> {
        let name = unique(prefix);
        exec(&["ip", "netns", "add", &name])?;
        let namespace = Namespace { name };
        namespace.exec(&["ip", "link", "set", "lo", "up"])?;
        namespace.exec(&[
            "sh",
            "-c",
            "for k in all default; do echo 0 >/proc/sys/net/ipv6/conf/$k/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/$k/router_solicitations; done",
        ])?;
        Ok(namespace)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words).stdin(Stdio::null());
        command
    }

    /// Runs a program inside.
    ///
    /// # Errors
    /// It cannot be started or fails.
    pub fn exec(&self, words: &[&str]) -> anyhow::Result<String> {
        exec(&[&["ip", "netns", "exec", &self.name][..], words].concat())
    }

    /// Runs a program inside, whatever it answers.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn output(&self, words: &[&str]) -> anyhow::Result<Output> {
        self.command(words).output().with_context(|| format!("cannot run {}", words[0]))
    }

    /// Starts a program inside; it is killed when the guard is dropped.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, words: &[&str]) -> anyhow::Result<Process> {
        let child = self.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Process(child.with_context(|| format!("cannot run {}", words[0]))?))
    }

    /// Runs code on a thread inside.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        Ok(switch_core::netns::run_in(Some(&self.name), work)?)
    }

    /// Gives a device an address and sets it up.
    ///
    /// # Errors
    /// There is no such device.
    pub fn configure(&self, device: &str, addresses: &[&str]) -> anyhow::Result<()> {
        self.exec(&["ip", "link", "set", device, "up"])?;
        for address in addresses {
            let mut words = vec!["ip", "addr", "add", address, "dev", device];
            if address.contains(':') {
                words.push("nodad");
            }
            self.exec(&words)?;
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = exec(&["ip", "netns", "del", &self.name]);
    }
}

/// A running program, killed (by its id) and reaped on drop.
#[derive(Debug)]
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// It does not within `timeout`; the error names what was waited for.
pub fn wait_for(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    while !condition() {
        if Instant::now() >= deadline {
            bail!("{what}: not within {timeout:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A kernel bridge in a namespace of its own, with a veth pair to each of the given ones; bridge-nf-call off inside.
#[derive(Debug)]
pub struct KernelBridge {
    /// Where the bridge is.
    pub home: Namespace,
}

impl KernelBridge {
    /// Makes it. In each namespace the device is called `device`.
    ///
    /// # Errors
    /// As `ip` says.
    pub fn new(members: &[&Namespace], device: &str) -> anyhow::Result<KernelBridge> {
        let home = Namespace::new("kb")?;
        home.exec(&["ip", "link", "add", "br0", "type", "bridge"])?;
        home.exec(&["ip", "link", "set", "br0", "up"])?;
        KernelBridge::quiet_rules(&home);
        for (index, member) in members.iter().enumerate() {
            let inner = format!("p{index}");
            home.exec(&["ip", "link", "add", &inner, "type", "veth", "peer", "name", device, "netns", member.name()])?;
            home.exec(&["ip", "link", "set", &inner, "master", "br0", "up"])?;
        }
        Ok(KernelBridge { home })
    }

    /// Spares the frames of bridges in a namespace the IP packet filter, as no other contestant has one.
    pub fn quiet_rules(home: &Namespace) {
        // Absent where br_netfilter is not in the kernel, which is as good as off.
        let _ = home.exec(&["sh", "-c", "for f in /proc/sys/net/bridge/bridge-nf-call-*; do echo 0 >$f; done"]);
    }

    /// Has the IP packet filter see the frames of bridges in a namespace, as many hosts do.
    ///
    /// # Errors
    /// `br_netfilter` is not in the kernel.
    pub fn call_rules(home: &Namespace) -> anyhow::Result<()> {
        home.exec(&["sh", "-c", "for f in /proc/sys/net/bridge/bridge-nf-call-ip*; do echo 1 >$f || exit 1; done"])?;
        Ok(())
    }
}
