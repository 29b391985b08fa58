//! One AF_XDP socket for one queue of a device, and its two halves.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::{
    CHUNK_BYTES, RX_CHUNKS, TX_CHUNKS, checked,
    ring::{Consumer, Mapped, Offsets, Producer},
    umem::{Place, Umem, sent_address, sent_chunk},
};
use crate::{egress::OutFrame, frame::checksum::Sum};

/// Frames that the kernel sends in one call (`TX_BATCH_SIZE`).
const KERNEL_BATCH: u32 = 32;
/// Bytes that may be on their way: more than all chunks, so that chunks alone are the limit.
const SEND_BUFFER_BYTES: libc::c_int = 32 << 20;

/// The socket itself, which both halves and the control side have.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// The kernel did not take all frames of the transmit ring when it was last called.
    stalled: AtomicBool,
    // Declared last: the descriptor is closed before the memory is unmapped.
    umem: Umem,
}

/// What became of one frame given to [`Sender::queue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    /// It is in the ring.
    Yes,
    /// No chunk is free.
    Full,
    /// It is longer than a chunk.
    TooLong,
    /// What is owed on it does not fit it.
    Refused,
}

/// What the kernel made of the transmit ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Frames that the device had no room for: they are lost.
    pub lost: u32,
    /// The device is down or away; what is in the ring stays there.
    pub down: bool,
}

impl Socket {
    /// The descriptor, readable when frames have come.
    #[must_use]
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn call(&self) -> io::Result<()> {
        // SAFETY: no bytes are sent and no address is given: the call only has the kernel look at the transmit ring.
        let n =
            unsafe { libc::sendto(self.fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Has the kernel look at the transmit ring again if it left frames there. Cheap; any thread.
    pub fn nudge(&self) {
        if self.stalled.swap(false, Relaxed) && self.call().is_err() {
            self.stalled.store(true, Relaxed);
        }
    }

    /// Frames that were lost because they were longer than a chunk or found none, and descriptors that the kernel found
    /// wrong, both since the socket was opened.
    fn statistics(&self) -> (u64, u64) {
        // SAFETY: all-zero bytes are a valid xdp_statistics.
        let mut stats: libc::xdp_statistics = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: the kernel writes one xdp_statistics at most.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        if result < 0 {
            return (0, 0);
        }
        (stats.rx_dropped + stats.rx_ring_full, stats.rx_invalid_descs)
    }

    fn set<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        set(&self.fd, libc::SOL_XDP, option, value)
    }

    /// Where the parts of the rings lie.
    fn offsets(&self) -> io::Result<libc::xdp_mmap_offsets> {
        // SAFETY: all-zero bytes are valid xdp_mmap_offsets.
        let mut at: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&at) as libc::socklen_t;
        let (fd, into) = (self.fd.as_raw_fd(), &raw mut at);
        // SAFETY: the kernel writes one xdp_mmap_offsets at most.
        checked(unsafe { libc::getsockopt(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, into.cast(), &raw mut len) })?;
        if len as usize == size_of_val(&at) {
            Ok(at)
        } else {
            // Rings without flags: before Linux 5.4, which has no links for XDP either.
            Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
        }
    }

    fn map(
        &self,
        entries: usize,
        entry_bytes: usize,
        at: &libc::xdp_ring_offset,
        page: u64,
    ) -> io::Result<(Mapped, Offsets)> {
        let bytes = at.desc as usize + entries * entry_bytes;
        let memory = Mapped::new(bytes, Some((self.fd.as_raw_fd(), page.cast_signed())))?;
        Ok((memory, Offsets { producer: at.producer, consumer: at.consumer, flags: at.flags, entries: at.desc }))
    }
}

fn set<T>(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads at most the size of the borrowed value; all callers pass plain C structs or ints.
    checked(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const *value).cast(), size_of::<T>() as u32)
    })
    .map(drop)
}

/// A socket with its memory and rings, for no device yet.
#[derive(Debug)]
pub struct Unbound {
    receiver: Receiver,
    sender: Sender,
}

impl Unbound {
    /// Opens a socket of the calling thread's namespace, to be bound to a device of it.
    ///
    /// # Errors
    /// `EAFNOSUPPORT`: the kernel has no AF_XDP. `ENOBUFS`: more memory than may be locked.
    pub fn new() -> io::Result<Unbound> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: a plain system call; the result is checked and owned at once.
        let fd = unsafe { OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_XDP, kind, 0))?) };
        let socket = Socket { fd, stalled: AtomicBool::new(false), umem: Umem::new()? };
        let range = socket.umem.range();
        // SAFETY: all-zero bytes are a valid xdp_umem_reg.
        let mut region: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
        region.addr = range.start;
        region.len = range.end - range.start;
        region.chunk_size = CHUNK_BYTES as u32;
        // The kernel pins the pages and keeps them as long as it has the socket; they stay mapped as long as a half lives.
        socket.set(libc::XDP_UMEM_REG, &region)?;
        // Without the right to go beyond the system's limit, that limit is what there is.
        let _ = set(&socket.fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER_BYTES);
        let (received, sent) = (RX_CHUNKS as libc::c_int, TX_CHUNKS as libc::c_int);
        for (option, size) in [
            (libc::XDP_UMEM_FILL_RING, received),
            (libc::XDP_RX_RING, received),
            (libc::XDP_TX_RING, sent),
            (libc::XDP_UMEM_COMPLETION_RING, sent),
        ] {
            socket.set(option, &size)?;
        }
        let at = socket.offsets()?;
        let frame_bytes = size_of::<libc::xdp_desc>();
        let (memory, offsets) = socket.map(RX_CHUNKS, 8, &at.fr, libc::XDP_UMEM_PGOFF_FILL_RING)?;
        let mut fill = Producer::<u64>::new(memory, offsets, RX_CHUNKS as u32)?;
        let (memory, offsets) = socket.map(RX_CHUNKS, frame_bytes, &at.rx, libc::XDP_PGOFF_RX_RING as u64)?;
        let rx = Consumer::<libc::xdp_desc>::new(memory, offsets, RX_CHUNKS as u32)?;
        let (memory, offsets) = socket.map(TX_CHUNKS, frame_bytes, &at.tx, libc::XDP_PGOFF_TX_RING as u64)?;
        let tx = Producer::<libc::xdp_desc>::new(memory, offsets, TX_CHUNKS as u32)?;
        let (memory, offsets) = socket.map(TX_CHUNKS, 8, &at.cr, libc::XDP_UMEM_PGOFF_COMPLETION_RING)?;
        let completion = Consumer::<u64>::new(memory, offsets, TX_CHUNKS as u32)?;
        for chunk in 0..RX_CHUNKS {
            fill.push((chunk * CHUNK_BYTES) as u64);
        }
        fill.publish();
        let socket = Arc::new(socket);
        let receiver = Receiver { rx, fill, wrong: 0, seen: (0, 0), socket: Arc::clone(&socket) };
        let free = (0..TX_CHUNKS).rev().collect();
        let sender = Sender { tx, completion, free, on_its_way: vec![false; TX_CHUNKS], socket };
        Ok(Unbound { receiver, sender })
    }

    /// Binds it to a queue of the device of this index. It receives nothing before a [`Program`](super::Program)
    /// redirects to it.
    ///
    /// # Errors
    /// `EBUSY`: another socket has the queue; it can be tried again. `EINVAL`: there is no such queue. `ENETDOWN`: the
    /// device is down.
    pub fn bind(&self, index: u32, queue: u16) -> io::Result<()> {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
            sxdp_ifindex: index,
            sxdp_queue_id: queue.into(),
            sxdp_shared_umem_fd: 0,
        };
        let (fd, bytes) = (self.socket().as_raw_fd(), size_of::<libc::sockaddr_xdp>() as u32);
        // SAFETY: the kernel reads one sockaddr_xdp.
        checked(unsafe { libc::bind(fd, (&raw const address).cast(), bytes) }).map(drop)
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Arc<Socket> {
        self.receiver.socket()
    }

    /// Its two halves, once it is bound.
    #[must_use]
    pub fn into_halves(self) -> (Receiver, Sender) {
        (self.receiver, self.sender)
    }
}

/// The receiving half: one worker's.
#[derive(Debug)]
pub struct Receiver {
    rx: Consumer<libc::xdp_desc>,
    fill: Producer<u64>,
    /// Descriptors that lead nowhere.
    wrong: u64,
    /// What the statistics said last.
    seen: (u64, u64),
    socket: Arc<Socket>,
}

impl Receiver {
    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Shows the next frame to `take`; false if none has come. Follow the last one with [`release`](Self::release).
    #[inline]
    pub fn receive(&mut self, take: impl FnOnce(&[u8])) -> bool {
        loop {
            let Some(frame) = self.rx.pop() else { return false };
            let Some(place) = Place::of_received(frame.addr, frame.len) else {
                // No chunk of ours, so there is none to give back.
                self.wrong += 1;
                continue;
            };
            // SAFETY: the chunk has just come by the receive ring and goes to the fill ring below, after `take`.
            take(unsafe { self.socket.umem.received(place) });
            // It has room for all chunks.
            self.fill.push(place.chunk());
            return true;
        }
    }

    /// Gives the chunks of what was received back to the kernel.
    #[inline]
    pub fn release(&mut self) {
        if !self.rx.release() {
            return;
        }
        self.fill.publish();
        if self.fill.wants_call() {
            // SAFETY: no bytes are received: the call only has the driver look at the fill ring.
            unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    std::ptr::null_mut(),
                    0,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                )
            };
        }
    }

    /// Frames that the kernel lost for want of a chunk, or because they are longer than one, since the last call.
    pub fn take_lost(&mut self) -> u64 {
        let (lost, _) = self.socket.statistics();
        lost.saturating_sub(std::mem::replace(&mut self.seen.0, lost))
    }

    /// Descriptors that one side found wrong since the last call.
    pub fn take_errors(&mut self) -> u64 {
        let (_, errors) = self.socket.statistics();
        errors.saturating_sub(std::mem::replace(&mut self.seen.1, errors)) + std::mem::take(&mut self.wrong)
    }
}

/// The sending half: behind a lock, or one thread's.
#[derive(Debug)]
pub struct Sender {
    tx: Producer<libc::xdp_desc>,
    completion: Consumer<u64>,
    /// Chunks that are ours.
    free: Vec<usize>,
    /// Those that are the kernel's.
    on_its_way: Vec<bool>,
    socket: Arc<Socket>,
}

impl Sender {
    /// Takes back the chunks of what has been sent.
    pub fn reap(&mut self) {
        while let Some(address) = self.completion.pop() {
            // A chunk that the kernel does not have cannot come back.
            if let Some(chunk) = sent_chunk(address)
                && std::mem::take(&mut self.on_its_way[chunk])
            {
                self.free.push(chunk);
            }
        }
        self.completion.release();
    }

    /// Copies a frame into a chunk, completes its checksum if that is owed, and writes it into the ring, for
    /// [`push`](Self::push) to send.
    pub fn queue(&mut self, frame: &OutFrame<'_>) -> Queued {
        if frame.len as usize > CHUNK_BYTES {
            return Queued::TooLong;
        }
        let Some(chunk) = self.free.last().copied() else { return Queued::Full };
        // SAFETY: a chunk of the free list is not the kernel's: it was never given, or came back by the completion ring
        // and was taken once for each time it was given. `&mut self` lets nobody else have a slice of it.
        let memory = unsafe { self.socket.umem.to_send(chunk) };
        let Some(len) = frame.copy_to(memory) else { return Queued::TooLong };
        let owed = frame.offload;
        if owed.needs_csum && !complete(&mut memory[..len], owed.csum_start, owed.csum_offset) {
            return Queued::Refused;
        }
        let described = libc::xdp_desc { addr: sent_address(chunk), len: len as u32, options: 0 };
        if !self.tx.push(described) {
            return Queued::Full;
        }
        self.free.pop();
        self.on_its_way[chunk] = true;
        Queued::Yes
    }

    /// Has the kernel send what is in the ring, in a bounded number of calls. What it leaves there goes with the next
    /// frames, or with a [`nudge`](Socket::nudge).
    pub fn push(&mut self) -> Pushed {
        self.tx.publish();
        let mut pushed = Pushed::default();
        if !self.tx.wants_call() {
            return pushed;
        }
        let mut calls = self.tx.waiting() / KERNEL_BATCH + 2;
        while calls > 0 {
            let Err(error) = self.socket.call() else {
                if self.is_stalled() {
                    self.socket.stalled.store(false, Relaxed);
                }
                return pushed;
            };
            match error.raw_os_error() {
                // One frame was taken from the ring and dropped, and the kernel has stopped there. So it is as often as
                // there are frames at most.
                Some(libc::EBUSY) if pushed.lost < TX_CHUNKS as u32 => pushed.lost += 1,
                // As many as it sends in one call, or the device's queue is full.
                Some(libc::EAGAIN | libc::EINTR) => calls -= 1,
                Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => {
                    pushed.down = true;
                    break;
                }
                _ => break,
            }
        }
        self.socket.stalled.store(true, Relaxed);
        pushed
    }

    /// Whether the kernel left frames in the ring when it was last called.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.socket.stalled.load(Relaxed)
    }
}

/// Sums a frame from `start` on and stores the checksum; false if the field is not in the frame. A zero in the place where
/// UDP has its checksum is sent as 0xffff (RFC 768).
fn complete(frame: &mut [u8], start: u16, offset: u16) -> bool {
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    if field + 2 > frame.len() {
        return false;
    }
    let mut sum = Sum::new();
    sum.add(&frame[start..]);
    let value = match sum.finish() {
        0 if offset == 6 => 0xffff,
        value => value,
    };
    frame[field..field + 2].copy_from_slice(&value.to_be_bytes());
    true
}
