//! What the frame path and the bond's thread share: the members' sockets, and which of them carry frames.
//!
//! A socket is exchanged when its device goes away and comes back. The halves keep what they use and compare one number per
//! batch; the lock is for the exchange alone. A worker waits for the member's epoll descriptor, which stays the same.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use parking_lot::Mutex;

use crate::sys::packet::PacketSocket;

/// One member.
pub(super) struct Member {
    pub(super) device: String,
    generation: AtomicU32,
    socket: Mutex<Option<Arc<PacketSocket>>>,
    watched: Epoll,
}

impl Member {
    pub(super) fn new(device: &str) -> nix::Result<Member> {
        Ok(Member {
            device: device.to_owned(),
            generation: AtomicU32::new(0),
            socket: Mutex::new(None),
            watched: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        })
    }

    /// Exchanges the socket.
    pub(super) fn put(&self, socket: Option<Arc<PacketSocket>>) {
        let mut place = self.socket.lock();
        if let Some(old) = place.take() {
            // It fails only if it is not there, which is what is wanted.
            let _ = self.watched.delete(&*old);
        }
        place.clone_from(&socket);
        self.generation.fetch_add(1, Ordering::Release);
        // After the number, so that whoever is woken sees it.
        if let Some(socket) = socket
            && let Err(e) = self.watched.add(&*socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))
        {
            tracing::warn!(device = self.device, "a member of a bond cannot be waited for: {e}");
        }
    }

    /// The socket, for the control side.
    pub(super) fn socket(&self) -> Option<Arc<PacketSocket>> {
        self.socket.lock().clone()
    }

    pub(super) fn readiness(&self) -> RawFd {
        self.watched.0.as_raw_fd()
    }
}

/// What a half of the frame path keeps of a member.
pub(super) struct Held<T> {
    generation: u32,
    pub(super) half: Option<T>,
}

impl<T> Default for Held<T> {
    fn default() -> Held<T> {
        Held { generation: 0, half: None }
    }
}

impl<T> Held<T> {
    /// Takes up what has been exchanged since the last call.
    #[inline]
    pub(super) fn refresh(&mut self, member: &Member, make: impl FnOnce(Arc<PacketSocket>) -> T) {
        let now = member.generation.load(Ordering::Acquire);
        if now != self.generation {
            self.generation = now;
            self.half = member.socket().map(make);
        }
    }
}

/// All of them. Bit i of a mask is member i.
pub(super) struct Shared {
    pub(super) members: Vec<Member>,
    /// Frames leave by these.
    sending: AtomicU32,
    /// Frames of these are taken.
    receiving: AtomicU32,
}

impl Shared {
    pub(super) fn new(devices: &[String]) -> nix::Result<Shared> {
        let members = devices.iter().map(|device| Member::new(device)).collect::<nix::Result<_>>()?;
        Ok(Shared { members, sending: AtomicU32::new(0), receiving: AtomicU32::new(0) })
    }

    #[inline]
    pub(super) fn sending(&self) -> u32 {
        self.sending.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn is_receiving(&self, member: usize) -> bool {
        self.receiving.load(Ordering::Relaxed) & (1 << member) != 0
    }

    pub(super) fn set(&self, sending: u32, receiving: u32) {
        self.receiving.store(receiving, Ordering::Relaxed);
        self.sending.store(sending, Ordering::Relaxed);
    }
}
