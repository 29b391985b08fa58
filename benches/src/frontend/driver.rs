//! The driver in the guest: its side of the split ring.

use std::{
    os::fd::AsRawFd,
    sync::atomic::{Ordering, fence},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use switch_core::{
    frame::offload::{Offload, VNET_HDR_BYTES},
    port::{mem::MemFrame, vhost_user::features},
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_NONBLOCK, EventFd},
};

use super::{FrontEnd, TX_BUFFER, align};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Descriptors in one frame's table: a 64 KiB frame needs 17.
const TABLE: u64 = 20;

/// The driver's side of one ring.
pub(super) struct Ring {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub buffers: u64,
    pub buffer_bytes: u64,
    pub tables: u64,
    pub kick: EventFd,
    pub call: EventFd,
    /// Waits for `call`.
    pub called: Epoll,
    pub next_available: u16,
    pub kicked: u16,
    pub last_used: u16,
    /// Where the device begins.
    pub base: u16,
    pub free: Vec<u16>,
    /// Which descriptors a chain uses, by head.
    pub chains: Vec<Vec<u16>>,
}

/// A descriptor to be interrupted with, and what waits for it.
fn interrupts() -> anyhow::Result<(EventFd, Epoll)> {
    let call = EventFd::new(EFD_NONBLOCK)?;
    let called = Epoll::new()?;
    called.ctl(ControlOperation::Add, call.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
    Ok((call, called))
}

impl Ring {
    /// Has no interrupt yet by its new descriptor.
    pub(super) fn exchange_call(&mut self) -> anyhow::Result<()> {
        (self.call, self.called) = interrupts()?;
        Ok(())
    }

    /// Lays a ring out at `at`; returns where it ends.
    pub(super) fn lay(at: u64, size: u16) -> anyhow::Result<(Ring, u64)> {
        let n = u64::from(size);
        let available = at + 16 * n;
        let used = align(available + 6 + 2 * n);
        let tables = align(used + 6 + 8 * n);
        let (call, called) = interrupts()?;
        let ring = Ring {
            size,
            descriptors: at,
            available,
            used,
            buffers: 0,
            buffer_bytes: 0,
            tables,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call,
            called,
            next_available: 0,
            kicked: 0,
            last_used: 0,
            base: 0,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
        };
        Ok((ring, align(tables + 16 * TABLE * n)))
    }

    pub(super) fn buffer(&self, index: u16) -> GuestAddress {
        GuestAddress(self.buffers + u64::from(index) * self.buffer_bytes)
    }
}

impl FrontEnd {
    fn descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) -> anyhow::Result<()> {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&next.to_le_bytes());
        Ok(self.memory.write_slice(&bytes, GuestAddress(table + 16 * u64::from(index)))?)
    }

    fn make_available(&mut self, index: usize, head: u16) -> anyhow::Result<()> {
        let ring = &mut self.rings[index];
        let slot = u64::from(ring.next_available % ring.size);
        self.memory.store(head, GuestAddress(ring.available + 4 + 2 * slot), Ordering::Relaxed)?;
        ring.next_available = ring.next_available.wrapping_add(1);
        Ok(())
    }

    /// Publishes what was made available, and kicks if the device asked for that.
    fn publish(&mut self, index: usize) -> anyhow::Result<()> {
        let ring = &mut self.rings[index];
        let (old, new) = (ring.kicked, ring.next_available);
        if old == new {
            return Ok(());
        }
        self.memory.store(new, GuestAddress(ring.available + 2), Ordering::Release)?;
        ring.kicked = new;
        fence(Ordering::SeqCst);
        let wanted = if self.features & features::EVENT_IDX != 0 {
            let at = GuestAddress(ring.used + 4 + 8 * u64::from(ring.size));
            let event: u16 = self.memory.load(at, Ordering::Relaxed)?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags: u16 = self.memory.load(GuestAddress(ring.used), Ordering::Relaxed)?;
            flags & 1 == 0
        };
        if wanted {
            ring.kick.write(1)?;
        }
        Ok(())
    }

    /// Posts all receive buffers that are free.
    pub(super) fn fill(&mut self, index: usize) -> anyhow::Result<()> {
        while let Some(id) = self.rings[index].free.pop() {
            let ring = &self.rings[index];
            self.descriptor(ring.descriptors, id, ring.buffer(id).0, ring.buffer_bytes as u32, WRITE, 0)?;
            self.rings[index].chains[usize::from(id)] = vec![id];
            self.make_available(index, id)?;
        }
        self.publish_quietly(index)
    }

    /// Before the ring is started there is nobody to kick.
    fn publish_quietly(&mut self, index: usize) -> anyhow::Result<()> {
        let ring = &mut self.rings[index];
        ring.kicked = ring.next_available;
        Ok(self.memory.store(ring.next_available, GuestAddress(ring.available + 2), Ordering::Release)?)
    }

    /// Used entries of a ring that were not taken yet.
    fn used(&self, index: usize) -> anyhow::Result<u16> {
        let ring = &self.rings[index];
        let used: u16 = self.memory.load(GuestAddress(ring.used + 2), Ordering::Acquire)?;
        let new = used.wrapping_sub(ring.last_used);
        ensure!(new <= ring.size, "the device used {new} chains of a ring of {}", ring.size);
        Ok(new)
    }

    fn take_used(&mut self, index: usize) -> anyhow::Result<(u16, u32)> {
        let ring = &mut self.rings[index];
        let at = ring.used + 4 + 8 * u64::from(ring.last_used % ring.size);
        ring.last_used = ring.last_used.wrapping_add(1);
        let id: u32 = self.memory.load(GuestAddress(at), Ordering::Relaxed)?;
        let len: u32 = self.memory.load(GuestAddress(at + 4), Ordering::Relaxed)?;
        ensure!(id < u32::from(ring.size), "the device returned chain {id}");
        Ok((id as u16, len))
    }

    fn reclaim(&mut self, index: usize) -> anyhow::Result<()> {
        for _ in 0..self.used(index)? {
            let (head, _) = self.take_used(index)?;
            let ring = &mut self.rings[index];
            let chain = std::mem::take(&mut ring.chains[usize::from(head)]);
            ensure!(!chain.is_empty(), "the device returned chain {head} twice");
            ring.free.extend(chain);
        }
        Ok(())
    }

    /// Drivers from before virtio 1.0 without mergeable buffers have no `num_buffers` in the header.
    fn header_bytes(&self) -> usize {
        if self.features & (features::MRG_RXBUF | features::VERSION_1) != 0 { VNET_HDR_BYTES } else { 10 }
    }

    /// Transmits frames by a queue pair as far as there is room; returns how many.
    ///
    /// # Errors
    /// The device broke the ring's rules.
    pub fn send(&mut self, pair: usize, frames: &[MemFrame]) -> anyhow::Result<usize> {
        let mut wire = Vec::with_capacity(frames.len());
        for frame in frames {
            let mut bytes = vec![0; VNET_HDR_BYTES];
            frame.offload.encode(bytes.as_mut_slice().try_into().context("a header has 12 bytes")?);
            bytes.extend_from_slice(&frame.bytes);
            wire.push(bytes);
        }
        self.send_behind(pair, &wire)
    }

    /// As [`send`](Self::send), of frames behind virtio-net headers of 12 bytes.
    ///
    /// # Errors
    /// The device broke the ring's rules.
    pub fn send_behind(&mut self, pair: usize, frames: &[Vec<u8>]) -> anyhow::Result<usize> {
        let index = 2 * pair + 1;
        self.reclaim(index)?;
        let short = self.header_bytes() < VNET_HDR_BYTES;
        let mut sent = 0;
        for frame in frames {
            let shortened = short.then(|| [&frame[..self.header_bytes()], &frame[VNET_HDR_BYTES..]].concat());
            let bytes = shortened.as_deref().unwrap_or(frame);
            let mut parts = [&[][..]; TABLE as usize];
            let mut count = 0;
            for part in bytes.chunks(TX_BUFFER as usize) {
                *parts.get_mut(count).context("a frame of more parts than a table has room for")? = part;
                count += 1;
            }
            if self.rings[index].free.len() < count {
                break;
            }
            self.send_parts(index, &parts[..count])?;
            sent += 1;
        }
        self.publish(index)?;
        Ok(sent)
    }

    fn send_parts(&mut self, index: usize, parts: &[&[u8]]) -> anyhow::Result<()> {
        let ring = &mut self.rings[index];
        let ids = ring.free.split_off(ring.free.len() - parts.len());
        let head = ids[0];
        let ring = &self.rings[index];
        for (id, part) in ids.iter().zip(parts) {
            self.memory.write_slice(part, ring.buffer(*id))?;
        }
        let indirect = self.features & features::INDIRECT_DESC != 0 && parts.len() > 1;
        let table = if indirect { ring.tables + u64::from(head) * 16 * TABLE } else { ring.descriptors };
        for (k, (id, part)) in ids.iter().zip(parts).enumerate() {
            let at = if indirect { k as u16 } else { *id };
            let (flags, next) = match ids.get(k + 1) {
                Some(_) if indirect => (NEXT, k as u16 + 1),
                Some(next) => (NEXT, *next),
                None => (0, 0),
            };
            self.descriptor(table, at, ring.buffer(*id).0, part.len() as u32, flags, next)?;
        }
        if indirect {
            self.descriptor(ring.descriptors, head, table, 16 * parts.len() as u32, INDIRECT, 0)?;
        }
        self.rings[index].chains[usize::from(head)] = ids;
        self.make_available(index, head)
    }

    /// Transmits all frames, however long that takes (at most `patience`).
    ///
    /// # Errors
    /// The device broke the ring's rules, or does not take the frames.
    pub fn send_all(&mut self, pair: usize, frames: &[MemFrame], patience: Duration) -> anyhow::Result<()> {
        let begin = Instant::now();
        let mut sent = 0;
        while sent < frames.len() {
            sent += self.send(pair, &frames[sent..])?;
            if begin.elapsed() > patience {
                bail!("the device took {sent} of {} frames", frames.len());
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Transmits every frame that the device has returned once more, as it lies there; returns how many. So a driver costs
    /// next to nothing beside the device.
    ///
    /// # Errors
    /// The device broke the ring's rules.
    pub fn send_again(&mut self, pair: usize) -> anyhow::Result<usize> {
        let index = 2 * pair + 1;
        let returned = self.used(index)?;
        for _ in 0..returned {
            let (head, _) = self.take_used(index)?;
            self.make_available(index, head)?;
        }
        self.publish(index)?;
        Ok(usize::from(returned))
    }

    /// Takes what has been received by a queue pair without looking at it, and posts the buffers again; returns the bytes,
    /// headers included.
    ///
    /// # Errors
    /// The device broke the ring's rules.
    pub fn discard(&mut self, pair: usize) -> anyhow::Result<u64> {
        let index = 2 * pair;
        let mut bytes = 0;
        for _ in 0..self.used(index)? {
            let (id, len) = self.take_used(index)?;
            bytes += u64::from(len);
            self.make_available(index, id)?;
        }
        self.publish(index)?;
        Ok(bytes)
    }

    /// Frames that the device has not returned yet.
    ///
    /// # Errors
    /// The device broke the ring's rules.
    pub fn in_flight(&mut self, pair: usize) -> anyhow::Result<usize> {
        let index = 2 * pair + 1;
        self.reclaim(index)?;
        Ok(usize::from(self.options.size) - self.rings[index].free.len())
    }

    /// Asks for an interrupt for the next chain that a ring of a pair gets back.
    ///
    /// # Errors
    /// The device broke the ring's rules.
    pub fn want_interrupts(&mut self, pair: usize) -> anyhow::Result<()> {
        self.reclaim(2 * pair + 1)?;
        for ring in &self.rings[2 * pair..2 * pair + 2] {
            let at = GuestAddress(ring.available + 4 + 2 * u64::from(ring.size));
            self.memory.store(ring.last_used, at, Ordering::SeqCst)?;
        }
        Ok(())
    }

    /// Whether something has been received by a queue pair.
    ///
    /// # Errors
    /// The device broke the ring's rules.
    pub fn ready(&self, pair: usize) -> anyhow::Result<bool> {
        Ok(self.used(2 * pair)? > 0)
    }

    /// Takes what has been received by a queue pair, and posts the buffers again.
    ///
    /// # Errors
    /// The device broke the ring's rules.
    pub fn receive(&mut self, pair: usize) -> anyhow::Result<Vec<MemFrame>> {
        let mut frames = Vec::new();
        self.receive_each(pair, |header, frame| {
            frames.push(MemFrame { bytes: frame.to_vec(), offload: Offload::decode(header)? });
            Ok(())
        })?;
        Ok(frames)
    }

    /// As [`receive`](Self::receive), but shows each frame, with its virtio-net header, to `look`; returns how many there
    /// were. Makes nothing anew per frame.
    ///
    /// # Errors
    /// The device broke the ring's rules, or `look` failed.
    pub fn receive_each(
        &mut self,
        pair: usize,
        mut look: impl FnMut(&[u8; VNET_HDR_BYTES], &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<usize> {
        let index = 2 * pair;
        let mut bytes = std::mem::take(&mut self.scratch);
        let mut count = 0;
        let mut ready = self.used(index)?;
        while ready > 0 {
            bytes.clear();
            let buffers = self.receive_one(index, &mut bytes)?;
            ensure!(buffers <= ready, "{ready} of a frame's {buffers} buffers were published");
            ready -= buffers;
            let (wire, frame) = bytes.split_at(self.header_bytes());
            let mut header = [0; VNET_HDR_BYTES];
            header[..wire.len()].copy_from_slice(wire);
            look(&header, frame)?;
            count += 1;
        }
        self.scratch = bytes;
        self.publish(index)?;
        Ok(count)
    }

    /// Appends one frame with its header; returns how many buffers it was in.
    fn receive_one(&mut self, index: usize, all: &mut Vec<u8>) -> anyhow::Result<u16> {
        let mut buffers = 1;
        let mut k = 0;
        while k < buffers {
            let (id, len) = self.take_used(index)?;
            ensure!(u64::from(len) <= self.options.rx_buffer, "{len} bytes in a buffer of {}", self.options.rx_buffer);
            ensure!(!self.rings[index].chains[usize::from(id)].is_empty(), "the device returned buffer {id} twice");
            let begin = all.len();
            all.resize(begin + len as usize, 0);
            self.memory.read_slice(&mut all[begin..], self.rings[index].buffer(id))?;
            if k == 0 {
                ensure!(all.len() >= self.header_bytes(), "a frame without a header");
                if self.header_bytes() == VNET_HDR_BYTES {
                    buffers = u16::from_le_bytes([all[10], all[11]]);
                }
                let spread = self.features & features::MRG_RXBUF != 0;
                ensure!(buffers == 1 || spread && buffers > 1, "num_buffers is {buffers}");
            }
            self.make_available(index, id)?;
            k += 1;
        }
        Ok(buffers)
    }

    /// Waits for an interrupt of a pair's receive ring, asked for as a driver does before it goes idle; false: none came.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub fn wait(&mut self, pair: usize, patience: Duration) -> anyhow::Result<bool> {
        let index = 2 * pair;
        let ring = &self.rings[index];
        // Interrupts for what has been seen already.
        let _ = ring.call.read();
        if self.features & features::EVENT_IDX != 0 {
            let at = GuestAddress(ring.available + 4 + 2 * u64::from(ring.size));
            self.memory.store(ring.last_used, at, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        if self.used(index)? > 0 {
            return Ok(true);
        }
        self.interrupted(pair, patience)
    }

    /// Waits for an interrupt of a receive ring, without a look at the ring; false after so long.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub fn interrupted(&self, pair: usize, patience: Duration) -> anyhow::Result<bool> {
        let ring = &self.rings[2 * pair];
        let timeout = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        let called = ring.called.wait(timeout, &mut [EpollEvent::default()])? > 0;
        if called {
            // It has been rung: the value says nothing more.
            let _ = ring.call.read();
        }
        Ok(called)
    }

    /// Frames until `done` says that it is enough, or nothing more comes within `patience`.
    ///
    /// # Errors
    /// The device broke the ring's rules.
    pub fn receive_until(
        &mut self,
        pair: usize,
        patience: Duration,
        mut done: impl FnMut(&[MemFrame]) -> bool,
    ) -> anyhow::Result<Vec<MemFrame>> {
        let mut all = self.receive(pair)?;
        while !done(&all) {
            if !self.wait(pair, patience)? {
                break;
            }
            all.extend(self.receive(pair)?);
        }
        Ok(all)
    }

    /// Kicks a pair's transmit ring, whatever is in it. Touches no memory.
    ///
    /// # Errors
    /// The descriptor is gone.
    pub fn kick(&self, pair: usize) -> anyhow::Result<()> {
        Ok(self.rings[2 * pair + 1].kick.write(1)?)
    }

    /// Pretends to have made more available than the ring holds, which no driver may.
    ///
    /// # Errors
    /// The memory is not there.
    pub fn break_ring(&mut self, pair: usize) -> anyhow::Result<()> {
        let ring = &self.rings[2 * pair + 1];
        let jump = ring.next_available.wrapping_add(ring.size + 1);
        self.memory.store(jump, GuestAddress(ring.available + 2), Ordering::Release)?;
        Ok(ring.kick.write(1)?)
    }
}
