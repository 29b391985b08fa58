//! The requests that the `vhost` crate hands to the device.

use std::{fs::File, os::fd::AsFd, sync::Arc};

use nix::{
    fcntl::{FcntlArg, OFlag, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    message::{
        VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
        VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion,
        VhostUserVringAddrFlags, VhostUserVringState,
    },
};

use super::{
    device::{Device, Kick},
    features::Features,
    inflight::{Area, part_bytes},
    log::DirtyLog,
};
use crate::sys::{
    guest::{GuestMemory, MAX_REGIONS, MAX_RING, RegionSpec, RingAddresses},
    mapping::Mapping,
};

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
        self.stop()
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
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let vring = self.vring(index)?;
        vring.addresses = Some(RingAddresses { descriptors, available, used });
        vring.log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
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
        let mut ring = self.shared.rings[usize::from(index)].lock();
        if let Some(running) = &mut ring.running {
            running.call.clone_from(&call);
        }
        drop(ring);
        // An interrupt may have gone to the descriptor before: QEMU starts a ring with one that nobody listens to, and a
        // switch that was killed may have published without interrupting. The driver would wait for ever, because with
        // EVENT_IDX there is one interrupt per request; one too many does no harm. Clogged already: the ring will tell.
        if let Some(call) = call {
            let _ = super::call::call(&call);
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
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RARP
            | VhostUserProtocolFeatures::MTU
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::STATUS
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
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

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (rings, size) = (wanted.num_queues, wanted.queue_size);
        if usize::from(rings) > self.vrings.len() || size > MAX_RING {
            return self.refuse(format!("an inflight area for {rings} rings of {size} entries"));
        }
        let bytes = (usize::from(rings) * part_bytes(size)) as u64;
        // It cannot be cut off, so the VMM need not be trusted with it.
        let made = memfd_create("vswitch-inflight", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(std::io::Error::from)
            .and_then(|fd| {
                let file = File::from(fd);
                file.set_len(bytes)?;
                fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
                Ok(file)
            });
        match made {
            Ok(file) => Ok((VhostUserInflight::new(bytes, 0, rings, size), file)),
            Err(e) => self.refuse(format!("an inflight area cannot be made: {e}")),
        }
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let (rings, size) = (inflight.num_queues, inflight.queue_size);
        let area = Mapping::new(file, inflight.mmap_offset, inflight.mmap_size).map(|map| Area::new(map, rings, size));
        match area {
            Ok(Some(area)) => self.area = Some(area),
            Ok(None) => return self.refuse(format!("an inflight area that has no room for {rings} rings of {size}")),
            Err(e) => return self.refuse(format!("its inflight area is refused: {e}")),
        }
        self.refresh_all();
        Ok(())
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        match DirtyLog::new(file, log.mmap_offset, log.mmap_size) {
            Ok(log) => {
                let old = self.log.replace(Arc::new(log));
                self.refresh_all();
                // No ring has it any more.
                drop(old);
                Ok(())
            }
            Err(e) => self.refuse(format!("its log is refused: {e}")),
        }
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
}
