//! What guests boot: made by `tests/guest/prepare.sh` in `target/vm`, once per machine.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, bail};

use crate::skip;

/// The exit status of the script if something cannot be had.
const MISSING: i32 = 3;

/// The kernel and the initial file system of every guest; `None`, and a counted line, where they cannot be had.
///
/// # Panics
/// The script has a fault.
#[must_use]
pub fn image() -> Option<&'static Path> {
    static IMAGE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match IMAGE.get_or_init(|| prepare().expect("tests/guest/prepare.sh")) {
        Ok(path) => Some(path),
        Err(why) => {
            skip(&format!("no QEMU guest can be booted: {why}"));
            None
        }
    }
}

/// The image, or what is missing.
fn prepare() -> anyhow::Result<Result<PathBuf, String>> {
    let test = std::env::current_exe()?;
    let target = test.ancestors().nth(3).context("a test lies in target/PROFILE/deps")?;
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/prepare.sh"))
        .arg(target.join("vm"))
        .stdin(Stdio::null())
        .output()?;
    let last = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().lines().last().unwrap_or_default().to_owned();
    match output.status.code() {
        Some(0) => Ok(Ok(PathBuf::from(last(&output.stdout)))),
        Some(MISSING) => Ok(Err(last(&output.stderr))),
        status => bail!("status {status:?}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}
