//! The sending half of a turn: what the pipeline decided goes to the transmit queues.
//!
//! Per touched queue: tag edits become prefixes in a scratch, frames whose owed work the port cannot carry are completed
//! (once per slot and batch, however many ports need it), and everything goes to the driver in order. The queue's lock is
//! held for that one queue only.

use std::ops::Range;

use arrayvec::ArrayVec;

use crate::{
    batch::{BATCH_FRAMES, Batch},
    clock::Now,
    egress::{Egress, OutFrame},
    frame::{
        complete::{CompleteError, Completer, Derived, MAX_HEADER_BYTES},
        layout::{L3, Network},
        offload::{Gso, Offload, VNET_HDR_BYTES},
    },
    pipeline::{Copy, Edit, Plan},
    port::{PortTx, Sent},
    rate::Limiter,
    stats::{Counter, CounterBlock},
    topology::Topology,
    verdict::DropReason,
};

/// Virtio-net header, two addresses and one tag.
const PREFIX_BYTES: usize = VNET_HDR_BYTES + 12 + 4;
/// A derived header with one more tag.
const DERIVED_BYTES: usize = VNET_HDR_BYTES + MAX_HEADER_BYTES + 4;

/// Scratch of one worker; allocates only when it is made.
pub(crate) struct Transmitter {
    prefixes: Box<[[u8; PREFIX_BYTES]; BATCH_FRAMES]>,
    headers: Box<[[u8; DERIVED_BYTES]; BATCH_FRAMES]>,
    completer: Completer,
    completed: [Option<(usize, usize)>; BATCH_FRAMES],
}

impl Transmitter {
    pub(crate) fn new() -> Transmitter {
        Transmitter {
            prefixes: Box::new([[0; PREFIX_BYTES]; BATCH_FRAMES]),
            headers: Box::new([[0; DERIVED_BYTES]; BATCH_FRAMES]),
            completer: Completer::new(),
            completed: [None; BATCH_FRAMES],
        }
    }

    /// Sends the plan's copies of a batch.
    pub(crate) fn send(&mut self, topology: &Topology, worker: usize, batch: &Batch, plan: &Plan, now: Now) {
        let mut used_completer = false;
        for tx in plan.touched() {
            let entry = &topology.tx()[tx.index()];
            let Some(port) = topology.port(entry.port) else { continue };
            let counts = port.shared.counters.of(worker);
            let mut copies = plan.copies(*tx);
            let admitted;
            if let Some(rate) = &port.rate_to {
                admitted = police(rate, batch, copies, now, counts);
                copies = &admitted;
            }
            let mut queue = entry.queue.tx.lock();
            let capabilities = queue.capabilities();
            let owed = |copy: &Copy| {
                let offload = &batch.slot(usize::from(copy.slot)).offload;
                offload.owes() && !capabilities.contains(needs(batch, copy.slot, offload))
            };
            // Runs of frames that go as they are, between frames that must be completed: order is kept.
            let mut rest = copies;
            while !rest.is_empty() {
                let run = if batch.owing() { rest.iter().position(owed) } else { None }.unwrap_or(rest.len());
                if run > 0 {
                    let sent = send_run(&mut self.prefixes, batch, &rest[..run], queue.as_mut());
                    count(counts, &sent);
                }
                if let Some(copy) = rest.get(run) {
                    used_completer = true;
                    self.send_completed(batch, *copy, queue.as_mut(), counts);
                }
                rest = &rest[(run + 1).min(rest.len())..];
            }
        }
        if used_completer {
            self.completer.clear();
            self.completed = [None; BATCH_FRAMES];
        }
    }

    /// Completes a frame, or finds it completed for an earlier queue, and sends what became of it.
    fn send_completed(&mut self, batch: &Batch, copy: Copy, queue: &mut dyn PortTx, counts: &CounterBlock) {
        let Some(range) = self.complete(batch, copy.slot) else {
            counts.drop_frames(DropReason::EgressOffload, 1);
            return;
        };
        let segments = range.len();
        let mut total = Sent::default();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + BATCH_FRAMES);
            for (index, header) in (at..end).zip(self.headers.iter_mut()) {
                edit_header(self.completer.derived(index).header, copy.edit, header);
            }
            let frames: ArrayVec<OutFrame<'_>, BATCH_FRAMES> = (at..end)
                .zip(self.headers.iter())
                .map(|(index, header)| derived_frame(batch, copy, self.completer.derived(index), header))
                .collect();
            let sent = queue.tx(&Egress::new(&frames));
            total.frames += sent.frames;
            total.bytes += sent.bytes;
            for (sum, (_, n)) in [&mut total.queue_full, &mut total.port_down, &mut total.too_big, &mut total.error]
                .into_iter()
                .zip(sent.drops())
            {
                *sum += n;
            }
            at = end;
        }
        counts.add(Counter::TxCompleted, 1);
        // One frame was decided, so one frame is sent or dropped, whatever it was cut into.
        if total.frames as usize == segments {
            counts.add(Counter::TxFrames, 1);
            counts.add(Counter::TxBytes, total.bytes);
            if segments > 1 {
                counts.add(Counter::TxSegments, segments as u64);
            }
        } else {
            let reason =
                total.drops().into_iter().find(|(_, n)| *n > 0).map_or(DropReason::TxError, |(reason, _)| reason);
            counts.drop_frames(reason, 1);
        }
    }

    fn complete(&mut self, batch: &Batch, slot: u8) -> Option<Range<usize>> {
        if let Some((start, end)) = self.completed[usize::from(slot)] {
            return Some(start..end);
        }
        let index = usize::from(slot);
        let frame = batch.slot(index);
        let mut attempt =
            self.completer.complete(batch.head(index), batch.tail(index), frame.len as usize, frame.offload);
        if matches!(attempt, Err(CompleteError::Full)) {
            // Room is taken back from frames that earlier queues needed; they are made again if one more does.
            self.completer.clear();
            self.completed = [None; BATCH_FRAMES];
            attempt = self.completer.complete(batch.head(index), batch.tail(index), frame.len as usize, frame.offload);
        }
        let range = attempt.ok()?;
        self.completed[index] = Some((range.start, range.end));
        Some(range)
    }
}

/// The copies that the rate lets pass. Its buckets are let go before the queue is locked.
#[cold]
#[inline(never)]
fn police(
    rate: &Limiter,
    batch: &Batch,
    copies: &[Copy],
    now: Now,
    counts: &CounterBlock,
) -> ArrayVec<Copy, BATCH_FRAMES> {
    let mut buckets = rate.at(now.nanos);
    let bytes = |copy: &Copy| batch.slot(usize::from(copy.slot)).len.wrapping_add_signed(copy.edit.delta().into());
    let admitted: ArrayVec<Copy, BATCH_FRAMES> =
        copies.iter().filter(|copy| buckets.admit(bytes(copy).into())).copied().collect();
    let over = copies.len() - admitted.len();
    if over > 0 {
        counts.drop_frames(DropReason::RateTo, over as u64);
    }
    admitted
}

fn needs(batch: &Batch, slot: u8, offload: &Offload) -> crate::frame::offload::Capabilities {
    let ipv6 = offload.gso == Gso::UdpL4
        && Network::parse(batch.head(usize::from(slot))).is_some_and(|network| network.l3 == L3::V6);
    offload.needs(ipv6)
}

fn count(counts: &CounterBlock, sent: &Sent) {
    counts.add(Counter::TxFrames, u64::from(sent.frames));
    counts.add(Counter::TxBytes, sent.bytes);
    for (reason, n) in sent.drops() {
        if n > 0 {
            counts.drop_frames(reason, u64::from(n));
        }
    }
}

fn send_run(
    prefixes: &mut [[u8; PREFIX_BYTES]; BATCH_FRAMES],
    batch: &Batch,
    copies: &[Copy],
    queue: &mut dyn PortTx,
) -> Sent {
    let mut prefixes = prefixes.iter_mut();
    // Extended where it lies: one that is collected is moved.
    let mut frames: ArrayVec<OutFrame<'_>, BATCH_FRAMES> = ArrayVec::new();
    frames.extend(copies.iter().map(|copy| {
        let (slot, whole, tail) = batch.leaving(usize::from(copy.slot));
        let (mut first, mut rest, mut offload, mut len) = (whole, &[][..], slot.offload, slot.len);
        if !copy.edit.is_none() {
            first = write_prefix(batch, copy, prefixes.next().expect("there are as many prefixes as slots"));
            rest = &whole[VNET_HDR_BYTES + 12 + usize::from(copy.edit.strip)..];
            offload = offload.shifted(copy.edit.delta());
            len = len.wrapping_add_signed(i32::from(copy.edit.delta()));
        }
        OutFrame { first, rest, tail, offload, len }
    }));
    queue.tx(&Egress::new(&frames))
}

fn write_prefix<'p>(batch: &Batch, copy: &Copy, prefix: &'p mut [u8; PREFIX_BYTES]) -> &'p [u8] {
    let index = usize::from(copy.slot);
    let (header, rest) = prefix.split_at_mut(VNET_HDR_BYTES);
    let header: &mut [u8; VNET_HDR_BYTES] = header.try_into().expect("split at the header's length");
    batch.slot(index).offload.shifted(copy.edit.delta()).encode(header);
    rest[..12].copy_from_slice(&batch.head(index)[..12]);
    write_tag(copy.edit, &mut rest[12..16]);
    &prefix[..VNET_HDR_BYTES + 12 + if copy.edit.push().is_some() { 4 } else { 0 }]
}

fn write_tag(edit: Edit, to: &mut [u8]) {
    if let Some((tpid, tci)) = edit.push() {
        to[..2].copy_from_slice(&tpid.to_be_bytes());
        to[2..4].copy_from_slice(&tci.to_be_bytes());
    }
}

/// A derived header with the tag edit applied: the addresses, the new tag, the rest.
fn edit_header(header: &[u8], edit: Edit, to: &mut [u8; DERIVED_BYTES]) {
    const ADDRESSES: usize = VNET_HDR_BYTES + 12;
    to[..ADDRESSES].copy_from_slice(&header[..ADDRESSES]);
    let pushed = if edit.push().is_some() { 4 } else { 0 };
    write_tag(edit, &mut to[ADDRESSES..ADDRESSES + 4]);
    let rest = &header[ADDRESSES + usize::from(edit.strip)..];
    to[ADDRESSES + pushed..ADDRESSES + pushed + rest.len()].copy_from_slice(rest);
}

fn derived_frame<'a>(batch: &'a Batch, copy: Copy, derived: Derived<'a>, header: &'a [u8]) -> OutFrame<'a> {
    let len = derived.header.len().wrapping_add_signed(isize::from(copy.edit.delta()));
    let (start, end) = derived.head_range;
    OutFrame {
        first: &header[..len],
        rest: &batch.head(usize::from(copy.slot))[start as usize..end as usize],
        tail: derived.tail,
        offload: Offload::NONE,
        len: derived.len.wrapping_add_signed(i32::from(copy.edit.delta())),
    }
}
