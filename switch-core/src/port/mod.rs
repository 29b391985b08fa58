//! The seam: what a driver is to the rest of the switch.
//!
//! Every kind of port is a [`PortRx`] and a [`PortTx`] per queue. A receive queue is owned by exactly one worker; a
//! transmit queue is locked once per batch, and a worker never holds two. Nothing here blocks: a call does what can be
//! done now and says how things stand. A device that fails is a status or a counter, never an error that reaches
//! another port.

pub mod bond;
pub mod dgram;
pub mod guard;
pub mod macvtap;
pub mod mem;
pub mod netdev;
pub mod packet;
pub mod socket;
pub mod stream;
pub mod tap;
pub mod tun;
pub mod vhost_user;
pub mod xdp;

use std::{os::fd::RawFd, sync::Arc};

use crate::{batch::Batch, egress::Egress, frame::offload::Capabilities, verdict::DropReason};

/// How a receive call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxStatus {
    /// Nothing is left; the next frame makes the queue's descriptor readable (or is found by polling).
    Drained,
    /// The batch or the driver's budget is full and more may be waiting: call again without waiting.
    More,
    /// The device is gone. The worker stops polling and reports the queue to the control thread.
    Gone,
}

/// The answer to [`PortRx::arm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// A wake-up is guaranteed when the next frame arrives.
    Ready,
    /// Frames slipped in meanwhile: receive again before sleeping.
    Work,
}

/// One receive queue. Owned by exactly one worker.
pub trait PortRx: Send {
    /// Fills the (empty) batch with what has arrived. Bounded; never blocks.
    fn rx(&mut self, batch: &mut Batch) -> RxStatus;

    /// Everything decided for the batch has been sent or dropped: leased buffers go back to the sender.
    fn release(&mut self, _batch: &mut Batch) {}

    /// Before sleeping: ask for a wake-up. System-call drivers have one anyway.
    fn arm(&mut self) -> Armed {
        Armed::Ready
    }

    /// The descriptor that becomes readable when frames arrive, registered edge-triggered. It stays the same for the
    /// life of the queue. `None`: the queue can only be polled (in-memory ports).
    fn readiness(&self) -> Option<RawFd>;

    /// Frames that the kernel (or the guest's driver) lost since the last call, if the driver can tell cheaply.
    /// Called about once per second, not per batch.
    fn take_lost(&mut self) -> u64 {
        0
    }

    /// What the other side did since the last call that it should not have done; see
    /// [`Counter::RxErrors`](crate::stats::Counter::RxErrors). Called together with [`take_lost`](Self::take_lost).
    fn take_errors(&mut self) -> u64 {
        0
    }

    /// Frames received since the last call by a member of a bond that is not in use, and thrown away; see
    /// [`DropReason::InactiveMember`]. Called together with [`take_lost`](Self::take_lost).
    fn take_inactive(&mut self) -> u64 {
        0
    }
}

/// What became of the frames given to one [`PortTx::tx`] call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames sent (or accepted into a bounded tail that will be).
    pub frames: u32,
    /// Their bytes, without any virtio-net header.
    pub bytes: u64,
    /// No room in the queue.
    pub queue_full: u32,
    /// Device or peer is down.
    pub port_down: u32,
    /// Longer than the port carries.
    pub too_big: u32,
    /// Refused by the device for another reason.
    pub error: u32,
    /// No frame that this port takes, whoever it was for.
    pub filtered: u32,
}

impl Sent {
    /// The drops as (reason, count); `frames` and these add up to what was given.
    #[must_use]
    pub fn drops(&self) -> [(DropReason, u32); 5] {
        [
            (DropReason::QueueFull, self.queue_full),
            (DropReason::EgressPortDown, self.port_down),
            (DropReason::EgressTooBig, self.too_big),
            (DropReason::TxError, self.error),
            (DropReason::NotForPort, self.filtered),
        ]
    }
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Sent) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.queue_full += other.queue_full;
        self.port_down += other.port_down;
        self.too_big += other.too_big;
        self.error += other.error;
        self.filtered += other.filtered;
    }
}

/// One transmit queue. Locked once per batch.
pub trait PortTx: Send {
    /// What may be left owed on frames given to [`tx`](Self::tx). May change with the device's settings; asked once
    /// per call.
    fn capabilities(&self) -> Capabilities;

    /// Sends all frames of `egress` in order, or drops and counts. Never blocks; retries are bounded.
    /// `frames + all drops` of the result equals `egress.len()`.
    ///
    /// A byte stream keeps the rest of a frame that was half written, and nothing else; going on with it is the
    /// business of the driver's receive half, whose owner it wakes through [`PortRx::readiness`].
    fn tx(&mut self, egress: &Egress<'_>) -> Sent;
}

/// Tells the control thread that something about a port has changed beside the frame path (a peer came or went, a device
/// lost its carrier): it then asks every [`PortControl`]. Cheap; any thread may call it, also for nothing.
#[derive(Clone)]
pub struct Notifier(Arc<dyn Fn() + Send + Sync>);

impl Notifier {
    /// A notifier that calls `notify`, which must not block.
    #[must_use]
    pub fn new(notify: impl Fn() + Send + Sync + 'static) -> Notifier {
        Notifier(Arc::new(notify))
    }

    /// Something has changed.
    pub fn notify(&self) {
        (self.0)();
    }
}

/// The control thread's side of an open port. It is dropped when no worker uses the port any more, and takes with it
/// whatever the driver runs or keeps beside the frame path.
pub trait PortControl: Send {
    /// Why no frame can pass at present, for humans (no peer, no carrier); `None`: nothing is in the way. Called often;
    /// must not block.
    fn missing(&mut self) -> Option<String>;

    /// Whether the device has gone away for good, where the queues cannot tell: the port is closed, and opened again when
    /// that can be done. Called as often as [`missing`](Self::missing).
    fn gone(&mut self) -> bool {
        false
    }

    /// The port's administrative state has changed: tells the other side, where the protocol can say so.
    fn set_link(&mut self, _up: bool) {}

    /// What a bond says of its members.
    fn bond(&self) -> Option<bond::BondStatus> {
        None
    }

    /// Whether the port has come to another place of the network since the last call, so that the stations behind other ports
    /// should be announced by it. Called as often as [`missing`](Self::missing).
    fn moved(&mut self) -> bool {
        false
    }

    /// Sends these frames beside the frame path.
    fn announce(&mut self, _frames: &[Vec<u8>]) {}

    /// The least MTU of the port's domains, for drivers that tell the other side or are asked.
    fn set_mtu(&mut self, _mtu: u32) {}
}

/// A port as a driver hands it over.
pub struct Opened {
    /// Its queues.
    pub queues: Vec<QueuePair>,
    /// See [`PortControl`].
    pub control: Box<dyn PortControl>,
}

/// The two halves of one queue of a port.
pub struct QueuePair {
    /// The receiving half.
    pub rx: Box<dyn PortRx>,
    /// The sending half.
    pub tx: Box<dyn PortTx>,
}
