//! An in-memory port for tests, simulation and benches: two queues of frames under a lock, with an eventfd for
//! readiness so that real workers can sleep on it.

use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::{PortRx, PortTx, QueuePair, RxStatus, Sent};
use crate::{
    batch::{Batch, HEAD_BYTES},
    egress::Egress,
    frame::offload::{Capabilities, Offload, VNET_HDR_BYTES},
};

/// A frame and what is owed on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemFrame {
    /// From the destination address on.
    pub bytes: Vec<u8>,
    /// Owed work.
    pub offload: Offload,
}

#[derive(Default)]
struct Wire {
    to_switch: VecDeque<MemFrame>,
    from_switch: Vec<MemFrame>,
    room: usize,
    closed: bool,
}

/// The far end of an in-memory port: what a host on the wire would be.
#[derive(Clone)]
pub struct MemPeer {
    wire: Arc<Mutex<Wire>>,
    event: Arc<EventFd>,
}

impl MemPeer {
    /// Sends a complete frame into the switch.
    pub fn send(&self, bytes: &[u8]) {
        self.send_owed(bytes, Offload::NONE);
    }

    /// Sends a frame with owed work into the switch.
    pub fn send_owed(&self, bytes: &[u8], offload: Offload) {
        self.wire.lock().to_switch.push_back(MemFrame { bytes: bytes.to_vec(), offload });
        // The counter saturates at 2^64 - 2; the switch reads it long before.
        let _ = self.event.write(1);
    }

    /// Takes everything that the switch sent.
    #[must_use]
    pub fn take(&self) -> Vec<MemFrame> {
        std::mem::take(&mut self.wire.lock().from_switch)
    }

    /// How many frames the switch has not taken yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.wire.lock().to_switch.len()
    }

    /// Frames that the switch has not taken yet.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.wire.lock().to_switch.len()
    }

    /// How many untaken frames the port accepts before its queue is full.
    pub fn set_room(&self, frames: usize) {
        self.wire.lock().room = frames;
    }

    /// Unplugs the port: the receive queue reports `Gone`.
    pub fn close(&self) {
        self.wire.lock().closed = true;
        let _ = self.event.write(1);
    }
}

struct MemRx(MemPeer);
struct MemTx {
    peer: MemPeer,
    capabilities: Capabilities,
}

/// Makes a port of one queue and its far end.
///
/// # Errors
/// No eventfd can be had.
pub fn pair(capabilities: Capabilities) -> std::io::Result<(QueuePair, MemPeer)> {
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let wire = Wire { room: usize::MAX, ..Wire::default() };
    let peer = MemPeer { wire: Arc::new(Mutex::new(wire)), event: Arc::new(event) };
    let queue =
        QueuePair { rx: Box::new(MemRx(peer.clone())), tx: Box::new(MemTx { peer: peer.clone(), capabilities }) };
    Ok((queue, peer))
}

impl PortRx for MemRx {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        let _ = self.0.event.read();
        let mut wire = self.0.wire.lock();
        while batch.has_room() {
            let Some(frame) = wire.to_switch.pop_front() else {
                return if wire.closed { RxStatus::Gone } else { RxStatus::Drained };
            };
            let (slot, overflow) = batch.receive_buffers();
            let head = frame.bytes.len().min(HEAD_BYTES);
            slot[VNET_HDR_BYTES..VNET_HDR_BYTES + head].copy_from_slice(&frame.bytes[..head]);
            overflow[..frame.bytes.len() - head].copy_from_slice(&frame.bytes[head..]);
            batch.push_received(frame.bytes.len()).offload = frame.offload;
        }
        RxStatus::More
    }

    fn readiness(&self) -> Option<RawFd> {
        Some(self.0.event.as_raw_fd())
    }
}

impl PortTx for MemTx {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        let mut sent = Sent::default();
        let mut wire = self.peer.wire.lock();
        for frame in egress.iter() {
            if wire.from_switch.len() >= wire.room {
                sent.queue_full += 1;
                continue;
            }
            let mut bytes = vec![0; frame.len as usize];
            match frame.copy_to(&mut bytes) {
                Some(n) if n == bytes.len() => {
                    sent.frames += 1;
                    sent.bytes += n as u64;
                    wire.from_switch.push(MemFrame { bytes, offload: frame.offload });
                }
                _ => sent.error += 1,
            }
        }
        sent
    }
}
