//! What a VMM does to move a VM, messages that the crate does not know, and what no VMM should do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{IoSlice, Read},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{fs::FileExt, net::UnixStream},
    },
};

use anyhow::{Context, ensure};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        eventfd::{EfdFlags, EventFd},
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
};
use switch_core::port::vhost_user::features;
use vhost::{VhostBackend, VhostUserDirtyLogRegion, vhost_user::VhostUserFrontend};
use vm_memory::{Bytes, GuestAddress};

use super::{FrontEnd, PAGE, align};

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;
const SET_VRING_CALL: u32 = 13;

/// A message as it goes over the socket.
#[must_use]
pub fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let header = [code, flags, body.len() as u32].into_iter().flat_map(u32::to_ne_bytes);
    header.chain(body.iter().copied()).collect()
}

/// Sends bytes and descriptors.
///
/// # Errors
/// The connection has ended.
pub fn send_message(stream: &UnixStream, bytes: &[u8], descriptors: &[RawFd]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)
}

impl FrontEnd {
    /// Sends a message that the crate does not know, and returns the answer's value.
    ///
    /// # Errors
    /// The connection ends, or the answer is none.
    pub fn request(&mut self, code: u32, body: &[u8]) -> anyhow::Result<u64> {
        self.request_with(code, body, &[])
    }

    fn request_with(&mut self, code: u32, body: &[u8], descriptors: &[RawFd]) -> anyhow::Result<u64> {
        send_message(&self.stream, &message(code, VERSION | NEED_REPLY, body), descriptors)?;
        let mut reply = [0; 20];
        self.stream.read_exact(&mut reply)?;
        ensure!(reply[..4] == code.to_ne_bytes() && reply[4] & 4 != 0, "not an answer to {code}: {reply:?}");
        let mut value = [0; 8];
        value.copy_from_slice(&reply[12..]);
        Ok(u64::from_ne_bytes(value))
    }

    /// Has all writes to the memory logged from now on.
    ///
    /// # Errors
    /// The switch refuses it.
    pub fn start_logging(&mut self) -> anyhow::Result<()> {
        let last = self.device_pages().last().copied().unwrap_or(0);
        let bytes = align(last / 8 + 1);
        let file = File::from(memfd_create("log", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(PAGE + bytes)?;
        let region = VhostUserDirtyLogRegion { mmap_size: bytes, mmap_offset: PAGE, mmap_handle: file.as_raw_fd() };
        self.vhost.set_log_base(0, Some(region))?;
        self.log = Some(file);
        self.vhost.set_features(self.features | features::LOG_ALL)?;
        (0..self.rings.len()).try_for_each(|index| self.set_ring_addresses(index))
    }

    /// Ends it.
    ///
    /// # Errors
    /// The switch refuses it.
    pub fn stop_logging(&mut self) -> anyhow::Result<()> {
        self.vhost.set_features(self.features)?;
        let log = self.log.take();
        (0..self.rings.len()).try_for_each(|index| self.set_ring_addresses(index))?;
        drop(log);
        Ok(())
    }

    /// The pages that were marked since it was asked last.
    ///
    /// # Errors
    /// Nothing is logged.
    pub fn take_dirty(&mut self) -> anyhow::Result<BTreeSet<u64>> {
        let Some(file) = &self.log else { anyhow::bail!("nothing is logged") };
        let mut bits = vec![0; (file.metadata()?.len() - PAGE) as usize];
        file.read_exact_at(&mut bits, PAGE)?;
        file.write_all_at(&vec![0; bits.len()], PAGE)?;
        let pages = (0..bits.len() as u64 * 8).filter(|page| bits[(page / 8) as usize] >> (page % 8) & 1 != 0);
        Ok(pages.collect())
    }

    /// The pages that the device may write to: used rings and receive buffers.
    #[must_use]
    pub fn device_pages(&self) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        for (index, ring) in self.rings.iter().enumerate() {
            let n = u64::from(ring.size);
            pages.extend(ring.used / PAGE..=(ring.used + 5 + 8 * n) / PAGE);
            if index % 2 == 0 {
                pages.extend(ring.buffers / PAGE..=(ring.buffers + n * ring.buffer_bytes - 1) / PAGE);
            }
        }
        pages
    }

    /// What is in the pages that the device may write to.
    ///
    /// # Errors
    /// The memory is not there.
    pub fn snapshot(&self) -> anyhow::Result<BTreeMap<u64, Vec<u8>>> {
        let read = |page: u64| {
            let mut bytes = vec![0; PAGE as usize];
            self.memory.read_slice(&mut bytes, GuestAddress(page * PAGE))?;
            Ok((page, bytes))
        };
        self.device_pages().into_iter().map(read).collect()
    }

    /// Cuts the file of the memory off, under the device that has mapped it. The driver must not be used any more.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn truncate(&self, bytes: u64) -> std::io::Result<()> {
        self.file.set_len(bytes)
    }

    /// Cuts the log off.
    ///
    /// # Errors
    /// There is none, or the kernel refuses it.
    pub fn truncate_log(&self) -> anyhow::Result<()> {
        Ok(self.log.as_ref().context("nothing is logged")?.set_len(0)?)
    }

    /// Cuts the inflight area off.
    ///
    /// # Errors
    /// There is none, or the kernel refuses it.
    pub fn truncate_inflight(&self) -> anyhow::Result<()> {
        Ok(self.inflight.as_ref().context("no inflight area")?.1.set_len(0)?)
    }

    /// Gives the device a copy of its inflight area in a file of the VMM's own.
    ///
    /// # Errors
    /// There is none, or the switch refuses it.
    pub fn replace_inflight(&mut self) -> anyhow::Result<()> {
        let (what, old) = self.inflight.as_ref().context("no inflight area")?;
        let mut bytes = vec![0; old.metadata()?.len() as usize];
        old.read_exact_at(&mut bytes, 0)?;
        let file = File::from(memfd_create("inflight", MFdFlags::MFD_CLOEXEC)?);
        file.write_all_at(&bytes, 0)?;
        self.vhost.set_inflight_fd(what, file.as_raw_fd())?;
        self.inflight = Some((*what, file));
        Ok(())
    }

    /// Gives the device call descriptors for a pair's rings, fills them to the brim, and makes them ones that block.
    ///
    /// # Errors
    /// The kernel or the switch refuses it.
    pub fn clog(&mut self, pair: usize) -> anyhow::Result<[EventFd; 2]> {
        let call = |front: &mut FrontEnd, index: usize| {
            let call = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
            let value = front.request_with(SET_VRING_CALL, &(index as u64).to_ne_bytes(), &[call.as_raw_fd()])?;
            ensure!(value == 0, "a call descriptor is refused");
            // The device has interrupted once, as for every new descriptor.
            call.read()?;
            call.write(u64::MAX - 1)?;
            let flags = OFlag::from_bits_retain(fcntl(&call, FcntlArg::F_GETFL)?);
            fcntl(&call, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
            Ok(call)
        };
        Ok([call(self, 2 * pair)?, call(self, 2 * pair + 1)?])
    }
}
