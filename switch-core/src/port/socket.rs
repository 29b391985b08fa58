//! Unix sockets that the switch makes: for the API, and for ports whose other side connects or sends to a path.
//!
//! The file gets its owner and permissions before anybody can use it. What a dead program left behind is replaced; the
//! socket of a living one, and anything that is no socket, is refused and stays.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixDatagram, UnixListener},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
        stat::{Mode, fchmod},
    },
    unistd::{Gid, Uid},
};

/// Permission bits of a socket unless others are asked for.
pub const DEFAULT_PERM: u32 = 0o660;

/// Removes the socket's file when it is dropped, if the file is still the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at a path. The listener is non-blocking.
///
/// # Errors
/// Somebody answers there, something that is no socket is there, or the kernel refuses. Nothing was left behind.
pub fn listen(
    path: &Path,
    owner: Option<u32>,
    group: Option<u32>,
    perm: Option<u32>,
) -> io::Result<(UnixListener, SocketFile)> {
    let (fd, file) = bind(SockType::Stream, path, owner, group, perm)?;
    socket::listen(&fd, Backlog::MAXCONN)?;
    Ok((UnixListener::from(fd), file))
}

/// Makes a datagram socket at a path. It is non-blocking.
///
/// # Errors
/// See [`listen`].
pub fn datagram(
    path: &Path,
    owner: Option<u32>,
    group: Option<u32>,
    perm: Option<u32>,
) -> io::Result<(UnixDatagram, SocketFile)> {
    let (fd, file) = bind(SockType::Datagram, path, owner, group, perm)?;
    Ok((UnixDatagram::from(fd), file))
}

/// A stream socket is not connectable yet when this returns; a datagram socket had at most its final permissions ever.
fn bind(
    kind: SockType,
    path: &Path,
    owner: Option<u32>,
    group: Option<u32>,
    perm: Option<u32>,
) -> io::Result<(OwnedFd, SocketFile)> {
    let address = UnixAddr::new(path)?;
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something else at this path"));
        }
        if is_alive(kind, &address)? {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program answers there"));
        }
        fs::remove_file(path)?;
    }
    let fd = open(kind)?;
    let perm = perm.unwrap_or(DEFAULT_PERM);
    fchmod(&fd, Mode::from_bits_truncate(perm))?;
    socket::bind(fd.as_raw_fd(), &address)?;
    let metadata = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), inode: (metadata.dev(), metadata.ino()) };
    if owner.is_some() || group.is_some() {
        nix::unistd::chown(path, owner.map(Uid::from_raw), group.map(Gid::from_raw))?;
    }
    // Again, because bind has applied the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(perm))?;
    Ok((fd, file))
}

fn open(kind: SockType) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket::socket(AddressFamily::Unix, kind, flags, None)?)
}

/// Whether a program holds the socket at this address; of whatever type, and however busy it is.
fn is_alive(kind: SockType, address: &UnixAddr) -> io::Result<bool> {
    let probe = open(kind)?;
    let answer = socket::connect(probe.as_raw_fd(), address);
    Ok(!matches!(answer, Err(Errno::ECONNREFUSED | Errno::ENOENT)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn place(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("vswitch-socket-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    /// A process that another test is just starting has copies of all descriptors until its program begins.
    fn until_nobody_answers(mut ask: impl FnMut() -> io::Result<()>) {
        while ask().is_ok() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_left_over_is_replaced_and_a_living_socket_or_a_file_is_not() {
        let path = place("stream");
        // The standard library leaves the file behind.
        drop(UnixListener::bind(&path).expect("bound"));
        until_nobody_answers(|| UnixStream::connect(&path).map(drop));
        let (listener, file) = listen(&path, None, None, Some(0o600)).expect("replaced");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let refusal = |result: io::Result<()>| result.expect_err("refused").to_string();
        assert!(refusal(listen(&path, None, None, None).map(drop)).contains("answers"));
        assert!(refusal(datagram(&path, None, None, None).map(drop)).contains("answers"));
        UnixStream::connect(&path).expect("still there");
        drop((listener, file));
        assert!(!path.exists(), "removed with its guard");
        fs::write(&path, "text").expect("written");
        assert!(refusal(listen(&path, None, None, None).map(drop)).contains("something else"));
        fs::remove_file(&path).expect("the file stayed");
    }

    #[test]
    fn a_datagram_socket_is_treated_alike() {
        let path = place("dgram");
        drop(UnixDatagram::bind(&path).expect("bound"));
        until_nobody_answers(|| UnixDatagram::unbound()?.connect(&path));
        let (socket, file) = datagram(&path, None, None, None).expect("replaced");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, DEFAULT_PERM);
        assert!(datagram(&path, None, None, None).is_err());
        // Somebody else's socket at the same path is not ours to remove.
        fs::remove_file(&path).expect("removed");
        let other = UnixDatagram::bind(&path).expect("bound");
        drop((socket, file));
        assert!(path.exists());
        drop(other);
        fs::remove_file(&path).expect("removed");
    }
}
