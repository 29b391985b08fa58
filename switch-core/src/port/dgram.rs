//! `dgram` ports: one Ethernet frame per datagram, as QEMU's `-netdev dgram` speaks it, over a Unix socket or UDP.
//!
//! There is no connection. On a Unix path every datagram looks its receiver up anew, so the other side may come, go and
//! come back. Over UDP the socket is bound to one peer, so that nobody else's datagrams become frames; whether a host is
//! behind it cannot be known.
//!
//! A receiver that is slow loses frames (`queue_full`); on a Unix socket its queue is `net.unix.max_dgram_qlen` long.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixDatagram,
    },
    path::PathBuf,
    sync::Arc,
};

use nix::sys::socket::{UnixAddr, setsockopt, sockopt};

use super::{Opened, PortControl, PortRx, PortTx, QueuePair, RxStatus, Sent, socket};
use crate::{
    batch::{Batch, HEAD_BYTES, MAX_FRAME_BYTES},
    egress::Egress,
    frame::offload::{Capabilities, VNET_HDR_BYTES},
    sys::{send, tap::read_two},
};

/// What the kernel keeps of each direction: a burst of some hundred frames.
const BUFFER_BYTES: usize = 1 << 20;

/// The two ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Unix sockets.
    Unix {
        /// Ours, which the switch makes.
        path: PathBuf,
        /// The other side's, which it makes.
        peer: PathBuf,
    },
    /// UDP.
    Udp {
        /// Ours.
        address: SocketAddr,
        /// The other side's; nobody else is listened to.
        peer: SocketAddr,
    },
}

/// How a datagram port is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DgramConfig {
    /// The sockets.
    pub ends: Ends,
    /// Owner of the Unix socket.
    pub owner: Option<u32>,
    /// Group of it.
    pub group: Option<u32>,
    /// Permission bits of it.
    pub perm: Option<u32>,
}

/// A datagram port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind {place}: {error}")]
pub struct DgramError {
    place: String,
    error: io::Error,
}

/// Opens a datagram port. Its other side need not be there yet.
///
/// # Errors
/// Our end cannot be bound, or the other one cannot be an address.
pub fn open(config: &DgramConfig) -> Result<Opened, DgramError> {
    let (place, opened) = match &config.ends {
        Ends::Unix { path, peer } => (path.display().to_string(), open_unix(config, path, peer)),
        Ends::Udp { address, peer } => (address.to_string(), open_udp(*address, *peer)),
    };
    opened.map_err(|error| DgramError { place, error })
}

fn open_unix(config: &DgramConfig, path: &std::path::Path, peer: &std::path::Path) -> io::Result<Opened> {
    let to = UnixAddr::new(peer)?;
    let (socket, file) = socket::datagram(path, config.owner, config.group, config.perm)?;
    let peer = Some((UnixDatagram::unbound()?, peer.to_owned()));
    Ok(assemble(socket.into(), Some(to), Control { peer, keep: Some(file) }))
}

fn open_udp(address: SocketAddr, peer: SocketAddr) -> io::Result<Opened> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    socket.connect(peer)?;
    Ok(assemble(socket.into(), None, Control { peer: None, keep: None }))
}

fn assemble(socket: OwnedFd, to: Option<UnixAddr>, control: Control) -> Opened {
    // Without the privilege the buffers stay as they are.
    let _ = setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES);
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES);
    let socket = Arc::new(socket);
    let rx = DgramRx { socket: Arc::clone(&socket), errors: 0 };
    let queue = QueuePair { rx: Box::new(rx), tx: Box::new(DgramTx { socket, to }) };
    Opened { queues: vec![queue], control: Box::new(control) }
}

struct Control {
    /// Where Unix datagrams go, and a socket to ask whether somebody is there.
    peer: Option<(UnixDatagram, PathBuf)>,
    #[expect(dead_code, reason = "removes the socket's file with the port")]
    keep: Option<socket::SocketFile>,
}

impl PortControl for Control {
    fn missing(&mut self) -> Option<String> {
        let (probe, peer) = self.peer.as_ref()?;
        match probe.connect(peer).map_err(|e| e.raw_os_error()) {
            Err(Some(libc::ENOENT | libc::ECONNREFUSED)) => Some(format!("nobody has bound {} yet", peer.display())),
            // It is there; if it does not want this socket, it may want ours.
            _ => None,
        }
    }
}

struct DgramRx {
    socket: Arc<OwnedFd>,
    errors: u64,
}

impl PortRx for DgramRx {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        while batch.has_room() {
            let (slot, overflow) = batch.receive_buffers();
            // One byte more than a frame has, to know what is too long.
            let room = overflow.len().min(MAX_FRAME_BYTES - HEAD_BYTES + 1);
            match read_two(self.socket.as_raw_fd(), &mut slot[VNET_HDR_BYTES..], &mut overflow[..room]) {
                Ok(len) if len > MAX_FRAME_BYTES => {
                    self.errors += 1;
                    return RxStatus::More;
                }
                Ok(len) => {
                    batch.push_received(len);
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS) => return RxStatus::Drained,
                    // An answer to what was sent earlier: the peer was not there.
                    Some(libc::EINTR | libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH) => {
                        return RxStatus::More;
                    }
                    _ => return RxStatus::Drained,
                },
            }
        }
        RxStatus::More
    }

    fn readiness(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }

    fn take_errors(&mut self) -> u64 {
        std::mem::take(&mut self.errors)
    }
}

struct DgramTx {
    socket: Arc<OwnedFd>,
    to: Option<UnixAddr>,
}

impl PortTx for DgramTx {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        let mut sent = Sent::default();
        let mut left = egress.iter().as_slice();
        while !left.is_empty() {
            match send::messages(self.socket.as_raw_fd(), self.to.as_ref(), 0, left) {
                Ok(n) => {
                    sent.frames += n as u32;
                    sent.bytes += left[..n].iter().map(|f| u64::from(f.len)).sum::<u64>();
                    left = &left[n..];
                }
                Err(e) => {
                    let all = left.len();
                    let (count, lost) = match e.raw_os_error() {
                        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => (&mut sent.queue_full, all),
                        Some(libc::ENOENT | libc::ECONNREFUSED) if self.to.is_some() => (&mut sent.port_down, all),
                        // Over UDP this is the answer to an earlier datagram.
                        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN) => {
                            (&mut sent.port_down, 1)
                        }
                        Some(libc::EMSGSIZE) => (&mut sent.too_big, 1),
                        _ => (&mut sent.error, 1),
                    };
                    *count += lost as u32;
                    left = &left[lost..];
                }
            }
        }
        sent
    }
}
