//! `packet` ports: a netdev that exists already (a NIC, a veth end) is the wire; an AF_PACKET socket takes its frames, or
//! with `engine=xdp` an AF_XDP one: see [`xdp`](super::xdp). Of AF_PACKET:
//!
//! The socket always has virtio-net headers: devices pass frames on with partial checksums and merged segments whether
//! we like it or not, so what is owed must be known. `offload=off` only means that the port is given complete frames.
//! The kernel takes the outer VLAN tag off; it is put back, because tags decide the domain.
//!
//! With several queues there are as many sockets; the kernel gives all of a flow to one of them.
//!
//! The host's own stack is held off the device by its [guard](super::guard).
//!
//! A device that goes down or away ends the port, which then waits until it is up again.

use std::{io, os::fd::RawFd, sync::Arc};

use super::{
    Opened, PortRx, PortTx, QueuePair, RxStatus, Sent,
    guard::{GuardError, Guards, MARK},
    netdev::Netdev,
    xdp::{self, XdpError},
};
use crate::{
    batch::{BATCH_FRAMES, BURST_FRAMES, Batch, Burst, HEAD_BYTES},
    egress::Egress,
    frame::{
        offload::{Capabilities, Gso, Offload, VNET_HDR_BYTES},
        vlan::{self, OuterTag, TAG_BYTES, TAG_OFFSET},
    },
    link::Links,
    netns,
    sys::packet::{PacketSocket, Received},
};

/// Frames received at once while they are longer than a slot.
const LONG_BURST: usize = 4;

/// How a netdev is taken as a port.
#[derive(Clone, Debug)]
pub struct PacketConfig {
    /// The device's name.
    pub device: String,
    /// The namespace that it is in.
    pub netns: Option<String>,
    /// By AF_XDP and not by AF_PACKET.
    pub xdp: bool,
    /// Queues (pairs).
    pub queues: u16,
    /// Checksums and segmentation may be left to the device.
    pub offload: bool,
    /// Who holds the host off the device; `None`: it may go on using it.
    pub guards: Option<Arc<Guards>>,
}

/// Why a netdev cannot be a port, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// There is none of this name.
    #[error("there is no device \"{0}\"{1}; list devices with: ip link")]
    Missing(String, String),
    /// It is down.
    #[error("device \"{0}\"{1} is down; set it up with: ip link set {0} up")]
    Down(String, String),
    /// Not permitted.
    #[error(
        "cannot open a packet socket on \"{0}\": permission denied; run as root or grant CAP_NET_RAW and CAP_NET_ADMIN"
    )]
    Permission(String),
    /// AF_XDP does not take it.
    #[error("cannot take \"{0}\" by AF_XDP: {1}")]
    Xdp(String, XdpError),
    /// The host cannot be held off.
    #[error("cannot keep the host off \"{0}\": {1}")]
    Guard(String, GuardError),
    /// Anything else.
    #[error("cannot open a packet socket on \"{0}\": {1}")]
    Other(String, io::Error),
}

/// Takes a netdev as a port.
///
/// # Errors
/// See [`PacketError`].
pub fn open(config: &PacketConfig, links: &Links) -> Result<Opened, PacketError> {
    let name = || config.device.clone();
    let place = || config.netns.as_ref().map_or_else(String::new, |n| format!(" in namespace \"{n}\""));
    let namespace = config.netns.as_deref();
    let space = links.space(namespace).map_err(|e| PacketError::Other(name(), e))?;
    let link = space
        .get(&config.device)
        .map_err(|e| PacketError::Other(name(), e))?
        .ok_or_else(|| PacketError::Missing(name(), place()))?;
    if !link.up {
        return Err(PacketError::Down(name(), place()));
    }
    let hold_off = || match &config.guards {
        Some(guards) => guards.guard(namespace, &link).map(Some).map_err(|e| PacketError::Guard(name(), e)),
        None => Ok(None),
    };
    if config.xdp {
        // The host is held off once it is known that AF_XDP takes the device: this is tried again every second.
        let taken = xdp::take(namespace, &link, config.queues).map_err(|e| PacketError::Xdp(name(), e))?;
        let guard = hold_off()?;
        return Ok(taken.into_port(&link, space, guard));
    }
    let guard = hold_off()?;
    let index = link.index;
    let mark = guard.is_some().then_some(MARK);
    let sockets = netns::run_in(namespace, || PacketSocket::open_many(index, mark, config.queues))
        .and_then(|opened| opened)
        .map_err(|e| match e.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => PacketError::Permission(name()),
            Some(libc::ENODEV | libc::ENXIO) => PacketError::Missing(name(), place()),
            Some(libc::ENETDOWN) => PacketError::Down(name(), place()),
            _ => PacketError::Other(name(), e),
        })?;
    let capabilities = capabilities(config.offload);
    let queues = sockets
        .into_iter()
        .map(|socket| {
            let socket = Arc::new(socket);
            let rx = PacketRx::new(Arc::clone(&socket));
            QueuePair { rx: Box::new(rx), tx: Box::new(PacketTx::new(socket, capabilities)) }
        })
        .collect();
    let control = Netdev { space, device: name(), index: None, wire: true, on_link: None, keep: Box::new(guard) };
    Ok(Opened { queues, control: Box::new(control) })
}

/// What may be left to the device.
pub(super) fn capabilities(offload: bool) -> Capabilities {
    if offload {
        Capabilities::CSUM.with(Capabilities::TSO4).with(Capabilities::TSO6).with(Capabilities::ECN)
    } else {
        Capabilities::NONE
    }
}

/// The receiving half of one socket.
pub(super) struct PacketRx {
    socket: Arc<PacketSocket>,
    received: [Received; BURST_FRAMES],
    /// Frames to ask for at once: few while they are long, so that a batch of them stays in the cache.
    burst: usize,
    truncated: u64,
}

impl PacketRx {
    pub(super) fn new(socket: Arc<PacketSocket>) -> PacketRx {
        PacketRx { socket, received: [Received::default(); BURST_FRAMES], burst: BURST_FRAMES, truncated: 0 }
    }

    /// Accepts the frame of this index of a burst.
    fn accept(&mut self, batch: &mut Batch, burst: Burst, index: usize) {
        let received = &self.received[index];
        if received.truncated {
            self.truncated += 1;
            return;
        }
        // An unknown type is carried on as the one that is always refused, so that it is counted.
        let mut offload = Offload::decode(&received.header).unwrap_or(Offload { gso: Gso::Ufo, ..Offload::NONE });
        let mut len = received.len;
        if let Some(tag) = received.tag {
            let (slot, overflow) = batch.burst_buffer(burst, index);
            if restore_tag(&mut slot[VNET_HDR_BYTES..], overflow, len, tag) {
                len += TAG_BYTES;
                offload = offload.shifted(TAG_BYTES as i16);
            }
        }
        batch.push_burst(burst, index, len).offload = offload;
    }
}

impl PortRx for PacketRx {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        while batch.has_room() {
            let burst = batch.begin_burst();
            let asked = self.burst.min(BATCH_FRAMES - batch.len());
            // The last bytes stay free for a tag that is put back.
            let buffers = batch.burst_buffers(burst).take(asked).map(|(slot, overflow)| {
                let room = overflow.len() - TAG_BYTES;
                (slot, &mut overflow[..room])
            });
            let n = match self.socket.receive(buffers, &mut self.received) {
                Ok(n) => n,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV | libc::EBADF) => return RxStatus::Gone,
                    // Nothing waits, or the kernel has no memory for it.
                    _ => return RxStatus::Drained,
                },
            };
            let long = self.received[..n].iter().any(|received| received.len > HEAD_BYTES);
            self.burst = if long { LONG_BURST } else { BURST_FRAMES };
            for index in 0..n {
                self.accept(batch, burst, index);
            }
            if n < asked {
                return RxStatus::Drained;
            }
        }
        RxStatus::More
    }

    fn readiness(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }

    fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.truncated) + self.socket.take_lost()
    }
}

/// Puts a tag back into a frame of `len` bytes that begins at `head[0]` and goes on in `overflow`, which has 4 bytes to
/// spare. False, and nothing changed, if the frame has no two addresses.
fn restore_tag(head: &mut [u8], overflow: &mut [u8], len: usize, tag: OuterTag) -> bool {
    if len < TAG_OFFSET {
        return false;
    }
    let in_head = len.min(HEAD_BYTES);
    if len > HEAD_BYTES - TAG_BYTES {
        // What is pushed over the end of the head goes before the overflow.
        overflow.copy_within(..len - in_head, TAG_BYTES);
        let pushed = in_head - (HEAD_BYTES - TAG_BYTES);
        overflow[..pushed].copy_from_slice(&head[HEAD_BYTES - TAG_BYTES..in_head]);
    }
    head.copy_within(..in_head.min(HEAD_BYTES - TAG_BYTES), TAG_BYTES);
    vlan::insert_tag(head, tag)
}

/// The sending half of one socket.
pub(super) struct PacketTx {
    socket: Arc<PacketSocket>,
    capabilities: Capabilities,
}

impl PacketTx {
    pub(super) fn new(socket: Arc<PacketSocket>, capabilities: Capabilities) -> PacketTx {
        PacketTx { socket, capabilities }
    }
}

impl PortTx for PacketTx {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        let mut sent = Sent::default();
        let mut left = egress.iter().as_slice();
        while let Some((frame, others)) = left.split_first() {
            match self.socket.send(left) {
                Ok(n) => {
                    sent.frames += n as u32;
                    sent.bytes += left[..n].iter().map(|f| u64::from(f.len)).sum::<u64>();
                    left = &left[n..];
                }
                Err(e) => {
                    match e.raw_os_error() {
                        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EINTR) => sent.queue_full += 1,
                        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => sent.port_down += 1,
                        Some(libc::EMSGSIZE) => sent.too_big += 1,
                        _ => {
                            tracing::trace!(len = frame.len, "a packet socket refuses a frame: {e}");
                            sent.error += 1;
                        }
                    }
                    left = others;
                }
            }
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_restored_at_every_length_around_the_end_of_the_head() {
        let tag = OuterTag { tpid: 0x88a8, tci: 0x6005 };
        for len in [14, 60, HEAD_BYTES - 5, HEAD_BYTES - 4, HEAD_BYTES - 3, HEAD_BYTES, HEAD_BYTES + 1, 9000] {
            let frame: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut memory = vec![0u8; 20_000];
            memory[..len].copy_from_slice(&frame);
            let (head, overflow) = memory.split_at_mut(HEAD_BYTES);
            assert!(restore_tag(head, overflow, len, tag));
            let expected = [&frame[..12], &tag.to_bytes(), &frame[12..]].concat();
            assert!(memory[..len + 4] == expected, "length {len}");
        }
        assert!(!restore_tag(&mut [0; HEAD_BYTES], &mut [0; 8], 11, tag));
    }
}
