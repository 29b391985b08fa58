//! The guard of a netdev that is a port: the host's own stack neither hears nor speaks on it.
//!
//! Without it the host answers ARP for its addresses beside the switch, even for those of other devices. Per device:
//!
//! - an nft table of our own. Its ingress chain drops everything (AF_PACKET sockets see frames before that), its egress
//!   chain drops what does not have the [`MARK`] that our sockets put on frames; a last chain takes the mark off again,
//!   so that it means nothing beyond the device. The table's name has a hash of the state directory and the device's
//!   index, so that switches do not meet in one table and nobody's own tables are touched;
//! - no IPv6 address of the kernel's making (`addr_gen_mode`), and no large-receive offload.
//!
//! What there was before is written to `guards.json` in the state directory *before* it is changed. A [`Guard`] undoes
//! it when it is dropped; after a crash the table stays (the host stays cut off) until the next start undoes what the
//! journal says. A device is known by its index, its namespace's inode and the boot, never by its name alone.
//!
//! Control side only: nft runs for some milliseconds.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{durable, link::Link, netns, sys::ethtool};

/// The mark (`SO_MARK`) of frames that the switch sends.
pub const MARK: u32 = 0x7673_7763;
/// `IN6_ADDR_GEN_MODE_NONE`.
const NO_ADDRESSES: u8 = 1;

/// Why a device cannot be guarded, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// No nft.
    #[error("nft is missing; install nftables, or set guard=off")]
    NoNft,
    /// It failed.
    #[error("nft refuses: {0}; mend that, or set guard=off")]
    Refused(String),
    /// The name means something else to nft.
    #[error("\"{0}\" is no name that nft can be told; rename the device, or set guard=off")]
    Name(String),
    /// The journal cannot be written, or the namespace entered.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One device's state before it was guarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The boot (`/proc/sys/kernel/random/boot_id`) and the namespace (its inode) in which `index` is the device.
    boot: String,
    namespace: u64,
    index: u32,
    /// How to get into the namespace; `None`: the switch's own.
    netns: Option<String>,
    device: String,
    table: String,
    /// `None`: no IPv6 on the device, or left alone.
    addr_gen_mode: Option<u8>,
    lro: bool,
    /// Open ports of this run on the device.
    #[serde(skip)]
    holders: u32,
}

/// All guards of one switch, and their journal.
#[derive(Debug)]
pub struct Guards {
    /// `None`: nothing outlives the process, so nothing can be undone by another.
    file: Option<PathBuf>,
    prefix: String,
    boot: String,
    records: Mutex<Vec<Record>>,
}

/// Holds the host off one device; dropped, everything is as it was before.
#[derive(Debug)]
pub struct Guard {
    guards: Arc<Guards>,
    /// Keeps the way into the namespace open, whatever becomes of its name.
    namespace: Option<File>,
    inode: u64,
    index: u32,
}

impl Guards {
    /// The guards of the switch with this state directory, after what an earlier run of it left has been undone.
    /// `None`: a switch that keeps nothing.
    ///
    /// # Errors
    /// The journal cannot be read. What cannot be undone is only logged and stays journalled.
    pub fn undo_leftovers(state: Option<&Path>) -> io::Result<Arc<Guards>> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let file = state.map(|directory| directory.join("guards.json"));
        let mut records: Vec<Record> = match file.as_ref().map(fs::read) {
            Some(Ok(bytes)) => serde_json::from_slice(&bytes)
                .map_err(|e| io::Error::other(format!("guards.json is damaged ({e}); move it away")))?,
            Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => Vec::new(),
        };
        let found = records.len();
        records.retain(|record| {
            let undone = match Place::find(record.netns.as_deref()) {
                Ok(place) if record.boot == boot && place.inode == record.namespace => {
                    undo(place.path().as_deref(), record)
                }
                // The device went with its boot or its namespace.
                _ => Ok(()),
            };
            if let Err(e) = &undone {
                tracing::warn!(device = record.device, "the guard that an earlier run left cannot be undone: {e}");
            }
            undone.is_err()
        });
        let prefix = match state {
            Some(directory) => {
                let whole = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
                format!("vswitch-{:08x}", hash(whole.as_os_str().as_encoded_bytes()))
            }
            None => format!("vswitch-p{}", std::process::id()),
        };
        let guards = Guards { file, prefix, boot, records: Mutex::default() };
        if records.len() != found {
            guards.save(&records)?;
        }
        *guards.records.lock() = records;
        Ok(Arc::new(guards))
    }

    /// Guards a device.
    ///
    /// # Errors
    /// See [`GuardError`]; everything is as before.
    pub fn guard(self: &Arc<Guards>, netns: Option<&str>, link: &Link) -> Result<Guard, GuardError> {
        if link.name.contains(['"', '*', '\\']) {
            return Err(GuardError::Name(link.name.clone()));
        }
        let place = Place::find(netns)?;
        let (path, inode, index) = (place.path(), place.inode, link.index);
        let mut records = self.records.lock();
        let known = records.iter().position(|r| r.namespace == inode && r.index == index);
        if known.is_none_or(|at| records[at].holders == 0) {
            let mut record = netns::run_in(path.as_deref(), || self.examine(inode, netns, link))?;
            let leftover = known.map(|at| records.swap_remove(at));
            if let Some(old) = &leftover {
                // What could not be undone is still to be undone, to what was before the first time.
                record = Record { addr_gen_mode: old.addr_gen_mode, lro: old.lro, ..record };
            }
            records.push(record.clone());
            let made = self
                .save(&records)
                .map_err(GuardError::Io)
                .and_then(|()| netns::run_in(path.as_deref(), || impose(&record)).map_err(GuardError::Io).flatten());
            if let Err(e) = made {
                // Nothing was changed, so only what was to be undone before still is.
                records.pop();
                records.extend(leftover);
                self.save(&records)?;
                return Err(e);
            }
        }
        if let Some(record) = records.iter_mut().find(|r| r.namespace == inode && r.index == index) {
            record.holders += 1;
        }
        Ok(Guard { guards: Arc::clone(self), namespace: place.file, inode, index })
    }

    /// A device of the calling thread's namespace as it is now.
    fn examine(&self, namespace: u64, netns: Option<&str>, link: &Link) -> Record {
        let mode = fs::read_to_string(addr_gen_mode(&link.name)).ok().and_then(|text| text.trim().parse().ok());
        Record {
            boot: self.boot.clone(),
            namespace,
            index: link.index,
            netns: netns.map(str::to_owned),
            device: link.name.clone(),
            table: format!("{}-{}", self.prefix, link.index),
            addr_gen_mode: mode,
            lro: ethtool::lro(&link.name).unwrap_or(false),
            holders: 0,
        }
    }

    /// Undoes one record and forgets it; one that cannot be undone is kept for the next start.
    fn lift(&self, records: &mut Vec<Record>, path: Option<&str>, inode: u64, index: u32) {
        let Some(at) = records.iter().position(|r| r.namespace == inode && r.index == index) else { return };
        match undo(path, &records[at]) {
            Ok(()) => drop(records.swap_remove(at)),
            Err(e) => tracing::warn!(device = records[at].device, "the guard cannot be undone now: {e}"),
        }
        if let Err(e) = self.save(records) {
            tracing::warn!("{e}");
        }
    }

    fn save(&self, records: &[Record]) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        durable::replace(file, &serde_json::to_vec_pretty(records)?)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let path = self.namespace.as_ref().map(path_of_open);
        let mut records = self.guards.records.lock();
        let Some(record) = records.iter_mut().find(|r| r.namespace == self.inode && r.index == self.index) else {
            return;
        };
        record.holders = record.holders.saturating_sub(1);
        if record.holders == 0 {
            self.guards.lift(&mut records, path.as_deref(), self.inode, self.index);
        }
    }
}

/// A namespace, held open.
struct Place {
    file: Option<File>,
    inode: u64,
}

impl Place {
    fn find(netns: Option<&str>) -> io::Result<Place> {
        let file = netns.map(|name| File::open(netns::path_of(name))).transpose()?;
        let inode = match &file {
            Some(file) => file.metadata()?.ino(),
            None => fs::metadata("/proc/thread-self/ns/net")?.ino(),
        };
        Ok(Place { file, inode })
    }

    fn path(&self) -> Option<String> {
        self.file.as_ref().map(path_of_open)
    }
}

fn path_of_open(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn addr_gen_mode(device: &str) -> PathBuf {
    ["/proc/sys/net/ipv6/conf", device, "addr_gen_mode"].iter().collect()
}

/// The name of a device of the calling thread's namespace.
fn name_of(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

/// FNV-1a: the same in every build, which a table's name must be.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Guards a device of the calling thread's namespace. An error has changed nothing.
fn impose(record: &Record) -> Result<(), GuardError> {
    let device = &record.device;
    nft("nft", &table(record))?;
    // The table holds the host off by itself: what follows keeps its state clean, and is not worth the port.
    if record.addr_gen_mode.is_some_and(|mode| mode != NO_ADDRESSES)
        && let Err(e) = fs::write(addr_gen_mode(device), NO_ADDRESSES.to_string())
    {
        tracing::warn!(device, "cannot turn off IPv6 address generation: {e}");
    }
    if record.lro
        && let Err(e) = ethtool::set_lro(device, false)
    {
        tracing::warn!(
            device,
            "cannot turn off large-receive offload: {e}; turn it off with: ethtool -K {device} lro off"
        );
    }
    Ok(())
}

/// The table, made anew in one transaction whether or not it is there.
fn table(record: &Record) -> String {
    let Record { table, device, .. } = record;
    format!(
        "{remove}table netdev {table} {{
            comment \"{device} is a port of vswitch\"
            chain in {{ type filter hook ingress device \"{device}\" priority -500; policy drop; }}
            chain out {{
                type filter hook egress device \"{device}\" priority 0; policy drop;
                meta mark {MARK:#x} accept
            }}
            chain unmark {{
                type filter hook egress device \"{device}\" priority 500; policy accept;
                meta mark {MARK:#x} meta mark set 0
            }}
        }}\n",
        remove = removal(table),
    )
}

fn removal(table: &str) -> String {
    format!("add table netdev {table}\ndelete table netdev {table}\n")
}

/// Undoes what a record says in the namespace at `path`: the table first, and if that fails nothing.
fn undo(path: Option<&str>, record: &Record) -> Result<(), GuardError> {
    netns::run_in(path, || nft("nft", &removal(&record.table))).map_err(GuardError::Io).flatten()?;
    netns::run_in(path, || {
        // It may have another name by now, or be gone.
        let Some(device) = name_of(record.index) else { return };
        let mode = addr_gen_mode(&device);
        if let Some(before) = record.addr_gen_mode.filter(|before| *before != NO_ADDRESSES)
            // Whoever changed it meanwhile meant it.
            && fs::read_to_string(&mode).is_ok_and(|now| now.trim() == NO_ADDRESSES.to_string())
            && let Err(e) = fs::write(&mode, before.to_string())
        {
            tracing::warn!(device, "cannot restore IPv6 address generation: {e}");
        }
        if record.lro
            && let Err(e) = ethtool::set_lro(&device, true)
        {
            tracing::warn!(
                device,
                "cannot restore large-receive offload: {e}; turn it on with: ethtool -K {device} lro on"
            );
        }
    })?;
    Ok(())
}

/// Has nft carry out a script in the calling thread's namespace, whole or not at all.
fn nft(program: &str, script: &str) -> Result<(), GuardError> {
    let spawned = Command::new(program)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(GuardError::NoNft),
        Err(e) => return Err(GuardError::Io(io::Error::new(e.kind(), format!("cannot run nft: {e}")))),
    };
    // If it goes away without reading, its exit status says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let first = text.lines().find(|line| !line.trim().is_empty()).map_or("it says nothing", str::trim);
    Err(GuardError::Refused(first.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_nft_and_its_refusals_name_the_mend() {
        let missing = nft("nft-that-is-not-there", "").expect_err("not there").to_string();
        assert_eq!(missing, "nft is missing; install nftables, or set guard=off");
        let refused = nft("cat", "").expect_err("cat has no -f").to_string();
        assert!(refused.starts_with("nft refuses: cat: ") && refused.ends_with("or set guard=off"), "{refused}");
    }

    #[test]
    fn names_of_tables_tell_switches_and_devices_apart() {
        let directory = std::env::temp_dir();
        let one = Guards::undo_leftovers(Some(&directory.join("a"))).expect("nothing there");
        let other = Guards::undo_leftovers(Some(&directory.join("b"))).expect("nothing there");
        assert_ne!(one.prefix, other.prefix);
        assert_eq!(hash(b""), 0x811c_9dc5);
        assert_eq!(hash(b"foobar"), 0xbf9c_f968, "the published value");
    }

    #[test]
    fn a_damaged_journal_is_refused_and_one_of_another_boot_is_forgotten() {
        let directory = std::env::temp_dir().join(format!("vswitch-guards-{}", std::process::id()));
        fs::create_dir(&directory).expect("made");
        let file = directory.join("guards.json");
        fs::write(&file, "{").expect("written");
        assert!(Guards::undo_leftovers(Some(&directory)).is_err());
        let record = Record {
            boot: "another".into(),
            namespace: 1,
            index: 1,
            netns: None,
            device: "lo".into(),
            table: "vswitch-0-1".into(),
            addr_gen_mode: Some(0),
            lro: true,
            holders: 0,
        };
        fs::write(&file, serde_json::to_vec(&[record]).expect("text")).expect("written");
        let guards = Guards::undo_leftovers(Some(&directory)).expect("read");
        let left = fs::read_to_string(&file).expect("rewritten");
        fs::remove_dir_all(&directory).expect("removed");
        assert!(guards.records.lock().is_empty());
        assert_eq!(left, "[]");
    }
}
