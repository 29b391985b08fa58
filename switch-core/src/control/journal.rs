//! The journal: desired state on disk, replaced whole, so that it survives a restart and `kill -9`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::desired::Desired;
use crate::durable;

/// One state directory, held exclusively by one process.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    _lock: nix::fcntl::Flock<File>,
}

impl Journal {
    /// Opens (and makes) a state directory and reads what is there.
    ///
    /// # Errors
    /// It cannot be made or read, is held by another switch, or its contents are not ours.
    pub fn open(directory: &Path) -> io::Result<(Journal, Desired)> {
        let name = |what: &str, e: io::Error| {
            io::Error::new(e.kind(), format!("cannot {what} state directory {}: {e}", directory.display()))
        };
        fs::create_dir_all(directory).map_err(|e| name("make", e))?;
        let file = File::create(directory.join("lock")).map_err(|e| name("lock", e))?;
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|_| {
            io::Error::other(format!(
                "state directory {} is held by another vswitch; stop it, or use --state DIRECTORY",
                directory.display()
            ))
        })?;
        let path = directory.join("desired.json");
        let desired = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                io::Error::other(format!("{} is damaged ({e}); move it away to start empty", path.display()))
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Desired::default(),
            Err(e) => return Err(name("read", e)),
        };
        Ok((Journal { path, _lock: lock }, desired))
    }

    /// The state directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.path.parent().expect("the file lies in the state directory")
    }

    /// Replaces what is on disk.
    ///
    /// # Errors
    /// The disk refuses; the old state is still there.
    pub fn save(&self, desired: &Desired) -> io::Result<()> {
        durable::replace(&self.path, &serde_json::to_vec_pretty(desired)?)
    }
}
