//! Two ethtool requests that no crate of ours has: a device's flags, read and set.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
/// Received TCP segments are merged by the device, so that what was sent cannot be told any more.
const ETH_FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

fn request(device: &str, command: u32, data: u32) -> io::Result<u32> {
    if device.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    // SAFETY: a plain system call; the result is checked and owned at once.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else has.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut value = Value { command, data };
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    ifreq.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: both requests read and write one ethtool_value, which outlives the call, as does the ifreq.
    if unsafe { libc::ioctl(fd.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data)
}

/// Whether a device of the calling thread's namespace has large-receive offload on. One that knows nothing of it has not.
///
/// # Errors
/// There is no such device.
pub fn lro(device: &str) -> io::Result<bool> {
    match request(device, ETHTOOL_GFLAGS, 0) {
        Ok(flags) => Ok(flags & ETH_FLAG_LRO != 0),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Turns a device's large-receive offload on or off; its other flags stay.
///
/// # Errors
/// There is no such device, or it refuses.
pub fn set_lro(device: &str, on: bool) -> io::Result<()> {
    let flags = request(device, ETHTOOL_GFLAGS, 0)?;
    let wanted = if on { flags | ETH_FLAG_LRO } else { flags & !ETH_FLAG_LRO };
    if wanted != flags {
        request(device, ETHTOOL_SFLAGS, wanted)?;
    }
    Ok(())
}
