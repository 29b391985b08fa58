//! Virtual functions of SR-IOV NICs: what there are, and whose they are.
//!
//! No frame of such a function passes through the switch: the NIC's own switch carries it, and the guest talks to hardware.
//! What is done here is to find the functions, give each to one name, remember that, and write down what libvirt needs to
//! hand it over. Nothing is configured: libvirt sets address and VLAN on the physical function when the guest starts.
//!
//! Everything is read from sysfs below a root, which is `/sys` or a recorded tree (Documentation/ABI/testing/sysfs-bus-pci):
//!
//! ```text
//! class/net/PF/device/sriov_totalvfs, sriov_numvfs     how many there can be, and are
//! class/net/PF/device/virtfnN -> ../DDDD:BB:SS.F       the N-th function
//! bus/pci/devices/DDDD:BB:SS.F/physfn -> ../…          back to the physical one
//!                             /driver, iommu_group -> …, net/NAME
//! ```

mod store;

use std::{fmt, fs, io, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

pub use store::{Allocation, Pool, PoolError, Wish};

/// Where a PCI function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// The domain (segment).
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The slot, up to 31.
    pub slot: u8,
    /// The function, up to 7.
    pub function: u8,
}

impl FromStr for PciAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<PciAddress, String> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let mut parts = rest.split(':');
            let (domain, bus, slot) = (parts.next()?, parts.next()?, parts.next()?);
            let hex = |t: &str| u32::from_str_radix(t, 16).ok();
            let address = PciAddress {
                domain: hex(domain)?,
                bus: hex(bus)?.try_into().ok()?,
                slot: hex(slot)?.try_into().ok()?,
                function: hex(function)?.try_into().ok()?,
            };
            (parts.next().is_none() && address.slot < 32 && address.function < 8).then_some(address)
        };
        parse().ok_or_else(|| format!("\"{text}\" is no PCI address, for example 0000:03:10.1"))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.slot, self.function)
    }
}

impl TryFrom<String> for PciAddress {
    type Error = String;

    fn try_from(text: String) -> Result<PciAddress, String> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> String {
        address.to_string()
    }
}

/// A virtual function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vf {
    /// Its number on its physical function.
    pub index: u32,
    /// Where it is.
    pub address: PciAddress,
    /// The driver that has it: the NIC's, or `vfio-pci` while a guest has it.
    pub driver: Option<String>,
    /// Its netdev, while the NIC's driver has it.
    pub netdev: Option<String>,
    /// Its IOMMU group; without one it cannot be given to a guest.
    pub iommu_group: Option<u32>,
    /// Other devices are in its group, which would have to go to the same guest.
    pub shares_group: bool,
}

impl Vf {
    /// Whether it can be given to a guest alone.
    #[must_use]
    pub fn is_separate(&self) -> bool {
        self.iommu_group.is_some() && !self.shares_group
    }
}

/// A NIC with virtual functions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pf {
    /// Its netdev.
    pub netdev: String,
    /// Where it is.
    pub address: PciAddress,
    /// Functions that there can be.
    pub total: u32,
    /// Functions that there are.
    pub enabled: u32,
    /// These, by number.
    pub vfs: Vec<Vf>,
}

/// The last part of what a symbolic link points to.
fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

fn number(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn entries(path: &Path) -> Vec<String> {
    let Ok(directory) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> = directory.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// All NICs with virtual functions, by name.
///
/// # Errors
/// There is no sysfs at `root`.
pub fn discover(root: &Path) -> io::Result<Vec<Pf>> {
    let class = root.join("class/net");
    fs::read_dir(&class)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot read network devices from {}: {e}", class.display())))?;
    Ok(entries(&class).into_iter().filter_map(|netdev| physical(root, netdev)).collect())
}

fn physical(root: &Path, netdev: String) -> Option<Pf> {
    let device = root.join("class/net").join(&netdev).join("device");
    let total = number(&device.join("sriov_totalvfs"))?;
    let address: PciAddress = link_name(&device)?.parse().ok()?;
    let mut vfs: Vec<Vf> = entries(&device)
        .iter()
        .filter_map(|entry| {
            let index = entry.strip_prefix("virtfn")?.parse().ok()?;
            virtual_function(root, index, address, link_name(&device.join(entry))?.parse().ok()?)
        })
        .collect();
    vfs.sort_by_key(|vf| vf.index);
    Some(Pf { netdev, address, total, enabled: number(&device.join("sriov_numvfs")).unwrap_or(0), vfs })
}

fn virtual_function(root: &Path, index: u32, physical: PciAddress, address: PciAddress) -> Option<Vf> {
    let device = root.join("bus/pci/devices").join(address.to_string());
    // One that is just being taken away has no way back any more.
    if link_name(&device.join("physfn"))?.parse::<PciAddress>() != Ok(physical) {
        return None;
    }
    Some(Vf {
        index,
        address,
        driver: link_name(&device.join("driver")),
        netdev: entries(&device.join("net")).into_iter().next(),
        iommu_group: link_name(&device.join("iommu_group")).and_then(|name| name.parse().ok()),
        shares_group: entries(&device.join("iommu_group/devices")).len() > 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_sysfs_writes_them() {
        let address: PciAddress = "0000:03:1f.7".parse().expect("an address");
        assert_eq!(address, PciAddress { domain: 0, bus: 3, slot: 31, function: 7 });
        assert_eq!(address.to_string(), "0000:03:1f.7");
        assert_eq!("10000:e1:00.0".parse::<PciAddress>().expect("VMD domains are long").to_string(), "10000:e1:00.0");
        for text in ["", "0000:03:20.0", "0000:03:10.8", "03:10.1", "0000:03:10", "0000:103:10.1", "0:0:0:0.0", "net"] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
