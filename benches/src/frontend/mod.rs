//! A virtio-net driver without a VM: the other side of a `vhost-user` port, for tests and benches.
//!
//! Guest memory is a memfd of two regions with a hole between them: rings and transmit buffers in the first, receive
//! buffers in the second. Here is what a VMM does (the `vhost` crate speaks the protocol), in `driver.rs` what the driver
//! in the guest does: its side of the split ring, written against `vm-memory` and independent of the device side that it
//! tests. `migrate.rs` has what a VMM does to move a VM, and what no VMM should do.

mod driver;
mod looped;
pub mod migrate;

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::atomic::Ordering,
};

use anyhow::{Context, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::memfd::{MFdFlags, memfd_create},
};
use switch_core::port::vhost_user::features;
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend, VhostUserProtocolFeatures,
        message::{VhostUserHeaderFlag, VhostUserInflight},
    },
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

pub use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use self::driver::Ring;
pub use self::looped::Looped;

/// Bytes of one transmit buffer: a long frame needs several, as in a guest's pages.
const TX_BUFFER: u64 = 4096;
const PAGE: u64 = 4096;
const FIRST: u64 = 0x10_0000;

fn align(at: u64) -> u64 {
    at.next_multiple_of(PAGE)
}

/// How the driver behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Queue pairs.
    pub queues: usize,
    /// Entries of each ring.
    pub size: u16,
    /// Features that the driver knows; it acknowledges those that are offered.
    pub features: u64,
    /// Bytes of one receive buffer.
    pub rx_buffer: u64,
    /// Protocol features that the VMM knows.
    pub protocol: VhostUserProtocolFeatures,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            queues: 1,
            size: 256,
            features: features::offered(true) & !features::LOG_ALL,
            rx_buffer: 2048,
            protocol: VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK,
        }
    }
}

/// See the module page.
pub struct FrontEnd {
    memory: GuestMemoryMmap,
    file: File,
    vhost: Frontend,
    /// The same connection, for messages that the crate does not know.
    stream: UnixStream,
    rings: Vec<Ring>,
    features: u64,
    options: Options,
    /// Kept for the device while that is away.
    inflight: Option<(VhostUserInflight, File)>,
    /// The log of dirty pages, while the VM is being moved.
    log: Option<File>,
    /// A received frame is put together here.
    scratch: Vec<u8>,
}

impl FrontEnd {
    /// Connects to a switch that listens, and starts the driver.
    ///
    /// # Errors
    /// Nobody listens, or the switch refuses something.
    pub fn connect(path: &Path, options: Options) -> anyhow::Result<FrontEnd> {
        FrontEnd::over(UnixStream::connect(path).context("cannot connect")?, options)
    }

    /// Waits for a switch that connects, and starts the driver.
    ///
    /// # Errors
    /// The switch refuses something.
    pub fn accept(listener: &UnixListener, options: Options) -> anyhow::Result<FrontEnd> {
        let (stream, _) = listener.accept()?;
        FrontEnd::over(stream, options)
    }

    /// Starts the driver over a connection.
    ///
    /// # Errors
    /// The switch refuses something.
    pub fn over(stream: UnixStream, options: Options) -> anyhow::Result<FrontEnd> {
        let mut front = FrontEnd::lay(stream, options)?;
        front.set_up()?;
        Ok(front)
    }

    /// Lays memory and rings out and posts the receive buffers; tells nobody.
    fn lay(stream: UnixStream, options: Options) -> anyhow::Result<FrontEnd> {
        let mut at = FIRST;
        let mut rings = Vec::new();
        for _ in 0..2 * options.queues {
            let (ring, end) = Ring::lay(at, options.size)?;
            rings.push(ring);
            at = end;
        }
        let n = u64::from(options.size);
        for ring in rings.iter_mut().skip(1).step_by(2) {
            (ring.buffers, ring.buffer_bytes) = (at, TX_BUFFER);
            at += n * TX_BUFFER;
        }
        let first_bytes = align(at) - FIRST;
        // A hole, so that what runs over the end is nowhere.
        let second = align(at) + 0x10_0000;
        let mut end = second;
        for ring in rings.iter_mut().step_by(2) {
            (ring.buffers, ring.buffer_bytes) = (end, options.rx_buffer);
            end += align(n * options.rx_buffer);
        }
        let file = File::from(memfd_create("frontend", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(first_bytes + end - second)?;
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges_with_files([
            (GuestAddress(FIRST), first_bytes as usize, Some(FileOffset::new(file.try_clone()?, 0))),
            (GuestAddress(second), (end - second) as usize, Some(FileOffset::new(file.try_clone()?, first_bytes))),
        ])?;

        let vhost = Frontend::from_stream(stream.try_clone()?, 2 * options.queues as u64);
        let mut front = FrontEnd {
            memory,
            file,
            vhost,
            stream,
            rings,
            features: 0,
            options,
            inflight: None,
            log: None,
            scratch: Vec::new(),
        };
        for pair in 0..front.options.queues {
            front.fill(2 * pair)?;
        }
        Ok(front)
    }

    /// Negotiates, shares the memory and starts the rings.
    fn set_up(&mut self) -> anyhow::Result<()> {
        self.vhost.set_owner()?;
        self.features = self.vhost.get_features()? & self.options.features;
        self.vhost.set_features(self.features)?;
        ensure!(self.features & features::PROTOCOL_FEATURES != 0, "no protocol features");
        let protocol = self.vhost.get_protocol_features()? & self.options.protocol;
        self.vhost.set_protocol_features(protocol)?;
        self.vhost.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        // Not asked for the number of queues: the crate takes pairs for rings and would refuse to go on.
        self.share_memory()?;
        if protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            if self.inflight.is_none() {
                let wanted = VhostUserInflight::new(0, 0, self.rings.len() as u16, self.options.size);
                self.inflight = Some(self.vhost.get_inflight_fd(&wanted)?);
            }
            if let Some((inflight, file)) = &self.inflight {
                self.vhost.set_inflight_fd(inflight, file.as_raw_fd())?;
            }
        }
        (0..self.rings.len()).try_for_each(|index| self.start_ring(index))
    }

    /// Takes up a new connection with the same memory, as a VMM does whose switch went away: rings begin at their used
    /// index, which is all that is known of a device that was killed.
    ///
    /// # Errors
    /// Nobody listens, or the switch refuses something.
    pub fn reconnect(&mut self, path: &Path) -> anyhow::Result<()> {
        self.stream = UnixStream::connect(path).context("cannot connect")?;
        self.vhost = Frontend::from_stream(self.stream.try_clone()?, 2 * self.options.queues as u64);
        for ring in &mut self.rings {
            ring.base = self.memory.load(GuestAddress(ring.used + 2), Ordering::Acquire)?;
        }
        self.set_up()
    }

    /// Whether the switch still holds the connection.
    ///
    /// # Errors
    /// The connection cannot be asked.
    pub fn connected(&self) -> anyhow::Result<bool> {
        // Without interest in anything: only that the other side has gone is reported then.
        let mut set = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        Ok(poll(&mut set, PollTimeout::ZERO)? == 0)
    }

    /// Shares the memory (again).
    ///
    /// # Errors
    /// The switch refuses it.
    pub fn share_memory(&mut self) -> anyhow::Result<()> {
        let regions: Vec<_> = self
            .memory
            .iter()
            .map(|region: &GuestRegionMmap| VhostUserMemoryRegionInfo::from_guest_region(region))
            .collect::<Result<_, _>>()?;
        self.vhost.set_mem_table(&regions)?;
        Ok(())
    }

    fn start_ring(&mut self, index: usize) -> anyhow::Result<()> {
        self.vhost.set_vring_num(index, self.rings[index].size)?;
        self.set_ring_addresses(index)?;
        let ring = &self.rings[index];
        self.vhost.set_vring_base(index, ring.base)?;
        self.vhost.set_vring_call(index, &ring.call)?;
        self.vhost.set_vring_kick(index, &ring.kick)?;
        self.vhost.set_vring_enable(index, true)?;
        Ok(())
    }

    fn set_ring_addresses(&self, index: usize) -> anyhow::Result<()> {
        let ring = &self.rings[index];
        let user = |guest: u64| -> anyhow::Result<u64> {
            Ok(self.memory.get_host_address(GuestAddress(guest))?.addr() as u64)
        };
        let config = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: u32::from(self.log.is_some()),
            desc_table_addr: user(ring.descriptors)?,
            used_ring_addr: user(ring.used)?,
            avail_ring_addr: user(ring.available)?,
            log_addr: self.log.as_ref().map(|_| ring.used),
        };
        Ok(self.vhost.set_vring_addr(index, &config)?)
    }

    /// Stops a ring as a VMM does when the guest resets; returns the device's position in it.
    ///
    /// # Errors
    /// The switch refuses it.
    pub fn stop_ring(&mut self, index: usize) -> anyhow::Result<u16> {
        self.vhost.set_vring_enable(index, false)?;
        self.rings[index].base = self.vhost.get_vring_base(index)? as u16;
        Ok(self.rings[index].base)
    }

    /// Starts a stopped ring again where the device left it.
    ///
    /// # Errors
    /// The switch refuses it.
    pub fn restart_ring(&mut self, index: usize) -> anyhow::Result<()> {
        self.start_ring(index)
    }

    /// Gives the device another descriptor to interrupt the driver with, as QEMU does after it has started a ring; what
    /// came by the one before is gone.
    ///
    /// # Errors
    /// The switch refuses it.
    pub fn exchange_call(&mut self, index: usize) -> anyhow::Result<()> {
        self.rings[index].exchange_call()?;
        Ok(self.vhost.set_vring_call(index, &self.rings[index].call)?)
    }

    /// What was negotiated.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The memory, for tests that do what a driver should not.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}
