//! `vhost-user` ports: the switch is the device of a VM's virtio-net driver, in memory that the VM shares with it.
//!
//! ```text
//! VMM ──socket── control thread (control.rs, one per port): connections; messages.rs, requests.rs: what the VMM wants
//!                     │ device.rs: features, memory, rings, event descriptors, log, inflight area
//!                     │ lock of one ring at a time
//! guest ══rings══ VhostRx (rx.rs, its worker) / VhostTx (tx.rs, any worker), over ring.rs and sys::guest
//! ```
//!
//! The port is opened once. A VM that connects, reboots, dies or breaks the rules only changes what is behind the locks
//! of the rings; queues, descriptors and counters stay. Lock order: a ring that is received from, one that is sent to, the
//! session; the control thread holds one ring at a time.
//!
//! Not here: packed rings, and memory that comes later (postcopy).

mod call;
mod control;
mod device;
pub mod features;
mod inflight;
mod log;
mod messages;
mod requests;
mod ring;
mod rx;
mod tx;

#[cfg(test)]
mod inflight_tests;
#[cfg(test)]
mod ring_tests;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
    },
};
use parking_lot::Mutex;

use self::{features::Features, ring::Ring, rx::VhostRx, tx::VhostTx};
use super::{Notifier, Opened, PortControl, QueuePair, socket};
use crate::frame::offload::Capabilities;

/// Queue pairs of one port (a ring's number has 8 bits on the socket).
pub const MAX_QUEUES: u16 = 128;
/// How long a client waits before it tries to connect again.
const RETRY: Duration = Duration::from_millis(500);
/// How long a VM that made a worker wait has to wait itself.
const PENALTY: Duration = Duration::from_secs(10);

/// How a port is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostConfig {
    /// The socket.
    pub path: PathBuf,
    /// The switch connects (and does so again for ever) instead of listening.
    pub client: bool,
    /// Queue pairs.
    pub queues: u16,
    /// Checksum and segmentation offload are offered.
    pub offload: bool,
    /// Owner of the socket (server).
    pub owner: Option<u32>,
    /// Group of the socket (server).
    pub group: Option<u32>,
    /// Permission bits of the socket (server).
    pub perm: Option<u32>,
}

impl VhostConfig {
    /// Listens at a path, with one queue pair and all offloads.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> VhostConfig {
        VhostConfig { path: path.into(), client: false, queues: 1, offload: true, owner: None, group: None, perm: None }
    }
}

/// Why a port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// The number of queues is out of range.
    #[error("a vhost-user port has 1 to {MAX_QUEUES} queues, not {0}")]
    BadQueues(u16),
    /// The socket cannot be had.
    #[error("cannot listen on {}: {error}", path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// Descriptors or a thread cannot be had.
    #[error("cannot make a vhost-user port: {0}")]
    Io(#[from] io::Error),
}

/// One descriptor that becomes readable when the guest kicks a ring, whichever descriptor the guest kicks with at the
/// time. Nothing is ever read from the descriptors inside: each write to one is an edge of the outer one.
struct Bell {
    epoll: Epoll,
    nudge: EventFd,
}

impl Bell {
    fn new() -> io::Result<Bell> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let nudge = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&nudge, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Bell { epoll, nudge })
    }

    /// Makes the worker look at its ring.
    fn ring(&self) {
        // It cannot be full: that takes longer than the machine lasts.
        let _ = self.nudge.write(1);
    }

    fn add(&self, kick: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.add(kick, EpollEvent::new(EpollFlags::EPOLLIN, 1))?)
    }

    fn remove(&self, kick: impl AsFd) {
        // It fails only if it is not there.
        let _ = self.epoll.delete(kick);
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }
}

/// The station in [`Shared::announced`].
fn announced(station: u64) -> Option<[u8; 6]> {
    let [_, there, mac @ ..] = station.to_be_bytes();
    (there != 0).then_some(mac)
}

/// How things stand between the port and its VM.
#[derive(Default)]
struct Session {
    /// The connection, to be shut down from other threads.
    stream: Option<UnixStream>,
    closing: bool,
    /// The link is set down, and the switch stays away from the VM.
    held_off: bool,
    /// Why no frame can pass.
    missing: Option<String>,
}

/// What the halves of a port share.
pub(crate) struct Shared {
    /// Ring 2n is the guest's receive ring of pair n, ring 2n + 1 its transmit ring.
    rings: Vec<Arc<Mutex<Ring>>>,
    bells: Vec<Bell>,
    /// Pairs from 0 on whose receive ring runs.
    active: AtomicUsize,
    capabilities: AtomicU8,
    /// Broken rings that were not counted yet.
    faults: AtomicU64,
    /// The station to be announced, as [`announce`](Shared::announce) writes it; 0: none.
    announced: AtomicU64,
    /// The greatest MTU that all domains of the port carry.
    mtu_limit: AtomicU64,
    session: Mutex<Session>,
    stop: EventFd,
    notifier: Notifier,
}

impl Shared {
    fn new(queues: usize, notifier: Notifier) -> io::Result<Shared> {
        Ok(Shared {
            rings: (0..2 * queues).map(|_| Arc::default()).collect(),
            bells: (0..queues).map(|_| Bell::new()).collect::<io::Result<_>>()?,
            active: AtomicUsize::new(0),
            capabilities: AtomicU8::new(0),
            faults: AtomicU64::new(0),
            announced: AtomicU64::new(0),
            mtu_limit: AtomicU64::new(u64::MAX),
            session: Mutex::default(),
            stop: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            notifier,
        })
    }

    /// The guest's transmit ring of a pair.
    fn transmit_ring(&self, pair: usize) -> &Arc<Mutex<Ring>> {
        &self.rings[2 * pair + 1]
    }

    /// The guest's receive ring of a pair, or of one that is in use instead.
    fn receive_ring(&self, pair: usize) -> &Mutex<Ring> {
        let active = self.active.load(Relaxed);
        &self.rings[2 * if pair < active { pair } else { pair % active.max(1) }]
    }

    fn bell(&self, pair: usize) -> &Bell {
        &self.bells[pair]
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities(self.capabilities.load(Relaxed))
    }

    fn set_features(&self, features: Features) {
        self.capabilities.store(features.capabilities().0, Relaxed);
    }

    /// Has the worker of the first pair announce a station, as if the guest had.
    fn announce(&self, mac: [u8; 6]) {
        let [a, b, c, d, e, f] = mac;
        self.announced.store(u64::from_be_bytes([0, 1, a, b, c, d, e, f]), Relaxed);
        self.bell(0).ring();
    }

    fn mtu_limit(&self) -> u64 {
        self.mtu_limit.load(Relaxed)
    }

    /// A ring is broken: counts it and ends the connection.
    fn broke(&self) {
        self.faults.fetch_add(1, Relaxed);
        self.hang_up();
    }

    /// Ends the connection, if there is one; the control thread then clears everything up.
    fn hang_up(&self) {
        if let Some(stream) = &self.session.lock().stream {
            // It fails only if the other side was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn is_held_off(&self) -> bool {
        self.session.lock().held_off
    }

    /// A connection begins; false if there must be none.
    fn begin(&self, stream: UnixStream) -> bool {
        let mut session = self.session.lock();
        session.stream = Some(stream);
        !session.closing && !session.held_off
    }

    fn end(&self) {
        self.session.lock().stream = None;
    }

    /// Says why no frame can pass, and tells the control thread of the switch if that is news.
    fn set_missing(&self, missing: Option<String>) {
        let mut session = self.session.lock();
        if session.missing != missing {
            session.missing = missing;
            drop(session);
            self.notifier.notify();
        }
    }

    /// Waits until `fd` is readable, or for some time; false if the port is being closed.
    fn wait(&self, fd: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> bool {
        let mut set = vec![PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        set.extend(fd.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let timeout = timeout.map_or(PollTimeout::NONE, |t| t.try_into().unwrap_or(PollTimeout::MAX));
        // An interrupted wait is a short one.
        let _ = poll(&mut set, timeout);
        !self.session.lock().closing
    }
}

/// The control side of the port: ends its thread and removes its socket when it is dropped.
struct Control {
    shared: Arc<Shared>,
    client: bool,
    thread: Option<JoinHandle<()>>,
    _socket: Option<socket::SocketFile>,
}

impl PortControl for Control {
    fn missing(&mut self) -> Option<String> {
        self.shared.session.lock().missing.clone()
    }

    fn set_mtu(&mut self, mtu: u32) {
        self.shared.mtu_limit.store(u64::from(mtu), Relaxed);
    }

    // Only a switch that connects can take the connection up again by itself: see docs/decisions/004-vhost-user-link.md.
    fn set_link(&mut self, up: bool) {
        if self.client {
            self.shared.session.lock().held_off = !up;
            if !up {
                self.shared.hang_up();
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.shared.session.lock().closing = true;
        // The counter cannot be full: it is written once.
        let _ = self.shared.stop.write(1);
        self.shared.hang_up();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Opens a port; VMs come later.
///
/// # Errors
/// See [`VhostError`].
pub fn open(config: &VhostConfig, notifier: Notifier) -> Result<Opened, VhostError> {
    if config.queues == 0 || config.queues > MAX_QUEUES {
        return Err(VhostError::BadQueues(config.queues));
    }
    call::watch()?;
    let pairs = usize::from(config.queues);
    let shared = Arc::new(Shared::new(pairs, notifier)?);
    let (listener, file) = if config.client {
        (None, None)
    } else {
        let named = |error| VhostError::Listen { path: config.path.clone(), error };
        let (listener, file) = socket::listen(&config.path, config.owner, config.group, config.perm).map_err(named)?;
        (Some(listener), Some(file))
    };
    let host = control::Host::new(Arc::clone(&shared), config);
    shared.set_missing(Some(host.nobody()));
    let thread = std::thread::Builder::new().name("vhost-user".to_owned()).spawn(move || match listener {
        Some(listener) => host.serve(&listener),
        None => host.connect(),
    })?;
    let queues = (0..pairs)
        .map(|pair| QueuePair { rx: Box::new(VhostRx::new(&shared, pair)), tx: Box::new(VhostTx::new(&shared, pair)) })
        .collect();
    Ok(Opened {
        queues,
        control: Box::new(Control { shared, client: config.client, thread: Some(thread), _socket: file }),
    })
}
