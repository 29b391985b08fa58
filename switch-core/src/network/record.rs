//! What networks have changed outside the switch, on disk before it is changed, so that it can be undone after a crash.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{dnsmasq::Process, firewall, firewall::Chain, nft, sysctl, sysctl::Setting};
use crate::{durable, netns};

/// A namespace: how to get into it, and which one it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// A name; `None`: the switch's own.
    pub netns: Option<String>,
    /// Its inode.
    pub inode: u64,
}

impl Place {
    /// The namespace of that name now.
    ///
    /// # Errors
    /// There is none.
    pub fn find(netns: Option<&str>) -> io::Result<Place> {
        let path = netns.map_or_else(|| PathBuf::from("/proc/thread-self/ns/net"), netns::path_of);
        let metadata = fs::metadata(&path).map_err(|e| {
            let name = netns.unwrap_or_default();
            io::Error::new(e.kind(), format!("cannot open network namespace \"{name}\": {e}; see: ip netns list"))
        })?;
        Ok(Place { netns: netns.map(str::to_owned), inode: metadata.ino() })
    }

    /// Whether the name still stands for it.
    #[must_use]
    pub fn is_there(&self) -> bool {
        Place::find(self.netns.as_deref()).is_ok_and(|now| now == *self)
    }
}

/// What one network has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The network.
    pub name: String,
    /// Where.
    pub place: Place,
    /// Its table of nftables, if it may have one.
    pub table: String,
    /// Chains of others that have an exception.
    pub exceptions: Vec<Chain>,
    /// Its dnsmasq.
    pub dnsmasq: Option<Process>,
}

/// The contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// The boot in which all this was done.
    pub boot: String,
    /// Networks that are up.
    pub networks: Vec<Record>,
    /// Settings of the kernel, in the order in which they were changed.
    pub settings: Vec<Setting>,
}

/// The file.
#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    /// Its contents.
    pub file: File,
}

impl Book {
    /// Opens the file in a state directory, after what an earlier run left has been undone.
    ///
    /// # Errors
    /// It cannot be read or written. What cannot be undone is only logged.
    pub fn open(state: &Path) -> io::Result<Book> {
        let path = state.join("networks.json");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let left: File = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| io::Error::other(format!("{} is damaged ({e}); move it away", path.display())))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => File::default(),
            Err(e) => return Err(e),
        };
        let mut book = Book { path, file: File { boot: boot.clone(), ..File::default() } };
        // What was done before the machine was started is undone by that.
        if left.boot == boot && left != book.file {
            book.file = left;
            book.undo_everything();
            book.file = File { boot, ..File::default() };
            book.save()?;
        }
        Ok(book)
    }

    /// Replaces what is on disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save(&self) -> io::Result<()> {
        durable::replace(&self.path, &serde_json::to_vec_pretty(&self.file)?)
    }

    fn undo_everything(&mut self) {
        for record in std::mem::take(&mut self.file.networks) {
            undo(&record);
        }
        let mut users: Vec<(Place, String)> = Vec::new();
        for setting in &self.file.settings {
            users.extend(setting.users.iter().map(|user| (setting.place.clone(), user.clone())));
        }
        for (place, user) in users {
            if place.is_there() {
                let released = netns::run_in(place.netns.as_deref(), || sysctl::release(self, &place, &user));
                if let Err(e) = released.flatten() {
                    tracing::warn!(network = user, "kernel settings of an earlier run cannot be restored: {e}");
                }
            }
        }
    }

    /// Undoes all that a network has made; what cannot be undone is logged.
    pub fn close(&mut self, name: &str) {
        let Some(at) = self.file.networks.iter().position(|r| r.name == name) else { return };
        let record = self.file.networks.remove(at);
        undo(&record);
        if !record.place.is_there() {
            self.file.settings.retain(|s| s.place != record.place);
        } else if let Err(e) =
            netns::run_in(record.place.netns.as_deref(), || sysctl::release(self, &record.place, name)).flatten()
        {
            tracing::warn!(network = name, "kernel settings cannot be restored: {e}");
        }
        if let Err(e) = self.save() {
            tracing::warn!("{e}");
        }
    }

    /// The record of a network.
    pub fn network(&mut self, name: &str) -> Option<&mut Record> {
        self.file.networks.iter_mut().find(|r| r.name == name)
    }
}

/// Stops dnsmasq, takes exceptions out of others' chains, and removes the table.
fn undo(record: &Record) {
    if let Some(process) = &record.dnsmasq {
        process.end();
    }
    if !record.place.is_there() {
        return;
    }
    let rules = || {
        for chain in &record.exceptions {
            if let Err(e) = firewall::undo(chain, &record.table) {
                tracing::warn!(network = record.name, "the exception in {chain} cannot be removed: {e}");
            }
        }
        // Without a table there is nothing to remove, and perhaps no nft.
        match nft::current(&record.table) {
            Ok(None) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => nft::remove(&record.table),
        }
    };
    if let Err(e) = netns::run_in(record.place.netns.as_deref(), rules).flatten() {
        tracing::warn!(network = record.name, "{} cannot be removed: {e}", record.table);
    }
}
