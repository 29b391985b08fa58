//! Files that are replaced whole, so that after a crash there is the old or the new one, never half of one.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Replaces a file: written aside, flushed, renamed.
///
/// # Errors
/// The disk refuses (the error names the file); the old file is still there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let replace = || {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&aside, path)
    };
    replace().map_err(|e| io::Error::new(e.kind(), format!("cannot write {}: {e}", path.display())))
}
