//! `bond` ports: several netdevs that are one way out.
//!
//! The topology, the MAC table and the counters know one port; which of its members a frame takes is the driver's business,
//! so that a link that fails moves no address and no membership. Members are packet sockets as those of a
//! [`packet`](super::packet) port, each behind its [guard](super::guard).
//!
//! - `active-backup`: one member carries everything; when it loses its link the next one does, and the stations behind the
//!   switch's other ports are announced by it ([`PortControl::moved`]).
//! - `balance-xor`: every member with a link carries the flows that hash to it.
//! - `802.3ad`: the same, of those members whose partners agree ([`lacp`]). LACPDUs never come to the frame path: the
//!   members' sockets have a filter against them, and the bond's thread has sockets with the opposite filter.
//!
//! A thread per bond ([`watcher`]) follows the members' links, opens those whose devices come (back), speaks LACP, and
//! tells the frame path which members are in use by two words ([`member`]).

pub mod lacp;
#[cfg(test)]
mod lacp_tests;
pub mod lacpdu;
mod member;
mod queues;
mod status;
mod watcher;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

pub use self::status::{BondStatus, LacpEnd, MemberState, MemberStatus};
use self::{
    lacp::Settings,
    member::Shared,
    queues::{BondRx, BondTx},
    watcher::Watcher,
};
use super::{Notifier, Opened, PortControl, QueuePair, guard::Guards, packet};
use crate::{
    egress::OutFrame,
    frame::offload::{Offload, VNET_HDR_BYTES},
    link::Links,
};

/// Members that a bond may have: those in use are the bits of a word.
pub const MAX_MEMBERS: usize = 16;

/// How the members of a bond share its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// One carries all of them.
    ActiveBackup,
    /// Each its flows.
    BalanceXor,
    /// Each its flows, if its partner agrees.
    Lacp(Settings),
}

/// How a bond is opened.
#[derive(Clone)]
pub struct BondConfig {
    /// The members' devices.
    pub devices: Vec<String>,
    /// The namespace that they are in.
    pub netns: Option<String>,
    /// How they share.
    pub sharing: Sharing,
    /// Checksums and segmentation may be left to the devices.
    pub offload: bool,
    /// Who holds the host off the devices; `None`: it may go on using them.
    pub guards: Option<Arc<Guards>>,
}

/// Why a bond cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BondError {
    /// None of its members can be.
    #[error("no member of the bond can be opened: {0}")]
    NoMember(String),
    /// Anything else.
    #[error("cannot open the bond: {0}")]
    Other(#[from] io::Error),
}

/// Takes several netdevs as one port. One that can be opened is enough; the others are looked for while it is open.
///
/// # Errors
/// See [`BondError`].
pub fn open(config: &BondConfig, links: &Links, notifier: Notifier) -> Result<Opened, BondError> {
    let space = links.space(config.netns.as_deref())?;
    let shared = Arc::new(Shared::new(&config.devices).map_err(io::Error::from)?);
    let told = Arc::new(Told {
        status: Mutex::default(),
        lost: AtomicBool::new(false),
        moved: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        bell: EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(io::Error::from)?,
    });
    let mut watcher = Watcher::new(config.clone(), space, Arc::clone(&shared), Arc::clone(&told), notifier)?;
    watcher.look();
    if !watcher.has_any() {
        let reasons: Vec<String> = told.status.lock().members.iter().filter_map(|m| m.reason.clone()).collect();
        return Err(BondError::NoMember(reasons.join("; ")));
    }
    let capabilities = packet::capabilities(config.offload);
    let queues = (0..config.devices.len())
        .map(|member| QueuePair {
            rx: Box::new(BondRx::new(&shared, member)),
            tx: Box::new(BondTx::new(&shared, capabilities)),
        })
        .collect();
    let thread = std::thread::Builder::new().name("bond".to_owned()).spawn(move || watcher.run())?;
    Ok(Opened { queues, control: Box::new(Bond { shared, told, thread: Some(thread) }) })
}

/// What the bond's thread and the control thread tell each other.
struct Told {
    status: Mutex<BondStatus>,
    /// Every member's device has gone away.
    lost: AtomicBool,
    /// Another member is the active one than before.
    moved: AtomicBool,
    stop: AtomicBool,
    /// Wakes the bond's thread.
    bell: EventFd,
}

impl Told {
    fn ring(&self) {
        // It fails only when the counter is full: then it rings already.
        let _ = self.bell.write(1);
    }
}

struct Bond {
    shared: Arc<Shared>,
    told: Arc<Told>,
    thread: Option<JoinHandle<()>>,
}

impl PortControl for Bond {
    fn missing(&mut self) -> Option<String> {
        // It is called when a device has changed, so there may be something to see.
        self.told.ring();
        self.told.status.lock().missing()
    }

    fn gone(&mut self) -> bool {
        self.told.lost.load(Ordering::Relaxed)
    }

    fn bond(&self) -> Option<BondStatus> {
        Some(self.told.status.lock().clone())
    }

    fn moved(&mut self) -> bool {
        self.told.moved.swap(false, Ordering::AcqRel)
    }

    fn announce(&mut self, frames: &[Vec<u8>]) {
        let sending = self.shared.sending();
        let socket = self.shared.members.get(sending.trailing_zeros() as usize).and_then(member::Member::socket);
        let Some(socket) = socket.filter(|_| sending != 0) else { return };
        for frame in frames {
            let bytes = [&[0; VNET_HDR_BYTES], &frame[..]].concat();
            let out = OutFrame { first: &bytes, rest: &[], tail: &[], offload: Offload::NONE, len: frame.len() as u32 };
            if let Err(e) = socket.send(&[out]) {
                tracing::debug!("a station was not announced: {e}");
            }
        }
    }
}

impl Drop for Bond {
    fn drop(&mut self) {
        self.told.stop.store(true, Ordering::Release);
        self.told.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
