//! The device side of a split ring (virtio 1.3 §2.7): which chains are ours, what lies in them, and who must be told.
//!
//! A ring is behind a lock that the worker's half holds while chains of it are in use, so whoever takes the lock finds it
//! at rest: everything that was taken has been returned. That is how the port's control thread stops it, exchanges its
//! memory or takes its event descriptors away.
//!
//! Everything that the guest says is bounded here: indices, chains and tables. What cannot be true is a [`Fault`], which
//! ends the ring (and then the connection); the frames of other ports do not notice.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use arrayvec::ArrayVec;

use super::{
    call::call,
    features::{self, Features},
    inflight::Inflight,
    log::RingLog,
};
use crate::{
    batch::BATCH_FRAMES,
    sys::{
        guest::{
            AVAILABLE_EVENT_BYTES, Descriptor, GuestMemory, RingMemory, Span, USED_ENTRY_BYTES, USED_HEADER_BYTES,
        },
        mapping,
    },
};

/// Descriptors in one chain, tables included. Linux uses up to 19.
pub const MAX_CHAIN: usize = 256;

/// What a guest did that no driver may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The available index is more than a ring ahead.
    #[error("the available index jumped by more than the ring's size")]
    Index,
    /// A descriptor number is outside its table.
    #[error("a descriptor outside the table")]
    Descriptor,
    /// A loop, or a chain that no driver needs.
    #[error("a chain of more than {MAX_CHAIN} descriptors")]
    TooLong,
    /// An address is outside the guest's memory.
    #[error("a buffer outside the guest's memory")]
    Address,
    /// The device should write to a buffer that it may only read, or the other way round.
    #[error("a buffer of the wrong direction")]
    Direction,
    /// A table inside a table, a table that is followed by something, not negotiated, or of a broken size.
    #[error("an indirect table that is not allowed")]
    Indirect,
    /// Memory that it shares was cut off while it was in use.
    #[error("the file of its memory was truncated")]
    Memory,
    /// The switch had to wait when it interrupted the guest.
    #[error("its call descriptor makes the switch wait")]
    Call,
}

/// The buffers of one frame.
pub type Spans<'m> = ArrayVec<Span<'m>, MAX_CHAIN>;

/// The buffers of a chain in order, appended to `spans`; returns their length.
pub fn chain<'m>(
    ring: &'m RingMemory,
    head: u16,
    writable: bool,
    features: Features,
    spans: &mut Spans<'m>,
) -> Result<usize, Fault> {
    let memory = ring.memory();
    let first = ring.descriptor(head).ok_or(Fault::Descriptor)?;
    if !first.is_indirect() {
        return walk(memory, first, writable, |next| ring.descriptor(next), spans);
    }
    if !features.has(features::INDIRECT_DESC)
        || first.next().is_some()
        || first.len == 0
        || !first.len.is_multiple_of(16)
    {
        return Err(Fault::Indirect);
    }
    // Only so much of a table is ever looked at, whatever length the guest claims.
    let table = memory.span(first.addr, (first.len as usize).min(MAX_CHAIN * 16)).ok_or(Fault::Address)?;
    let first = table.descriptor(0).ok_or(Fault::Indirect)?;
    walk(memory, first, writable, |next| table.descriptor(next), spans)
}

#[inline]
fn walk<'m>(
    memory: &'m GuestMemory,
    first: Descriptor,
    writable: bool,
    follow: impl Fn(u16) -> Option<Descriptor>,
    spans: &mut Spans<'m>,
) -> Result<usize, Fault> {
    let mut descriptor = first;
    let mut total = 0usize;
    for _ in 0..MAX_CHAIN {
        if descriptor.is_indirect() {
            return Err(Fault::Indirect);
        }
        if descriptor.is_writable() != writable {
            return Err(Fault::Direction);
        }
        let mut addr = descriptor.addr;
        let mut left = descriptor.len as usize;
        while left > 0 {
            let span = memory.span(addr, left).ok_or(Fault::Address)?;
            spans.try_push(span).map_err(|_| Fault::TooLong)?;
            total += span.len();
            left -= span.len();
            addr = addr.checked_add(span.len() as u64).ok_or(Fault::Address)?;
        }
        match descriptor.next() {
            None => return Ok(total),
            Some(next) => descriptor = follow(next).ok_or(Fault::Descriptor)?,
        }
    }
    Err(Fault::TooLong)
}

/// The buffer of a chain that is nothing else.
#[inline]
fn single(memory: &GuestMemory, first: Descriptor, writable: bool) -> Option<Span<'_>> {
    if first.next().is_some() || first.is_indirect() || first.is_writable() != writable {
        return None;
    }
    memory.span(first.addr, first.len as usize).filter(|span| span.len() == first.len as usize)
}

/// A chain that waits, as far as one look shows it.
#[derive(Clone, Copy)]
pub struct Ahead<'m> {
    /// Its head.
    pub head: u16,
    /// All of it, if it is one buffer of the right direction; else only [`chain`] can say what it is.
    pub whole: Option<Span<'m>>,
}

/// The next chains of a ring; see [`Cursor::look`].
pub struct Window<'m> {
    begin: u16,
    most: usize,
    chains: ArrayVec<Ahead<'m>, BATCH_FRAMES>,
}

impl Window<'_> {
    /// Sees nothing yet, and never more than `most` chains.
    #[inline]
    #[must_use]
    pub fn new(most: usize) -> Self {
        Window { begin: 0, most: most.min(BATCH_FRAMES), chains: ArrayVec::new() }
    }
}

/// Where the device is in a ring.
pub struct Cursor {
    /// The next chain to take.
    pub next: u16,
    /// How far the driver was when it was asked last.
    seen: u16,
    /// The next used entry to write; everything before `published` is the driver's.
    used: u16,
    published: u16,
    /// What was last written to ask for kicks, or to be spared them.
    kick_at: Option<u16>,
    kicks_off: bool,
    /// Chains that an earlier switch took and never returned; they come first, the first `resumed` have been taken.
    left: Vec<u16>,
    resumed: usize,
    /// The ring has not been looked at since it was started: see [`find_place`](Cursor::find_place).
    unseen: bool,
}

/// Where a cursor was.
#[derive(Clone, Copy)]
pub struct Position {
    next: u16,
    resumed: usize,
}

/// A ring that may be used.
pub struct Running {
    /// Where it lies.
    pub memory: RingMemory,
    /// Where the device is.
    pub cursor: Cursor,
    /// What was negotiated.
    pub features: Features,
    /// How the guest is interrupted; `None`: it polls.
    pub call: Option<Arc<File>>,
    /// Where writes to the guest's memory are logged, while it is migrated.
    pub log: Option<RingLog>,
    /// Where taken chains are kept for the next switch.
    pub inflight: Option<Inflight>,
    /// How often a mapping had been cut off when this ring's was found to be whole.
    whole_at: Option<usize>,
}

/// What a ring is started with.
pub struct Start {
    /// Where it lies.
    pub memory: RingMemory,
    /// The next chain; the inflight area knows better, if there is one.
    pub next: u16,
    /// What was negotiated.
    pub features: Features,
    /// See [`Running::call`].
    pub call: Option<Arc<File>>,
    /// See [`Running::log`].
    pub log: Option<RingLog>,
    /// See [`Running::inflight`].
    pub inflight: Option<Inflight>,
}

impl Running {
    /// Starts a ring, with kicks on: a ring that has not been served yet is not polled.
    #[must_use]
    pub fn start(start: Start) -> Running {
        let Start { memory, mut next, features, call, log, mut inflight } = start;
        let used = memory.used_index();
        let mut left = Vec::new();
        if let Some(inflight) = &mut inflight {
            left = inflight.recover(used);
            next = used.wrapping_add(left.len() as u16);
        }
        let cursor = Cursor {
            next,
            seen: next,
            used,
            published: used,
            kick_at: None,
            kicks_off: true,
            left,
            resumed: 0,
            unseen: true,
        };
        let mut running = Running { memory, cursor, features, call, log, inflight, whole_at: None };
        running.arm();
        running
    }

    /// Asks for a kick at the next chain; true if there is one already.
    pub fn arm(&mut self) -> bool {
        let cursor = &mut self.cursor;
        if self.features.has(features::EVENT_IDX) {
            if cursor.kick_at != Some(cursor.next) {
                self.memory.set_available_event(cursor.next);
                cursor.kick_at = Some(cursor.next);
                if let Some(log) = &self.log {
                    let at = USED_HEADER_BYTES + USED_ENTRY_BYTES * usize::from(self.memory.size());
                    log.wrote_used(at, AVAILABLE_EVENT_BYTES);
                }
            }
        } else if cursor.kicks_off {
            self.set_kicks_off(false);
        }
        // The driver reads what we wrote after it wrote its index, or we see that index here.
        fence(Ordering::SeqCst);
        self.waits()
    }

    fn set_kicks_off(&mut self, off: bool) {
        self.memory.set_kicks_off(off);
        self.cursor.kicks_off = off;
        if let Some(log) = &self.log {
            log.wrote_used(0, USED_HEADER_BYTES);
        }
    }

    /// Whether memory of this ring was cut off since it was asked last.
    #[inline]
    pub fn lost_memory(&mut self) -> bool {
        let hits = mapping::hits();
        if self.whole_at == Some(hits) {
            return false;
        }
        let dead = self.memory.memory().is_dead()
            || self.log.as_ref().is_some_and(RingLog::is_dead)
            || self.inflight.as_ref().is_some_and(Inflight::is_dead);
        if !dead {
            self.whole_at = Some(hits);
        }
        dead
    }

    /// Whether a chain is there to be taken.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.memory.available_index() != self.cursor.next || self.cursor.resumed < self.cursor.left.len()
    }

    /// No kicks while the ring is polled. With `EVENT_IDX` a kick comes once per request anyway.
    pub fn disarm(&mut self) {
        if !self.features.has(features::EVENT_IDX) && !self.cursor.kicks_off {
            self.set_kicks_off(true);
        }
    }

    /// Makes the returned chains the driver's, and interrupts it if it wants that.
    ///
    /// # Errors
    /// That made the switch wait.
    pub fn publish(&mut self) -> Result<(), Fault> {
        let (old, new) = (self.cursor.published, self.cursor.used);
        if old == new {
            return Ok(());
        }
        self.memory.publish_used(new);
        self.cursor.published = new;
        if let Some(inflight) = &mut self.inflight {
            inflight.returned(new.wrapping_sub(old), new);
        }
        if let Some(log) = &self.log {
            for index in 0..new.wrapping_sub(old) {
                let slot = usize::from(old.wrapping_add(index) & (self.memory.size() - 1));
                log.wrote_used(USED_HEADER_BYTES + USED_ENTRY_BYTES * slot, USED_ENTRY_BYTES);
            }
            log.wrote_used(0, USED_HEADER_BYTES);
        }
        // The driver writes used_event and then reads the index; we the other way round: one of us sees the other.
        fence(Ordering::SeqCst);
        let wanted = if self.features.has(features::EVENT_IDX) {
            let event = self.memory.used_event();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            !self.memory.interrupts_off()
        };
        match &self.call {
            Some(descriptor) if wanted && !call(descriptor) => Err(Fault::Call),
            _ => Ok(()),
        }
    }
}

impl Cursor {
    /// Asks the driver how far it is; how many chains wait.
    #[inline]
    fn see(&mut self, memory: &RingMemory) -> Result<u16, Fault> {
        let seen = memory.available_index();
        if self.unseen {
            self.find_place(memory, seen);
        }
        let waiting = seen.wrapping_sub(self.next);
        if waiting > memory.size() {
            return Err(Fault::Index);
        }
        self.seen = seen;
        Ok(waiting)
    }

    /// Goes on where the last device stopped if the driver said something else, as DPDK's does after its device was restarted: it names
    /// the beginning of a ring that is in use. Chains before the used index have been returned; whoever takes them again returns them twice.
    ///
    /// At the first look and not at the start, because a guest that is migrated has its ring started before its memory is there.
    #[cold]
    fn find_place(&mut self, memory: &RingMemory, seen: u16) {
        let used = memory.used_index();
        if seen == 0 && used == 0 {
            // A new ring, or one whose memory is still to come.
            return;
        }
        self.unseen = false;
        let open = seen.wrapping_sub(used);
        if used == self.used && open <= memory.size() && seen.wrapping_sub(self.next) > open {
            self.next = used;
        }
    }

    /// Looks at the chains that wait, as many as the window is for, and has all that is needed of them fetched into the cache: it was last in
    /// that of the driver's processor, and to wait for one line after the other would cost more than all the rest.
    #[inline]
    pub fn look<'m>(&mut self, memory: &'m RingMemory, writable: bool, window: &mut Window<'m>) -> Result<(), Fault> {
        window.begin = self.next;
        if self.resumed < self.left.len() {
            return Ok(());
        }
        let mut waiting = usize::from(self.seen.wrapping_sub(self.next));
        if waiting < window.most {
            waiting = usize::from(self.see(memory)?);
            window.begin = self.next;
        }
        let count = waiting.min(window.most) as u16;
        for ahead in 0..count {
            memory.fetch_descriptor(memory.available_entry(self.next.wrapping_add(ahead)));
        }
        memory.fetch_used(self.used, usize::from(count));
        for ahead in 0..count {
            let head = memory.available_entry(self.next.wrapping_add(ahead));
            let whole = memory.descriptor(head).and_then(|first| single(memory.memory(), first, writable));
            if let Some(span) = &whole {
                if writable { span.fetch_to_write() } else { span.fetch() }
            }
            window.chains.push(Ahead { head, whole });
        }
        Ok(())
    }

    /// Takes the chain that a window shows next, if it does; as [`pop`](Self::pop).
    #[inline]
    pub fn pop_seen<'m>(&mut self, window: &Window<'m>) -> Option<Ahead<'m>> {
        let ahead = *window.chains.get(usize::from(self.next.wrapping_sub(window.begin)))?;
        self.next = self.next.wrapping_add(1);
        Some(ahead)
    }

    /// Takes the next chain, if there is one; returns its head.
    #[inline]
    pub fn pop(&mut self, memory: &RingMemory) -> Result<Option<u16>, Fault> {
        if self.next == self.seen {
            if let Some(head) = self.left.get(self.resumed) {
                self.resumed += 1;
                return Ok(Some(*head));
            }
            if self.see(memory)? == 0 {
                return Ok(None);
            }
        }
        let head = memory.available_entry(self.next);
        self.next = self.next.wrapping_add(1);
        Ok(Some(head))
    }

    /// Where the cursor is.
    #[inline]
    #[must_use]
    pub fn position(&self) -> Position {
        Position { next: self.next, resumed: self.resumed }
    }

    /// Gives chains back as if they had never been taken.
    #[inline]
    pub fn rewind(&mut self, to: Position) {
        self.next = to.next;
        self.resumed = to.resumed;
    }

    /// Returns a chain; the driver gets it with [`Running::publish`].
    #[inline]
    pub fn push_used(&mut self, memory: &RingMemory, head: u16, written: u32) {
        memory.set_used(self.used, head, written);
        self.used = self.used.wrapping_add(1);
    }
}

/// A ring as worker and control thread share it.
#[derive(Default)]
pub struct Ring {
    /// `None`: stopped, disabled, not set up yet, or broken.
    pub running: Option<Running>,
    /// Why it broke.
    pub fault: Option<Fault>,
}

impl Ring {
    /// Stops a ring whose driver cannot be trusted any more.
    pub fn fail(&mut self, fault: Fault) {
        self.running = None;
        self.fault = Some(fault);
    }
}
