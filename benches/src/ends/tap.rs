//! A TAP's character device: what a virtual machine monitor without vhost holds.

use std::{fs::File, io::ErrorKind, os::fd::AsRawFd, time::Duration};

use anyhow::Context;
use switch_core::{
    batch::MAX_FRAME_BYTES,
    frame::offload::VNET_HDR_BYTES,
    sys::{raw::BURST, tap},
};

use super::{Receive, Transmit, packet::wait_readable};
use crate::{netns::Namespace, traffic::tally::bare};

/// Sends into a TAP.
#[derive(Debug)]
pub struct TapTx(File);

impl TapTx {
    /// Takes a queue that was opened with virtio-net headers ([`tap::attach_vnet`]).
    #[must_use]
    pub fn new(queue: File) -> TapTx {
        TapTx(queue)
    }
}

impl Transmit for TapTx {
    fn send(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<usize> {
        for (sent, frame) in frames.iter().enumerate() {
            match tap::write(self.0.as_raw_fd(), frame) {
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(sent),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(sent),
                Err(e) => return Err(e).context("cannot write into the TAP"),
            }
        }
        Ok(frames.len())
    }
}

/// Receives from a TAP.
#[derive(Debug)]
pub struct TapRx<'a> {
    queue: File,
    buffer: Vec<u8>,
    /// Where its netdev is, and what it is called.
    netdev: (&'a Namespace, String),
    lost: u64,
}

impl<'a> TapRx<'a> {
    /// Takes a queue that was opened with virtio-net headers, and says where its netdev is.
    ///
    /// # Errors
    /// It is not there.
    pub fn new(queue: File, namespace: &'a Namespace, device: &str) -> anyhow::Result<TapRx<'a>> {
        let lost = dropped(namespace, device)?;
        let buffer = vec![0; VNET_HDR_BYTES + MAX_FRAME_BYTES];
        Ok(TapRx { queue, buffer, netdev: (namespace, device.to_owned()), lost })
    }
}

impl Receive for TapRx<'_> {
    fn receive(&mut self, patience: Duration, look: &mut dyn FnMut(&[u8])) -> anyhow::Result<usize> {
        let mut count = 0;
        let mut waited = patience.is_zero();
        while count < BURST {
            match tap::read(self.queue.as_raw_fd(), &mut self.buffer) {
                Ok(n) => {
                    look(bare(&self.buffer[..n]));
                    count += 1;
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    if waited || count > 0 {
                        break;
                    }
                    wait_readable(&self.queue, patience);
                    waited = true;
                }
                Err(e) => return Err(e).context("cannot read from the TAP"),
            }
        }
        Ok(count)
    }

    fn take_lost(&mut self) -> anyhow::Result<u64> {
        let now = dropped(self.netdev.0, &self.netdev.1)?;
        Ok(now - std::mem::replace(&mut self.lost, now))
    }
}

/// Frames that a netdev had to send and could not: of a TAP, those that found its queue full.
fn dropped(namespace: &Namespace, device: &str) -> anyhow::Result<u64> {
    // Of the thread's own namespace, unlike what /sys shows.
    let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    parse_dropped(&text, device).with_context(|| format!("no device \"{device}\""))
}

fn parse_dropped(text: &str, device: &str) -> Option<u64> {
    let counters = text.lines().find_map(|l| l.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    // Eight of receiving, then bytes, packets, errors, drops.
    counters.split_whitespace().nth(8 + 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_read_from_the_list_of_devices() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets | bytes packets errs drop\n\
            eth0:  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth01: 0 0 0 0 0 0 0 0 0 0 0 77 0 0 0 0\n";
        assert_eq!(parse_dropped(text, "eth0"), Some(12));
        assert_eq!(parse_dropped(text, "eth01"), Some(77));
        assert_eq!(parse_dropped(text, "eth"), None);
    }
}
