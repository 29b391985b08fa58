//! The ends between which a test moves data: guests, and namespaces with the same busybox.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use vswitch_benches::netns::{Namespace, Process, unique, wait_for};

use crate::PATIENCE;

/// Something with a shell, a network and busybox, which serves a file `data` over HTTP.
pub trait Machine {
    /// Runs a shell line.
    ///
    /// # Errors
    /// It fails; the error has what it printed.
    fn sh(&self, command: &str) -> anyhow::Result<String>;

    /// The path of the served file.
    fn data(&self) -> PathBuf {
        PathBuf::from("/srv/data")
    }

    /// Waits until an address answers: the first packets may be lost to a device that is coming up.
    ///
    /// # Errors
    /// It does not.
    fn reach(&self, address: &str) -> anyhow::Result<()> {
        let ping = format!("busybox ping -c 1 -W 1 {address}");
        wait_for(&format!("{address} answers"), 2 * PATIENCE, || self.sh(&ping).is_ok())
    }

    /// Whether any of three pings is answered.
    ///
    /// # Errors
    /// None are sent.
    fn pings(&self, address: &str) -> anyhow::Result<bool> {
        let output = self.sh(&format!("busybox ping -q -c 3 -i 0.2 -W 1 {address} || true"))?;
        ensure!(output.contains("packets transmitted"), "ping {address}: {output}");
        Ok(!output.contains(" 0 packets received"))
    }
}

/// The checksum of a machine's file.
///
/// # Errors
/// The machine does not answer.
pub fn checksum(machine: &dyn Machine) -> anyhow::Result<String> {
    let line = machine.sh(&format!("busybox md5sum <{}", machine.data().display()))?;
    Ok(line.split_whitespace().next().context("a sum")?.to_owned())
}

/// Fetches the file of `from`, known there by `address`, over TCP and compares what arrives.
///
/// # Errors
/// It does not arrive, or is not what was sent.
pub fn check_transfer(to: &dyn Machine, from: &dyn Machine, address: &str) -> anyhow::Result<()> {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let state = || {
        let ask = "ip neigh; netstat -tn; ip -s link; ip -6 addr";
        format!("at the receiver: {:?}\nat the sender: {:?}", to.sh(ask), from.sh(ask))
    };
    let got = to.sh(&format!("busybox timeout 100 busybox wget -q -O - http://{host}/data | busybox md5sum"))?;
    let wanted = checksum(from)?;
    ensure!(got.starts_with(&wanted), "{wanted} became {got} on the way from {address}: {}", state());
    Ok(())
}

/// A namespace with a server of a file.
pub struct NetnsPeer {
    /// The namespace.
    pub namespace: Namespace,
    directory: PathBuf,
    _server: Process,
}

impl NetnsPeer {
    /// Makes one.
    ///
    /// # Errors
    /// Not permitted, or busybox is missing.
    pub fn new(prefix: &str) -> anyhow::Result<NetnsPeer> {
        let namespace = Namespace::new(prefix)?;
        let directory = std::env::temp_dir().join(unique("vswitch-peer-"));
        std::fs::create_dir(&directory)?;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let data: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(128 << 10)
        .flatten()
        .collect();
        std::fs::write(directory.join("data"), data)?;
        let server = namespace.spawn(&["busybox", "httpd", "-f", "-p", "80", "-h", &directory.to_string_lossy()])?;
        Ok(NetnsPeer { namespace, directory, _server: server })
    }
}

impl Machine for NetnsPeer {
    fn sh(&self, command: &str) -> anyhow::Result<String> {
        self.namespace.exec(&["sh", "-c", command])
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }
}

impl Drop for NetnsPeer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
