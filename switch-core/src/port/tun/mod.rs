//! `tun` ports: a layer-3 neighbour in a domain of Ethernet frames.
//!
//! Behind the port are IP packets without Ethernet headers: a TUN device, whose other side is the host's stack, a
//! namespace's, or a program's. In the domain the port is a station: it has a MAC address, answers ARP and Neighbor
//! Discovery for the addresses it is given, and asks for those that its packets go to. TTL and payload stay as they are.
//!
//! The two halves meet at one place only: a neighbour message that the transmit half sees goes through a bounded channel
//! to the receive half, which alone knows the neighbours ([`resolver`]) and sends what is to be said in front of its next
//! packets. The transmit half adds nothing to the frame path but a comparison of addresses.
//!
//! The worker waits for one epoll set with the TUN in it, the bell that the transmit half rings, and a timer that runs
//! while somebody has not answered. The receive half reads a coarse clock once per call.
//!
//! ```text
//!  TUN reads    [vnet 12][IP packet ...]      offsets count from the IP header
//!  a slot has   [vnet 12][Ethernet 14][IP packet ...]
//! ```

pub mod messages;
pub mod prefix;
pub mod resolver;

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::{
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::{ClockId as Clock, clock_gettime},
};

use self::{
    messages::{ETHERNET, IPV4, IPV6, MAX_MESSAGE, Message},
    resolver::{HELD_BYTES, Own, Resolver, Route},
};
use super::{Opened, PortControl, PortRx, PortTx, QueuePair, RxStatus, Sent, netdev::Netdev, tap};
use crate::{
    batch::{BATCH_FRAMES, Batch},
    egress::{Egress, OutFrame},
    frame::offload::{Capabilities, Gso, Offload, VNET_HDR_BYTES},
    link::{LinkChange, Links},
    netns,
    sys::{buf::Gather, tap as sys},
};

/// Messages between the two halves.
const HEARD: usize = 256;
/// Packets read per call, those included that are not carried on.
const MAX_READS: usize = 2 * BATCH_FRAMES;
/// Bytes of a frame that tell where it goes: Ethernet and IPv6 headers, and whom a solicitation asks for.
const LOOKED_AT: usize = ETHERNET + 64;
const TICK: Duration = Duration::from_secs(1);

/// How a TUN is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// The device's name.
    pub device: String,
    /// The namespace that it is in or is made in.
    pub netns: Option<String>,
    /// Virtio-net headers with checksum and segmentation offload; without it every packet is complete.
    pub offload: bool,
    /// MTU to set.
    pub mtu: Option<u32>,
    /// What belongs to the port in the domain.
    pub own: Own,
}

/// Why a TUN cannot be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// No /dev/net/tun.
    #[error("cannot open TUN \"{0}\": there is no /dev/net/tun; load it with: modprobe tun")]
    NoTun(String),
    /// Not permitted.
    #[error("cannot open TUN \"{0}\": permission denied; run as root or grant CAP_NET_ADMIN")]
    Permission(String),
    /// Somebody else has it.
    #[error("cannot open TUN \"{0}\": device is busy (held by another process); find it with: fuser -v /dev/net/tun")]
    Busy(String),
    /// The device is something else.
    #[error("cannot open TUN \"{0}\": the existing device is no TUN of one queue; delete it with: ip link del {0}")]
    Mismatch(String),
    /// Anything else.
    #[error("cannot open TUN \"{0}\": {1}")]
    Other(String, io::Error),
}

/// Creates or adopts a TUN.
///
/// # Errors
/// See [`TunError`]. A device that was made on the way is gone again.
pub fn open(config: &TunConfig, links: &Links) -> Result<Opened, TunError> {
    let name = &config.device;
    let other = |e: io::Error| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoTun(name.clone()),
        Some(libc::EACCES | libc::EPERM) => TunError::Permission(name.clone()),
        Some(libc::EBUSY) => TunError::Busy(name.clone()),
        Some(libc::EINVAL) => TunError::Mismatch(name.clone()),
        _ => TunError::Other(name.clone(), e),
    };
    let namespace = config.netns.as_deref();
    let space = links.space(namespace).map_err(|e| TunError::Other(name.clone(), e))?;
    let file = netns::run_in(namespace, || sys::attach_tun(name)).and_then(|file| file).map_err(other)?;
    let uso = sys::set_offloads(file.as_raw_fd(), config.offload).map_err(other)?;
    let change = LinkChange { up: Some(true), mtu: config.mtu, ..LinkChange::default() };
    let link = space.change(name, &change).map_err(other)?;
    let file = Arc::new(file);
    let mtu = Arc::new(AtomicU32::new(link.mtu));
    let bell = Arc::new(Bell::new(&file).map_err(|e| other(e.into()))?);
    let (heard, inbox) = bounded(HEARD);
    let own = Arc::new(config.own.clone());
    let rx = TunRx {
        file: Arc::clone(&file),
        bell: Arc::clone(&bell),
        inbox,
        resolver: Resolver::new(config.own.clone()),
        timed: false,
        refused: 0,
    };
    let tx = TunTx {
        file: Arc::clone(&file),
        bell: Arc::clone(&bell),
        heard,
        own,
        mtu: Arc::clone(&mtu),
        capabilities: if config.offload { tap::capabilities(true, uso) } else { Capabilities::NONE },
    };
    // For the announcements.
    bell.ring();
    let device = Netdev {
        space,
        device: name.clone(),
        index: None,
        wire: false,
        on_link: Some(Box::new(move |up| {
            if let Err(e) = sys::set_carrier(file.as_raw_fd(), up) {
                tracing::debug!("a TUN does not take its carrier: {e}");
            }
        })),
        keep: Box::new(()),
    };
    let queues = vec![QueuePair { rx: Box::new(rx), tx: Box::new(tx) }];
    Ok(Opened { queues, control: Box::new(TunControl { device, mtu }) })
}

struct TunControl {
    device: Netdev,
    mtu: Arc<AtomicU32>,
}

impl PortControl for TunControl {
    fn missing(&mut self) -> Option<String> {
        if let Some(link) = self.device.space.known(&self.device.device) {
            self.mtu.store(link.mtu, Ordering::Relaxed);
        }
        self.device.missing()
    }

    fn set_link(&mut self, up: bool) {
        self.device.set_link(up);
    }
}

/// What wakes the worker that owns the receive half.
struct Bell {
    watched: Epoll,
    rung: AtomicBool,
    event: EventFd,
    timer: TimerFd,
}

impl Bell {
    fn new(tun: &File) -> nix::Result<Bell> {
        let bell = Bell {
            watched: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            rung: AtomicBool::new(false),
            event: EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?,
        };
        let readable = || EpollEvent::new(EpollFlags::EPOLLIN, 0);
        bell.watched.add(tun, readable())?;
        bell.watched.add(&bell.event, readable())?;
        bell.watched.add(&bell.timer, readable())?;
        Ok(bell)
    }

    /// There is something in the channel. One system call until it has been looked at.
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            let _ = self.event.write(1);
        }
    }

    /// Before the channel is looked at: what is put into it from now on rings again.
    fn heed(&self) {
        if self.rung.swap(false, Ordering::AcqRel) {
            let _ = self.event.read();
        }
    }
}

struct TunRx {
    file: Arc<File>,
    bell: Arc<Bell>,
    inbox: Receiver<(Message, bool)>,
    resolver: Resolver,
    /// The timer runs.
    timed: bool,
    refused: u64,
}

impl TunRx {
    /// Listens to what was heard and to the timer.
    fn attend(&mut self, now: u64) {
        self.bell.heed();
        while let Ok((frame, complete)) = self.inbox.try_recv() {
            if let Some(heard) = messages::read(&frame, complete) {
                self.resolver.hear(heard, now);
            }
        }
        if self.timed && self.bell.timer.wait().is_ok() {
            self.resolver.tick(now);
        }
    }

    /// Lets the timer run while somebody has not answered.
    fn set_timer(&mut self) {
        let wanted = self.resolver.waits();
        if wanted != self.timed {
            let set = if wanted {
                let every = Expiration::Interval(TimeSpec::from_duration(TICK));
                self.bell.timer.set(every, TimerSetTimeFlags::empty())
            } else {
                self.bell.timer.unset()
            };
            if let Err(e) = set {
                tracing::debug!("a timer cannot be set: {e}");
            }
            self.timed = wanted;
        }
    }

    /// Messages and packets that the resolver has to send.
    fn send_own(&mut self, batch: &mut Batch) {
        while batch.has_room() {
            let (slot, _) = batch.receive_buffers();
            let frame = &mut slot[VNET_HDR_BYTES..];
            if let Some(message) = self.resolver.next_message() {
                frame[..message.len()].copy_from_slice(&message);
                batch.push_received(message.len());
                continue;
            }
            let (ethernet, packet) = frame.split_at_mut(ETHERNET);
            let Some((to, len, offload)) = self.resolver.next_packet(packet) else { return };
            write_ethernet(ethernet, to.0, self.resolver.own().mac.0, packet[0]);
            batch.push_received(ETHERNET + len).offload = offload;
        }
    }

    /// Reads one packet; what to do next if that is not to read another.
    fn read(&mut self, batch: &mut Batch, now: u64) -> Option<RxStatus> {
        let (slot, overflow) = batch.receive_buffers();
        let (header, frame) = slot.split_at_mut(VNET_HDR_BYTES);
        let (ethernet, packet) = frame.split_at_mut(ETHERNET);
        let n = match sys::read_parts(self.file.as_raw_fd(), [header, packet, overflow]) {
            Ok(n) => n,
            Err(error) => return Some(tap::status_of(&error)),
        };
        let len = n.saturating_sub(VNET_HDR_BYTES);
        let Some((from, to)) = addresses(&packet[..len.min(packet.len())]) else {
            self.refused += 1;
            return None;
        };
        let wire: &[u8; VNET_HDR_BYTES] = (&*header).try_into().expect("split at the header's length");
        // An unknown type is carried on as the one that is always refused, so that it is counted.
        let offload = Offload::decode(wire).unwrap_or(Offload { gso: Gso::Ufo, ..Offload::NONE });
        let offload = offload.shifted(ETHERNET as i16);
        match self.resolver.route(from, to, now) {
            Route::To(mac) => {
                write_ethernet(ethernet, mac.0, self.resolver.own().mac.0, packet[0]);
                batch.push_received(ETHERNET + len).offload = offload;
            }
            Route::Unknown(hop) if len <= HELD_BYTES => self.resolver.hold(hop, &packet[..len], offload),
            // Its beginning is too long to be kept, and so is it.
            Route::Unknown(hop) => self.resolver.hold(hop, packet, offload),
            Route::Refused => self.refused += 1,
        }
        None
    }
}

impl PortRx for TunRx {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        let now = coarse_ms();
        self.attend(now);
        let mut status = RxStatus::More;
        for _ in 0..MAX_READS {
            if self.resolver.has_output() {
                self.send_own(batch);
            }
            if !batch.has_room() {
                break;
            }
            if let Some(end) = self.read(batch, now) {
                status = end;
                break;
            }
        }
        // A question that the last packet has led to.
        if self.resolver.has_output() {
            self.send_own(batch);
        }
        self.set_timer();
        if status == RxStatus::Drained && self.resolver.has_output() { RxStatus::More } else { status }
    }

    fn readiness(&self) -> Option<RawFd> {
        Some(self.bell.watched.0.as_raw_fd())
    }

    fn take_lost(&mut self) -> u64 {
        self.resolver.take_lost()
    }

    fn take_errors(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }
}

/// Milliseconds of a clock that costs no system call and is some milliseconds late.
fn coarse_ms() -> u64 {
    clock_gettime(Clock::CLOCK_MONOTONIC_COARSE)
        .map_or(0, |t| t.tv_sec() as u64 * 1000 + t.tv_nsec() as u64 / 1_000_000)
}

/// Source and destination of an IP packet.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    match packet.first()? >> 4 {
        4 => Some((v4(12)?, v4(16)?)),
        6 => Some((v6(8)?, v6(24)?)),
        _ => None,
    }
}

fn write_ethernet(header: &mut [u8], to: [u8; 6], from: [u8; 6], first: u8) {
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&from);
    header[12..].copy_from_slice(if first >> 4 == 4 { &IPV4 } else { &IPV6 });
}

struct TunTx {
    file: Arc<File>,
    bell: Arc<Bell>,
    heard: Sender<(Message, bool)>,
    own: Arc<Own>,
    mtu: Arc<AtomicU32>,
    capabilities: Capabilities,
}

/// What a frame is to the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A packet for an address behind it.
    Packet,
    /// A neighbour message that may concern it.
    Message,
    /// Nothing.
    Other,
}

fn kind_of(own: &Own, head: &[u8]) -> Kind {
    let ours = head.get(..6) == Some(&own.mac.0[..]);
    if !ours && head.first().is_none_or(|first| first & 1 == 0) {
        return Kind::Other;
    }
    if messages::could_be(head) {
        let concerns = ours || messages::spoken_of(head).is_none_or(|of| own.has(of));
        return if concerns { Kind::Message } else { Kind::Other };
    }
    let is_ip = matches!(head.get(12..ETHERNET), Some(kind) if kind == IPV4 || kind == IPV6);
    let to_us = || addresses(&head[ETHERNET..]).is_some_and(|(_, to)| own.has(to));
    if ours && is_ip && to_us() { Kind::Packet } else { Kind::Other }
}

/// Copies the first bytes of a frame; returns how many there were.
fn peek(frame: &OutFrame<'_>, to: &mut [u8]) -> usize {
    let (first, rest, tail) = frame.parts();
    let mut at = 0;
    for part in [first, rest] {
        let n = part.len().min(to.len() - at);
        to[at..at + n].copy_from_slice(&part[..n]);
        at += n;
    }
    for piece in tail {
        if at == to.len() {
            break;
        }
        at += piece.copy_to(&mut to[at..]);
    }
    at
}

impl TunTx {
    fn tell(&self, frame: &OutFrame<'_>, sent: &mut Sent) {
        if frame.len as usize > MAX_MESSAGE {
            sent.filtered += 1;
            return;
        }
        let mut bytes = [0; MAX_MESSAGE];
        let n = peek(frame, &mut bytes);
        let message = bytes[..n].iter().copied().collect();
        match self.heard.try_send((message, !frame.offload.needs_csum)) {
            Ok(()) => {
                self.bell.ring();
                sent.frames += 1;
                sent.bytes += u64::from(frame.len);
            }
            Err(_) => sent.queue_full += 1,
        }
    }

    fn write(&self, frame: &OutFrame<'_>) -> io::Result<usize> {
        let packet = match frame.offload.gso {
            Gso::None => frame.len,
            _ => u32::from(frame.offload.hdr_len) + u32::from(frame.offload.gso_size),
        };
        if packet > self.mtu.load(Ordering::Relaxed) + ETHERNET as u32 {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let mut header = [0; VNET_HDR_BYTES];
        frame.offload.shifted(-(ETHERNET as i16)).encode(&mut header);
        let (first, rest, tail) = frame.parts();
        let skipped = first.len().min(ETHERNET);
        let (first, rest) = (&first[skipped..], rest.get(ETHERNET - skipped..).unwrap_or_default());
        let mut gather = Gather::new();
        let whole = gather.push(&header)
            && gather.push(first)
            && gather.push(rest)
            && tail.iter().all(|piece| gather.push_piece(*piece));
        if !whole {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        sys::write_gather(self.file.as_raw_fd(), &gather)
    }
}

impl PortTx for TunTx {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        let mut sent = Sent::default();
        for frame in egress.iter() {
            let mut head = [0; LOOKED_AT];
            let n = peek(frame, &mut head);
            match kind_of(&self.own, &head[..n]) {
                Kind::Other => sent.filtered += 1,
                Kind::Message => self.tell(frame, &mut sent),
                Kind::Packet => match self.write(frame) {
                    Ok(_) => {
                        sent.frames += 1;
                        sent.bytes += u64::from(frame.len);
                    }
                    Err(e) => tap::count_refusal(&mut sent, &e),
                },
            }
        }
        sent
    }
}

#[cfg(test)]
mod tests;
