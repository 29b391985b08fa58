//! Network namespaces: doing something inside one without leaving this one.

use std::{fs::File, io, path::PathBuf};

use nix::sched::{CloneFlags, setns};

/// Where a namespace is found: a name under /run/netns, a path, or `pid:N`.
#[must_use]
pub fn path_of(namespace: &str) -> PathBuf {
    match namespace.strip_prefix("pid:") {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        None if namespace.contains('/') => PathBuf::from(namespace),
        None => PathBuf::from("/run/netns").join(namespace),
    }
}

/// Moves the calling thread into a namespace, for good. `None`: it stays.
///
/// # Errors
/// The namespace does not exist or may not be entered.
pub fn enter(namespace: Option<&str>) -> io::Result<()> {
    let Some(namespace) = namespace else { return Ok(()) };
    let file = File::open(path_of(namespace)).map_err(|e| {
        io::Error::new(e.kind(), format!("cannot open network namespace \"{namespace}\": {e}; see: ip netns list"))
    })?;
    setns(&file, CloneFlags::CLONE_NEWNET)
        .map_err(|e| io::Error::other(format!("cannot enter network namespace \"{namespace}\": {e}")))
}

/// Runs `work` inside a namespace, on a thread of its own, because a thread's namespace is its own. `None`: here.
///
/// # Errors
/// The namespace does not exist or may not be entered.
pub fn run_in<T: Send>(namespace: Option<&str>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    if namespace.is_none() {
        return Ok(work());
    }
    std::thread::scope(|scope| {
        scope
            .spawn(move || enter(namespace).map(|()| work()))
            .join()
            .map_err(|_| io::Error::other("the thread inside the namespace panicked"))?
    })
}
