//! `stream` ports: Ethernet frames over a connection, each behind its length in four bytes, as QEMU's `-netdev stream`
//! and `-netdev socket` speak it. Over a Unix socket or TCP; the switch listens or connects.
//!
//! The port is opened once; peers come and go behind it, one at a time. The frames have no virtio-net header, so nothing
//! can be left owed on them.
//!
//! A peer that does not read fills the socket, and then its frames are dropped (`queue_full`): at most one frame is kept
//! half-written. A peer that sends what cannot be frames loses its connection, and nobody else notices.

mod control;
mod cutter;
mod line;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};

use self::{
    control::{Control, Listener},
    cutter::{Cut, Cutter},
    line::{Absent, Line},
};
use super::{Notifier, Opened, PortRx, PortTx, QueuePair, RxStatus, Sent, socket};
use crate::{
    batch::{Batch, HEAD_BYTES},
    egress::Egress,
    frame::offload::{Capabilities, VNET_HDR_BYTES},
};

/// Reads per receive call: a peer that sends in crumbs costs the others no more than this.
const MAX_READS: usize = 8;

/// Where the other side is, or comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket.
    Path(PathBuf),
    /// A TCP address.
    Address(SocketAddr),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Path(path) => write!(f, "{}", path.display()),
            Place::Address(address) => write!(f, "{address}"),
        }
    }
}

/// How a stream port is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamConfig {
    /// Where.
    pub place: Place,
    /// The switch listens; otherwise it connects, for ever.
    pub server: bool,
    /// Owner of the Unix socket that the switch makes.
    pub owner: Option<u32>,
    /// Group of it.
    pub group: Option<u32>,
    /// Permission bits of it.
    pub perm: Option<u32>,
}

/// A stream port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The address or path cannot be listened at.
    #[error("cannot listen at {0}: {1}")]
    Listen(Place, io::Error),
    /// No descriptors or threads can be had.
    #[error("cannot open a stream port at {0}: {1}")]
    Other(Place, io::Error),
}

/// Opens a stream port. Its other side need not be there yet.
///
/// # Errors
/// See [`StreamError`].
pub fn open(config: &StreamConfig, notifier: Notifier) -> Result<Opened, StreamError> {
    let other = |e: io::Error| StreamError::Other(config.place.clone(), e);
    let listener = if config.server {
        Some(listen(config).map_err(|e| StreamError::Listen(config.place.clone(), e))?)
    } else {
        None
    };
    let line = Arc::new(Line::new(notifier).map_err(|e| other(e.into()))?);
    let control = Control::start(Arc::clone(&line), config.place.clone(), listener).map_err(other)?;
    let rx = StreamRx::new(Arc::clone(&line));
    let queue = QueuePair { rx: Box::new(rx), tx: Box::new(StreamTx(line)) };
    Ok(Opened { queues: vec![queue], control: Box::new(control) })
}

fn listen(config: &StreamConfig) -> io::Result<Listener> {
    match &config.place {
        Place::Path(path) => {
            let (listener, file) = socket::listen(path, config.owner, config.group, config.perm)?;
            Ok(Listener::Unix(listener, file))
        }
        Place::Address(address) => {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(Listener::Tcp(listener))
        }
    }
}

struct StreamRx {
    line: Arc<Line>,
    socket: Option<Arc<OwnedFd>>,
    cutter: Cutter,
    /// How many errors have been told.
    errors: u64,
}

impl StreamRx {
    fn new(line: Arc<Line>) -> StreamRx {
        StreamRx { line, socket: None, cutter: Cutter::new(), errors: 0 }
    }

    fn hang_up(&mut self, why: Absent) {
        self.socket = None;
        self.cutter.clear();
        self.line.hang_up(why);
    }

    /// Moves whole frames to the batch; false if what follows is no frame.
    fn cut_frames(&mut self, batch: &mut Batch) -> bool {
        while batch.has_room() {
            match self.cutter.cut() {
                Cut::Frame(frame) => {
                    let (slot, overflow) = batch.receive_buffers();
                    let (head, tail) = frame.split_at(frame.len().min(HEAD_BYTES));
                    slot[VNET_HDR_BYTES..VNET_HDR_BYTES + head.len()].copy_from_slice(head);
                    overflow[..tail.len()].copy_from_slice(tail);
                    batch.push_received(frame.len());
                }
                Cut::Short => break,
                Cut::OutOfStep => return false,
            }
        }
        true
    }
}

impl PortRx for StreamRx {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        self.line.flush();
        if self.socket.is_none() {
            self.socket = self.line.take_up();
        }
        let Some(fd) = self.socket.as_ref().map(AsRawFd::as_raw_fd) else { return RxStatus::Drained };
        for _ in 0..MAX_READS {
            if !self.cut_frames(batch) {
                if self.line.count_error() {
                    tracing::warn!("a stream peer sent what cannot be a frame; its connection is closed");
                }
                self.hang_up(Absent::OutOfStep);
                return RxStatus::Drained;
            }
            if !batch.has_room() {
                return RxStatus::More;
            }
            match recv(fd, self.cutter.spare(), MsgFlags::MSG_DONTWAIT) {
                Ok(0) => {
                    self.hang_up(Absent::Left);
                    return RxStatus::Drained;
                }
                Ok(n) => self.cutter.filled(n),
                Err(Errno::EAGAIN) => return RxStatus::Drained,
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => {
                    self.hang_up(Absent::Left);
                    return RxStatus::Drained;
                }
                Err(e) => {
                    self.hang_up(Absent::Failed(e.desc().to_owned()));
                    return RxStatus::Drained;
                }
            }
        }
        // Also when the last read brought whole frames: they are cut by the next call.
        RxStatus::More
    }

    fn readiness(&self) -> Option<RawFd> {
        Some(self.line.readiness())
    }

    fn take_errors(&mut self) -> u64 {
        let told = std::mem::replace(&mut self.errors, self.line.errors());
        self.errors - told
    }
}

struct StreamTx(Arc<Line>);

impl PortTx for StreamTx {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        self.0.tx(egress.iter().as_slice())
    }
}
