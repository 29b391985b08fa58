//! The thread that finds a stream port its peers: it accepts or connects, one connection at a time, and hands each to the
//! [`Line`].

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, setsockopt, sockopt},
};

use super::{
    Place,
    line::{Absent, Line},
};
use crate::port::{PortControl, socket::SocketFile};

/// How long after a failure the next connection is tried, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a TCP connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// What the kernel keeps for a peer that is slow: some hundred frames, so that a burst finds room. TCP sizes itself.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// A TCP peer that vanished without a word is found out after `KEEP_IDLE_S + KEEP_COUNT * KEEP_INTERVAL_S`.
const KEEP_IDLE_S: u32 = 10;
const KEEP_INTERVAL_S: u32 = 5;
const KEEP_COUNT: u32 = 3;

/// Where peers come to.
pub(super) enum Listener {
    Unix(UnixListener, #[expect(dead_code, reason = "removes the socket's file with the listener")] SocketFile),
    Tcp(TcpListener),
}

impl Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener, _) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }

    fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Listener::Unix(listener, _) => Ok(prepare_unix(listener.accept()?.0.into())),
            Listener::Tcp(listener) => prepare_tcp(listener.accept()?.0),
        }
    }
}

fn prepare_unix(socket: OwnedFd) -> OwnedFd {
    // Frames are sent and received with MSG_DONTWAIT. Without the privilege the buffer stays as it is.
    let _ = setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES);
    socket
}

fn prepare_tcp(stream: TcpStream) -> io::Result<OwnedFd> {
    stream.set_nodelay(true)?;
    let socket = OwnedFd::from(stream);
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &KEEP_IDLE_S)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &KEEP_INTERVAL_S)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &KEEP_COUNT)?;
    Ok(socket)
}

/// The control side of a stream port.
pub(super) struct Control {
    line: Arc<Line>,
    place: Place,
    server: bool,
    thread: Option<JoinHandle<()>>,
    /// The connection that was last said to be there.
    told: Option<u64>,
}

impl Control {
    /// Starts the thread: on a listener, or to connect to the place.
    pub(super) fn start(line: Arc<Line>, place: Place, listener: Option<Listener>) -> io::Result<Control> {
        let server = listener.is_some();
        let thread = std::thread::Builder::new().name("stream-port".to_owned()).spawn({
            let (line, place) = (Arc::clone(&line), place.clone());
            move || match listener {
                Some(listener) => serve(&line, &place, &listener),
                None => dial(&line, &place),
            }
        })?;
        Ok(Control { line, place, server, thread: Some(thread), told: None })
    }
}

impl PortControl for Control {
    fn missing(&mut self) -> Option<String> {
        let state = self.line.state();
        let place = &self.place;
        let Some(absent) = state.absent else {
            if self.told.is_some_and(|number| number != state.number) {
                // What was learned behind the last peer must be forgotten, so this one is announced as any other.
                self.told = None;
                self.line.notify();
                return Some(format!("another peer has taken over {place}"));
            }
            self.told = Some(state.number);
            return None;
        };
        self.told = None;
        Some(match absent {
            Absent::Never if self.server => format!("nobody is connected to {place} yet"),
            Absent::Never => format!("not connected to {place} yet"),
            Absent::Left if self.server => format!("nobody is connected to {place} any more"),
            Absent::Left => format!("{place} has closed the connection"),
            Absent::OutOfStep => {
                format!("the peer at {place} sent what cannot be a frame, so its connection was closed")
            }
            Absent::Failed(why) if self.server => format!("the connection to {place} has failed: {why}"),
            Absent::Failed(why) => format!("cannot connect to {place}: {why}"),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.line.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.line.hang_up(Absent::Left);
    }
}

fn serve(line: &Line, place: &Place, listener: &Listener) {
    // A peer that came before the end of the last one was found.
    let mut next: Option<OwnedFd> = None;
    while !line.is_stopping() {
        if line.is_free()
            && let Some(socket) = next.take()
            && let Err(e) = line.install(socket)
        {
            tracing::warn!("a connection to {place} cannot be watched: {e}");
        }
        let listen = next.is_none().then(|| (listener.as_fd(), PollFlags::POLLIN));
        if !line.wait(listen, None) {
            continue;
        }
        match listener.accept() {
            Ok(socket) if line.is_free() || line.is_ending() => next = Some(socket),
            Ok(_) => {
                if line.count_error() {
                    tracing::warn!("{place} has a peer already; a second one was turned away");
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            // No descriptors, or a peer that left in the queue.
            Err(_) => line.pause(FIRST_PAUSE),
        }
    }
}

fn dial(line: &Line, place: &Place) {
    let mut pause = FIRST_PAUSE;
    while !line.is_stopping() {
        let began = Instant::now();
        match connect(line, place).and_then(|socket| Ok(line.install(socket)?)) {
            Ok(()) => {
                while !line.is_free() && !line.is_stopping() {
                    line.wait(None, None);
                }
            }
            Err(e) => line.excuse(Absent::Failed(text_of(&e))),
        }
        // A peer that closes at once is treated as one that does not answer.
        if began.elapsed() > LONGEST_PAUSE + CONNECT_LIMIT {
            pause = FIRST_PAUSE;
        }
        line.pause(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The error without its number.
fn text_of(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |code| Errno::from_raw(code).desc().to_owned())
}

fn connect(line: &Line, place: &Place) -> io::Result<OwnedFd> {
    match place {
        Place::Path(path) => connect_unix(path),
        Place::Address(address) => connect_tcp(line, *address),
    }
}

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

fn connect_unix(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(prepare_unix(socket))
}

fn connect_tcp(line: &Line, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket::socket(family, SockType::Stream, FLAGS, None)?;
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            if !line.wait(Some((socket.as_fd(), PollFlags::POLLOUT)), Some(CONNECT_LIMIT)) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match socket::getsockopt(&socket, sockopt::SocketError)? {
                0 => {}
                code => return Err(io::Error::from_raw_os_error(code)),
            }
        }
        Err(e) => return Err(e.into()),
    }
    prepare_tcp(TcpStream::from(socket))
}
