//! The port's control thread: what the VMM says on the socket, carried out on the rings.
//!
//! The `vhost` crate speaks the protocol; this is the device behind it. Requests are collected per ring, and after each
//! one the ring is built anew from what is known, under its lock: a ring runs when its size, addresses, memory and kick
//! are known and it is enabled, and is stopped otherwise. The position in the available ring survives that.
//!
//! `handle_request` blocks: a VMM that sends half a message stalls its own port only. Closing the port shuts the
//! connection down, which ends the wait.

use std::{
    fs::File,
    io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    message::{
        VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
        VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion,
        VhostUserVringAddrFlags, VhostUserVringState,
    },
};

use super::{
    RETRY, Shared, VhostConfig, early,
    features::{self, Features},
    ring::Running,
};
use crate::sys::guest::{GuestMemory, MAX_REGIONS, MAX_RING, RegionSpec, RingAddresses, RingMemory};

/// What the thread needs to know of the port.
pub(super) struct Host {
    shared: Arc<Shared>,
    path: PathBuf,
    client: bool,
    offered: u64,
}

impl Host {
    pub(super) fn new(shared: Arc<Shared>, config: &VhostConfig) -> Host {
        let offered = features::offered(config.offload);
        Host { shared, path: config.path.clone(), client: config.client, offered }
    }

    /// Why no frame passes while there is no connection.
    pub(super) fn nobody(&self) -> String {
        let path = self.path.display();
        if self.client { format!("no VM listens on {path} yet") } else { format!("no VM is connected to {path} yet") }
    }

    /// Takes one VM after the other until the port is closed.
    pub(super) fn serve(&self, listener: &UnixListener) {
        while self.shared.wait(Some(listener.as_fd()), None) {
            match listener.accept() {
                Ok((stream, _)) => self.session(stream),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => {
                    // Out of descriptors, most likely: the VM waits, and so do we.
                    tracing::warn!(socket = %self.path.display(), "cannot accept a VM's connection: {e}");
                    self.shared.wait(None, Some(RETRY));
                }
            }
        }
    }

    /// Connects until the port is closed.
    pub(super) fn connect(&self) {
        loop {
            match UnixStream::connect(&self.path) {
                Ok(stream) => self.session(stream),
                Err(e) => self.shared.set_missing(Some(format!("{}: {e}", self.nobody()))),
            }
            if !self.shared.wait(None, Some(RETRY)) {
                return;
            }
        }
    }

    /// One connection from its beginning to its end.
    fn session(&self, stream: UnixStream) {
        let path = self.path.display();
        let clones = stream.set_nonblocking(false).and_then(|()| Ok((stream.try_clone()?, stream.try_clone()?)));
        let Ok((other, peek)) = clones else { return };
        if !self.shared.begin(other) {
            return;
        }
        tracing::info!(socket = %path, "a VM has connected");
        let device = Arc::new(Mutex::new(Device::new(Arc::clone(&self.shared), self.offered)));
        let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&device));
        let error = loop {
            let early = early::is_enable(&peek) && !lock(&device).features.has(features::PROTOCOL_FEATURES);
            let result = if early { enable_early(&peek, &device) } else { handler.handle_request() };
            let mut device = lock(&device);
            if let Err(e) = result {
                break device.complaint.take().unwrap_or_else(|| e.to_string());
            }
            self.shared.set_missing(if device.passes() {
                None
            } else {
                Some(format!("the VM on {path} has not started its network driver yet"))
            });
        };
        drop(handler);
        self.shared.end();
        match lock(&device).reset() {
            Some(fault) => {
                tracing::warn!(socket = %path, "the VM broke a ring and was disconnected: {fault}");
                self.shared.set_missing(Some(format!("{}; the last one broke a ring: {fault}", self.nobody())));
                // One that comes back to do it again is not worth a busy thread and a full log.
                self.shared.wait(None, Some(RETRY));
            }
            None => {
                tracing::info!(socket = %path, "the VM has disconnected: {error}");
                self.shared.set_missing(Some(self.nobody()));
            }
        }
    }
}

/// See [`early`].
fn enable_early(stream: &UnixStream, device: &Mutex<Device>) -> Result<()> {
    let (ring, enable, reply) = early::take_enable(stream).map_err(Error::SocketBroken)?;
    let result = lock(device).set_vring_enable(ring, enable);
    if reply {
        early::acknowledge(stream, result.is_err()).map_err(Error::SocketBroken)?;
    }
    result
}

fn lock(device: &Mutex<Device>) -> std::sync::MutexGuard<'_, Device> {
    device.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How the guest says that it has put something into a ring.
#[derive(Default)]
enum Kick {
    /// Nothing was said: the ring is not started.
    #[default]
    Unset,
    /// Not at all: it wants to be polled.
    Polled,
    /// With this descriptor.
    Event(File),
}

/// What the VMM has said about one ring.
#[derive(Default)]
struct Vring {
    size: u16,
    addresses: Option<RingAddresses>,
    /// The next chain to take, while the ring is stopped.
    base: u16,
    kick: Kick,
    call: Option<Arc<File>>,
    enabled: bool,
}

/// The device that a VM sees through one connection.
struct Device {
    shared: Arc<Shared>,
    offered: u64,
    features: Features,
    memory: Arc<GuestMemory>,
    vrings: Vec<Vring>,
    /// What to say of a refused request.
    complaint: Option<String>,
}

impl Device {
    fn new(shared: Arc<Shared>, offered: u64) -> Device {
        let vrings = shared.rings.iter().map(|_| Vring::default()).collect();
        Device { shared, offered, features: Features::default(), memory: Arc::default(), vrings, complaint: None }
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        self.vrings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn refuse<T>(&mut self, why: String) -> Result<T> {
        self.complaint = Some(why);
        Err(Error::InvalidParam)
    }

    /// Brings one ring to what is known of it. A running ring goes on where it was.
    fn refresh(&mut self, index: usize) {
        let vring = &mut self.vrings[index];
        let mut ring = self.shared.rings[index].lock();
        if let Some(running) = ring.running.take() {
            vring.base = running.cursor.next;
        }
        let enabled = vring.enabled || !self.features.has(features::PROTOCOL_FEATURES);
        let started = enabled && !matches!(vring.kick, Kick::Unset) && ring.fault.is_none();
        ring.running = vring
            .addresses
            .filter(|_| started)
            .and_then(|addresses| RingMemory::new(&self.memory, vring.size, addresses))
            .map(|memory| Running::new(memory, vring.base, self.features, vring.call.clone()));
        let runs = ring.running.is_some();
        // Fair: a worker that waits for its turn gets it.
        parking_lot::MutexGuard::unlock_fair(ring);
        if runs && index % 2 == 1 {
            // What was made available before is not kicked for again.
            self.shared.bell(index / 2).ring();
        }
        self.count_active();
    }

    fn refresh_all(&mut self) {
        for index in 0..self.vrings.len() {
            self.refresh(index);
        }
    }

    fn runs(&self, index: usize) -> bool {
        self.shared.rings[index].lock().running.is_some()
    }

    fn count_active(&self) {
        let active = (0..self.vrings.len() / 2).take_while(|pair| self.runs(2 * pair)).count();
        self.shared.active.store(active, Relaxed);
    }

    /// Whether frames pass in both directions.
    fn passes(&self) -> bool {
        self.runs(0) && self.runs(1)
    }

    fn set_kick(&mut self, index: u8, kick: Kick) -> Result<()> {
        let vring = self.vring(u32::from(index))?;
        let old = std::mem::replace(&mut vring.kick, kick);
        // Only the guest's transmit rings are waited for.
        if index % 2 == 1 {
            let bell = self.shared.bell(usize::from(index) / 2);
            if let Kick::Event(old) = &old {
                bell.remove(old);
            }
            let new = &self.vrings[usize::from(index)].kick;
            if let Kick::Event(new) = new
                && let Err(e) = bell.add(new)
            {
                self.vrings[usize::from(index)].kick = Kick::Unset;
                return self.refuse(format!("a kick descriptor cannot be watched: {e}"));
            }
        }
        Ok(())
    }

    fn set_memory(&mut self, memory: GuestMemory) {
        // Rings whose memory is gone stop here; no lease of the old mapping is left when their locks are free. It is
        // unmapped last, outside of all locks, because that takes time.
        let old = std::mem::replace(&mut self.memory, Arc::new(memory));
        self.refresh_all();
        drop(old);
    }

    /// Forgets everything about the VM; returns why a ring broke, if one did.
    fn reset(&mut self) -> Option<super::ring::Fault> {
        self.features = Features::default();
        self.shared.set_features(self.features);
        let old = std::mem::take(&mut self.memory);
        for index in 0..self.vrings.len() {
            // It is there: the index is in range; unsetting cannot fail.
            let _ = self.set_kick(index as u8, Kick::Unset);
            self.vrings[index] = Vring::default();
        }
        self.refresh_all();
        drop(old);
        let faults: Vec<_> = self.shared.rings.iter().filter_map(|ring| ring.lock().fault.take()).collect();
        faults.first().copied()
    }
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: region.guest_phys_addr,
        user: region.user_addr,
        len: region.memory_size,
        offset: region.mmap_offset,
    }
}

/// Whether a descriptor is an eventfd, as far as can be seen: nothing else is ever written to.
fn is_eventfd(file: &File) -> bool {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .is_ok_and(|name| name.as_os_str() == "anon_inode:[eventfd]")
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        for vring in &mut self.vrings {
            vring.enabled = false;
        }
        self.refresh_all();
        for vring in &mut self.vrings {
            vring.base = 0;
        }
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered != 0 {
            return self.refuse(format!("features {:#x} were not offered", features & !self.offered));
        }
        self.features = Features(features);
        self.shared.set_features(self.features);
        self.refresh_all();
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mut memory = GuestMemory::default();
        for (region, file) in regions.iter().zip(files) {
            memory = match memory.with(spec(region), file) {
                Ok(memory) => memory,
                Err(e) => return self.refuse(format!("its memory is refused: {e}")),
            };
        }
        self.set_memory(memory);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        match u16::try_from(num) {
            Ok(size) if size.is_power_of_two() && size <= MAX_RING => self.vring(index)?.size = size,
            _ => return self.refuse(format!("a ring of {num} entries")),
        }
        self.refresh(index as usize);
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.vring(index)?.addresses = Some(RingAddresses { descriptors, available, used });
        self.refresh(index as usize);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let Ok(base) = u16::try_from(base) else { return self.refuse(format!("ring base {base}")) };
        // Stop first, so that the running position does not come back.
        self.vring(index)?;
        if let Some(running) = &mut self.shared.rings[index as usize].lock().running {
            running.cursor.next = base;
        }
        self.vring(index)?.base = base;
        self.refresh(index as usize);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?;
        self.set_kick(index as u8, Kick::Unset)?;
        self.refresh(index as usize);
        let vring = self.vring(index)?;
        vring.call = None;
        Ok(VhostUserVringState::new(index, u32::from(vring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.set_kick(index, file.map_or(Kick::Polled, Kick::Event))?;
        self.refresh(usize::from(index));
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        if let Some(file) = &file {
            if !is_eventfd(file) {
                return self.refuse("a call descriptor that is no eventfd".to_owned());
            }
            // A worker writes to it: a guest that does not read must not make it wait.
            let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL).unwrap_or_default());
            if fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).is_err() {
                return self.refuse("a call descriptor that cannot be set non-blocking".to_owned());
            }
        }
        let call = file.map(Arc::new);
        self.vring(u32::from(index))?.call.clone_from(&call);
        if let Some(running) = &mut self.shared.rings[usize::from(index)].lock().running {
            running.call = call;
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        self.vring(u32::from(index)).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        // In pairs for a network device.
        Ok(self.vrings.len() as u64 / 2)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index)?.enabled = enable;
        self.refresh(index as usize);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        match self.memory.with(spec(region), file) {
            Ok(memory) => self.set_memory(memory),
            Err(e) => return self.refuse(format!("its memory is refused: {e}")),
        }
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        match self.memory.without(spec(region)) {
            Some(memory) => self.set_memory(memory),
            None => return self.refuse("a region to remove that was never added".to_owned()),
        }
        Ok(())
    }

    // What follows belongs to protocol features that are not offered; the `vhost` crate refuses most of it by itself.

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidOperation("GET_CONFIG"))
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("SET_CONFIG"))
    }

    fn set_gpu_socket(&mut self, _backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("GPU_SET_SOCKET"))
    }

    fn get_shared_object(&mut self, _object: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("GET_SHARED_OBJECT"))
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("GET_INFLIGHT_FD"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("SET_INFLIGHT_FD"))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("SET_DEVICE_STATE_FD"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("CHECK_DEVICE_STATE"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("GET_SHMEM_CONFIG"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("SET_LOG_BASE"))
    }
}
