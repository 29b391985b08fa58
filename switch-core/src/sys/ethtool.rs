//! Ethtool requests that no crate of ours has: a device's flags, read and set, and how many queues it has.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
/// Received TCP segments are merged by the device, so that what was sent cannot be told any more.
const ETH_FLAG_LRO: u32 = 1 << 15;
/// VLAN tags of received frames are taken off by the device and told beside them.
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

fn request(device: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut value = Value { command, data };
    // SAFETY: both requests read and write one ethtool_value.
    unsafe { call(device, &mut value) }?;
    Ok(value.data)
}

/// Has the kernel carry out the request that `argument` begins with.
///
/// # Safety
/// The request reads and writes one `T` at most, of which any bytes are valid.
unsafe fn call<T>(device: &str, argument: &mut T) -> io::Result<()> {
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
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    ifreq.ifr_ifru.ifru_data = std::ptr::from_mut(argument).cast();
    // SAFETY: the argument is what the caller promises and outlives the call, as does the ifreq.
    if unsafe { libc::ioctl(fd.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How many queues a device of the calling thread's namespace receives on; `None`: it does not say.
///
/// # Errors
/// There is no such device.
pub fn receive_queues(device: &str) -> io::Result<Option<u32>> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    // SAFETY: the request reads and writes one ethtool_channels.
    match unsafe { call(device, &mut channels) } {
        Ok(()) => Ok(Some(channels.rx + channels.combined)),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a device of the calling thread's namespace has large-receive offload on. One that knows nothing of it has not.
///
/// # Errors
/// There is no such device.
pub fn lro(device: &str) -> io::Result<bool> {
    has_flag(device, ETH_FLAG_LRO)
}

/// Whether a device of the calling thread's namespace takes VLAN tags off what it receives. One that knows nothing of it
/// does not.
///
/// # Errors
/// There is no such device.
pub fn rx_vlan(device: &str) -> io::Result<bool> {
    has_flag(device, ETH_FLAG_RXVLAN)
}

fn has_flag(device: &str, flag: u32) -> io::Result<bool> {
    match request(device, ETHTOOL_GFLAGS, 0) {
        Ok(flags) => Ok(flags & flag != 0),
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
