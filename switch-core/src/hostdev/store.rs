//! Which virtual function belongs to whom: one file in the state directory, changed under a lock of its own, so that it
//! works beside a running switch and without one.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{PciAddress, Pf, Vf, discover};
use crate::{
    control::spec::{NetworkSpec, SpecError, check_name, network::ForwardMode},
    durable,
    mac::{MacAddr, mac_of},
};

/// A function that belongs to a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// Whose it is.
    pub name: String,
    /// The netdev of its physical function.
    pub pf: String,
    /// Its number there.
    pub index: u32,
    /// Where it was when it was given away.
    pub address: PciAddress,
    /// The address that the guest's device is to have.
    pub mac: MacAddr,
    /// The VLAN that the NIC is to put its frames into.
    pub vlan: Option<u16>,
    /// The network whose pool it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// libvirt takes it from its driver and gives it back.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub managed: bool,
    /// What libvirt hands it to: `vfio`, or a driver's model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_yes(value: &bool) -> bool {
    *value
}

/// Who is to have a function, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Whose it is to be.
    pub name: String,
    /// The address of the guest's device; one that belongs to the name unless given.
    pub mac: Option<MacAddr>,
    /// The VLAN that the NIC is to put its frames into.
    pub vlan: Option<u16>,
}

/// Why it cannot be done, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The name or a setting is wrong.
    #[error(transparent)]
    Wrong(#[from] SpecError),
    /// The name has one already.
    #[error("\"{0}\" has virtual function {1} of \"{2}\" already; give it back first: vswitch hostdev release {0}")]
    Taken(String, PciAddress, String),
    /// Another name has the address.
    #[error("address {0} belongs to \"{1}\" already; two devices of one network must not have the same")]
    SameMac(MacAddr, String),
    /// The name has none.
    #[error("\"{0}\" has no virtual function; see: vswitch hostdev list")]
    Unknown(String),
    /// There is no such NIC.
    #[error("\"{0}\" has no virtual functions; NICs that have: {1}")]
    NoPf(String, String),
    /// There are none yet.
    #[error("0 of {1} VFs of \"{0}\" are enabled: echo {1} > {2}")]
    NoneEnabled(String, u32, String),
    /// The hardware has none.
    #[error(
        "\"{0}\" offers no virtual functions (sriov_totalvfs is 0); turn SR-IOV on in the firmware of the NIC or of the machine"
    )]
    NoneOffered(String),
    /// All are given away.
    #[error(
        "all {1} enabled VFs of \"{0}\" are allocated ({2} can be enabled, after 0, which takes all away from their guests); see: vswitch hostdev list"
    )]
    Exhausted(String, u32, u32),
    /// All of a network's are given away.
    #[error(
        "every virtual function of network \"{0}\" is allocated ({1}); give one back: vswitch hostdev release NAME"
    )]
    PoolExhausted(String, String),
    /// A network names what is none, or not there.
    #[error("network \"{0}\": there is no virtual function at {1}; see: vswitch hostdev list")]
    NoVf(String, String),
    /// The network gives guests something else.
    #[error(
        "network \"{0}\" has no PCI devices (forward mode {1}); its members are ports: vswitch port add NAME=KIND,network={0}"
    )]
    NotHostdev(String, String),
    /// None of the others can be given to a guest.
    #[error(
        "no free VF of \"{0}\" has an IOMMU group of its own; boot with intel_iommu=on or amd_iommu=on, and see: vswitch hostdev list {0}"
    )]
    NoGroup(String),
    /// It was given away and is not there.
    #[error(
        "virtual function {index} of \"{pf}\", which belongs to \"{name}\", is not at {address} any more; enable VFs again ({mend}), or give it back: vswitch hostdev release {name}"
    )]
    Gone {
        /// Whose it is.
        name: String,
        /// The NIC.
        pf: String,
        /// The number of the function.
        index: u32,
        /// Where it was.
        address: PciAddress,
        /// What enables it.
        mend: String,
    },
    /// The disk or sysfs refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    allocations: Vec<Allocation>,
}

/// The functions of a host, and who has them.
#[derive(Debug)]
pub struct Pool {
    root: PathBuf,
    file: PathBuf,
    pfs: Vec<Pf>,
    allocations: Vec<Allocation>,
    /// Held while something is to be changed.
    _lock: Option<Flock<File>>,
}

impl Pool {
    /// Reads what there is, and who has it.
    ///
    /// # Errors
    /// sysfs or the state cannot be read.
    pub fn read(root: &Path, state: &Path) -> Result<Pool, PoolError> {
        Pool::open(root, state, None)
    }

    /// The same, to be changed: waits until nobody else changes it.
    ///
    /// # Errors
    /// sysfs or the state cannot be read, or the state directory cannot be made.
    pub fn lock(root: &Path, state: &Path) -> Result<Pool, PoolError> {
        let named =
            |e: io::Error| io::Error::new(e.kind(), format!("cannot use state directory {}: {e}", state.display()));
        fs::create_dir_all(state).map_err(named)?;
        let file = File::create(state.join("hostdev.lock")).map_err(named)?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| named(e.into()))?;
        Pool::open(root, state, Some(lock))
    }

    fn open(root: &Path, state: &Path, lock: Option<Flock<File>>) -> Result<Pool, PoolError> {
        let file = state.join("hostdev.json");
        let stored: Stored = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                io::Error::other(format!("{} is damaged ({e}); move it away to start empty", file.display()))
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Stored::default(),
            Err(e) => return Err(io::Error::new(e.kind(), format!("cannot read {}: {e}", file.display())).into()),
        };
        Ok(Pool { root: root.to_owned(), file, pfs: discover(root)?, allocations: stored.allocations, _lock: lock })
    }

    /// The NICs.
    #[must_use]
    pub fn pfs(&self) -> &[Pf] {
        &self.pfs
    }

    /// What is given away.
    #[must_use]
    pub fn allocations(&self) -> &[Allocation] {
        &self.allocations
    }

    /// Whose a function is.
    #[must_use]
    pub fn owner(&self, pf: &str, index: u32) -> Option<&Allocation> {
        self.allocations.iter().find(|a| a.pf == pf && a.index == index)
    }

    fn save(&self) -> Result<(), PoolError> {
        let stored = Stored { allocations: self.allocations.clone() };
        let text = serde_json::to_vec_pretty(&stored).map_err(io::Error::from)?;
        Ok(durable::replace(&self.file, &text)?)
    }

    /// The NIC of a name.
    ///
    /// # Errors
    /// There is none; the error names those that there are.
    pub fn pf(&self, name: &str) -> Result<&Pf, PoolError> {
        self.pfs.iter().find(|pf| pf.netdev == name).ok_or_else(|| {
            let known: Vec<&str> = self.pfs.iter().map(|pf| pf.netdev.as_str()).collect();
            let known = if known.is_empty() { "none on this host".to_owned() } else { known.join(", ") };
            PoolError::NoPf(name.to_owned(), known)
        })
    }

    fn switch_of(&self, pf: &str) -> String {
        self.root.join("class/net").join(pf).join("device/sriov_numvfs").display().to_string()
    }

    /// The NIC of a name, which has functions.
    ///
    /// # Errors
    /// There is none, or it has none; the error says how to enable them.
    pub fn enabled(&self, name: &str) -> Result<&Pf, PoolError> {
        let nic = self.pf(name)?;
        if nic.total == 0 {
            return Err(PoolError::NoneOffered(name.to_owned()));
        }
        if nic.vfs.is_empty() {
            return Err(PoolError::NoneEnabled(name.to_owned(), nic.total, self.switch_of(name)));
        }
        Ok(nic)
    }

    /// The functions of a network's pool that there are.
    #[must_use]
    pub fn of_network(&self, network: &NetworkSpec) -> Vec<(&Pf, &Vf)> {
        let forward = &network.forward;
        let all = || self.pfs.iter().flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf)));
        match &forward.pf {
            Some(name) => all().filter(|(pf, _)| pf.netdev == *name).collect(),
            // In the order of the definition.
            None => forward
                .addresses
                .iter()
                .filter_map(|address| all().find(|(_, vf)| Ok(vf.address) == address.parse()))
                .collect(),
        }
    }

    /// Gives the first free function of a NIC to a name, and remembers it. The pool was [locked](Self::lock).
    ///
    /// # Errors
    /// See [`PoolError`]; nothing has changed.
    pub fn allocate(&mut self, wish: &Wish, pf: &str) -> Result<Allocation, PoolError> {
        let mac = self.check_wish(wish)?;
        let nic = self.enabled(pf)?;
        let free: Vec<_> = nic.vfs.iter().filter(|vf| self.owner(pf, vf.index).is_none()).collect();
        if free.is_empty() {
            return Err(PoolError::Exhausted(pf.to_owned(), nic.enabled, nic.total));
        }
        let vf = free.into_iter().find(|vf| vf.is_separate()).ok_or_else(|| PoolError::NoGroup(pf.to_owned()))?;
        let allocation = Allocation {
            name: wish.name.clone(),
            pf: pf.to_owned(),
            index: vf.index,
            address: vf.address,
            mac,
            vlan: wish.vlan,
            network: None,
            managed: true,
            driver: None,
        };
        self.keep(allocation)
    }

    /// Gives the first free function of a network's pool to a name, with what the network says of it. The pool was [locked](Self::lock).
    ///
    /// # Errors
    /// See [`PoolError`]; nothing has changed.
    pub fn allocate_in(
        &mut self,
        wish: &Wish,
        network: &NetworkSpec,
        portgroup: Option<&str>,
    ) -> Result<Allocation, PoolError> {
        let mac = self.check_wish(wish)?;
        let forward = &network.forward;
        if forward.mode != ForwardMode::Hostdev {
            let mode = format!("{:?}", forward.mode).to_lowercase();
            return Err(PoolError::NotHostdev(network.name.clone(), mode));
        }
        let terms = network.terms(portgroup)?;
        if let Some(pf) = &forward.pf {
            self.enabled(pf)?;
        }
        let all = self.of_network(network);
        for address in &forward.addresses {
            if !all.iter().any(|(_, vf)| Ok(vf.address) == address.parse()) {
                return Err(PoolError::NoVf(network.name.clone(), address.clone()));
            }
        }
        let (taken, free): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(pf, vf)| self.owner(&pf.netdev, vf.index).is_some());
        if free.is_empty() {
            let owner = |(pf, vf): &(&Pf, &Vf)| {
                let owner = self.owner(&pf.netdev, vf.index).map_or("?", |a| a.name.as_str());
                format!("{} to {owner}", vf.address)
            };
            let taken: Vec<String> = taken.iter().map(owner).collect();
            return Err(PoolError::PoolExhausted(network.name.clone(), taken.join(", ")));
        }
        let nic = free[0].0.netdev.clone();
        let best = free.into_iter().find(|(_, vf)| vf.is_separate());
        let (pf, vf) = best.ok_or(PoolError::NoGroup(nic))?;
        let allocation = Allocation {
            name: wish.name.clone(),
            pf: pf.netdev.clone(),
            index: vf.index,
            address: vf.address,
            mac,
            vlan: wish.vlan.or_else(|| Some(terms.vlan?.tags.first()?.id)),
            network: Some(network.name.clone()),
            managed: forward.managed,
            driver: forward.driver.clone(),
        };
        self.keep(allocation)
    }

    /// Checks that a name can have a function; returns the address of its device.
    fn check_wish(&self, wish: &Wish) -> Result<MacAddr, PoolError> {
        let Wish { name, mac, vlan } = wish;
        check_name("guest", name)?;
        if let Some(have) = self.allocations.iter().find(|a| a.name == *name) {
            return Err(PoolError::Taken(name.clone(), have.address, have.pf.clone()));
        }
        let mac = mac.unwrap_or_else(|| mac_of(name));
        if mac.is_multicast() || mac == MacAddr::ZERO {
            return Err(
                SpecError(format!("mac {mac}: a device has a unicast address, for example 02:00:00:00:00:01")).into()
            );
        }
        if let Some(other) = self.allocations.iter().find(|a| a.mac == mac) {
            return Err(PoolError::SameMac(mac, other.name.clone()));
        }
        if let Some(vid) = vlan.filter(|vid| !(1..=4094).contains(vid)) {
            return Err(SpecError(format!("vlan {vid}: use 1 to 4094")).into());
        }
        Ok(mac)
    }

    fn keep(&mut self, allocation: Allocation) -> Result<Allocation, PoolError> {
        self.allocations.push(allocation.clone());
        self.save()?;
        Ok(allocation)
    }

    /// Takes a name's function back. The pool was [locked](Self::lock).
    ///
    /// # Errors
    /// The name has none, or the disk refuses.
    pub fn release(&mut self, name: &str) -> Result<Allocation, PoolError> {
        let at = self.allocations.iter().position(|a| a.name == name);
        let at = at.ok_or_else(|| PoolError::Unknown(name.to_owned()))?;
        let allocation = self.allocations.remove(at);
        self.save()?;
        Ok(allocation)
    }

    /// What belongs to a name, if the function is still there.
    ///
    /// # Errors
    /// The name has none, or it is there no more.
    pub fn find(&self, name: &str) -> Result<&Allocation, PoolError> {
        let found = self.allocations.iter().find(|a| a.name == name);
        let found = found.ok_or_else(|| PoolError::Unknown(name.to_owned()))?;
        let nic = self.pfs.iter().find(|pf| pf.netdev == found.pf);
        let there =
            nic.is_some_and(|nic| nic.vfs.iter().any(|vf| vf.index == found.index && vf.address == found.address));
        if there {
            return Ok(found);
        }
        let count = nic.map_or(found.index + 1, |nic| nic.total);
        Err(PoolError::Gone {
            name: name.to_owned(),
            pf: found.pf.clone(),
            index: found.index,
            address: found.address,
            mend: format!("echo {count} > {}", self.switch_of(&found.pf)),
        })
    }
}

impl Allocation {
    /// The element for libvirt's `<devices>`; libvirt sets address and VLAN when the guest starts, and takes the function
    /// from its driver and gives it back.
    #[must_use]
    pub fn libvirt_xml(&self) -> String {
        let PciAddress { domain, bus, slot, function } = self.address;
        let managed = if self.managed { "yes" } else { "no" };
        let driver = self.driver.as_ref().map_or_else(String::new, |driver| {
            let key = if driver == "vfio" { "name" } else { "model" };
            format!("  <driver {key}='{driver}'/>\n")
        });
        let vlan = self.vlan.map_or_else(String::new, |vid| format!("  <vlan>\n    <tag id='{vid}'/>\n  </vlan>\n"));
        format!(
            "<interface type='hostdev' managed='{managed}'>\n{driver}  <mac address='{}'/>\n  <source>\n    \
             <address type='pci' domain='0x{domain:04x}' bus='0x{bus:02x}' slot='0x{slot:02x}' function='0x{function}'/>\n  \
             </source>\n{vlan}</interface>\n",
            self.mac
        )
    }
}
