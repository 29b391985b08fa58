//! The device that one VM sees: what its VMM has said, carried out on the rings.
//!
//! Requests are collected per ring, and after each one the ring is built anew from what is known, under its lock: a ring
//! runs when its size, addresses, memory and kick are known and it is enabled, and is stopped otherwise. The position in
//! the available ring survives that.

use std::{
    fs::File,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use vhost::vhost_user::{Error, Result, VhostUserProtocolFeatures};

use super::{
    Shared,
    features::{self, Features},
    inflight::Area,
    log::{DirtyLog, RingLog},
    ring::{Fault, Running, Start},
};
use crate::sys::guest::{GuestMemory, RingAddresses, RingMemory};

/// The least MTU that IPv4 can live with.
const MIN_MTU: u16 = 68;

/// How the guest says that it has put something into a ring.
#[derive(Default)]
pub(super) enum Kick {
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
pub(super) struct Vring {
    pub size: u16,
    pub addresses: Option<RingAddresses>,
    /// Where writes to the used ring are logged, if they are.
    pub log: Option<u64>,
    /// The next chain to take, while the ring is stopped.
    pub base: u16,
    pub kick: Kick,
    pub call: Option<Arc<File>>,
    pub enabled: bool,
}

/// The device that a VM sees through one connection.
pub(super) struct Device {
    pub shared: Arc<Shared>,
    pub offered: u64,
    pub features: Features,
    pub memory: Arc<GuestMemory>,
    pub vrings: Vec<Vring>,
    /// What was agreed on between VMM and device.
    pub protocol: VhostUserProtocolFeatures,
    /// The log of dirty pages; written while `LOG_ALL` is among the features.
    pub log: Option<Arc<DirtyLog>>,
    /// Where chains in flight are kept.
    pub area: Option<Area>,
    /// The status field of the virtio device (virtio 1.3 §2.1).
    status: u8,
    /// What the VMM tells the guest, if it asked.
    mtu: Option<u16>,
    /// What to say of a refused request.
    pub complaint: Option<String>,
}

impl Device {
    pub fn new(shared: Arc<Shared>, offered: u64) -> Device {
        let vrings = shared.rings.iter().map(|_| Vring::default()).collect();
        Device {
            shared,
            offered,
            features: Features::default(),
            memory: Arc::default(),
            vrings,
            protocol: VhostUserProtocolFeatures::empty(),
            log: None,
            area: None,
            status: 0,
            mtu: None,
            complaint: None,
        }
    }

    pub fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        self.vrings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    pub fn refuse<T>(&mut self, why: String) -> Result<T> {
        self.complaint = Some(why);
        Err(Error::InvalidParam)
    }

    /// Brings one ring to what is known of it. A running ring goes on where it was.
    pub fn refresh(&mut self, index: usize) {
        let vring = &mut self.vrings[index];
        let mut ring = self.shared.rings[index].lock();
        if let Some(running) = ring.running.take() {
            vring.base = running.cursor.next;
        }
        let enabled = vring.enabled || !self.features.has(features::PROTOCOL_FEATURES);
        let started = enabled && !matches!(vring.kick, Kick::Unset) && ring.fault.is_none();
        let log = self.log.as_ref().filter(|_| self.features.has(features::LOG_ALL));
        ring.running = vring
            .addresses
            .filter(|_| started)
            .and_then(|addresses| RingMemory::new(&self.memory, vring.size, addresses))
            .map(|memory| {
                Running::start(Start {
                    memory,
                    next: vring.base,
                    features: self.features,
                    call: vring.call.clone(),
                    log: log.map(|log| RingLog::new(Arc::clone(log), vring.log)),
                    inflight: self.area.as_ref().and_then(|area| area.ring(index, vring.size)),
                })
            });
        if ring.running.as_mut().is_some_and(Running::lost_memory) {
            ring.fail(Fault::Memory);
            self.shared.broke();
        }
        let runs = ring.running.is_some();
        // Fair: a worker that waits for its turn gets it.
        parking_lot::MutexGuard::unlock_fair(ring);
        if runs && index % 2 == 1 {
            // What was made available before is not kicked for again.
            self.shared.bell(index / 2).ring();
        }
        self.count_active();
    }

    pub fn refresh_all(&mut self) {
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
    pub fn passes(&self) -> bool {
        self.runs(0) && self.runs(1)
    }

    pub fn set_kick(&mut self, index: u8, kick: Kick) -> Result<()> {
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

    pub fn set_memory(&mut self, memory: GuestMemory) {
        // Rings whose memory is gone stop here; no lease of the old mapping is left when their locks are free. It is
        // unmapped last, outside of all locks, because that takes time.
        let old = std::mem::replace(&mut self.memory, Arc::new(memory));
        self.refresh_all();
        drop(old);
    }

    /// Has a station announced, if that was agreed on.
    pub fn announce(&mut self, mac: [u8; 6]) -> Result<()> {
        self.expect(VhostUserProtocolFeatures::RARP)?;
        self.shared.announce(mac);
        Ok(())
    }

    /// Takes an MTU that every domain of the port carries.
    pub fn set_mtu(&mut self, mtu: u64) -> Result<()> {
        self.expect(VhostUserProtocolFeatures::MTU)?;
        let limit = self.shared.mtu_limit();
        match u16::try_from(mtu) {
            Ok(taken) if taken >= MIN_MTU && mtu <= limit => self.mtu = Some(taken),
            _ => {
                tracing::warn!("an MTU of {mtu} for a VM is refused: its domains carry {MIN_MTU} to {limit}");
                return Err(Error::InvalidParam);
            }
        }
        Ok(())
    }

    /// Takes the device status; 0 is a reset. It stops the rings as `GET_VRING_BASE` does, but their positions stay: QEMU
    /// 7.2 sends it first and then asks for them.
    pub fn set_status(&mut self, status: u64) -> Result<()> {
        self.expect(VhostUserProtocolFeatures::STATUS)?;
        self.status = u8::try_from(status).map_err(|_| Error::InvalidParam)?;
        if status == 0 {
            for index in 0..self.vrings.len() {
                self.set_kick(index as u8, Kick::Unset)?;
                self.refresh(index);
            }
        }
        Ok(())
    }

    /// The device status.
    pub fn status(&self) -> Result<u8> {
        self.expect(VhostUserProtocolFeatures::STATUS)?;
        Ok(self.status)
    }

    fn expect(&self, feature: VhostUserProtocolFeatures) -> Result<()> {
        if self.protocol.contains(feature) { Ok(()) } else { Err(Error::InactiveOperation(feature)) }
    }

    /// The device as the driver found it: no ring runs, all begin at their beginning.
    pub fn stop(&mut self) -> Result<()> {
        self.status = 0;
        for vring in &mut self.vrings {
            vring.enabled = false;
        }
        self.refresh_all();
        for vring in &mut self.vrings {
            vring.base = 0;
        }
        Ok(())
    }

    /// Forgets everything about the VM; returns why a ring broke, if one did.
    pub fn reset(&mut self) -> Option<Fault> {
        self.features = Features::default();
        self.area = None;
        self.shared.set_features(self.features);
        let old = std::mem::take(&mut self.memory);
        for index in 0..self.vrings.len() {
            // It is there: the index is in range; unsetting cannot fail.
            let _ = self.set_kick(index as u8, Kick::Unset);
            self.vrings[index] = Vring::default();
        }
        self.refresh_all();
        drop((old, self.log.take()));
        let faults: Vec<_> = self.shared.rings.iter().filter_map(|ring| ring.lock().fault.take()).collect();
        faults.first().copied()
    }
}
