//! Two drivers without a switch between them: a device that moves what the one sends into what the other receives, and
//! does nothing else. What generator and sink reach over it is the most that they reach over any switch.

use std::{os::unix::net::UnixStream, sync::atomic::Ordering};

use anyhow::{Context, ensure};
use switch_core::{frame::offload::VNET_HDR_BYTES, port::vhost_user::features};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{FrontEnd, Options, driver::Ring};

/// The used ring's flag that asks for no kicks: the device looks by itself (virtio 1.3 §2.7.10).
const NO_NOTIFY: u16 = 1;
const NEXT: u16 = 1;

/// The device's side of one ring. Trusts the driver, which is ours.
struct Side {
    memory: GuestMemoryMmap,
    descriptors: u64,
    available: u64,
    used: u64,
    size: u16,
    /// Position in both rings: chains are used in order.
    at: u16,
}

impl Side {
    fn new(front: &FrontEnd, ring: &Ring) -> anyhow::Result<Side> {
        let memory = front.memory.clone();
        memory.store(NO_NOTIFY, GuestAddress(ring.used), Ordering::Release)?;
        let Ring { descriptors, available, used, size, .. } = *ring;
        Ok(Side { memory, descriptors, available, used, size, at: 0 })
    }

    fn waiting(&self) -> anyhow::Result<u16> {
        let next: u16 = self.memory.load(GuestAddress(self.available + 2), Ordering::Acquire)?;
        Ok(next.wrapping_sub(self.at))
    }

    /// The head of the chain `offset` after the next one.
    fn head(&self, offset: u16) -> anyhow::Result<u16> {
        let slot = u64::from(self.at.wrapping_add(offset) % self.size);
        Ok(self.memory.load(GuestAddress(self.available + 4 + 2 * slot), Ordering::Relaxed)?)
    }

    /// A descriptor: address, length, flags and the next one.
    fn descriptor(&self, index: u16) -> anyhow::Result<(u64, usize, u16, u16)> {
        let mut bytes = [0; 16];
        self.memory.read_slice(&mut bytes, GuestAddress(self.descriptors + 16 * u64::from(index)))?;
        let (addr, rest) = bytes.split_first_chunk::<8>().context("16 bytes")?;
        let len = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let half = |at: usize| u16::from_le_bytes([rest[at], rest[at + 1]]);
        Ok((u64::from_le_bytes(*addr), len, half(4), half(6)))
    }

    /// Returns the next chain; the driver sees it once [`publish`](Self::publish) was called.
    fn give_back(&mut self, head: u16, len: usize) -> anyhow::Result<()> {
        let entry = GuestAddress(self.used + 4 + 8 * u64::from(self.at % self.size));
        self.memory.store(u32::from(head), entry, Ordering::Relaxed)?;
        self.memory.store(len as u32, GuestAddress(entry.0 + 4), Ordering::Relaxed)?;
        self.at = self.at.wrapping_add(1);
        Ok(())
    }

    fn publish(&self) -> anyhow::Result<()> {
        Ok(self.memory.store(self.at, GuestAddress(self.used + 2), Ordering::Release)?)
    }
}

/// See the module page. Whoever receives turns it.
pub struct Looped {
    from: Side,
    to: Side,
    frame: Vec<u8>,
}

impl Looped {
    /// Two drivers with one pair of queues each, and the way from the first to the second.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> anyhow::Result<(FrontEnd, FrontEnd, Looped)> {
        let front = || -> anyhow::Result<FrontEnd> {
            // Nobody speaks over it.
            let (stream, _) = UnixStream::pair()?;
            let mut front = FrontEnd::lay(stream, Options { queues: 1, size: 1024, ..Options::default() })?;
            front.features = features::VERSION_1 | features::MRG_RXBUF;
            Ok(front)
        };
        let (from, to) = (front()?, front()?);
        let looped =
            Looped { from: Side::new(&from, &from.rings[1])?, to: Side::new(&to, &to.rings[0])?, frame: Vec::new() };
        Ok((from, to, looped))
    }

    /// Moves frames as long as there are some, and room for them; returns how many.
    ///
    /// # Errors
    /// A descriptor points nowhere.
    pub fn turn(&mut self) -> anyhow::Result<usize> {
        let mut moved = 0;
        while self.from.waiting()? > 0 {
            self.frame.clear();
            let head = self.from.head(0)?;
            let mut index = head;
            loop {
                let (addr, len, flags, next) = self.from.descriptor(index)?;
                let begin = self.frame.len();
                self.frame.resize(begin + len, 0);
                self.from.memory.read_slice(&mut self.frame[begin..], GuestAddress(addr))?;
                if flags & NEXT == 0 {
                    break;
                }
                index = next;
            }
            if !self.put()? {
                break;
            }
            self.from.give_back(head, 0)?;
            moved += 1;
        }
        if moved > 0 {
            self.to.publish()?;
            self.from.publish()?;
        }
        Ok(moved)
    }

    /// Spreads the frame over receive buffers; false if they do not suffice.
    fn put(&mut self) -> anyhow::Result<bool> {
        ensure!(self.frame.len() > VNET_HDR_BYTES, "a frame of {} bytes with its header", self.frame.len());
        let waiting = self.to.waiting()?;
        let (mut room, mut count) = (0, 0);
        while room < self.frame.len() {
            if count == waiting {
                return Ok(false);
            }
            room += self.to.descriptor(self.to.head(count)?)?.1;
            count += 1;
        }
        self.frame[10..12].copy_from_slice(&count.to_le_bytes());
        let mut at = 0;
        for _ in 0..count {
            let head = self.to.head(0)?;
            let (addr, len, ..) = self.to.descriptor(head)?;
            let part = len.min(self.frame.len() - at);
            self.to.memory.write_slice(&self.frame[at..at + part], GuestAddress(addr))?;
            at += part;
            self.to.give_back(head, part)?;
        }
        Ok(true)
    }
}
