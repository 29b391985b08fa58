//! `macvtap` ports: a second address on a NIC, whose frames come to the switch and not to the host.
//!
//! The kernel stacks a macvtap on a device and gives its frames to whoever opens its character device, with virtio-net
//! headers, as a TAP does; from there on it is a TAP's receive and transmit half. What differs is the filter below:
//!
//! - In `bridge`, `private` and `vepa` mode the device below hands over what is for the macvtap's *own* address, and
//!   groups. Frames of any source leave, but answers to another address than `mac=` do not come back: behind such a port
//!   stands one station. All groups are asked for (`allmulticast`), since its memberships are not known here.
//! - In `passthrough` mode the device below is promiscuous and everything it hears comes in: any number of stations.
//!
//! A macvtap outlives its descriptors. What was made here carries [`MARK`] as its alias, so that a switch that was killed
//! finds it again, and removes it when the port is closed. One without the mark is adopted and left behind.
//!
//! A descriptor whose macvtap has gone away says so neither when it is read nor when it is written (Linux 6.18: the
//! former finds nothing for ever, the latter succeeds), so the control side watches the device's index.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod},
};

use super::{Opened, netdev::Netdev, tap};
use crate::{
    frame::offload::Capabilities,
    link::{Link, LinkChange, LinkSpace, Links, MacVtapMode},
    mac::MacAddr,
    netns,
    sys::tap as sys,
};

/// The alias of a macvtap that a switch made.
pub const MARK: &str = "made by vswitch";

/// How a macvtap is made or adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacvtapConfig {
    /// Its own name.
    pub name: String,
    /// The device below; `None`: only an existing macvtap is adopted.
    pub device: Option<String>,
    /// The namespace that both are in.
    pub netns: Option<String>,
    /// How it treats its siblings.
    pub mode: MacVtapMode,
    /// Queues (pairs).
    pub queues: u16,
    /// Checksums and segmentation may be left to the device below.
    pub offload: bool,
    /// MTU to set.
    pub mtu: Option<u32>,
    /// Address to set.
    pub mac: Option<MacAddr>,
}

/// Why a macvtap cannot be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum MacvtapError {
    /// No device of the name, and none given to make one on.
    #[error(
        "there is no macvtap \"{0}\" to be adopted; name the device to make it on, for example device=eth0, or list devices with: ip link"
    )]
    Nothing(String),
    /// The device below is not there.
    #[error("there is no device \"{1}\" to make macvtap \"{0}\" on; list devices with: ip link")]
    NoLower(String, String),
    /// The name belongs to another device.
    #[error("device \"{0}\" exists and is {1}; give the port another name, or delete it with: ip link del {0}")]
    Taken(String, String),
    /// The device below carries something else.
    #[error(
        "cannot make macvtap \"{0}\" on \"{1}\": it is a bridge's port, or carries macvlans that exclude each other (passthrough takes the device alone); see: ip -d link"
    )]
    Busy(String, String),
    /// Not permitted.
    #[error(
        "cannot make or open macvtap \"{0}\": permission denied; run as root or grant CAP_NET_ADMIN and CAP_SYS_ADMIN"
    )]
    Permission(String),
    /// The kernel has no macvtap.
    #[error("cannot make macvtap \"{0}\": this kernel has no macvtap; load it with: modprobe macvtap")]
    Unknown(String),
    /// Anything else.
    #[error("cannot open macvtap \"{0}\": {1}")]
    Other(String, io::Error),
}

/// Makes or adopts a macvtap, and opens it.
///
/// # Errors
/// See [`MacvtapError`]. A device that was made on the way is gone again.
pub fn open(config: &MacvtapConfig, links: &Links) -> Result<Opened, MacvtapError> {
    let name = &config.name;
    let other = |e: io::Error| match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => MacvtapError::Permission(name.clone()),
        _ => MacvtapError::Other(name.clone(), e),
    };
    let space = links.space(config.netns.as_deref()).map_err(other)?;
    let (link, made) = find_or_make(config, &space)?;
    let change = LinkChange {
        up: Some(true),
        mtu: config.mtu,
        mac: config.mac.filter(|mac| link.mac != Some(*mac)),
        all_multicast: Some(true),
        alias: made.is_some().then(|| MARK.to_owned()),
    };
    space.change(name, &change).map_err(other)?;
    let files = open_queues(config, link.index).map_err(other)?;
    let mut queues = Vec::with_capacity(files.len());
    for file in files {
        use std::os::fd::AsRawFd;
        let uso = sys::set_offloads(file.as_raw_fd(), config.offload).map_err(other)?;
        let capabilities = if config.offload { tap::capabilities(true, uso) } else { Capabilities::NONE };
        queues.push(tap::vnet_queue(file, capabilities));
    }
    let control = Netdev {
        space,
        device: name.clone(),
        index: Some(link.index),
        wire: true,
        on_link: None,
        keep: Box::new(made),
    };
    Ok(Opened { queues, control: Box::new(control) })
}

/// A device to be removed when the port is closed.
struct Made {
    space: Arc<LinkSpace>,
    index: u32,
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(e) = self.space.remove(self.index) {
            // It has gone away already, mostly with the device below.
            tracing::debug!("a macvtap was not removed: {e}");
        }
    }
}

fn find_or_make(config: &MacvtapConfig, space: &Arc<LinkSpace>) -> Result<(Link, Option<Made>), MacvtapError> {
    let name = &config.name;
    let other = |e: io::Error| MacvtapError::Other(name.clone(), e);
    let lower = match &config.device {
        Some(device) => {
            let found = space.get(device).map_err(other)?;
            Some(found.ok_or_else(|| MacvtapError::NoLower(name.clone(), device.clone()))?)
        }
        None => None,
    };
    if let Some(link) = space.get(name).map_err(other)? {
        let ours = link.alias.as_deref() == Some(MARK);
        let fits = link.macvtap == Some(config.mode) || (config.device.is_none() && link.macvtap.is_some());
        let in_place = lower.as_ref().is_none_or(|lower| link.lower == Some(lower.index));
        match (fits && in_place, ours) {
            (true, true) => return Ok((link.clone(), Some(Made { space: Arc::clone(space), index: link.index }))),
            (true, false) => return Ok((link, None)),
            // Left by a switch that was killed, and wanted otherwise since.
            (false, true) => space.remove(link.index).map_err(other)?,
            (false, false) => return Err(MacvtapError::Taken(name.clone(), what_it_is(&link, in_place))),
        }
    }
    let Some(lower) = lower else { return Err(MacvtapError::Nothing(name.clone())) };
    let link = space.add_macvtap(name, lower.index, config.mode).map_err(|e| match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => MacvtapError::Permission(name.clone()),
        Some(libc::EBUSY | libc::EINVAL) => MacvtapError::Busy(name.clone(), lower.name.clone()),
        Some(libc::EOPNOTSUPP) => MacvtapError::Unknown(name.clone()),
        _ => MacvtapError::Other(name.clone(), e),
    })?;
    let made = Made { space: Arc::clone(space), index: link.index };
    Ok((link, Some(made)))
}

fn what_it_is(link: &Link, in_place: bool) -> String {
    match (link.macvtap, &link.kind) {
        (Some(_), _) if !in_place => "a macvtap on another device".to_owned(),
        (Some(mode), _) => format!("a macvtap in another mode ({mode:?})").to_lowercase(),
        (None, Some(kind)) => format!("no macvtap but a {kind} device"),
        (None, None) => "no macvtap".to_owned(),
    }
}

/// Opens the character device as often as there are queues.
fn open_queues(config: &MacvtapConfig, index: u32) -> io::Result<Vec<File>> {
    let open_all = |node: &Path| (0..config.queues).map(|_| sys::open_macvtap(node)).collect();
    let number = |text: &str| -> Option<(u64, u64)> {
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let attribute = PathBuf::from(format!("/sys/class/net/{}/tap{index}/dev", config.name));
    // The usual node, if it is this device's: its name is an index, which devices of other namespaces may have as well.
    if config.netns.is_none()
        && let Some((major, minor)) = fs::read_to_string(&attribute).ok().as_deref().and_then(number)
    {
        let node = PathBuf::from(format!("/dev/tap{index}"));
        let is_it = |m: fs::Metadata| m.file_type().is_char_device() && m.rdev() == makedev(major, minor);
        if fs::metadata(&node).is_ok_and(is_it) {
            return open_all(&node);
        }
    }
    // Otherwise one of our own, on a file system that only this thread sees and that goes with it. /sys shows the devices
    // of the namespace in which it was mounted, so that is done anew as well.
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                netns::enter(config.netns.as_deref())?;
                unshare(CloneFlags::CLONE_NEWNS)?;
                let none = None::<&str>;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
                mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::MS_RDONLY, none)?;
                let text = fs::read_to_string(&attribute)?;
                let (major, minor) = number(&text).ok_or(io::ErrorKind::InvalidData)?;
                let private = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
                mount(Some("tmpfs"), "/sys", Some("tmpfs"), private, Some("size=4k,mode=0700"))?;
                let node = Path::new("/sys/tap");
                mknod(node, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(major, minor))?;
                open_all(node)
            })
            .join()
            .map_err(|_| io::Error::other("the thread that opens a macvtap panicked"))?
    })
}
