//! What guests boot: made by `tests/guest/prepare.sh` in `target/vm`, once per machine.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, bail};

use crate::skip;

/// The kernel and the initial file system of every guest; `None`, and a counted line, where they cannot be made.
#[must_use]
pub fn image() -> Option<&'static Path> {
    static IMAGE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match IMAGE.get_or_init(|| prepare().map_err(|e| format!("{e:#}"))) {
        Ok(path) => Some(path),
        Err(why) => {
            skip(&format!("no QEMU guest can be booted: {why}"));
            None
        }
    }
}

fn prepare() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let target = test.ancestors().nth(3).context("a test lies in target/PROFILE/deps")?;
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/prepare.sh"))
        .arg(target.join("vm"))
        .stdin(Stdio::null())
        .output()?;
    let last = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().lines().last().unwrap_or_default().to_owned();
    if !output.status.success() {
        bail!("{}", last(&output.stderr));
    }
    Ok(PathBuf::from(last(&output.stdout)))
}
