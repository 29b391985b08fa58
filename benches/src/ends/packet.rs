//! A netdev, by an AF_PACKET socket.

use std::{os::fd::AsFd, time::Duration};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use switch_core::{
    batch::{BURST_FRAMES, MAX_FRAME_BYTES},
    frame::offload::VNET_HDR_BYTES,
    sys::{
        packet::{PacketSocket, Received},
        raw::{RawSocket, Way},
    },
};

use super::{Receive, Transmit};
use crate::netns::Namespace;

/// Sends by a netdev.
#[derive(Debug)]
pub struct PacketTx(RawSocket);

impl PacketTx {
    /// Opens a netdev of a namespace.
    ///
    /// # Errors
    /// There is none, or not permitted.
    pub fn open(namespace: &Namespace, device: &str, way: Way) -> anyhow::Result<PacketTx> {
        Ok(PacketTx(namespace.run(|| RawSocket::open_sender(device, way))??))
    }
}

impl Transmit for PacketTx {
    fn send(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<usize> {
        match self.0.send_behind(frames) {
            Ok(n) => Ok(n),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR)) => Ok(0),
            Err(e) => Err(e).context("cannot send by the netdev"),
        }
    }
}

/// Bytes for one frame behind its virtio-net header.
const SLOT_BYTES: usize = VNET_HDR_BYTES + MAX_FRAME_BYTES;

/// Receives what arrives at a netdev (not what leaves by it).
pub struct PacketRx {
    socket: PacketSocket,
    buffers: Vec<u8>,
}

impl PacketRx {
    /// Opens a netdev of a namespace, which is promiscuous from now on.
    ///
    /// # Errors
    /// There is none, or not permitted.
    pub fn open(namespace: &Namespace, device: &str) -> anyhow::Result<PacketRx> {
        let socket = namespace.run(|| -> anyhow::Result<PacketSocket> {
            let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("no device \"{device}\""))?;
            Ok(PacketSocket::open(index, None)?)
        })??;
        Ok(PacketRx { socket, buffers: vec![0; BURST_FRAMES * SLOT_BYTES] })
    }
}

impl Receive for PacketRx {
    fn receive(&mut self, patience: Duration, look: &mut dyn FnMut(&[u8])) -> anyhow::Result<usize> {
        let mut received = [Received::default(); BURST_FRAMES];
        let mut waited = false;
        let count = loop {
            let slots = self.buffers.chunks_exact_mut(SLOT_BYTES).map(|slot| (slot, &mut [][..]));
            match self.socket.receive(slots, &mut received) {
                Ok(n) => break n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && !waited && !patience.is_zero() => {
                    wait_readable(&self.socket, patience);
                    waited = true;
                }
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {
                    return Ok(0);
                }
                Err(e) => return Err(e).context("cannot receive from the netdev"),
            }
        };
        for (slot, frame) in self.buffers.chunks_exact_mut(SLOT_BYTES).zip(&received[..count]) {
            let end = VNET_HDR_BYTES + frame.len;
            let mut begin = VNET_HDR_BYTES;
            if let Some(tag) = frame.tag.filter(|_| frame.len >= 12) {
                // The kernel took the tag out: the addresses move to the front, over the header, to make room for it.
                slot.copy_within(begin..begin + 12, begin - 4);
                begin -= 4;
                slot[begin + 12..begin + 14].copy_from_slice(&tag.tpid.to_be_bytes());
                slot[begin + 14..begin + 16].copy_from_slice(&tag.tci.to_be_bytes());
            }
            look(&slot[begin..end]);
        }
        Ok(count)
    }

    fn take_lost(&mut self) -> anyhow::Result<u64> {
        Ok(self.socket.take_lost())
    }
}

/// Waits until there is something to read, or not: the read that follows tells.
pub(super) fn wait_readable(end: &impl AsFd, patience: Duration) {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLIN)], timeout);
}
