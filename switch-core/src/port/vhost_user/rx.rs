//! Frames from the guest: its transmit ring, read by one worker.
//!
//! Header and head of each frame are copied into the batch's slot, so that every byte that is judged is read once. The
//! rest stays where it is, so that it is copied once only, and is leased: the ring's lock is held from `rx` to `release`, and with it the
//! mapping. Chains are returned in `release`, when their frames have been sent.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use arrayvec::ArrayVec;
use parking_lot::{ArcMutexGuard, Mutex, RawMutex};

use super::{
    Shared, announced,
    features::Features,
    ring::{Ahead, Fault, Ring, Running, Spans, Window, chain},
};
use crate::{
    batch::{Batch, MAX_FRAME_BYTES},
    frame::{
        offload::{Gso, Offload, VNET_HDR_BYTES},
        rarp,
    },
    mac::MacAddr,
    port::{Armed, PortRx, RxStatus},
    sys::{
        buf::Piece,
        guest::{RingMemory, Span},
    },
};

/// Pieces that the rest of one frame is leased in; a frame in more is copied. A gather list must also hold its head.
const MAX_TAIL: usize = crate::sys::buf::MAX_GATHER - 4;

/// Bytes of a frame's head that are copied where nothing is owed on the frame: more than is ever judged of one.
const JUDGED_BYTES: usize = 256;

/// The receiving half of one queue pair.
pub struct VhostRx {
    shared: Arc<Shared>,
    pair: usize,
    ring: Arc<Mutex<Ring>>,
    /// Held while chains of the ring are in the batch.
    held: Option<ArcMutexGuard<RawMutex, Ring>>,
    /// Found in the same batch as good frames, which come first.
    fault: Option<Fault>,
    lost: u64,
}

impl VhostRx {
    pub(super) fn new(shared: &Arc<Shared>, pair: usize) -> VhostRx {
        let ring = Arc::clone(shared.transmit_ring(pair));
        VhostRx { shared: Arc::clone(shared), pair, ring, held: None, fault: None, lost: 0 }
    }

    /// Returns the chains and lets go of the ring.
    fn finish(&mut self) {
        let Some(mut ring) = self.held.take() else { return };
        if let Some(running) = &mut ring.running {
            if let Err(fault) = running.publish() {
                self.fault = Some(fault);
            }
            if running.lost_memory() {
                // What else is wrong with it comes from the zeros.
                self.fault = Some(Fault::Memory);
            }
        }
        if let Some(fault) = self.fault.take() {
            ring.fail(fault);
            self.shared.broke();
        }
        // Fair: the control thread must get its turn even if this worker comes back at once.
        ArcMutexGuard::unlock_fair(ring);
    }
}

impl PortRx for VhostRx {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        if self.pair == 0 && self.shared.announced.load(Relaxed) != 0 {
            announce(batch, self.shared.announced.swap(0, Relaxed));
        }
        let ring = self.held.insert(self.ring.lock_arc());
        let status = match &mut ring.running {
            None => RxStatus::Drained,
            Some(running) => fill(running, batch, &mut self.lost).unwrap_or_else(|fault| {
                self.fault = Some(fault);
                RxStatus::Drained
            }),
        };
        if batch.is_empty() {
            self.finish();
        }
        status
    }

    fn release(&mut self, _batch: &mut Batch) {
        self.finish();
    }

    fn arm(&mut self) -> Armed {
        let mut ring = self.ring.lock();
        let work = ring.running.as_mut().is_some_and(|running| running.arm() || running.lost_memory());
        if work { Armed::Work } else { Armed::Ready }
    }

    fn readiness(&self) -> Option<RawFd> {
        Some(self.shared.bell(self.pair).as_raw_fd())
    }

    fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn take_errors(&mut self) -> u64 {
        // One half speaks for the whole port.
        if self.pair == 0 { self.shared.faults.swap(0, Relaxed) } else { 0 }
    }
}

/// Puts the frame into the batch with which a VM that has moved is announced.
fn announce(batch: &mut Batch, station: u64) {
    let Some(mac) = announced(station) else { return };
    let frame = rarp::announcement(MacAddr(mac));
    let (slot, _) = batch.receive_buffers();
    slot[VNET_HDR_BYTES..VNET_HDR_BYTES + frame.len()].copy_from_slice(&frame);
    batch.push_received(frame.len()).offload = Offload::NONE;
}

fn fill(running: &mut Running, batch: &mut Batch, lost: &mut u64) -> Result<RxStatus, Fault> {
    if running.waits() {
        running.disarm();
    }
    let Running { memory, cursor, features, inflight, .. } = running;
    let mut window = Window::new(batch.room());
    cursor.look(memory, false, &mut window)?;
    while batch.has_room() {
        let (head, total) = match cursor.pop_seen(&window) {
            Some(Ahead { head, whole: Some(span) }) => {
                if span.len() <= features.header_bytes() + MAX_FRAME_BYTES {
                    take_whole(batch, span, *features);
                }
                (head, span.len())
            }
            seen => {
                let Some(head) = seen.map_or_else(|| cursor.pop(memory), |ahead| Ok(Some(ahead.head)))? else {
                    return Ok(RxStatus::Drained);
                };
                (head, take_chain(batch, memory, head, *features)?)
            }
        };
        *lost += u64::from(total > features.header_bytes() + MAX_FRAME_BYTES);
        if let Some(inflight) = inflight {
            inflight.took(head);
        }
        cursor.push_used(memory, head, 0);
    }
    Ok(RxStatus::More)
}

/// Puts the frame of a chain into the batch, unless it is too long; its length with the header.
#[inline(never)]
fn take_chain(batch: &mut Batch, memory: &RingMemory, head: u16, features: Features) -> Result<usize, Fault> {
    let mut spans = Spans::new();
    let total = chain(memory, head, false, features, &mut spans)?;
    if total <= features.header_bytes() + MAX_FRAME_BYTES {
        take(batch, &spans, total, features);
    }
    Ok(total)
}

/// Puts a frame in one buffer into the batch: nearly all are like that.
#[inline]
fn take_whole(batch: &mut Batch, span: Span<'_>, features: Features) {
    let header_bytes = features.header_bytes();
    if span.len() < header_bytes || header_bytes != VNET_HDR_BYTES {
        return take(batch, &[span], span.len(), features);
    }
    let (slot, _) = batch.receive_buffers();
    let done = span.read(&mut slot[..VNET_HDR_BYTES + JUDGED_BYTES]);
    let header: &[u8; VNET_HDR_BYTES] = slot.first_chunk().expect("a slot begins with a header");
    let offload = offload(header);
    if done == span.len() {
        batch.push_received(done - VNET_HDR_BYTES).offload = offload;
        return;
    }
    let mut rest = span.skip(done);
    let mut done = done;
    if !offload.is_none() {
        // As much as a slot holds: what is owed may lie deep.
        let more = rest.read(&mut slot[done..]);
        rest = rest.skip(more);
        done += more;
    }
    let tail = [rest.lease()];
    let tail = if rest.is_empty() { &[] } else { &tail[..] };
    // There is room for the piece: `has_room` said so.
    if let Some(slot) = batch.push_leased(done - VNET_HDR_BYTES, tail, 0) {
        slot.offload = offload;
    }
}

/// What a driver says that it owes. An unknown type is carried on as the one that is always refused, so that it is counted.
/// That a checksum was verified is not for a driver to say (virtio 1.3 §5.1.6.2).
#[inline]
fn offload(wire: &[u8; VNET_HDR_BYTES]) -> Offload {
    let offload = Offload::decode(wire).unwrap_or(Offload { gso: Gso::Ufo, ..Offload::NONE });
    Offload { data_valid: false, ..offload }
}

/// Puts one frame into the batch.
fn take(batch: &mut Batch, spans: &[Span<'_>], total: usize, features: Features) {
    let header_bytes = features.header_bytes();
    let len = total.saturating_sub(header_bytes);
    let (slot, overflow) = batch.receive_buffers();
    // The frame begins behind the slot's header, whichever length the guest's header has.
    let own = &mut slot[VNET_HDR_BYTES - header_bytes..];
    let mut rest: ArrayVec<Span<'_>, MAX_TAIL> = ArrayVec::new();
    let (mut at, mut fits) = split(spans, 0, &mut own[..header_bytes + JUDGED_BYTES], &mut rest);
    let offload = if total < header_bytes {
        Offload::NONE
    } else {
        let mut wire = [0; VNET_HDR_BYTES];
        wire[..header_bytes].copy_from_slice(&own[..header_bytes]);
        offload(&wire)
    };
    if !rest.is_empty() && (!fits || !offload.is_none()) {
        // As much as a slot holds: what is owed may lie deep, or there are fewer pieces then.
        let (more, all) = split(spans, at, &mut own[at..], &mut rest);
        (at, fits) = (at + more, all);
    }
    if !fits {
        let mut skip = at;
        let mut done = 0;
        for span in spans {
            let part = span.skip(skip);
            skip -= span.len() - part.len();
            done += part.read(&mut overflow[done..]);
        }
        batch.push_received(len).offload = offload;
    } else if rest.is_empty() {
        batch.push_received(len).offload = offload;
    } else {
        let tail: ArrayVec<Piece, MAX_TAIL> = rest.iter().map(Span::lease).collect();
        // There is room for the pieces: `has_room` said so.
        if let Some(slot) = batch.push_leased(at - header_bytes, &tail, 0) {
            slot.offload = offload;
        }
    }
}

/// Copies from a chain, after `skip` bytes, as much as `own` holds; `rest` gets what comes then. Returns how many bytes were
/// copied, and whether there was room for the rest.
fn split<'m>(
    spans: &[Span<'m>],
    mut skip: usize,
    own: &mut [u8],
    rest: &mut ArrayVec<Span<'m>, MAX_TAIL>,
) -> (usize, bool) {
    rest.clear();
    let (mut done, mut fits) = (0, true);
    for span in spans {
        let part = span.skip(skip);
        skip -= span.len() - part.len();
        let n = part.read(&mut own[done..]);
        done += n;
        if n < part.len() {
            fits &= rest.try_push(part.skip(n)).is_ok();
        }
    }
    (done, fits)
}
