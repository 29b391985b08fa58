//! Frames to the guest: its receive rings, written by whichever worker has something for it.
//!
//! Each byte is copied once, straight from where the frame lies (a slot, or another guest's memory) to where this guest
//! wants it. The used index is published once per call, so a frame that is spread over several chains is never seen in
//! parts.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::{
    Shared,
    features::{self, Features},
    inflight::Inflight,
    log::RingLog,
    ring::{Ahead, Cursor, Fault, Running, Spans, Window, chain},
};
use crate::{
    egress::{Egress, OutFrame},
    frame::offload::{Capabilities, VNET_HDR_BYTES},
    port::{PortTx, Sent},
    sys::{
        buf::Piece,
        guest::{Header, RingMemory, Span},
    },
};

/// Chains that one frame is spread over at most: 64 KiB in buffers of 512 bytes.
const MAX_BUFFERS: usize = 128;
const FLAG_DATA_VALID: u8 = 2;

/// The sending half of one queue pair.
pub struct VhostTx {
    shared: Arc<Shared>,
    pair: usize,
}

impl VhostTx {
    pub(super) fn new(shared: &Arc<Shared>, pair: usize) -> VhostTx {
        VhostTx { shared: Arc::clone(shared), pair }
    }
}

enum Refused {
    Full,
    TooBig,
    Broken(Fault),
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Refused {
        Refused::Broken(fault)
    }
}

impl PortTx for VhostTx {
    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities()
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        let mut sent = Sent::default();
        // A driver may use fewer queues than there are; the flows of the others go where it looks.
        let mut ring = self.shared.receive_ring(self.pair).lock();
        let Some(running) = &mut ring.running else {
            sent.port_down += egress.len() as u32;
            return sent;
        };
        // Nobody waits for the driver to add buffers.
        running.disarm();
        let filled = fill(running, egress, &mut sent);
        let mut outcome = running.publish().and(filled);
        if running.lost_memory() {
            outcome = Err(Fault::Memory);
        }
        if let Err(fault) = outcome {
            ring.fail(fault);
            self.shared.broke();
        }
        sent
    }
}

/// Puts frames into a ring; what comes after a fault is lost.
fn fill(running: &mut Running, egress: &Egress<'_>, sent: &mut Sent) -> Result<(), Fault> {
    let able = running.features.capabilities();
    let Running { memory, cursor, features, log, inflight, .. } = running;
    let mut filler = Filler { memory, cursor, features: *features, log: log.as_ref(), inflight: inflight.as_mut() };
    let mut window = Window::new(egress.len());
    filler.cursor.look(memory, true, &mut window).inspect_err(|_| sent.port_down += egress.len() as u32)?;
    for (index, frame) in egress.iter().enumerate() {
        // The driver may have changed its mind since the frame was prepared.
        let fits = |ipv6| able.contains(frame.offload.needs(ipv6));
        if frame.offload.owes() && !fits(false) && !fits(true) {
            sent.error += 1;
            continue;
        }
        match filler.put(frame, &window) {
            Ok(()) => {
                sent.frames += 1;
                sent.bytes += u64::from(frame.len);
            }
            Err(Refused::Full) => sent.queue_full += 1,
            Err(Refused::TooBig) => sent.too_big += 1,
            Err(Refused::Broken(fault)) => {
                sent.port_down += (egress.len() - index) as u32;
                return Err(fault);
            }
        }
    }
    Ok(())
}

/// A running ring while frames are put into it.
struct Filler<'r> {
    memory: &'r RingMemory,
    cursor: &'r mut Cursor,
    features: Features,
    log: Option<&'r RingLog>,
    inflight: Option<&'r mut Inflight>,
}

impl Filler<'_> {
    /// Copies one frame into the guest's buffers; after an error the ring is as before.
    #[inline]
    fn put(&mut self, frame: &OutFrame<'_>, window: &Window<'_>) -> Result<(), Refused> {
        let before = self.cursor.position();
        let wanted = self.features.header_bytes() + frame.len as usize;
        if let Some(Ahead { head, whole: Some(span) }) = self.cursor.pop_seen(window)
            && span.len() >= wanted
            && self.features.header_bytes() == VNET_HDR_BYTES
        {
            let mut to = span.skip(span.update(header(frame, 1, self.features)));
            let (first, rest, tail) = frame.parts();
            to = to.skip(to.write(first));
            if frame.contiguous(false).is_none() {
                to = to.skip(to.write(rest));
                for piece in tail {
                    to = to.skip(to.write_piece(*piece));
                }
            }
            if let Some(log) = self.log {
                log.wrote(self.memory.memory(), &[span], wanted);
            }
            self.used(head, wanted as u32);
            return Ok(());
        }
        self.cursor.rewind(before);
        self.put_chains(frame, wanted).inspect_err(|_| self.cursor.rewind(before))
    }

    fn used(&mut self, head: u16, written: u32) {
        if let Some(inflight) = &mut self.inflight {
            inflight.took(head);
        }
        self.cursor.push_used(self.memory, head, written);
    }

    /// As [`put`](Self::put), where it takes several buffers; after an error chains have been taken.
    #[inline(never)]
    fn put_chains(&mut self, frame: &OutFrame<'_>, wanted: usize) -> Result<(), Refused> {
        let memory = self.memory;
        let mut spans = Spans::new();
        let mut heads: ArrayVec<(u16, u32), MAX_BUFFERS> = ArrayVec::new();
        let mut room = 0;
        while room < wanted {
            if !heads.is_empty() && !self.features.has(features::MRG_RXBUF) || heads.is_full() {
                return Err(Refused::TooBig);
            }
            let head = self.cursor.pop(memory)?.ok_or(Refused::Full)?;
            let n = match chain(memory, head, true, self.features, &mut spans) {
                Ok(n) => n,
                Err(Fault::TooLong) if !heads.is_empty() => return Err(Refused::TooBig),
                Err(fault) => return Err(fault.into()),
            };
            heads.push((head, n as u32));
            room += n;
        }
        let mut writer = Writer { spans: &spans, at: 0 };
        writer.write(&header(frame, heads.len() as u16, self.features).bytes()[..self.features.header_bytes()]);
        let (first, rest, tail) = frame.parts();
        writer.write(first);
        writer.write(rest);
        for piece in tail {
            writer.write_piece(*piece);
        }
        if let Some(log) = self.log {
            log.wrote(memory.memory(), &spans, wanted);
        }
        let mut left = wanted as u32;
        for (head, n) in heads {
            let written = left.min(n);
            left -= written;
            self.used(head, written);
        }
        Ok(())
    }
}

/// The header that this driver gets. Made of words: of bytes that were just written one by one the processor cannot make a
/// word before they are in the cache, behind everything else that is on its way there.
#[inline]
fn header(frame: &OutFrame<'_>, buffers: u16, features: Features) -> Header {
    let Header { mut flags_and_lengths, rest } = Header::read(frame.header());
    if !features.has(features::GUEST_CSUM) {
        flags_and_lengths &= !u64::from(FLAG_DATA_VALID);
    }
    Header { flags_and_lengths, rest: rest & 0xffff | u32::from(buffers) << 16 }
}

/// Writes one thing after the other into a list of buffers that has room for all.
struct Writer<'a, 'm> {
    spans: &'a [Span<'m>],
    at: usize,
}

impl Writer<'_, '_> {
    fn advance(&mut self, n: usize) {
        self.at += n;
        if let [first, rest @ ..] = self.spans
            && self.at == first.len()
        {
            self.spans = rest;
            self.at = 0;
        }
    }

    #[inline]
    fn write(&mut self, mut from: &[u8]) {
        while !from.is_empty() {
            let Some(span) = self.spans.first() else { return };
            let n = span.skip(self.at).write(from);
            from = &from[n..];
            self.advance(n);
        }
    }

    #[inline]
    fn write_piece(&mut self, mut from: Piece) {
        while !from.is_empty() {
            let Some(span) = self.spans.first() else { return };
            let n = span.skip(self.at).write_piece(from);
            from = from.skip(n);
            self.advance(n);
        }
    }
}
