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
    ring::{Fault, Running, Spans, chain},
};
use crate::{
    egress::{Egress, OutFrame},
    frame::offload::{Capabilities, VNET_HDR_BYTES},
    port::{PortTx, Sent},
    sys::{buf::Piece, guest::Span},
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
        let mut fault = None;
        // A driver may use fewer queues than there are; the flows of the others go where it looks.
        let mut ring = self.shared.receive_ring(self.pair).lock();
        if let Some(running) = &mut ring.running {
            // Nobody waits for the driver to add buffers.
            running.disarm();
            let able = running.features.capabilities();
            for frame in egress.iter() {
                if fault.is_some() {
                    sent.port_down += 1;
                    continue;
                }
                // The driver may have changed its mind since the frame was prepared.
                let fits = |ipv6| able.contains(frame.offload.needs(ipv6));
                if frame.offload.owes() && !fits(false) && !fits(true) {
                    sent.error += 1;
                    continue;
                }
                match put(running, frame) {
                    Ok(()) => {
                        sent.frames += 1;
                        sent.bytes += u64::from(frame.len);
                    }
                    Err(Refused::Full) => sent.queue_full += 1,
                    Err(Refused::TooBig) => sent.too_big += 1,
                    Err(Refused::Broken(why)) => {
                        fault = Some(why);
                        sent.port_down += 1;
                    }
                }
            }
            if let Err(why) = running.publish() {
                fault = Some(why);
            }
            if running.lost_memory() {
                fault = Some(Fault::Memory);
            }
        } else {
            sent.port_down += egress.len() as u32;
        }
        if let Some(fault) = fault {
            ring.fail(fault);
            self.shared.broke();
        }
        sent
    }
}

/// Copies one frame into the guest's buffers; after an error the ring is as before.
fn put(running: &mut Running, frame: &OutFrame<'_>) -> Result<(), Refused> {
    let Running { memory, cursor, features, log, inflight, .. } = running;
    let before = cursor.position();
    let mut spans = Spans::new();
    let mut heads: ArrayVec<(u16, u32), MAX_BUFFERS> = ArrayVec::new();
    let header_bytes = features.header_bytes();
    let wanted = header_bytes + frame.len as usize;
    let mut room = 0;
    let collected = loop {
        let head = match cursor.pop(memory) {
            Ok(Some(head)) => head,
            Ok(None) => break Err(Refused::Full),
            Err(fault) => break Err(fault.into()),
        };
        let n = match chain(memory, head, true, *features, &mut spans) {
            Ok(n) => n,
            Err(Fault::TooLong) if !heads.is_empty() => break Err(Refused::TooBig),
            Err(fault) => break Err(fault.into()),
        };
        heads.push((head, n as u32));
        room += n;
        if room >= wanted {
            break Ok(());
        }
        if !features.has(features::MRG_RXBUF) || heads.is_full() {
            break Err(Refused::TooBig);
        }
    };
    if let Err(refused) = collected {
        cursor.rewind(before);
        return Err(refused);
    }
    let mut writer = Writer { spans: &spans, at: 0 };
    writer.write(&header(frame, heads.len() as u16, *features)[..header_bytes]);
    let (first, rest, tail) = frame.parts();
    writer.write(first);
    writer.write(rest);
    for piece in tail {
        writer.write_piece(*piece);
    }
    if let Some(log) = log {
        log.wrote(memory.memory(), &spans, wanted);
    }
    let mut left = wanted as u32;
    for (head, n) in heads {
        let written = left.min(n);
        left -= written;
        if let Some(inflight) = inflight {
            inflight.took(head);
        }
        cursor.push_used(memory, head, written);
    }
    Ok(())
}

fn header(frame: &OutFrame<'_>, buffers: u16, features: Features) -> [u8; VNET_HDR_BYTES] {
    let mut header = *frame.header();
    if !features.has(features::GUEST_CSUM) {
        header[0] &= !FLAG_DATA_VALID;
    }
    header[10..12].copy_from_slice(&buffers.to_le_bytes());
    header
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
