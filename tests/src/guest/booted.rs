//! A guest whose QEMU somebody else started, libvirt: the agent is reached by a socket, and QEMU is not ours to end.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, bail, ensure};
use switch_core::mac::MacAddr;

use super::{GUEST_PATIENCE, Machine, console::Console};

/// What udhcpc has done with an address that it got: name servers and routes too.
const LEASED: &str = "[ \"$1\" = bound ] || exit 0; ip addr flush dev $interface; ip addr add $ip/$mask dev $interface; \
    mkdir -p /etc; rm -f /etc/resolv.conf; for d in $dns; do echo nameserver $d >>/etc/resolv.conf; done; \
    for r in $router; do ip route replace default via $r dev $interface; done";

/// A guest that boots, or has booted, on a console that is a socket.
pub struct Booted {
    console: Mutex<Console>,
    kernel: PathBuf,
}

impl Booted {
    /// Connects to the console, which must be done before the guest runs: what nobody hears is lost. `kernel`: the file that
    /// the serial port writes to.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(socket: &Path, kernel: &Path) -> anyhow::Result<Booted> {
        let stream = UnixStream::connect(socket).with_context(|| format!("the console {}", socket.display()))?;
        let console = Mutex::new(Console::new(stream.try_clone()?, stream));
        Ok(Booted { console, kernel: kernel.to_owned() })
    }

    /// What the guest's kernel has said.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.kernel).unwrap_or_default()).into_owned()
    }

    /// Waits for the end of the boot.
    ///
    /// # Errors
    /// It does not come; the error has what the kernel said.
    pub fn ready(&self) -> anyhow::Result<()> {
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        console.ready(GUEST_PATIENCE).with_context(|| self.log())
    }

    /// The name of the network device that has this address.
    ///
    /// # Errors
    /// None has.
    pub fn device(&self, mac: MacAddr) -> anyhow::Result<String> {
        let found = self.sh(&format!("cd /sys/class/net; grep -lx {mac} */address | cut -d/ -f1"))?;
        let found = found.trim();
        ensure!(!found.is_empty(), "the guest has no device {mac}: {:?}", self.sh("ip link"));
        Ok(found.to_owned())
    }

    /// Has a device ask for an address, under this host name; the address. Name servers and the default route are the lease's.
    ///
    /// # Errors
    /// It gets none.
    pub fn lease(&self, device: &str, name: &str) -> anyhow::Result<String> {
        self.sh(&format!("printf '%s\\n' '#!/bin/sh' '{LEASED}' >/tmp/leased; chmod 755 /tmp/leased"))?;
        self.sh(&format!("ip link set {device} up"))?;
        self.sh(&format!("udhcpc -i {device} -f -n -q -t 20 -T 2 -x hostname:{name} -s /tmp/leased"))?;
        let shown = self.sh(&format!("ip -4 -o addr show dev {device}"))?;
        let address = shown.split_whitespace().nth(3).and_then(|with_prefix| with_prefix.split('/').next());
        Ok(address.with_context(|| format!("an address: {shown}"))?.to_owned())
    }
}

impl Machine for Booted {
    fn sh(&self, command: &str) -> anyhow::Result<String> {
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, output) =
            console.run(command, GUEST_PATIENCE).with_context(|| format!("{command}: {}", self.log()))?;
        if status != 0 {
            bail!("in the guest, {command}: status {status}: {output}");
        }
        Ok(output)
    }
}
